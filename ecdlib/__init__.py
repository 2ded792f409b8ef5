"""Crystal properties from electron charge densities.

The names that most users need; each is imported when it is asked for.

Example:
    >>> import ecdlib
    >>> ecdlib.read("LiH_225").formula  # a bundled density; or a CHGCAR, a cube, a CIF
    'LiH'
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "read": "learn.answer:read_crystal",
    "predict": "learn.answer:predictions",
    "answer": "learn.answer",
    "load": "data.tables",
    "load_densities": "density.store",
    "load_crystals": "data.tables",
    "load_structures": "data.tables",
    "load_model": "learn.model_file",
    "load_result": "learn.result",
    "ChargeDensity": "density.core",
    "superpose": "density.superpose",
    "recognize": "density.valence",
    "to_convention": "density.valence",
    "resample": "density.cell",
    "featurize": "features.collection",
    "density_descriptors": "features.descriptors",
    "density_invariants": "features.invariants",
    "Autocorrelation": "features.transformers",
    "Composition": "features.transformers",
    "CrystalFeatures": "features.transformers",
    "Descriptors": "features.transformers",
    "Invariants": "features.transformers",
    "Latents": "learn.latents",
    "PotentialTensor": "features.transformers",
    "Quantiles": "features.transformers",
    "GroupGPR": "models.group_gpr",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ecdlib' has no attribute {name!r}")
    home, _, own = _HOMES[name].partition(":")
    return getattr(import_module(f"ecdlib.{home}"), own or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
