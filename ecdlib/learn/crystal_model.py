"""The shipped model of any crystal: all properties from the structure alone, in one file.

All properties share one scaling of the features and the training crystals' features in half precision. The Gaussian
process of a property keeps its dual coefficients, so that a value takes one product. Its standard deviation is that of
the process conditioned on the :data:`NEAR` training crystals most like the one asked, which no matrix of all crystals
is needed for; the factor that turns it into an interval was found for just this deviation, on inner folds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import spglib
from numpy.typing import NDArray
from pymatgen.core import Structure

from ecdlib.base.pieces import in_pieces
from ecdlib.density.core import SYMPREC, Floats, symmetry
from ecdlib.features.crystal import crystal_features
from ecdlib.learn.any_crystal import (
    DERIVED,
    ENDS,
    INNER_FOLDS,
    LEARNED,
    SMALLEST,
    STRUCTURE,
    Answers,
    PropertyModel,
    crystal_table,
    derive,
    error,
    from_moduli,
    load_targets,
    refractive_index,
    take,
    unscaled,
)
from ecdlib.learn.protocol import fold_numbers
from ecdlib.models.group_gpr import matern, squared_distances
from ecdlib.models.stacked import COVERAGE, BlockScaler

#: Training crystals that tell the spread of a prediction.
NEAR = 128
UNITS = {name: learned.unit for name, learned in LEARNED.items()} | DERIVED
#: They depend on the orientation of the crystal, which a structure alone fixes for cubic ones only.
ORIENTED = ("C11", "C12", "C44")
MODULI = ("bulk_modulus", "shear_modulus")


def space_group(structure: Structure) -> int:
    """Number of the space group; 0 if none is found."""
    found = symmetry(structure)
    return 0 if found is None else int(found.number)


def standard(structure: Structure) -> Structure:
    """The standard primitive cell, as the training crystals have it; the cell as given where no symmetry is found.

    Quantiles are taken on a grid, and feel where the atoms lie on it.
    """
    cell: Any = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    if not space_group(structure):
        return structure
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        found: Any = spglib.standardize_cell(cell, to_primitive=True, symprec=SYMPREC)
    return Structure(found[0], found[2], found[1])


class HalfPrecision(BlockScaler):
    """Scaled features as half precision keeps them."""

    def transform(self, blocks: Mapping[str, Floats]) -> Floats:
        """``(n, features)``."""
        return super().transform(blocks).astype(np.float16).astype(np.float64)


def local_spread(X: Floats, training: Floats, variance: float, noise: float, weights: Floats) -> Floats:
    """Standard deviation ``(n,)`` of a process, each conditioned on the :data:`NEAR` most similar training samples.

    Args:
        X, training: features ``(n, k)`` and ``(m, k)``, divided by the length scales.
        variance, noise: of the process.
        weights: of each training sample's noise ``(m,)``.
    """
    distance = squared_distances(X, training)
    near = np.argpartition(distance, min(NEAR, len(training)) - 1, axis=1)[:, :NEAR]
    spread = np.empty(len(X))
    for i, (x, chosen) in enumerate(zip(X, near, strict=True)):
        K = variance * matern(squared_distances(training[chosen], training[chosen]))
        K[np.diag_indices_from(K)] += noise * weights[chosen]
        k = variance * matern(squared_distances(x[None], training[chosen]))[0]
        spread[i] = variance + noise - k @ np.linalg.solve(K, k)
    return np.sqrt(np.maximum(spread, noise))


def train_crystal_model(
    out: Path, *, name: str = "data/make/crystal_model.py", targets: Sequence[str] = tuple(LEARNED), **settings: Any
) -> dict[str, float]:
    """Train on all labelled crystals, and write the model; resumable, one piece for each property.

    Args:
        settings: see :class:`ecdlib.models.stacked.StackedModel`.

    Returns:
        Mean error of each property, by models that have not seen the crystal's inner fold.
    """
    labels, table = load_targets(), crystal_table()
    names = labels.index.to_numpy()
    blocks = take({b: table[b] for b in STRUCTURE}, pd.Index(table["name"]).get_indexer(names))
    scaler = HalfPrecision(STRUCTURE).fit(blocks)
    with in_pieces(out, name, {"targets": list(targets), **settings}) as pieces:
        for target in targets:
            if target not in pieces:
                begun = time.time()
                pieces.save(target, _fit(target, labels, blocks, scaler, settings), time.time() - begun)
                print(target, f"{time.time() - begun:.0f} s", flush=True)
        half = scaler.transform(blocks).astype(np.float16)
        shares = (blocks["elements"] > 0).any(0)
        size = np.exp(blocks["size"][:, 0])
        arrays: dict[str, Any] = {"names": names.astype(str), "X": half, "known": np.flatnonzero(shares) + 1}
        arrays |= {"volume": size.astype(np.float32)} | {f"scaler/{k}": _small(v) for k, v in scaler.state.items()}
        found = {}
        for target in targets:
            piece = pieces.load(target)
            rows = piece.pop("rows")
            arrays |= {f"{target}/{k}": v for k, v in piece.items()} | {f"{target}/rows": rows.astype(np.uint16)}
            found[target] = pd.DataFrame(piece["out of fold"], names[rows], ENDS)
        if set(MODULI) <= set(found):
            answers = {t: Answers(v, v) for t, v in found.items()}
            derived = derive(answers["bulk_modulus"], answers["shear_modulus"], labels)
            if "dielectric_electronic" in answers:
                derived["refractive_index"] = refractive_index(answers["dielectric_electronic"])
            for target, both in derived.items():
                if target in found:  # learned too
                    continue
                found[target] = both.left_out
                arrays[f"{target}/out of fold"] = both.left_out.to_numpy(dtype=np.float32)
                arrays[f"{target}/rows"] = pd.Index(names).get_indexer(both.left_out.index).astype(np.uint16)
        errors = {t: error(t, labels, values["value"]) for t, values in found.items() if t in labels}
        meta = {"kind": "crystal", "targets": list(found), "errors": errors, "provenance": pieces.provenance()}
        from ecdlib.base.archive import write_archive

        write_archive(out, arrays, meta)
    return errors


def _small(v: Any) -> Any:
    return v.astype(np.float32) if v.dtype == np.float64 else v


def _fit(
    target: str, labels: pd.DataFrame, blocks: Mapping[str, Any], scaler: HalfPrecision, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the file keeps of one property."""
    rows = np.flatnonzero(np.isfinite(labels[target].to_numpy()))
    seen, y = take(blocks, rows), labels[target].to_numpy()[rows]
    like = LEARNED[target].like
    model = PropertyModel(target, **settings).fit(
        seen, y, labels[like].to_numpy()[rows] if like else None, scaler=scaler
    )
    stacked, process = model.stacked, model.stacked.process
    fold = fold_numbers(len(rows), INNER_FOLDS, 0)
    spread = np.empty(len(rows))
    for k in range(INNER_FOLDS):
        part, rest = fold == k, fold != k
        training = process.scaled_training
        spread[part] = local_spread(
            training[part], training[rest], process.variance, process.noise, process.noise_weights_[rest]
        )
    spread = spread * process.unit_
    learned = LEARNED[target]
    baseline = seen["elements"] ** 2 @ model.of_elements
    residual = np.abs(stacked.left_out - model.learned_labels)
    factor = float(np.quantile(residual / spread, COVERAGE))
    ends = [stacked.left_out + s * factor * spread for s in (0, -1, 1)]
    return {
        "rows": rows,
        "dual": process.dual.astype(np.float32),
        "theta": process.hyperparameters_,
        "scale": np.array([process.offset_, process.unit_]),
        "noise": process.noise_weights_.astype(np.float16),
        "lengths": process.column_scale.astype(np.float32),
        "trees": np.frombuffer(stacked.booster.model_to_string().encode(), dtype=np.uint8),
        "weight": np.array(stacked.weight),
        "factor": np.array(factor),
        "elements": model.of_elements,
        "out of fold": np.stack([unscaled(e, learned) + baseline for e in ends], axis=1).astype(np.float32),
    }


@dataclass(frozen=True)
class CrystalModel:
    """The trained model: what :func:`train_crystal_model` wrote."""

    arrays: Mapping[str, NDArray[Any]]
    meta: dict[str, Any]
    source: str
    _scaled: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def from_file(cls, arrays: dict[str, Any], meta: dict[str, Any], source: str) -> Self:
        """See :func:`ecdlib.learn.model_file.load_model`."""
        return cls(arrays, meta, source)

    @property
    def targets(self) -> list[str]:
        """What it predicts."""
        return list(self.meta["targets"])

    @property
    def elements(self) -> set[int]:
        """Atomic numbers among its training crystals."""
        return set(self.arrays["known"].tolist())

    @cached_property
    def scaler(self) -> HalfPrecision:
        """The fitted scaling."""
        return HalfPrecision.from_state(
            {k.removeprefix("scaler/"): v for k, v in self.arrays.items() if k.startswith("scaler/")}
        )

    def predict(self, structures: Sequence[Structure], targets: Sequence[str] = ()) -> pd.DataFrame:
        """Value, low and high (95 %) of each property; columns (property, end), one row for each crystal.

        Args:
            structures: crystals of elements up to Pu.
            targets: properties, by default all.

        Raises:
            EcdError: an element without form factors.
        """
        blocks = crystal_features([standard(structure) for structure in structures])
        X = self.scaler.transform(blocks)
        raw = np.column_stack([blocks[name] for name in STRUCTURE]).astype(np.float32)
        wanted = list(targets or self.targets)
        needed = [t for t in self.learned if t in wanted or (t in MODULI and set(wanted) & set(DERIVED))]
        if "refractive_index" in wanted:
            needed = list(dict.fromkeys([*needed, "dielectric_electronic"]))
        found = {t: self._learned(t, X, raw, blocks) for t in needed}
        if set(wanted) & set(DERIVED):
            found = self._derived(found, np.exp(blocks["size"])) | found
        frames = {t: pd.DataFrame(found[t], columns=ENDS) for t in wanted if t in found}
        return pd.concat(frames, axis=1)

    @property
    def learned(self) -> list[str]:
        """Properties with a model of their own; the others follow by formula."""
        return [t for t in self.targets if f"{t}/theta" in self.arrays]

    def _learned(self, target: str, X: Floats, raw: Floats, blocks: Mapping[str, Floats]) -> Floats:
        import lightgbm

        a = {
            k: self.arrays[f"{target}/{k}"] for k in ("theta", "scale", "rows", "dual", "noise", "lengths", "elements")
        }
        theta, lengths = a["theta"], a["lengths"].astype(np.float64)
        variance, noise = np.exp(theta[0]), np.exp(theta[-1])
        training = self.arrays["X"][a["rows"]].astype(np.float64) * lengths
        scaled_x = X * lengths
        mean = variance * matern(squared_distances(scaled_x, training)) @ a["dual"] * a["scale"][1] + a["scale"][0]
        spread = local_spread(scaled_x, training, variance, noise, a["noise"].astype(np.float64)) * a["scale"][1]
        weight = float(self.arrays[f"{target}/weight"])
        if weight:
            trees = lightgbm.Booster(model_str=self.arrays[f"{target}/trees"].tobytes().decode())
            mean = (1 - weight) * mean + weight * np.asarray(trees.predict(raw, num_threads=1))
        half = float(self.arrays[f"{target}/factor"]) * spread
        baseline = blocks["elements"] ** 2 @ a["elements"]
        return np.stack([unscaled(mean + s * half, LEARNED[target]) + baseline for s in (0, -1, 1)], axis=1)

    def _derived(self, found: Mapping[str, Floats], size: Floats) -> dict[str, Floats]:
        """What follows from the moduli, with intervals as wide as those of the training crystals have to be."""
        K, G = (np.maximum(found[t], SMALLEST) for t in ("bulk_modulus", "shear_modulus"))
        spread = np.hypot(*((m[:, 2] - m[:, 1]) / m[:, 0] for m in (K, G)))
        derived: dict[str, Floats] = {}
        for target, value in from_moduli(K[:, 0], G[:, 0], size[:, 1], size[:, 0]).items():
            if target in self.learned:
                continue
            factor = self.factors[target]
            if target == "poisson_ratio":
                derived[target] = np.stack([value, value - factor * spread, value + factor * spread], axis=1)
            else:
                ratio = np.exp(factor * spread)
                derived[target] = np.stack([value, value / ratio, value * ratio], axis=1)
        if "dielectric_electronic" in found:
            derived["refractive_index"] = np.sqrt(np.maximum(found["dielectric_electronic"], 0))
        return derived

    @cached_property
    def factors(self) -> dict[str, float]:
        """Half of the interval of what follows from the moduli, in units of their relative spread."""
        out: dict[str, float] = {}
        position = {int(r): i for i, r in enumerate(self.arrays["bulk_modulus/rows"])}
        where = {int(r): i for i, r in enumerate(self.arrays["shear_modulus/rows"])}
        for target in (t for t in DERIVED if t != "refractive_index" and t not in self.learned):
            row = int(self.arrays[f"{target}/rows"][0])
            K = self.arrays["bulk_modulus/out of fold"][position[row]]
            G = self.arrays["shear_modulus/out of fold"][where[row]]
            spread = np.hypot(*((m[2] - m[1]) / max(m[0], SMALLEST) for m in (K, G)))
            value, low, _ = self.arrays[f"{target}/out of fold"][0]
            out[target] = float((value - low if target == "poisson_ratio" else np.log(value / low)) / spread)
        return out

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
