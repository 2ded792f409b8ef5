"""Predictions for a density: properties with their uncertainty, and how it differs from the training set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ecdlib.base.errors import EcdError
from ecdlib.data.properties import PROPERTIES, UNITS
from ecdlib.density.core import ChargeDensity
from ecdlib.density.doubts import doubts
from ecdlib.density.valence import (
    Valence,
    describe_numbers,
    is_standard,
    read_calibration,
    recognize,
    target_electrons,
    vasp_numbers,
)
from ecdlib.learn.conversion_cost import Calibration, conversion_std
from ecdlib.learn.domain import DEFAULT_MODEL, Domain
from ecdlib.learn.known_models import facts
from ecdlib.learn.model_file import DensityModel, load_model, model_files


@dataclass(frozen=True)
class Predictor:
    """A trained model for one of its properties."""

    target: str
    model: DensityModel

    @property
    def unit(self) -> str:
        """Unit of the property."""
        return UNITS[self.target]

    @cached_property
    def domain(self) -> Domain:
        """What its training crystals cover."""
        known = facts(self.model.source).get("domain")
        return Domain.from_json(known) if known else Domain.of(self.model.trained_on)

    def predict(self, features: Any) -> tuple[float, float]:
        """Value and standard deviation for one crystal, from the features of the model."""
        return self.model.predict(features, self.target)

    def cost(self, valence: Valence, value: float, calibration: Calibration | None = None) -> float:
        """See :func:`ecdlib.learn.conversion_cost.conversion_std`."""
        return conversion_std(self.model, self.target, value, valence, calibration)


def load_predictors(model: str | os.PathLike[str] = DEFAULT_MODEL) -> list[Predictor]:
    """Trained models by name, one for each property (the longest training), or those of a file.

    Raises:
        EcdError: no such model or file, or one that does not predict from densities.
    """
    files = model_files(model, ("models", "portable", "results"))
    found: dict[str, Any] = {}
    for candidate in map(load_model, files):
        if not hasattr(candidate, "features"):
            raise EcdError(model, "does not predict from densities", f"Use --model {DEFAULT_MODEL}.")
        for target in candidate.targets:
            best = found.setdefault(target, candidate)
            if candidate.meta["parameters"]["epochs"] > best.meta["parameters"]["epochs"]:
                found[target] = candidate
    if not found:
        raise EcdError(files[0], "holds no weights to predict with", "Train one of the networks or density-gpr.")
    return [Predictor(t, found[t]) for t in PROPERTIES if t in found]


def predict(
    density: ChargeDensity,
    predictors: Sequence[Predictor],
    calibration: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Properties of one crystal.

    Args:
        calibration: a file of ``ecd calibrate`` for the potentials that the density was computed with; it goes before
            the numbers of VASP's potentials (:func:`ecdlib.density.valence.vasp_numbers`).

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
    valence = recognize(density) if any(p.model.portable for p in predictors) else None
    if calibration is not None and (valence is None or not os.path.isfile(calibration)):
        problem = "no such file" if valence is not None else "is useless to a model that does not convert densities"
        raise EcdError(calibration, problem, f"Make one with `ecd calibrate`, and use --model {DEFAULT_MODEL}.")
    odd = doubts(density)
    numbers = None if valence is None else vasp_numbers(valence)
    if calibration is not None and valence is not None and not valence.gpaw:  # GPAW's own need none
        numbers = (numbers or {}) | read_calibration(calibration, valence)
    for p in predictors:
        model = p.model
        if model.features_key not in features:
            features[model.features_key] = model.features(density, valence, numbers)
        value, std = p.predict(features[model.features_key])
        cost = p.cost(valence, value, numbers) if model.portable and valence is not None else 0.0
        records.append(
            {
                "file": density.name,
                "property": p.target.replace("_", " "),
                "value": value,
                "std": float(np.hypot(std, cost)),
                "unit": p.unit,
                "conversion": conversion_text(valence, numbers) if p.model.portable and valence is not None else "",
                "conversion_std": cost,
                "warnings": odd + p.domain.warnings(density, p.model.portable),
            }
        )
    return records


def conversion_text(valence: Valence, calibration: Calibration | None = None) -> str:
    """What a portable model does about a valence, in words."""
    if is_standard(valence):
        return f"valence {valence}, as in our data"
    gained = {e: target_electrons(e, "gpaw") - n for e, n in valence.electrons.items()}
    changes = ", ".join(f"{e} {n} to {n + gained[e]}" for e, n in valence.electrons.items() if gained[e])
    what = f"valence {valence} (known from {valence.how}), "
    what += f"converted to that of our data: {changes} electrons" if changes else "as in our data"
    return what if valence.gpaw else f"{what}; {describe_numbers(valence, calibration)}"


def conversion_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """What was done about the valence of each file, in words for its user."""
    found: dict[str, list[dict[str, Any]]] = {}
    for r in records:
        if r["conversion"]:
            found.setdefault(f"{r['file']}: {r['conversion']}", []).append(r)
    lines = []
    for line, mine in found.items():
        parts = [f"{r['conversion_std']:.2g} {r['unit']} ({r['property']})" for r in mine if r["conversion_std"]]
        lines.append(f"{line}. Of this uncertainty, {', '.join(parts)} come from the conversion." if parts else line)
    return lines
