"""Predictions for a density: properties with their uncertainty, and in which ways it is unlike the training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ecdlib.datasets import bundled_in, data_file, load_densities
from ecdlib.density import ChargeDensity, Floats
from ecdlib.errors import DAMAGED, EcdError
from ecdlib.experiments import UNITS, Experiment, load_experiment, shipped_results
from ecdlib.features import FeatureSettings, statistics
from ecdlib.models import MODELS
from ecdlib.parameters import TrainingParameters, resolve

if TYPE_CHECKING:
    from ecdlib.fusion import FusionModel

#: What ``ecd predict`` takes unless told otherwise.
DEFAULT_MODEL = "density-gpr"


@dataclass(frozen=True)
class Domain:
    """What a training set covers."""

    valence: dict[str, int]  #: valence electrons of each element in its densities
    a: tuple[float, float] | None  #: smallest and largest cubic lattice parameter, Å; None if not all are cubic
    volume: tuple[float, float]  #: smallest and largest volume per atom, Å³

    @classmethod
    @lru_cache(maxsize=8)
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

    def warnings(self, density: ChargeDensity) -> list[str]:
        """In which ways the density is unlike the training set; empty if in none that can be seen."""
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
        if not unseen and density.species:
            expected = sum(self.valence[e] for e in density.species)
            if abs(density.n_electrons - expected) > 0.2:
                found.append(
                    f"holds {density.n_electrons:.1f} valence electrons, training densities of this crystal "
                    f"{expected}: another valence convention, the prediction is not reliable"
                )
        return found


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
    def kind(self) -> FeatureSettings:
        """How densities are turned into features for it; predictors of one kind share their features."""
        return FeatureSettings(size=self.parameters.size, voxel=self.parameters.voxel)

    def features(self, density: ChargeDensity) -> tuple[Floats, Floats]:
        """Distinct values of the autocorrelation, and quantiles of the density.

        Raises:
            EcdError: a crystal that is not cubic for a network with cubic kernels.
        """
        number = _spacegroup(density)
        if number < 195 and self.parameters.model.startswith("octahedral"):
            remedy = f"Take --model {DEFAULT_MODEL}, which averages over the orientations, or mind what it says."
            raise EcdError(density.name, f"space group {number or 'unknown'} is not cubic, but the model is", remedy)
        return statistics(density, self.kind)

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

    def predict(self, features: tuple[Floats, Floats]) -> tuple[float, float]:
        """Value and standard deviation for one crystal.

        A Gaussian process states its own standard deviation; for a network it is the root mean square error on
        crystals that were not in its training.

        Args:
            features: see :meth:`features`.
        """
        correlations, quantiles = features
        if MODELS[self.parameters.model].inputs == "statistics":
            value, std = self.model.predict(np.hstack([correlations, quantiles])[None], return_std=True)
            return float(value[0]), float(std[0])
        e = self.experiment
        t = e.meta["targets"].index(self.target)
        held_out = e.test if np.isnan(e.crossed).all() else np.ones(len(e.names), dtype=bool)
        predicted = e.fitted if np.isnan(e.crossed).all() else e.crossed
        std = float(np.sqrt(((predicted - e.truth)[held_out, t] ** 2).mean()))
        values = np.asarray(self.model.predict(correlations[None])).reshape(-1)
        return float(values[t]), std


@dataclass(frozen=True)
class FusionPredictor:
    """A trained model on latents and composition, for one property."""

    target: str
    model: FusionModel

    @property
    def unit(self) -> str:
        """Unit of the property."""
        from ecdlib.datasets import PROPERTIES

        return PROPERTIES[self.target]

    @property
    def kind(self) -> str:
        """Predictors of one kind share their features."""
        return self.model.source

    @cached_property
    def domain(self) -> Domain:
        """What its training crystals cover."""
        return Domain.of(tuple(self.model.names))

    def features(self, density: ChargeDensity) -> Floats:
        """What the model takes."""
        return self.model.features(density)

    def predict(self, features: Floats) -> tuple[float, float]:
        """Value and standard deviation (see :meth:`ecdlib.fusion.FusionModel.predict`)."""
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
        from ecdlib.fusion import load_fusion_model

        fusion = load_fusion_model(model if model in shipped_fusion else path)
        return [FusionPredictor(target, fusion) for target in fusion.meta["targets"]]
    shipped = [name for name in shipped_results() if name.startswith(f"results/{model}--")]
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
        known_names = [DEFAULT_MODEL, "octahedral-a", "octahedral-b", *shipped_fusion]
        remedy = f"Give the path of a result file of `ecd train`, or one of: {', '.join(known_names)}."
        raise EcdError(model, "no such trained model", remedy)
    return [found[t] for t in UNITS if t in found]


def predict(density: ChargeDensity, predictors: Sequence[Predictor | FusionPredictor]) -> list[dict[str, Any]]:
    """Properties of one crystal.

    Returns:
        Records with ``file`` (the density's name), ``property``, ``value``, ``std``, ``unit``, ``warnings``.

    Raises:
        EcdError: a crystal that is not cubic for a network with cubic kernels, or a density that cannot be featurized.
    """
    records = []
    features: dict[Any, Any] = {}
    for p in predictors:
        if p.kind not in features:
            features[p.kind] = p.features(density)
        value, std = p.predict(features[p.kind])
        records.append(
            {
                "file": density.name,
                "property": p.target.replace("_", " "),
                "value": value,
                "std": std,
                "unit": p.unit,
                "warnings": p.domain.warnings(density),
            }
        )
    return records
