"""What does the calculation add? One model, the same folds, and one set of inputs after the other.

The model is a Gaussian process in which each group of features has a length scale of its own
(:class:`ecdlib.models.group_gpr.GroupGPR`), so that a group that says nothing can be ignored. Whatever is fitted,
principal components and length scales too, is fitted to the training part of each fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pymatgen.core import Composition, Element
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer, StandardScaler

from ecdlib.base.pieces import in_pieces
from ecdlib.base.resources import data_file
from ecdlib.base.settings import Field, Parameters
from ecdlib.data.tables import load_crystals, load_matbench_elasticity
from ecdlib.density.core import Floats
from ecdlib.density.store import load_densities, load_selection
from ecdlib.features.composition import magpie
from ecdlib.features.crystal import bundled_crystal_features
from ecdlib.features.deformation import bundled_state_features
from ecdlib.features.invariants import CONVENTIONS
from ecdlib.features.potential import load_potential, tensor_features
from ecdlib.learn.protocol import Fit, fold_numbers, folds_of, joined, run_fits
from ecdlib.learn.result import TEST, Result, finished, load_result
from ecdlib.models.group_gpr import GroupGPR

#: What a model may see: names of blocks.
INPUTS: dict[str, tuple[str, ...]] = {
    "superposed": ("superposed",),
    "self-consistent": ("self-consistent",),
    "deformation": ("deformation",),
    "both densities": ("superposed", "self-consistent"),
    "superposed + deformation": ("superposed", "deformation"),
    "composition": ("composition",),
    "composition + volume": ("composition", "volume"),
    "superposed + composition": ("superposed", "composition"),
    "self-consistent + composition": ("self-consistent", "composition"),
    "both densities + composition": ("superposed", "self-consistent", "composition"),
    "potential": ("potential",),
    "potential + composition": ("potential", "composition"),
    "superposed + composition + potential": ("superposed", "composition", "potential"),
    "self-consistent + composition + potential": ("self-consistent", "composition", "potential"),
    "superposed + deformation + composition": ("superposed", "deformation", "composition"),
    "superposed + fluctuation": ("superposed", "fluctuation"),
    "superposed + fluctuation + composition": ("superposed", "fluctuation", "composition"),
    "superposed + descriptors": ("superposed", "descriptors"),
    "superposed + descriptors + composition": ("superposed", "descriptors", "composition"),
}
#: Properties, in the order of the results' columns.
TARGETS = ("bulk_modulus", "shear_modulus", "total_energy")
#: A block is cut into groups of columns, again and again in these widths; of each, standardized, so many principal
#: components are kept.
GROUPS: dict[str, tuple[tuple[int, int], ...]] = {
    "superposed": ((121, 25), (12, 12)),
    "self-consistent": ((121, 25), (12, 12)),
    "deformation": ((121, 25), (12, 12)),
    "fluctuation": ((121, 25), (12, 12)),
    "composition": ((132, 40),),
    "volume": ((1, 1),),
    "potential": ((10, 10), (10, 10), (4, 4)),
    "descriptors": ((55, 40),),
}
#: Standardized features are cut off here: one that hardly varies in the training part may be anything.
LIMIT = 6.0
if TYPE_CHECKING:
    InputName = str
else:
    InputName = Literal[tuple(INPUTS)]


class StudyParameters(Parameters):
    """Which crystals, which of them are left out together, and what the model sees."""

    tiny: ClassVar[dict[str, Any]] = {"folds": 2, "subset": 60, "steps": 3}

    crystals: Literal["cubic-892", "cubic-all", "all", "vasp"] = Field(
        "cubic-892",
        description="of the bundled densities the book's cubic ones, all cubic ones, or all; or those with descriptors "
        "of VASP's densities",
    )
    scheme: Literal["random", "prototypes", "pairs", "elements"] = Field(
        "random",
        description="what is left out of the training part: crystals drawn at random; whole prototypes; all crystals "
        "that hold one of some pairs of elements; all that hold one of some elements",
    )
    folds: int = Field(
        10, ge=2, le=100, description="parts that crystals, prototypes, pairs or elements are dealt into"
    )
    inputs: tuple[InputName, ...] = Field(
        ("superposed", "self-consistent"), description="sets of inputs, each a model of its own", min_length=1
    )
    train: int = Field(0, ge=0, description="training crystals, drawn at random from the training part; 0: all")
    subset: int = Field(250, ge=30, description="training crystals that the length scales are fitted to")
    steps: int = Field(15, ge=1, description="of the optimizer of the length scales")


class Reduced:
    """Blocks of features side by side, each group of columns reduced (:data:`GROUPS`), as fitted to some crystals."""

    def __init__(self, blocks: Mapping[str, Floats], names: Sequence[str]):
        self.parts: list[tuple[str, slice, Any]] = []
        groups: list[int] = []
        for name in names:
            first = 0
            for width, kept in cycle(GROUPS[name]):
                columns = slice(first, first := first + width)
                scaler: Any = StandardScaler()
                if name == "descriptors":  # of very different distributions
                    scaler = QuantileTransformer(n_quantiles=min(200, len(blocks[name])), output_distribution="normal")
                reducer = make_pipeline(
                    scaler,
                    SimpleImputer(strategy="constant", fill_value=0.0),
                    FunctionTransformer(np.clip, kw_args={"a_min": -LIMIT, "a_max": LIMIT}),
                    PCA(min(kept, len(blocks[name]) - 1), random_state=0),
                )
                size = reducer.fit_transform(blocks[name][:, columns]).shape[1]
                groups += [len(self.parts)] * size
                self.parts.append((name, columns, reducer))
                if first >= blocks[name].shape[1]:
                    break
        self.groups = np.array(groups)

    def __call__(self, blocks: Mapping[str, Floats]) -> Floats:
        """``(n, features)``."""
        return np.hstack([reducer.transform(blocks[name][:, of]) for name, of, reducer in self.parts])


def fit_and_predict(
    blocks: Mapping[str, Floats], names: Sequence[str], truth: Floats, f: Fit, subset: int, steps: int, seed: int
) -> Floats:
    """Predictions for the crystals that a fit tests, NaN for the others; moduli are learned as their square roots.

    Args:
        blocks: features ``(n, k)`` by name.
        names: of the blocks that the model sees.
        truth: ``(n, 3)`` of :data:`TARGETS`.
        subset, steps, seed: see :class:`ecdlib.models.group_gpr.GroupGPR`.

    Returns:
        ``(n, 3)``. What has seen energies (the potential) predicts none.
    """
    seen, asked = ({name: blocks[name][part] for name in names} for part in (f.train, f.test))
    reduced = Reduced(seen, names)
    X, Y = reduced(seen), reduced(asked)
    found = np.full(truth.shape, np.nan)
    for t, target in enumerate(TARGETS):
        energy, labels = target == "total_energy", truth[f.train, t]
        known = np.isfinite(labels)
        if not known.any() or (energy and "potential" in names):
            continue
        learned = labels[known] if energy else np.sqrt(np.maximum(labels[known], 0))
        model = GroupGPR(reduced.groups, subset=subset, steps=steps, seed=seed)
        y = model.fit(X[known], learned).predict(Y)
        found[f.test, t] = y if energy else np.maximum(y, 0) ** 2
    return found


def study_names(which: str) -> list[str]:
    """Crystals of a study, without any whose formula is held out for the book's final test.

    Of the bundled densities those whose tensor the potential has; of pydemi's crystals all but its test crystals.
    """
    held = {name.split("_")[0] for name in load_selection("held-out")}
    if which == "vasp":
        from ecdlib.learn.any_crystal import load_pydemi  # imports all kinds of models

        split = load_pydemi()["split"]
        return [name for name in split.index[split != "test"] if name.split("_")[0] not in held]
    known = set(load_potential().names)
    names = load_selection(which) if which == "cubic-892" else load_densities("cubic-all").names
    if which == "all":
        names = names + load_densities("general-all").names
    return [name for name in names if name.split("_")[0] not in held and name in known]


def study_truth(names: Sequence[str]) -> Floats:
    """Labels ``(n, 3)`` of :data:`TARGETS`: GPa of the Materials Project, eV/atom of GPAW, NaN without a density."""
    tables = [load_densities(which).table for which in ("cubic-all", "general-all")]
    energy = pd.concat([table["energy"] / table["n_atoms"] for table in tables])
    labels = load_crystals().assign(total_energy=energy)
    return labels.loc[list(names), list(TARGETS)].to_numpy(dtype=float)


def study_blocks(which: str, names: Sequence[str], progress: bool = True) -> dict[str, Floats]:
    """Features of crystals, ``(n, k)`` by those names in :data:`GROUPS` that they have."""
    crystals = load_crystals().loc[list(names)]
    if which == "vasp":
        known, table = bundled_crystal_features(progress)
        row = pd.Index(known).get_indexer(crystals.index)
        of_density = [f"{kind} {convention}" for convention in CONVENTIONS for kind in ("invariants", "quantiles")]
        return {
            "superposed": np.hstack([table[block][row] for block in of_density]).astype(float),
            "composition": table["composition"][row].astype(float),
            "descriptors": descriptor_table(names).to_numpy(),
        }
    potential, every = load_potential(), study_names("all")
    states = bundled_state_features(every, progress)
    row = pd.Index(every).get_indexer(crystals.index)
    tables = pd.concat([load_densities(which).table for which in ("cubic-all", "general-all")]).loc[list(names)]
    return {state: values[row].astype(float) for state, values in states.items()} | {
        "composition": magpie(crystals),
        "volume": np.log((tables["volume"] / tables["n_atoms"]).to_numpy())[:, None],
        "potential": tensor_features(potential)[pd.Index(potential.names).get_indexer(crystals.index)],
    }


def descriptor_table(names: Sequence[str]) -> pd.DataFrame:
    """The 55 descriptors of pydemi 0.2.0 for crystals' VASP densities, by its own names; NaN where it has none."""
    with np.load(data_file("pydemi/descriptors.npz"), allow_pickle=False) as z:
        table = pd.DataFrame(z["values"].astype(float), z["names"], z["descriptors"])
    return table.reindex(list(names))


def potential_alone(names: Sequence[str]) -> Floats:
    """Hill averages ``(n, 2)`` of bulk and shear modulus, GPa, as the potential has them, without any model."""
    potential = load_potential()
    return hill_moduli(tensor_features(potential)[pd.Index(potential.names).get_indexer(pd.Index(list(names)))])


def hill_moduli(logs: Floats) -> Floats:
    """Hill averages ``(n, 2)`` of bulk and shear modulus, GPa, of relaxed tensors, from :func:`tensor_features`."""
    voigt_bulk, voigt_shear, reuss_bulk, reuss_shear = np.exp(logs[:, 10:14].T)
    return np.stack([(voigt_bulk + reuss_bulk) / 2, (voigt_shear + reuss_shear) / 2], axis=1)


def elements_of(name: str) -> list[str]:
    """Symbols in alphabetical order."""
    return sorted(Composition(name.split("_")[0]).get_el_amt_dict())


def prototype(name: str) -> str:
    """Ratio of the elements and space group: the crystals that differ in nothing but their elements, and their cells.

    >>> prototype("NaCl_225"), prototype("MgO_225") == prototype("NaCl_225")
    ('AB_225', True)
    """
    formula, group = name.split("_")[:2]
    return f"{Composition(formula).anonymized_formula}_{group}"


def fits_of(names: Sequence[str], p: StudyParameters) -> list[Fit]:
    """Which crystals train and which test.

    Of pairs and of elements, each crystal is tested where the first of its own is left out (in an order drawn at
    random); it may hold others that are left out, too. Crystals of a single element hold no pair and always train.
    """
    n = len(names)
    if p.scheme == "random":
        return folds_of(fold_numbers(n, p.folds, p.seed))
    if p.scheme == "prototypes":
        from sklearn.model_selection import GroupKFold

        number = np.zeros(n, dtype=int)
        kinds = [prototype(name) for name in names]
        for k, (_, part) in enumerate(GroupKFold(p.folds).split(number, groups=kinds)):
            number[part] = k
        return folds_of(number)
    size = {"pairs": 2, "elements": 1}[p.scheme]
    held = [list(combinations(elements_of(name), size)) for name in names]
    every = sorted({one for some in held for one in some})
    order = np.random.default_rng(p.seed).permutation(len(every))
    fold = {one: int(k) % p.folds for one, k in zip(every, order, strict=True)}
    rank = dict(zip(every, order, strict=True))
    first = np.array([fold[min(some, key=rank.__getitem__)] if some else -1 for some in held])
    holds = np.array([[k in {fold[one] for one in some} for some in held] for k in range(p.folds)])
    return [Fit(f"fold-{k}", ~holds[k], first == k) for k in range(p.folds)]


def thinned(fits: Sequence[Fit], train: int, seed: int) -> list[Fit]:
    """The same with at most ``train`` training crystals each, drawn at random; smaller draws lie within larger ones."""
    thin = []
    for f in fits:
        kept = np.zeros_like(f.train)
        kept[np.random.default_rng(seed).permutation(np.flatnonzero(f.train))[: train or None]] = True
        thin.append(Fit(f.name, kept, f.test))
    return thin


def run_inputs(p: StudyParameters, out: Path, *, name: str = "inputs", progress: bool = True) -> Result:
    """Make a study, or resume it.

    Args:
        p: what is asked.
        out: file to write (``.npz``).
        name: of the maker or notebook, for the provenance.

    Returns:
        Of kind ``"inputs"``; ``more`` holds the predictions ``(n, 3)`` from each set of inputs by its name, each
        crystal by a model that has not seen it.

    Raises:
        EcdError: a file made with other parameters or sources at the same place.
    """
    if done := finished(out, "inputs", p):
        return done
    names = study_names(p.crystals)
    truth, blocks = study_truth(names), study_blocks(p.crystals, names, progress)
    fits = thinned(fits_of(names, p), p.train, p.seed)
    settings = {"subset": p.subset, "steps": p.steps, "seed": p.seed}
    with in_pieces(out, name, p.model_dump(mode="json")) as pieces:
        more = {}
        for inputs in p.inputs:
            mine = [Fit(f"{inputs} {f.name}", f.train, f.test) for f in fits]

            def predict(f: Fit, inputs: str = inputs) -> dict[str, Floats]:
                return {"predicted": fit_and_predict(blocks, INPUTS[inputs], truth, f, **settings)}

            run_fits(pieces, mine, predict, progress)
            more[inputs] = joined(pieces, mine).astype(np.float32)
        nowhere = np.full(truth.shape, np.nan)
        Result(
            names=np.array(names),
            truth=truth,
            role=np.full((1, len(names)), TEST, dtype=np.int8),
            fitted=nowhere[None],
            crossed=nowhere,
            fold=np.select([f.test for f in fits], list(range(len(fits))), -1).astype(np.int8),
            more=more,
            meta={
                "kind": "inputs",
                "targets": list(TARGETS),
                "parameters": p.model_dump(mode="json"),
                "provenance": pieces.provenance(),
            },
        ).write(out)
    return load_result(out, "inputs")


def errors_of(result: Result, inputs: str, target: str) -> Floats:
    """Absolute error for each crystal ``(n,)``, in the target's unit; NaN where there is no prediction.

    Args:
        inputs: a set of inputs of the study; ``"mean"``: the mean of the label over the training crystals, nearly
            (that of all others), and ``"potential alone"``: :func:`potential_alone`, no model at all.
    """
    t = result.column(target)
    truth = result.truth[:, t]
    if inputs == "mean":
        return np.asarray(np.abs(truth - (truth.sum() - truth) / (len(truth) - 1)))
    if inputs == "potential alone":
        return np.abs(potential_alone(list(result.names))[:, t] - truth) if t < 2 else np.full(len(truth), np.nan)
    return np.asarray(np.abs(result.more[inputs][:, t] - truth), dtype=float)


def gain(result: Result, less: str, more: str, target: str, among: Any = slice(None)) -> dict[str, Any]:
    """By how much an input lowers the error of the same crystals.

    Args:
        less, more: sets of inputs, without and with what is asked for (see :func:`errors_of`).
        among: which crystals, as a mask or indices.

    Returns:
        ``gain``: mean of the paired differences, positive where ``more`` is better; ``standard_error`` s/√n; ``n``;
        ``verdict``: ``"helps"``, ``"hurts"`` or, within two standard errors, ``"undecided"``.
    """
    difference = (errors_of(result, less, target) - errors_of(result, more, target))[among]
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    mean, error = (float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(n))) if n > 1 else (np.nan, np.nan)
    verdict = "helps" if mean > 2 * error else "hurts" if mean < -2 * error else "undecided"
    return {"gain": mean, "standard_error": error, "n": n, "verdict": verdict}


def crystal_classes(names: Sequence[str]) -> pd.DataFrame:
    """Which crystals belong to which class of chemistry, ``(n, classes)`` of bool; classes overlap.

    A crystal of metals only is an intermetallic one; halides, oxides, and compounds of other nonmetals are named after
    their most electronegative element. Magnetic: a moment of the cell above 0.1 Bohr magnetons in our calculation.
    """
    moments = pd.concat([load_densities(which).table["magnetic_moment"] for which in ("cubic-all", "general-all")])
    rows = []
    for name in names:
        elements = [Element(symbol) for symbol in elements_of(name)]
        anion = max(elements, key=lambda e: e.X if e.X == e.X else 0.0)  # X of noble gases is NaN
        nonmetal = not (anion.is_metal or anion.is_metalloid)
        rows.append(
            {
                "metals only": all(e.is_metal for e in elements),
                "with a metalloid": any(e.is_metalloid for e in elements),
                "oxides": anion.symbol == "O",
                "halides": anion.is_halogen,
                "other nonmetals": nonmetal and anion.symbol != "O" and not anion.is_halogen,
                "d metals": any(e.is_transition_metal and e.group < 12 for e in elements),
                "no d metals": not any(e.is_transition_metal and e.group < 12 for e in elements),
                "magnetic": abs(float(moments[name])) > 0.1,
            }
        )
    return pd.DataFrame(rows, index=list(names))


def label_floor() -> pd.DataFrame:
    """How far two published labels of one crystal are apart: today's Materials Project and Matbench v0.1 (2018).

    Returns:
        One row for each of the crystals that both have: ``bulk_modulus`` and ``shear_modulus`` (|difference|, GPa),
        ``log10 bulk_modulus`` and ``log10 shear_modulus``.
    """
    older = load_matbench_elasticity().set_index("structure")
    newer = load_crystals()
    older = older[older["structure_file"] == "mp_structures"]
    found = {}
    for target, column in (("bulk_modulus", "log10_K_VRH"), ("shear_modulus", "log10_G_VRH")):
        now, then = newer.loc[older.index, target], older[column]
        found[target] = (now - 10**then).abs()
        found[f"log10 {target}"] = (np.log10(now) - then).abs()
    return pd.DataFrame(found)
