"""All properties of any crystal: what goes in, what comes out, and how it is measured.

Some properties are learned, each by a :class:`ecdlib.models.stacked.StackedModel`; what an isotropic solid of the
learned moduli does follows by formula. Of cohesive and total energies a sum over the atoms is taken off first, by
which they differ from formation energies. A crystal for which the potential has no tensor is answered from its
structure alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import constants

from ecdlib.base.pieces import Pieces, in_pieces
from ecdlib.base.resources import data_file
from ecdlib.data.tables import load_crystals, load_cubic_targets, load_matbench_elasticity
from ecdlib.density.core import Floats
from ecdlib.elastic.moduli import debye_temperature, poisson_ratio, sound_velocities, youngs_modulus
from ecdlib.features.crystal import bundled_crystal_features
from ecdlib.features.potential import load_potential, potential_features
from ecdlib.learn.protocol import fold_numbers
from ecdlib.learn.result import load_result
from ecdlib.learn.table import note_beside, write_table
from ecdlib.models.stacked import COVERAGE, BlockScaler, StackedModel

Inputs = Literal["structure", "structure+potential"]
#: Blocks of features that a structure gives.
STRUCTURE = (
    *("invariants gpaw", "invariants chemical", "quantiles gpaw", "quantiles chemical"),
    *("composition", "elements", "size", "bonds"),
)
#: Sets of inputs; a crystal that lacks those of a later one is answered from an earlier one.
INPUTS: tuple[Inputs, ...] = get_args(Inputs)
#: Smallest value of a property whose logarithm is learned, and compared.
SMALLEST = 0.01
INNER_FOLDS = 5


@dataclass(frozen=True)
class Learned:
    """How one property is learned."""

    unit: str
    scale: Literal["linear", "root", "log"] = "linear"  #: what is learned: y, sign(y) √|y| or ln y
    signed: bool = False  #: may be negative
    outliers: bool = True  #: labels may be far off; not where many are exactly 0 or 1
    separate: bool = False  #: each feature has a length scale of its own, from more crystals
    energy: bool = False  #: then the potential's atomic features have seen the answer
    frame: bool = False  #: depends on the crystal's orientation (IEEE frame), which the potential's tensor knows
    like: str = ""  #: an energy that differs from this one by a sum over atoms
    probability: bool = False


LEARNED = {
    "bulk_modulus": Learned("GPa", "root"),
    "shear_modulus": Learned("GPa", "root"),
    "formation_energy": Learned("eV/atom", signed=True, separate=True, energy=True),
    "cohesive_energy": Learned("eV/atom", signed=True, separate=True, energy=True, like="formation_energy"),
    "total_energy": Learned("eV/atom", signed=True, separate=True, energy=True, like="formation_energy"),
    "band_gap": Learned("eV", "root", outliers=False),
    "is_metal": Learned("", probability=True, outliers=False),
    "is_gap_direct": Learned("", probability=True, outliers=False),
    "C11": Learned("GPa", "root", frame=True),
    "C12": Learned("GPa", "root", signed=True, frame=True),
    "C44": Learned("GPa", "root", frame=True),
    "anisotropy_index": Learned("", "log"),
    "dielectric_total": Learned("", "log"),
    "dielectric_electronic": Learned("", "log"),
    "dielectric_ionic": Learned("", "log"),
}
#: Properties that follow by formula and can be learned, too: the inner folds choose.
BOTH_WAYS = {"poisson_ratio": Learned("", signed=True)}
#: All that can be learned.
LEARNABLE = LEARNED | BOTH_WAYS
#: Properties of which logarithms are compared.
LOGARITHMIC = ("anisotropy_index", "dielectric_total", "dielectric_electronic", "dielectric_ionic", "refractive_index")
#: Properties that follow by formula, with their units.
DERIVED = {
    "youngs_modulus": "GPa",
    "poisson_ratio": "",
    "debye_temperature": "K",
    "sound_velocity_transverse": "m/s",
    "sound_velocity_longitudinal": "m/s",
    "thermal_conductivity_clarke": "W/(m K)",
    "thermal_conductivity_cahill": "W/(m K)",
    "refractive_index": "",
}


def scaled(y: Floats, learned: Learned) -> Floats:
    """What is learned of a property's values."""
    if learned.scale == "root":
        return np.sign(y) * np.sqrt(np.abs(y))
    return np.log(np.maximum(y, SMALLEST)) if learned.scale == "log" else np.asarray(y)


def unscaled(x: Floats, learned: Learned) -> Floats:
    """Values of a property from what is learned."""
    if learned.scale == "log":
        return np.exp(x)
    y = np.sign(x) * x**2 if learned.scale == "root" else np.asarray(x)
    if learned.probability:
        return np.clip(y, 0, 1)
    return y if learned.signed else np.maximum(y, 0)


def from_moduli(K: Floats, G: Floats, density: Floats, volume: Floats) -> dict[str, Floats]:
    """What an isotropic solid does that has these moduli.

    The smallest thermal conductivities are, with n atoms per volume of mean mass M, after D. R. Clarke, Surf. Coat.
    Technol. 163, 67 (2003), κ = 0.87 k_B M^(-2/3) E^(1/2) ρ^(1/6), and after D. G. Cahill, S. K. Watson and R. O. Pohl,
    Phys. Rev. B 46, 6131 (1992), κ = (π/48)^(1/3) k_B n^(2/3) (v_l + 2 v_t).

    Args:
        K, G: GPa ``(n,)``.
        density: g/cm³ ``(n,)``.
        volume: of one atom, Å³ ``(n,)``.

    Returns:
        The first seven of :data:`DERIVED`.

    Raises:
        EcdError: see :func:`ecdlib.elastic.moduli.sound_velocities`.
    """
    longitudinal, transverse, mean = sound_velocities(K, G, density)
    E, k_B = youngs_modulus(K, G), constants.k
    mass = density * 1e3 * volume * 1e-30
    clarke = 0.87 * k_B * mass ** (-2 / 3) * np.sqrt(E * 1e9) * (density * 1e3) ** (1 / 6)
    cahill = (np.pi / 48) ** (1 / 3) * k_B * (volume * 1e-30) ** (-2 / 3) * (longitudinal + 2 * transverse)
    return {
        "youngs_modulus": E,
        "poisson_ratio": poisson_ratio(K, G),
        "debye_temperature": debye_temperature(mean, 1, volume),
        "sound_velocity_transverse": transverse,
        "sound_velocity_longitudinal": longitudinal,
        "thermal_conductivity_clarke": clarke,
        "thermal_conductivity_cahill": cahill,
    }


def load_pydemi() -> pd.DataFrame:
    """Labels, split and predictions of pydemi 0.2.0 for its 6,059 crystals, indexed by our names.

    Columns: material_id, split (train, val, test), 22 properties, and ``<property>__pydemi``, its own predictions of
    the 606 test crystals.
    """
    return pd.read_csv(data_file("pydemi/targets.csv.xz"), index_col="name")


def load_targets() -> pd.DataFrame:
    """The 22 properties of :func:`load_pydemi` and the total energy of :func:`ecdlib.data.tables.load_crystals`."""
    table = load_pydemi()
    labels = table[[name for name in (*LEARNED, *DERIVED) if name in table]]
    return labels.assign(total_energy=load_crystals()["total_energy"].reindex(table.index))


@cache
def crystal_table() -> dict[str, Any]:
    """Blocks of features of all bundled structures, by name; NaN where the potential has no tensor.

    Those of :func:`ecdlib.features.crystal.crystal_features` and :func:`ecdlib.features.potential.potential_features`,
    and ``"name"``.
    """
    names, blocks = bundled_crystal_features()
    potential = load_potential()
    row = pd.Index(potential.names).get_indexer(pd.Index(names))[:, None]
    known = {
        key: np.where(row >= 0, values[row[:, 0]], np.nan) for key, values in potential_features(potential).items()
    }
    return {**blocks, **known, "name": np.array(names)}


def blocks_for(target: str, inputs: Inputs) -> list[str]:
    """Blocks that a model of a property sees."""
    if inputs == "structure":
        return list(STRUCTURE)
    learned = LEARNABLE[target]
    return [*STRUCTURE, "tensor", *(["frame"] if learned.frame else []), *([] if learned.energy else ["atomic"])]


def take(blocks: Mapping[str, Any], rows: Any) -> dict[str, Any]:
    """Some crystals of all blocks."""
    return {name: values[rows] for name, values in blocks.items()}


class PropertyModel:
    """A property of a crystal from its blocks of features.

    Args:
        target: name in :data:`LEARNED` or :data:`BOTH_WAYS`.
        inputs: what it sees.
        learned: how, if not as :data:`LEARNED` says.
        settings: see :class:`ecdlib.models.stacked.StackedModel`.
    """

    def __init__(self, target: str, inputs: Inputs = "structure", learned: Learned | None = None, **settings: Any):
        self.target, self.inputs, self.settings = target, inputs, settings
        self.learned = learned or LEARNABLE[target]

    def fit(
        self,
        blocks: Mapping[str, Any],
        y: Floats,
        reference: Floats | None = None,
        seed: int = 0,
        scaler: BlockScaler | None = None,
        fold: NDArray[Any] | None = None,
    ) -> Self:
        """Fit to crystals that have all blocks and a label.

        Args:
            blocks: see :func:`crystal_table`.
            y: labels ``(n,)``.
            reference: labels of the energy that this one is like, NaN where unknown ``(n,)``.
            seed: of the inner folds and the trees.
            scaler: see :meth:`ecdlib.models.stacked.StackedModel.fit`.
            fold: inner fold of each crystal ``(n,)``; drawn at random if None.
        """
        learned = self.learned
        self.of_elements = np.zeros(blocks["elements"].shape[1])
        if learned.like and reference is not None:
            both = np.isfinite(reference)
            self.of_elements = element_energies(blocks["elements"][both] ** 2, y[both] - reference[both])
        x = self.learned_labels = scaled(y - blocks["elements"] ** 2 @ self.of_elements, learned)
        settings = ({"subset": 1600} if learned.separate else {}) | ({} if learned.outliers else {"freedom": None})
        names, power = blocks_for(self.target, self.inputs), 2 if learned.probability else 1
        self.stacked = StackedModel(names, learned.separate, power, seed, **settings | self.settings)
        fold = fold_numbers(len(y), INNER_FOLDS, seed) if fold is None else fold
        self.stacked.fit(blocks, x, fold, scaler)
        return self

    def _answer(self, blocks: Mapping[str, Any], x: Floats, spread: Floats) -> Floats:
        learned, half = self.learned, self.stacked.factor * spread
        baseline = blocks["elements"] ** 2 @ self.of_elements
        ends = [x, x - half, x + half]
        return np.stack([unscaled(np.asarray(end), learned) + baseline for end in ends], axis=1)

    def predict(self, blocks: Mapping[str, Any]) -> Floats:
        """Value, low and high of each crystal, ``(n, 3)``."""
        return self._answer(blocks, *self.stacked.predict(blocks))

    def left_out(self, blocks: Mapping[str, Any], process: bool = False) -> Floats:
        """The same of the training crystals ``(n, 3)``, each by models that have not seen its inner fold.

        Args:
            process: by the Gaussian process alone, without the trees.
        """
        stacked = self.stacked
        return self._answer(blocks, stacked.process_left_out if process else stacked.left_out, stacked.spread)


def element_energies(shares: Floats, difference: Floats) -> Floats:
    """Energies of elements whose sum over a crystal's atoms is the difference of two energies; least absolute errors.

    Args:
        shares: of the elements ``(n, elements)``.
        difference: eV/atom ``(n,)``.

    Returns:
        eV ``(elements,)``, 0 for elements that do not occur.
    """
    weights: Floats = np.ones(len(difference))
    found: Floats = np.zeros(shares.shape[1])
    for _ in range(20):
        found = np.linalg.lstsq(shares * weights[:, None], difference * weights, rcond=1e-10)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(difference - shares @ found), 1e-3))
    return found


@dataclass(frozen=True)
class Answers:
    """Of one property from one set of inputs: of training crystals by models that have not seen their inner fold, and
    of test crystals. Indexed by name; columns value, low, high."""

    left_out: pd.DataFrame
    predicted: pd.DataFrame


ENDS = ["value", "low", "high"]


def fit_and_predict(
    target: str, inputs: Inputs, train: NDArray[Any], test: NDArray[Any], labels: pd.DataFrame, **settings: Any
) -> dict[str, Any]:
    """Train on some crystals, predict others.

    Args:
        train, test: names of crystals; those without a label or without the inputs are left out.
        labels: see :func:`load_targets`.
        settings: see :class:`ecdlib.models.stacked.StackedModel`.

    Returns:
        ``train`` and ``test`` as they were taken, ``left_out`` and ``predicted``, both ``(n, 3)``: value, low, high;
        ``process_left_out (n,)`` by the Gaussian process alone; ``weight`` of the trees.
    """
    table = crystal_table()
    position = pd.Index(table["name"])
    complete = np.isfinite(np.hstack([table[name] for name in blocks_for(target, inputs)])).all(1)
    train = train[np.isfinite(labels.loc[train, target]) & complete[position.get_indexer(train)]]
    test = test[complete[position.get_indexer(test)]]
    seen, asked = (take(table, position.get_indexer(names)) for names in (train, test))
    like = LEARNABLE[target].like
    reference = labels.loc[train, like].to_numpy() if like else None
    model = PropertyModel(target, inputs, **settings).fit(seen, labels.loc[train, target].to_numpy(), reference)
    return {
        "train": train.astype(str),
        "test": test.astype(str),
        "left_out": model.left_out(seen),
        "predicted": model.predict(asked),
        "process_left_out": model.left_out(seen, process=True)[:, 0],
        "weight": model.stacked.weight,
    }


def follow(K: Floats, G: Floats, size: Floats) -> tuple[dict[str, Floats], Floats]:
    """What follows from predicted moduli (:func:`from_moduli`), and how far it may be off.

    Args:
        K, G: value, low and high, GPa ``(n, 3)``.
        size: volume of an atom (Å³) and mass density (g/cm³) ``(n, 2)``.

    Returns:
        Values ``(n,)`` by name, and the relative widths of both moduli's intervals together ``(n,)``.
    """
    bulk, shear = (np.maximum(m[:, 0], SMALLEST) for m in (K, G))
    widths = ((m[:, 2] - m[:, 1]) / value for m, value in ((K, bulk), (G, shear)))
    return from_moduli(bulk, shear, size[:, 1], size[:, 0]), np.hypot(*widths)


def deviation(name: str, truth: Floats, value: Floats) -> Floats:
    """How far what :func:`follow` gives is off: of Poisson's ratio the difference, else that of the logarithms."""
    return np.abs(truth - value) if name == "poisson_ratio" else np.abs(np.log(truth) - np.log(value))


def around(name: str, value: Floats, half: Floats) -> Floats:
    """Value, low and high ``(n, 3)`` of intervals that reach as far as a :func:`deviation` of ``half``."""
    if name == "poisson_ratio":
        return np.stack([value, value - half, value + half], axis=1)
    return np.stack([value, value * np.exp(-half), value * np.exp(half)], axis=1)


def derive(K: Answers, G: Answers, labels: pd.DataFrame, coverage: float = COVERAGE) -> dict[str, Answers]:
    """What follows from bulk and shear modulus, with intervals that hold among the training crystals.

    The factor between an interval and what :func:`follow` says of its width is the smallest that holds the coverage.

    Args:
        labels: of the training crystals, see :func:`load_targets`.
        coverage: share of the training crystals that intervals shall hold.
    """
    table = crystal_table()
    size = pd.DataFrame(np.exp(table["size"]), index=table["name"])

    def of(which: str) -> tuple[pd.Index, dict[str, Floats], Floats]:
        k, g = getattr(K, which), getattr(G, which)
        names = k.index.intersection(g.index)
        return names, *follow(k.loc[names].to_numpy(), g.loc[names].to_numpy(), size.loc[names].to_numpy())

    (known, left_out, spread), (asked, predicted, wide) = of("left_out"), of("predicted")
    answers = {}
    for name in left_out:
        truth = labels[name].reindex(known).to_numpy()
        factor = np.nanquantile(deviation(name, truth, left_out[name]) / spread, coverage)
        answers[name] = Answers(
            pd.DataFrame(around(name, left_out[name], factor * spread), known, ENDS),
            pd.DataFrame(around(name, predicted[name], factor * wide), asked, ENDS),
        )
    return answers


def refractive_index(electronic: Answers) -> Answers:
    """n = √ε of the electronic dielectric constant."""
    return Answers(*(part.clip(lower=0) ** 0.5 for part in (electronic.left_out, electronic.predicted)))


#: Divisions of the 6,059 crystals into training and test crystals; see :func:`divided`.
Split = Literal["pydemi", "published", "5-fold", "cubic-892"]
#: Random divisions of the 892 cubic crystals into ten folds.
SEEDS = 2


def divided(split: Split) -> tuple[pd.DataFrame, list[tuple[NDArray[Any], NDArray[Any]]]]:
    """Labels of all crystals, and names of training and test crystals, a pair for each fold.

    Args:
        split: ``pydemi``: its own, with its labels (its validation crystals train); ``published``: LatentMatFusion's,
            with the labels of :func:`ecdlib.data.tables.load_crystals`, as has ``5-fold``, drawn at random (seed 0);
            ``cubic-892``: ten folds of the cubic crystals of the book's other models, with their labels, twice.
    """
    labels = load_targets()
    if split == "cubic-892":
        cubic = load_cubic_targets()
        labels = labels.loc[cubic.index].assign(**cubic[["bulk_modulus", "total_energy"]])
        names = labels.index.to_numpy()
        folds = [fold_numbers(len(names), 10, seed) for seed in range(SEEDS)]
        return labels, [(names[fold != k], names[fold == k]) for fold in folds for k in range(10)]
    if split == "pydemi":
        fold = (load_pydemi()["split"] == "test").to_numpy(dtype=int)
    else:
        crystals = load_crystals().reindex(labels.index)
        for name in set(labels) & set(crystals) - {"formation_energy"}:
            labels[name] = crystals[name]
        fold = (crystals["original_split"] == "test").to_numpy(dtype=int)
    if split == "5-fold":
        fold = fold_numbers(len(labels), 5, 0).astype(int) + 1
    names = labels.index.to_numpy()
    return labels, [(names[fold != k], names[fold == k]) for k in range(1, fold.max() + 1)]


def run_split(
    out: Path,
    split: Split = "pydemi",
    targets: Sequence[str] = tuple(LEARNABLE),
    kept: Sequence[str] = (),
    **settings: Any,
) -> None:
    """Train on the training crystals of a split, predict its test crystals; resumable.

    Writes ``out``, a CSV of material_id, property, inputs, value, low, high; and beside it a file of JSON with errors
    on the inner folds (of the first fold), weights of the trees and the provenance of each run. Other properties that
    ``out`` holds already stay. What is learned and follows by formula, too, is taken from where the inner folds' error
    is smaller.

    Args:
        split: see :func:`divided`.
        targets: what is learned.
        kept: properties that are written; by default all that follow.
        settings: see :class:`ecdlib.models.stacked.StackedModel`.
    """
    labels, folds = divided(split)
    material, make = load_pydemi()["material_id"], partial(fit_and_predict, **settings)
    with in_pieces(out, f"{split}-split", {"targets": list(targets)} | settings) as pieces:
        tables, notes = list[pd.DataFrame](), list[dict[str, Any]]()
        for k, (train, test) in enumerate(folds):
            after = f" {k}" if k else ""
            for target in targets:
                for inputs in INPUTS:
                    pieces.made(f"{target} {inputs}{after}", make, target, inputs, train, test, labels)
            table, note = _collected(pieces, targets, labels, test, after)
            tables.append(table)
            notes.append(note)
        rows, inner = pd.concat(tables), notes[0]
        if kept:
            rows = rows[rows["property"].isin(list(kept))]
        rows.insert(0, "material_id", material.loc[rows.pop("name")].to_numpy())
        told: dict[str, Any] = {"inner": {}, "runs": []}
        if out.is_file():
            told = json.loads(note_beside(out).read_text(encoding="utf-8"))
            before = pd.read_csv(out)
            for inputs, known in told["inner"].items():
                for target, note in known.items():
                    new = inner[inputs].get(target)
                    if new is None or (target in DERIVED and note["error"] < new["error"]):
                        inner[inputs][target] = note | ({} if new is None else {"learned": new["error"]})
                        rows = rows[(rows["property"] != target) | (rows["inputs"] != inputs)]
                        rows = pd.concat([rows, before[(before["property"] == target) & (before["inputs"] == inputs)]])
                    elif target in BOTH_WAYS:
                        new["formula"] = note["error"]
        told = {"inner": inner, "runs": [*told["runs"], pieces.provenance()]}
        write_table(out, rows, told)


#: Letters of Matbench's columns.
MATBENCH = {"bulk_modulus": "K", "shear_modulus": "G"}


def matbench_entries() -> pd.DataFrame:
    """Those of :func:`ecdlib.data.tables.load_matbench_elasticity` that have a structure here, indexed by its name."""
    return load_matbench_elasticity().dropna(subset=["structure"]).set_index("structure")


def matbench(out: Path, **settings: Any) -> None:
    """Predict log10 K and log10 G of Matbench's entries that have a structure here, on its official folds; resumable.

    Writes ``out``, a CSV of name (of the structure), property, inputs, fold and value (log10 of GPa), and beside it a
    file of JSON with mean absolute errors and the provenance. Entries without a tensor of the potential are answered
    from their structure alone.

    Args:
        settings: see :class:`ecdlib.models.stacked.StackedModel`.
    """
    entries = matbench_entries()
    table = crystal_table()
    position = pd.Index(table["name"])
    rows, learned = [], Learned("GPa", "log")

    def predicted(target: str, inputs: Inputs, train: pd.Index, test: pd.Index) -> dict[str, Floats]:
        seen, asked = (take(table, position.get_indexer(names)) for names in (train, test))
        model = PropertyModel(target, inputs, learned, **settings)
        model.fit(seen, 10 ** entries.loc[train, f"log10_{MATBENCH[target]}_VRH"].to_numpy())
        return {"value": np.log10(model.predict(asked)[:, 0])}

    with in_pieces(out, "matbench", settings) as pieces:
        for target, column in MATBENCH.items():
            logarithm, fold = entries[f"log10_{column}_VRH"], entries[f"fold_{column}"]
            for number in range(5):
                answers = pd.Series(np.nan, entries.index)
                for inputs in INPUTS:
                    complete = np.isfinite(np.hstack([table[b] for b in blocks_for(target, inputs)])).all(1)
                    usable = complete[position.get_indexer(entries.index)]
                    train, test = (entries.index[usable & part] for part in (fold != number, fold == number))
                    piece = pieces.made(f"{target} {inputs} {number}", predicted, target, inputs, train, test)
                    answers[test] = piece["value"]
                    part = answers[fold == number]
                    more = {"property": target, "inputs": inputs, "fold": number, "value": part.to_numpy()}
                    rows.append(pd.DataFrame({"name": part.index, **more, "truth": logarithm[part.index].to_numpy()}))
        predictions = pd.concat(rows)
        miss = (predictions["value"] - predictions.pop("truth")).abs()
        mean = miss.groupby([predictions["property"], predictions["inputs"]]).mean().unstack()
        note = {"mean absolute error": mean.to_dict("index"), "provenance": pieces.provenance()}
        write_table(out, predictions, note)


def with_network(folds: pd.DataFrame) -> pd.DataFrame:
    """Matbench's predictions, each a weighted mean with what the shipped graph network says on the same folds.

    The weight is the one with the smallest mean error on the four other folds, whose crystals both predict without
    having seen them; it is the only thing that those folds decide. The models behind those predictions have trained on
    the fold that is asked, so that a cross-validation within the training part would be stricter.

    Args:
        folds: as :func:`matbench` writes them.

    Returns:
        The same table with those values, and a column ``weight`` of the network.
    """
    entries = matbench_entries()
    result = load_result(data_file("elasticity/cgcnn.npz"), "elasticity")
    shares, parts = np.linspace(0, 1, 41), []
    for (target, _), table in folds.groupby(["property", "inputs"], sort=False):
        truth = entries[f"log10_{MATBENCH[str(target)]}_VRH"].loc[table["name"]].to_numpy()
        by_network = pd.Series(np.log10(result.crossed[:, result.column(str(target))]), result.names)
        values = np.outer(1 - shares, table["value"]) + np.outer(shares, by_network[table["name"]])
        best = table["fold"].map(
            {k: np.abs(values - truth)[:, table["fold"] != k].mean(1).argmin() for k in table["fold"].unique()}
        )
        parts.append(table.assign(value=values[best, np.arange(len(table))], weight=shares[best]))
    return pd.concat(parts)


def _collected(
    pieces: Pieces, targets: Sequence[str], labels: pd.DataFrame, test: NDArray[Any], after: str = ""
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Answers for all test crystals as rows, and what the inner folds said, by inputs and property.

    Args:
        after: end of the pieces' names.
    """
    rows: list[pd.DataFrame] = []
    notes: dict[str, Any] = {}
    answered: dict[str, pd.DataFrame] = {}
    for inputs in INPUTS:
        found: dict[str, Answers] = {}
        notes[inputs] = {}
        for target in targets:
            piece = pieces.load(f"{target} {inputs}{after}")
            left_out = pd.DataFrame(piece["left_out"], piece["train"], ENDS)
            process = pd.Series(piece["process_left_out"], piece["train"])
            found[target] = Answers(left_out, pd.DataFrame(piece["predicted"], piece["test"], ENDS))
            notes[inputs][target] = {
                "trees": float(piece["weight"]),
                "process": error(target, labels, process),
                "error": error(target, labels, left_out["value"]),
            }
        derived: dict[str, Answers] = {}
        if {"bulk_modulus", "shear_modulus"} <= found.keys():
            derived = derive(found["bulk_modulus"], found["shear_modulus"], labels)
        if "dielectric_electronic" in found:
            derived["refractive_index"] = refractive_index(found["dielectric_electronic"])
        for target, answers in derived.items():
            mean = error(target, labels, answers.left_out["value"])
            if target not in found or mean < notes[inputs][target]["error"]:
                learned = {"learned": notes[inputs][target]["error"]} if target in found else {}
                found[target], notes[inputs][target] = answers, {"error": mean} | learned
            else:
                notes[inputs][target]["formula"] = mean
        for target, answers in found.items():
            whole = answers.predicted.reindex(test)
            if target in answered:  # crystals that lack these inputs
                whole = whole.fillna(answered[target])
            answered[target] = whole
            rows.append(whole.assign(property=target, inputs=inputs).rename_axis("name").reset_index())
    table = pd.concat(rows)[["name", "property", "inputs", *ENDS]]
    probabilities = [name for name, learned in LEARNED.items() if learned.probability]
    table.loc[table["property"].isin(probabilities), ["low", "high"]] = np.nan
    return table, notes


def errors(target: str, truth: Floats, value: Floats) -> Floats:
    """Error of each prediction: absolute; of the logarithm for what varies over orders of magnitude (ln, values below
    :data:`SMALLEST` as :data:`SMALLEST`); squared for probabilities (Brier)."""
    if target in LOGARITHMIC:
        return np.abs(np.log(np.maximum(truth, SMALLEST)) - np.log(np.maximum(value, SMALLEST)))
    probability = target in LEARNED and LEARNED[target].probability
    return (truth - value) ** 2 if probability else np.abs(truth - value)


def error(target: str, labels: pd.DataFrame, predicted: pd.Series) -> float:
    """Mean of :func:`errors` over the crystals that have a label."""
    return float(np.nanmean(errors(target, labels.loc[predicted.index, target].to_numpy(), predicted.to_numpy())))


def beside_pydemi(predictions: pd.DataFrame) -> pd.DataFrame:
    """Our errors on pydemi's test crystals beside those of its shipped predictions.

    Args:
        predictions: as :func:`run_split` writes them.

    Returns:
        One row for each property and inputs: n, ours, pydemi (mean :func:`errors`), difference (ours minus pydemi), its
        standard_error (paired), verdict (``ahead``, ``behind`` or, within two standard errors, ``undecided``), and
        coverage of our intervals.
    """
    pydemi = load_pydemi().set_index("material_id")
    rows = []
    for (target, inputs), part in predictions.groupby(["property", "inputs"], sort=False):
        if target not in pydemi:
            continue
        part, known = part.set_index("material_id"), pydemi.loc[part["material_id"]]
        theirs, truth = (known[name].to_numpy(dtype=float) for name in (f"{target}__pydemi", str(target)))
        ours, its = errors(str(target), truth, part["value"].to_numpy()), errors(str(target), truth, theirs)
        difference = (ours - its)[np.isfinite(ours - its)]
        both = np.isfinite(ours - its)
        mean, deviation = difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
        inside = (part["low"] <= truth) & (truth <= part["high"])
        rows.append(
            {
                "property": target,
                "inputs": inputs,
                "n": int(both.sum()),
                "ours": ours[both].mean(),
                "pydemi": its[both].mean(),
                "difference": mean,
                "standard_error": deviation,
                "verdict": "undecided" if abs(mean) <= 2 * deviation else "ahead" if mean < 0 else "behind",
                "coverage": inside[both].mean() if part["low"].notna().any() else np.nan,
            }
        )
    return pd.DataFrame(rows)
