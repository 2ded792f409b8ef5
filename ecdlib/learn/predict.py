"""Predictions for a density: properties with their uncertainty, and in which ways it is unlike the training set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from ecdlib.base.errors import DAMAGED, EcdError
from ecdlib.base.resources import bundled_in, data_file, read_once
from ecdlib.book.parameters import TrainingParameters, resolve
from ecdlib.data.properties import PROPERTIES, UNITS
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import DensityStore, load_densities
from ecdlib.density.valence import Valence, is_standard, read_calibration, recognize, target_electrons, to_ours
from ecdlib.features.collection import FeatureSettings, statistics
from ecdlib.learn.experiments import Experiment, arrange, load_experiment, settings, shipped_results
from ecdlib.learn.portability import (
    ROUTES,
    calibrating_compounds,
    has_d_electrons,
    load_fusion_movement,
    pair_has_d_electrons,
)
from ecdlib.models import MODELS

if TYPE_CHECKING:
    from ecdlib.learn.fusion import FusionModel

#: Two numbers for each element (see :func:`ecdlib.density.valence.calibrate`).
Calibration = Mapping[str, tuple[float, float]]
#: What ``ecd predict`` takes unless told otherwise.
DEFAULT_MODEL = "density-gpr-portable"
#: What a conversion costs is relative to these.
POSITIVE = tuple(t for t, p in PROPERTIES.items() if p.positive)


@dataclass(frozen=True)
class Domain:
    """What a training set covers."""

    valence: dict[str, int]  #: valence electrons of each element in its densities
    a: tuple[float, float] | None  #: smallest and largest cubic lattice parameter, Å; None if not all are cubic
    volume: tuple[float, float]  #: smallest and largest volume per atom, Å³

    @classmethod
    @read_once
    def of(cls, names: tuple[str, ...]) -> Domain:
        """Domain of bundled crystals."""
        from pymatgen.core import Composition

        table = pd.concat([load_densities(which).table for which in ("cubic", "general")]).loc[list(names)]
        shares = [Composition(formula).fractional_composition.as_dict() for formula in table["formula"]]
        elements = sorted(set().union(*shares))
        counts = np.array([[share.get(e, 0) for e in elements] for share in shares]) * table[["n_atoms"]].to_numpy()
        total = table["n_electrons"].to_numpy(dtype=float)
        electrons = np.linalg.lstsq(counts.T @ counts, counts.T @ total, rcond=None)[0]
        edges = cls.lattice_parameters(table)
        valence = {e: round(float(v)) for e, v in zip(elements, electrons, strict=True)}
        volume = table["volume"] / table["n_atoms"]
        cubic = (table["spacegroup"] >= 195).all()
        a = (float(edges.min()), float(edges.max())) if cubic else None
        return cls(valence, a, (float(volume.min()), float(volume.max())))

    @staticmethod
    def lattice_parameters(table: pd.DataFrame) -> Floats:
        """Cubic lattice parameters, Å, of rows of a store's table (primitive cells)."""
        edges: Floats = (table["volume"] * table["spacegroup"].map(_points)).to_numpy() ** (1 / 3)
        return edges

    def warnings(self, density: ChargeDensity, converted: bool = False) -> list[str]:
        """In which ways the density is unlike the training set; empty if in none that can be seen.

        Args:
            converted: whether the model converts its valence.
        """
        found = []
        unseen = sorted(set(density.species) - set(self.valence))
        if unseen:
            found.append(f"no training crystal holds {', '.join(unseen)}")
        dataset = density.symmetry(1e-2)
        number = 0 if dataset is None else int(dataset.number)
        if self.a is None:
            volume = density.volume / max(1, len(density.species))
            if not self.volume[0] <= volume <= self.volume[1]:
                limits = f"{self.volume[0]:.1f} to {self.volume[1]:.1f} Å³"
                found.append(f"volume per atom {volume:.1f} Å³ is outside the {limits} of the training set")
        elif number < 195:
            what = "no crystal symmetry was found" if number == 0 else f"space group {number} is not cubic"
            found.append(f"{what}, all training crystals are cubic: the 48 orientations were averaged")
        else:
            primitive_atoms = len(set(dataset.mapping_to_primitive))
            a = (density.volume * _points(number) * primitive_atoms / len(density.species)) ** (1 / 3)
            if not self.a[0] <= a <= self.a[1]:
                limits = f"{self.a[0]:.2f} to {self.a[1]:.2f} Å"
                found.append(f"lattice parameter {a:.2f} Å is outside the {limits} of the training set")
        if not unseen and density.species and not converted:
            expected = sum(self.valence[e] for e in density.species)
            if abs(density.n_electrons - expected) > 0.2:
                found.append(
                    f"holds {density.n_electrons:.1f} valence electrons, training densities of this crystal "
                    f"{expected}: another valence convention, the prediction is not reliable; --model {DEFAULT_MODEL} "
                    "converts it"
                )
        return found


def _rms(values: pd.Series) -> float:
    return float(np.sqrt((values**2).mean()))


def _conversion_std(
    p: Predictor | FusionPredictor,
    moved: pd.DataFrame,
    value: float,
    valence: Valence,
    calibration: Calibration | None,
) -> float:
    """What a conversion adds to the standard deviation of a prediction.

    Args:
        moved: movements of the pairs' predictions, one column a route; relative for positive properties.
    """
    scale = abs(value) if p.target in POSITIVE else 1.0
    rough = moved.index.map(lambda name: pair_has_d_electrons(str(name)))
    with_d = {e for e, n in valence.electrons.items() if has_d_electrons({e: n})}
    if valence.gpaw:
        return _rms(moved.loc[rough == bool(with_d), "radial functions"]) * scale
    known = set(calibration or {})
    parts = [_between_codes(p)]
    for kind, elements in ((True, with_d), (False, set(valence.electrons) - with_d)):
        if elements:
            parts.append(_rms(moved.loc[rough == kind, "calibrated" if elements <= known else "shells"]))
    return float(np.linalg.norm(parts)) * scale


_TWO_CODES: dict[Any, list[tuple[Any, Any]]] = {}  # features of the densities below, by the kind of a predictor


def _between_codes(p: Predictor | FusionPredictor) -> float:
    """Root mean square movement of predictions between VASP's and our densities of NaCl and of Li, at one geometry."""
    from ecdlib.density.io import read_density

    if p.kind not in _TWO_CODES:
        ours = DensityStore(data_file("vasp/gpaw.h5"))
        files = {name: read_density(data_file(f"vasp/CHGCAR.{name}.gz")) for name in ours.names}
        _TWO_CODES[p.kind] = [(p.features(files[name]), p.features(ours[name])) for name in ours.names]
    values = np.array([[p.predict(x)[0] for x in both] for both in _TWO_CODES[p.kind]])
    moved = values[:, 0] - values[:, 1]
    return _rms(pd.Series(moved / values[:, 1] if p.target in POSITIVE else moved))


def _points(spacegroup: int) -> int:
    """Lattice points of the conventional cell of a cubic space group."""
    if spacegroup in (196, 202, 203, 209, 210, 216, 219, 225, 226, 227, 228):
        return 4
    return 2 if spacegroup in (197, 199, 204, 206, 211, 214, 217, 220, 229, 230) else 1


def _spacegroup(density: ChargeDensity) -> int:
    dataset = density.symmetry(1e-2)
    return 0 if dataset is None else int(dataset.number)


@dataclass(frozen=True)
class Predictor:
    """A trained model for one property, as ``ecd train`` wrote it."""

    target: str
    experiment: Experiment
    weights: dict[str, Floats]
    source: str

    @cached_property
    def parameters(self) -> TrainingParameters:
        """The parameters it was trained with."""
        p = resolve("training", self.experiment.meta["parameters"])
        assert isinstance(p, TrainingParameters)
        return p

    @property
    def unit(self) -> str:
        """Unit of the property."""
        return UNITS[self.target]

    @property
    def portable(self) -> bool:
        """Whether it takes densities of any valence convention."""
        return self.parameters.convention == "portable"

    @property
    def kind(self) -> tuple[FeatureSettings, ...]:
        """How densities are turned into features for it; predictors of one kind share their features."""
        return tuple(settings(self.parameters))

    def features(
        self, density: ChargeDensity, valence: Valence | None = None, calibration: Calibration | None = None
    ) -> list[Floats]:
        """Distinct values of the autocorrelation and quantiles of the density, of each channel.

        Args:
            valence, calibration: for a portable model (see :func:`ecdlib.density.valence.to_convention`).

        Raises:
            EcdError: a crystal that is not cubic for a network with cubic kernels, or a valence that is not known.
        """
        number = _spacegroup(density)
        if number < 195 and self.parameters.model.startswith("octahedral"):
            remedy = f"Take --model {DEFAULT_MODEL}, which averages over the orientations, or mind what it says."
            raise EcdError(density.name, f"space group {number or 'unknown'} is not cubic, but the model is", remedy)
        if self.portable and valence is None:
            valence = recognize(density)
        if not self.portable and "smoothed" in (density.convention or ""):
            what = f"is converted ({density.convention}), the model takes densities as computed"
            raise EcdError(density.name, what, f"Give the original, or take --model {DEFAULT_MODEL}.")
        return [np.hstack(statistics(density, s, valence, calibration)) for s in self.kind]

    def cost(self, valence: Valence, value: float, calibration: Calibration | None = None) -> float:
        """Standard deviation that the conversion of a density adds to a prediction.

        It is the root mean square of the movements of the pairs, those with d electrons and those without as the
        density has them, and for other codes' potentials that between VASP's and our densities of two crystals;
        relative to the prediction for positive properties. Two crystals are few: for other codes it is a lower bound.

        Raises:
            EcdError: a model that was trained without the pairs.
        """
        if is_standard(valence):
            return 0.0
        if not self.experiment.pairs:
            what = "was trained without the pairs, so that it is not known what a conversion costs"
            raise EcdError(self.source, what, "Train it on all crystals (crystals=0).")
        moved = self.experiment.movement(self.target, relative=self.target in POSITIVE)
        return _conversion_std(self, moved, value, valence, calibration)

    @cached_property
    def domain(self) -> Domain:
        """What its training crystals cover."""
        return Domain.of(tuple(self.experiment.names[~self.experiment.test]))

    @cached_property
    def model(self) -> Any:
        """The fitted estimator.

        Raises:
            EcdError: weights that do not fit it.
        """
        p = self.parameters
        try:
            if p.model == "density-gpr":
                from ecdlib.models.density_gpr import DensityGPR

                return DensityGPR.from_state(self.weights, log_target=p.target == "bulk_modulus")
            import torch

            model = MODELS[p.model].build(p)
            model.module_ = model.make_module()
            model.module_.load_state_dict({k: torch.from_numpy(v) for k, v in self.weights.items()})
            model.module_.eval()
        except (KeyError, RuntimeError, ValueError) as error:
            remedy = "Train it again with `ecd train`."
            raise EcdError(self.source, f"its weights do not fit the model {p.model}", remedy) from error
        trained = self.experiment.truth[~self.experiment.test]
        model.mean_, model.scale_ = trained.mean(0), trained.std(0)
        return model

    def predict(self, features: list[Floats]) -> tuple[float, float]:
        """Value and standard deviation for one crystal.

        A Gaussian process states its own standard deviation; for a network it is the root mean square error on
        crystals that were not in its training.

        Args:
            features: see :meth:`features`.
        """
        taken = arrange(self.parameters.model, [channel[None] for channel in features])
        if MODELS[self.parameters.model].inputs == "statistics":
            value, std = self.model.predict(taken, return_std=True)
            return float(value[0]), float(std[0])
        e = self.experiment
        t = e.meta["targets"].index(self.target)
        held_out = e.test if np.isnan(e.crossed).all() else np.ones(len(e.names), dtype=bool)
        std = float(np.sqrt(((e.predicted - e.truth)[held_out, t] ** 2).mean()))
        values = np.asarray(self.model.predict(taken)).reshape(-1)
        return float(values[t]), std


@dataclass(frozen=True)
class FusionPredictor:
    """A trained model on latents and composition, for one property."""

    target: str
    model: FusionModel
    portable: ClassVar[bool] = True

    @property
    def unit(self) -> str:
        """Unit of the property."""
        return UNITS[self.target]

    @property
    def kind(self) -> str:
        """Predictors of one kind share their features."""
        return self.model.source

    @cached_property
    def domain(self) -> Domain:
        """What its training crystals cover."""
        return Domain.of(tuple(self.model.names))

    def features(
        self, density: ChargeDensity, valence: Valence | None = None, calibration: Calibration | None = None
    ) -> Floats:
        """What the model takes; a density of another valence is converted first, without smoothing.

        Args:
            valence, calibration: see :func:`ecdlib.density.valence.to_convention`.

        Raises:
            EcdError: a valence that is not known.
        """
        return self.model.features(to_ours(density, valence, calibration))

    def cost(self, valence: Valence, value: float, calibration: Calibration | None = None) -> float:
        """Standard deviation that the conversion of a density adds to a prediction (see :meth:`Predictor.cost`)."""
        if is_standard(valence):
            return 0.0
        table = load_fusion_movement()
        mine = (table["model"] == f"fusion-{self.model.meta['parameters']['model']}") & (
            table["property"] == self.target
        )
        table = table[mine].set_index("pair")
        moved = table[list(ROUTES)].sub(table["own"], axis=0)
        moved.loc[calibrating_compounds(), "calibrated"] = np.nan
        if self.target in POSITIVE:
            moved = moved.div(table["own"], axis=0)
        return _conversion_std(self, moved, value, valence, calibration)

    def predict(self, features: Floats) -> tuple[float, float]:
        """Value and standard deviation (see :meth:`ecdlib.learn.fusion.FusionModel.predict`)."""
        return self.model.predict(features, self.target)


def _is_fusion(path: Path) -> bool:
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            return "scaler/mean" in z.files
    except DAMAGED:
        return False  # the reader of experiments says what is wrong


def load_predictors(model: str = DEFAULT_MODEL) -> list[Predictor] | list[FusionPredictor]:
    """Trained models by name, one for each property, or that of a result file of ``ecd train``.

    Raises:
        EcdError: no such model or file, or one without weights.
    """
    path = Path(model)
    shipped_fusion = bundled_in("models")
    if model in shipped_fusion or (path.suffix == ".npz" and _is_fusion(path)):
        from ecdlib.learn.fusion import load_fusion_model

        fusion = load_fusion_model(model if model in shipped_fusion else path)
        return [FusionPredictor(target, fusion) for target in fusion.meta["targets"]]
    shipped = [n for n in shipped_results("portable" if "-portable" in model else "results") if f"/{model}--" in n]
    files = [path] if path.suffix == ".npz" else [data_file(name) for name in shipped]
    found: dict[str, Predictor] = {}
    for file in files:
        experiment = load_experiment(file)
        with np.load(file, allow_pickle=False) as z:
            weights = {k.removeprefix("weights/"): z[k] for k in z.files if k.startswith("weights/")}
        for target in experiment.meta["targets"]:
            epochs = experiment.meta["parameters"]["epochs"]
            known = found.get(target)
            if weights and (known is None or epochs > known.parameters.epochs):  # the longest training
                found[target] = Predictor(target, experiment, weights, str(file))
    if not found:
        if files:
            raise EcdError(files[0], "holds no weights to predict with", "Train one of the networks or density-gpr.")
        known_names = [DEFAULT_MODEL, "density-gpr", "octahedral-a", "octahedral-b", *shipped_fusion]
        remedy = f"Give the path of a result file of `ecd train`, or one of: {', '.join(known_names)}."
        raise EcdError(model, "no such trained model", remedy)
    return [found[t] for t in UNITS if t in found]


def predict(
    density: ChargeDensity,
    predictors: Sequence[Predictor | FusionPredictor],
    calibration: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Properties of one crystal.

    Args:
        calibration: a file of ``ecd calibrate`` for the potentials that the density was computed with.

    Returns:
        Records with ``file`` (the density's name), ``property``, ``value``, ``std``, ``unit``, ``conversion`` (what was
        done about its valence; empty for a model that does not convert), ``conversion_std`` (its part of ``std``),
        ``warnings``.

    Raises:
        EcdError: a crystal that is not cubic for a network with cubic kernels, a density that cannot be featurized, or
            for a portable model one whose valence is not known (see :func:`ecdlib.density.valence.recognize`).
    """
    records = []
    features: dict[Any, Any] = {}
    valence = recognize(density) if any(p.portable for p in predictors) else None
    if calibration is not None and (valence is None or not os.path.isfile(calibration)):
        problem = "no such file" if valence is not None else "is of no use to a model that does not convert densities"
        raise EcdError(calibration, problem, f"Make one with `ecd calibrate`, and take --model {DEFAULT_MODEL}.")
    numbers = None
    if calibration is not None and valence is not None and not valence.gpaw:  # GPAW's own need none
        numbers = read_calibration(calibration, valence)
    for p in predictors:
        if p.kind not in features:
            features[p.kind] = p.features(density, valence, numbers)
        value, std = p.predict(features[p.kind])
        cost = p.cost(valence, value, numbers) if p.portable and valence is not None else 0.0
        records.append(
            {
                "file": density.name,
                "property": p.target.replace("_", " "),
                "value": value,
                "std": float(np.hypot(std, cost)),
                "unit": p.unit,
                "conversion": describe(valence, numbers) if p.portable and valence is not None else "",
                "conversion_std": cost,
                "warnings": p.domain.warnings(density, p.portable),
            }
        )
    return records


def describe(valence: Valence, calibration: Calibration | None = None) -> str:
    """What a portable model does about a valence, in words."""
    if is_standard(valence):
        return f"valence {valence}, that of our data"
    gained = {e: target_electrons(e, "gpaw") - n for e, n in valence.electrons.items()}
    changes = ", ".join(f"{e} {n} to {n + gained[e]}" for e, n in valence.electrons.items() if gained[e])
    what = f"valence {valence} (known from {valence.how}), "
    what += f"converted to that of our data: {changes} electrons" if changes else "that of our data"
    if valence.gpaw:
        return what
    if calibration:
        return f"{what}; calibrated: {', '.join(calibration)}"
    return f"{what}; by whole shells, as the radial functions of its potentials are not known"


def conversion_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """What was done about the valence of each file, in words for its user."""
    found: dict[str, list[dict[str, Any]]] = {}
    for r in records:
        if r["conversion"]:
            found.setdefault(f"{r['file']}: {r['conversion']}", []).append(r)
    lines = []
    for line, mine in found.items():
        parts = [f"{r['conversion_std']:.2g} {r['unit']} ({r['property']})" for r in mine if r["conversion_std"]]
        lines.append(f"{line}. Of ± std the conversion makes {', '.join(parts)}." if parts else line)
    return lines
