"""The shipped models of any crystal: all properties from its structure, or from that and a potential, in one file.

All properties share one scaling of the features and the training crystals' features in half precision. The Gaussian
process of a property keeps its dual coefficients, so that a value takes one product. Its standard deviation is that of
the process conditioned on the :data:`NEAR` training crystals most like the one asked, which no matrix of all crystals
is needed for; the factors that turn it into an interval (:mod:`ecdlib.learn.intervals`) were found for just this
deviation, on inner folds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.linalg import solve
from tqdm import tqdm

from ecdlib.base.archive import write_archive
from ecdlib.base.pieces import in_pieces
from ecdlib.density.core import Floats, symmetry
from ecdlib.features.crystal import joined_features, structure_features
from ecdlib.features.potential import potential_features
from ecdlib.learn.any_crystal import (
    DERIVED,
    ENDS,
    INNER_FOLDS,
    LEARNABLE,
    SMALLEST,
    STRUCTURE,
    Inputs,
    Learned,
    PropertyModel,
    around,
    blocks_for,
    crystal_table,
    deviation,
    error,
    follow,
    load_targets,
    take,
    unscaled,
)
from ecdlib.learn.intervals import NORMAL, factors_of, group_coverage, group_factors, membership
from ecdlib.learn.protocol import fold_numbers
from ecdlib.models.matern import matern, squared_distances
from ecdlib.models.stacked import COVERAGE, BlockScaler
from ecdlib.models.trees import predict_trees, tree_array

#: Names of the shipped models.
MODELS: dict[Inputs, str] = {"structure": "crystal", "structure+potential": "crystal-potential"}
#: Training crystals that tell the spread of a prediction.
NEAR = 128
UNITS = {name: learned.unit for name, learned in LEARNABLE.items()} | DERIVED
#: What is learned; of what also follows by formula that which the inner folds prefer.
TARGETS = tuple(LEARNABLE)
#: What follows from the moduli.
FOLLOWING = tuple(name for name in DERIVED if name != "refractive_index")
#: They depend on the orientation of the crystal, which a structure alone fixes for cubic ones only.
ORIENTED = ("C11", "C12", "C44")
MODULI = ("bulk_modulus", "shear_modulus")


#: Primitive vectors in terms of those of the centred cell, in columns, by the letter of the centring (spglib's choice).
_PRIMITIVE: dict[str, Floats] = {
    "P": np.eye(3),
    "A": np.array([[2, 0, 0], [0, 1, -1], [0, 1, 1]]) / 2,
    "C": np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 2]]) / 2,
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "R": np.array([[2, -1, -1], [1, 1, -2], [1, 1, 1]]) / 3,
}


def space_group(structure: Structure) -> int:
    """Number of the space group; 0 if none is found."""
    found = symmetry(structure)
    return 0 if found is None else int(found.number)


def standard(structure: Structure, found: Any = None) -> Structure:
    """The standard primitive cell, as the training crystals have it; the cell as given where no symmetry is found.

    Quantiles are taken on a grid, and feel where the atoms lie on it.

    Args:
        found: see :func:`ecdlib.density.core.symmetry`, if it is known.
    """
    found = symmetry(structure) if found is None else found
    if found is None:
        return structure
    cell = _PRIMITIVE[found.international[0]].T @ found.std_lattice
    _, first = np.unique(found.std_mapping_to_primitive, return_index=True)
    positions = found.std_positions[first] @ found.std_lattice @ np.linalg.inv(cell)
    return Structure(cell, found.std_types[first], positions % 1)


class HalfPrecision(BlockScaler):
    """Scaled features as half precision keeps them."""

    def transform(self, blocks: Mapping[str, Floats]) -> Floats:
        """``(n, features)``."""
        return super().transform(blocks).astype(np.float16).astype(np.float64)


def local_spread(
    X: Floats, training: Floats, variance: float, noise: float, weights: Floats, distance: Floats | None = None
) -> Floats:
    """Standard deviation ``(n,)`` of a process, each conditioned on the :data:`NEAR` most similar training samples.

    Args:
        X, training: features ``(n, k)`` and ``(m, k)``, divided by the length scales.
        variance, noise: of the process.
        weights: of each training sample's noise ``(m,)``.
        distance: squared, between samples and training samples ``(n, m)``, if it is known.
    """
    distance = squared_distances(X, training) if distance is None else distance
    near = np.argpartition(distance, min(NEAR, len(training)) - 1, axis=1)[:, :NEAR]
    spread = np.empty(len(X))
    for i, chosen in enumerate(near):
        points = training[chosen]
        K = variance * matern(squared_distances(points, points))
        K.ravel()[:: len(K) + 1] += noise * weights[chosen]
        k = variance * matern(distance[i, chosen])
        spread[i] = variance + noise - k @ solve(K, k, assume_a="pos", overwrite_a=True, check_finite=False)
    return np.sqrt(np.maximum(spread, noise))


def train_crystal_model(
    out: Path,
    *,
    inputs: Inputs = "structure",
    without: Collection[str] = (),
    name: str = "data/make/crystal_model.py",
    targets: Sequence[str] = TARGETS,
    **settings: Any,
) -> dict[str, float]:
    """Train on all labelled crystals that have the inputs, and write the model; resumable, a piece for each property.

    Args:
        without: formulas that the model must not see.
        settings: see :class:`ecdlib.models.stacked.StackedModel`.

    Returns:
        Mean error of each property, by models that have not seen the crystal's inner fold.
    """
    labels, table = load_targets(), crystal_table()
    labels = labels[~labels.index.str.split("_").str[0].isin(list(without))]
    every = [block for block in table if block in STRUCTURE or (inputs != "structure" and block != "name")]
    row = pd.Index(table["name"]).get_indexer(labels.index)
    complete = np.isfinite(np.hstack([table[block][row] for block in every])).all(1)
    labels, blocks = labels[complete], take({block: table[block] for block in every}, row[complete])
    names, scaler = labels.index.to_numpy(), HalfPrecision(every).fit(blocks)
    groups = [int(str(name).split("_")[1]) for name in names]
    member = membership(groups, blocks["elements"])
    parameters = {"inputs": inputs, "targets": list(targets), "without": sorted(without), **settings}
    with in_pieces(out, name, parameters) as pieces:
        for target in targets:
            pieces.made(target, fit_property, target, inputs, labels, blocks, scaler, member, settings)
            print(target, f"{pieces.seconds(target):.0f} s", flush=True)
        arrays, answers, cover, correlation = shared_arrays(names, blocks, scaler), {}, {}, 0.0
        for target in targets:
            piece = pieces.load(target)
            rows = piece.pop("rows")
            arrays |= {f"{target}/{k}": v for k, v in piece.items()} | {f"{target}/rows": rows.astype(np.uint16)}
            answers[target] = pd.DataFrame(piece["out of fold"], names[rows], ENDS)
        if set(MODULI) <= set(answers):
            misses = [(answers[t]["value"] - labels[t].reindex(answers[t].index)) / answers[t]["value"] for t in MODULI]
            correlation = float(pd.concat(misses, axis=1).corr("spearman").iloc[0, 1])
            for target, (values, logs) in _follow(answers, labels, np.exp(blocks["size"]), member).items():
                if target in answers:  # learned, which is better
                    continue
                answers[target] = values
                arrays |= {f"{target}/out of fold": values.to_numpy(dtype=np.float32), f"{target}/factors": logs}
                arrays[f"{target}/rows"] = labels.index.get_indexer(values.index).astype(np.uint16)
        if "dielectric_electronic" in answers:
            answers["refractive_index"] = answers["dielectric_electronic"].clip(lower=0) ** 0.5
            arrays |= {"refractive_index/out of fold": answers["refractive_index"].to_numpy(dtype=np.float32)}
            arrays |= {"refractive_index/rows": arrays["dielectric_electronic/rows"]}
        errors = {t: error(t, labels, values["value"]) for t, values in answers.items() if t in labels}
        for target in (t for t in targets if not LEARNABLE[t].probability):
            ratio, rows = arrays.pop(f"{target}/ratio"), arrays[f"{target}/rows"]
            cover[target] = group_coverage(ratio <= _crossed_factors(ratio, member[rows]), member[rows])
        write_archive(
            out,
            arrays,
            {
                "kind": "crystal",
                "inputs": inputs,
                "targets": list(answers),
                "errors": errors,
                "coverage": cover,
                "correlation": correlation,
                "provenance": pieces.provenance(),
            },
        )
    return errors


def shared_arrays(names: NDArray[Any], blocks: Mapping[str, Any], scaler: HalfPrecision) -> dict[str, Any]:
    """What the file keeps for all properties: the training crystals and the scaling of their features."""
    return {
        "names": names.astype(str),
        "X": scaler.transform(blocks).astype(np.float16),
        "known": np.flatnonzero((blocks["elements"] > 0).any(0)) + 1,
        "volume": np.exp(blocks["size"][:, 0]).astype(np.float32),
    } | {f"scaler/{k}": _small(v) for k, v in scaler.state.items()}


def _small(v: Any) -> Any:
    return v.astype(np.float32) if v.dtype == np.float64 else v


def fit_property(
    target: str,
    inputs: Inputs,
    labels: pd.DataFrame,
    blocks: Mapping[str, Any],
    scaler: HalfPrecision,
    member: NDArray[np.bool_],
    settings: Mapping[str, Any],
    learned: Learned | None = None,
    fold: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """What the file keeps of one property.

    Args:
        labels: a row for each crystal, a column for each property.
        member: see :func:`ecdlib.learn.intervals.membership`.
        settings: see :class:`ecdlib.models.stacked.StackedModel`.
        learned: how, of a property that is not in :data:`ecdlib.learn.any_crystal.LEARNABLE`.
        fold: inner fold of each crystal with a label; drawn at random if None.
    """
    rows = np.flatnonzero(np.isfinite(labels[target].to_numpy()))
    seen, y = take(blocks, rows), labels[target].to_numpy()[rows]
    learned = learned or LEARNABLE[target]
    like = labels[learned.like].to_numpy()[rows] if learned.like else None
    model = PropertyModel(target, inputs, learned, **settings)
    fold = fold_numbers(len(rows), INNER_FOLDS, 0) if fold is None else fold
    model.fit(seen, y, like, scaler=scaler.part(blocks_for(target, inputs)), fold=fold)
    stacked, process = model.stacked, model.stacked.process
    spread = np.empty(len(rows))
    for k in np.unique(fold):
        part, rest = fold == k, fold != k
        training = process.scaled_training
        spread[part] = local_spread(
            training[part], training[rest], process.variance, process.noise, process.noise_weights_[rest]
        )
    spread = spread * process.unit_
    baseline = seen["elements"] ** 2 @ model.of_elements
    ratio = np.abs(stacked.left_out - model.learned_labels) / spread
    logs = group_factors(ratio, member[rows], COVERAGE)
    half = spread * factors_of(logs, member[rows])
    ends = [stacked.left_out + s * half for s in (0, -1, 1)]
    return {
        "rows": rows,
        "dual": process.dual.astype(np.float32),
        "theta": process.hyperparameters_,
        "scale": np.array([process.offset_, process.unit_]),
        "noise": process.noise_weights_.astype(np.float16),
        "lengths": process.column_scale.astype(np.float32),
        "trees": tree_array(stacked.booster.model_to_string()),
        "weight": np.array(stacked.weight),
        "factors": logs,
        "ratio": ratio,
        "elements": model.of_elements,
        "out of fold": np.stack([unscaled(e, learned) + baseline for e in ends], axis=1).astype(np.float32),
    }


def _follow(
    answers: Mapping[str, pd.DataFrame], labels: pd.DataFrame, size: Floats, member: NDArray[np.bool_]
) -> dict[str, tuple[pd.DataFrame, Floats]]:
    """Of what follows from the moduli of the training crystals: out-of-fold answers, and the factors of its groups."""
    K, G = (answers[t] for t in MODULI)
    names = K.index.intersection(G.index)
    row = labels.index.get_indexer(names)
    values, spread = follow(K.loc[names].to_numpy(), G.loc[names].to_numpy(), size[row])
    found = {}
    for name, value in values.items():
        ratio = deviation(name, labels[name].to_numpy()[row], value) / spread
        known = np.isfinite(ratio)
        logs = group_factors(ratio[known], member[row][known], COVERAGE)
        ends = around(name, value, spread * factors_of(logs, member[row]))
        found[name] = pd.DataFrame(ends, names, ENDS), logs
    return found


def _crossed_factors(ratio: Floats, member: NDArray[np.bool_]) -> Floats:
    """Factors for each crystal from the crystals of other folds, to see whether intervals hold for crystals that had no
    part in making them."""
    fold, factors = fold_numbers(len(ratio), INNER_FOLDS, 1), np.empty(len(ratio))
    for k in range(INNER_FOLDS):
        part, rest = fold == k, fold != k
        factors[part] = factors_of(group_factors(ratio[rest], member[rest], COVERAGE), member[part])
    return factors


class Prepared(NamedTuple):
    """What a model of structures predicts one crystal from."""

    cell: Structure
    space_group: int
    features: dict[str, Floats]


@dataclass(frozen=True)
class CrystalModel:
    """The trained model: what :func:`train_crystal_model` wrote."""

    arrays: Mapping[str, NDArray[Any]]
    meta: dict[str, Any]
    source: str

    @classmethod
    def from_file(cls, arrays: dict[str, Any], meta: dict[str, Any], source: str) -> Self:
        """See :func:`ecdlib.learn.model_file.load_model`."""
        return cls(arrays, meta, source)

    @property
    def targets(self) -> list[str]:
        """What it predicts."""
        return list(self.meta["targets"])

    def learned_as(self, target: str) -> Learned:
        """How it has learned a property; a user's own is described in the file."""
        own = self.meta.get("learned", {})
        return Learned(**own[target]) if target in own else LEARNABLE[target]

    def unit(self, target: str) -> str:
        """Unit of a property."""
        return DERIVED[target] if target in DERIVED else self.learned_as(target).unit

    @property
    def inputs(self) -> Inputs:
        """What it predicts from."""
        return cast(Inputs, self.meta["inputs"])

    @cached_property
    def elements(self) -> set[int]:
        """Atomic numbers among its training crystals."""
        return set(self.arrays["known"].tolist())

    @cached_property
    def trained_on(self) -> set[str]:
        """Formula and space group of its training crystals, ``"NaCl_225"``."""
        return {"_".join(name.split("_")[:2]) for name in self.arrays["names"].tolist()}

    @property
    def correlation(self) -> float:
        """Of the errors of K and G, in ranks."""
        return float(self.meta["correlation"])

    @cached_property
    def scaler(self) -> HalfPrecision:
        """The fitted scaling."""
        return HalfPrecision.from_state(
            {k.removeprefix("scaler/"): v for k, v in self.arrays.items() if k.startswith("scaler/")}
        )

    def predict(
        self, structures: Sequence[Structure], targets: Sequence[str] = (), progress: bool = False
    ) -> pd.DataFrame:
        """Value, low and high (95 %) of each property; columns (property, end), one row for each crystal.

        Args:
            structures: crystals of elements up to Pu.
            targets: properties, by default all.
            progress: show how far the features of the crystals are.

        Raises:
            EcdError: an element without form factors, or one that the potential does not know; a package that the
                potential needs and that is not installed.
        """
        prepared = [self.prepare(s) for s in tqdm(structures, "Features", disable=not progress or len(structures) == 1)]
        found = self._found(prepared, wanted := list(targets or self.targets), progress)
        return pd.concat({t: pd.DataFrame(found[t], columns=ENDS) for t in wanted if t in found}, axis=1)

    def prepare(self, structure: Structure, found: Any = None) -> Prepared:
        """What it predicts one crystal from.

        Args:
            found: see :func:`ecdlib.density.core.symmetry`, if it is known.

        Raises:
            EcdError: an element without form factors.
        """
        found = symmetry(structure) if found is None else found
        cell = standard(structure, found)
        return Prepared(cell, 0 if found is None else int(found.number), structure_features(cell))

    def moduli(self, prepared: Sequence[Prepared]) -> tuple[Floats, Floats]:
        """K and G (GPa) and the standard deviations of their logarithms to base 10, ``(n, 2)`` each."""
        found = self._found(prepared, MODULI)
        value, low, high = np.stack([found[t] for t in MODULI], axis=1).transpose(2, 0, 1)
        value = np.maximum(value, SMALLEST)
        return value, (high - low) / (2 * NORMAL * value * np.log(10))

    def _found(self, prepared: Sequence[Prepared], wanted: Sequence[str], progress: bool = False) -> dict[str, Floats]:
        """Value, low and high of properties, those wanted among them, by name ``(n, 3)``."""
        blocks = self._blocks(prepared, progress)
        X, member = self.scaler.transform(blocks), membership([p.space_group for p in prepared], blocks["elements"])
        needed = [t for t in self.learned if t in wanted or (t in MODULI and set(wanted) & set(FOLLOWING))]
        if "refractive_index" in wanted:
            needed = list(dict.fromkeys([*needed, "dielectric_electronic"]))
        found = {t: self._learned(t, X, blocks, member) for t in needed}
        if set(wanted) & set(FOLLOWING):
            K, G = (found[t] for t in MODULI)
            values, spread = follow(K, G, np.exp(blocks["size"]))
            for name in set(values) - set(self.learned):
                half = spread * factors_of(self.arrays[f"{name}/factors"], member)
                found[name] = around(name, values[name], half)
        if "dielectric_electronic" in found:
            found["refractive_index"] = np.sqrt(np.maximum(found["dielectric_electronic"], 0))
        return found

    def _blocks(self, prepared: Sequence[Prepared], progress: bool = False) -> dict[str, Floats]:
        """All blocks of features."""
        formulas = [p.cell.composition.reduced_formula for p in prepared]
        blocks = joined_features([p.features for p in prepared], formulas)
        if self.inputs != "structure":
            from ecdlib.features.sevennet import potential_tensors

            blocks |= potential_features(potential_tensors([p.cell for p in prepared], progress=progress))
        return blocks

    @property
    def learned(self) -> list[str]:
        """Properties with a model of their own; the others follow by formula."""
        return [t for t in self.targets if f"{t}/theta" in self.arrays]

    def _learned(self, target: str, X: Floats, blocks: Mapping[str, Floats], member: NDArray[np.bool_]) -> Floats:
        a = {
            k: self.arrays[f"{target}/{k}"] for k in ("theta", "scale", "rows", "dual", "noise", "lengths", "elements")
        }
        names = blocks_for(target, self.inputs)
        columns, theta, lengths = self.scaler.columns(names), a["theta"], a["lengths"].astype(np.float64)
        variance, noise = np.exp(theta[0]), np.exp(theta[-1])
        training = self.arrays["X"][a["rows"]][:, columns].astype(np.float64) * lengths
        scaled_x = X[:, columns] * lengths
        distance = squared_distances(scaled_x, training)
        mean = variance * matern(distance) @ a["dual"] * a["scale"][1] + a["scale"][0]
        if weight := float(self.arrays[f"{target}/weight"]):
            raw = np.column_stack([blocks[name] for name in names]).astype(np.float32)
            mean = (1 - weight) * mean + weight * predict_trees(self.arrays[f"{target}/trees"], raw)
        learned = self.learned_as(target)
        half = np.zeros(len(mean))
        if not learned.probability:
            weights = a["noise"].astype(np.float64)
            spread = local_spread(scaled_x, training, variance, noise, weights, distance) * a["scale"][1]
            half = spread * factors_of(self.arrays[f"{target}/factors"], member)
        baseline = blocks["elements"] ** 2 @ a["elements"]
        return np.stack([unscaled(mean + s * half, learned) + baseline for s in (0, -1, 1)], axis=1)

    def nearest(self, structure: Structure, n: int = 5) -> pd.Series:
        """The training crystals most like one, as the process of the bulk modulus sees them: distances by name.

        A distance is counted in the length scales of the kernel (see :mod:`ecdlib.models.group_gpr`).
        """
        a = {k: self.arrays[f"bulk_modulus/{k}"] for k in ("rows", "lengths")}
        columns = self.scaler.columns(blocks_for("bulk_modulus", self.inputs))
        X = self.scaler.transform(self._blocks([self.prepare(structure)]))[:, columns] * a["lengths"]
        training = self.arrays["X"][a["rows"]][:, columns] * a["lengths"].astype(np.float64)
        distance = np.sqrt(squared_distances(X, training)[0])
        first = np.argsort(distance)[:n]
        return pd.Series(distance[first], self.arrays["names"][a["rows"]][first])

    def seen(self, structure: Structure, tolerance: float = 0.05) -> str | None:
        """Name of the training crystal with this formula, space group and volume per atom, if there is one."""
        name = f"{structure.composition.reduced_formula}_{space_group(structure)}"
        rows = np.flatnonzero(self.arrays["names"] == name)
        volume = structure.volume / len(structure)
        near = [i for i in rows if abs(np.log(volume / self.arrays["volume"][i])) < tolerance]
        return str(self.arrays["names"][near[0]]) if near else None

    def out_of_fold(self, name: str) -> pd.DataFrame:
        """Value, low and high of a training crystal, by models that have not seen it; index: properties."""
        row = int(np.flatnonzero(self.arrays["names"] == name)[0])
        found = {}
        for target in self.targets:
            at = np.flatnonzero(self.arrays[f"{target}/rows"] == row)
            if len(at):
                found[target] = self.arrays[f"{target}/out of fold"][at[0]].astype(float)
        return pd.DataFrame.from_dict(found, orient="index", columns=ENDS)
