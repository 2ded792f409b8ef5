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
    "ChargeDensity": "density.core",
    "load_densities": "density.store",
    "recognize": "density.valence",
    "superpose": "density.superpose",
    "to_convention": "density.valence",
    "load_crystals": "data.tables",
    "load_structures": "data.tables",
    "density_invariants": "features.invariants",
    "featurize": "features.collection",
    "GroupGPR": "models.group_gpr",
    "answer": "learn.answer",
    "load_model": "learn.model_file",
    "load_result": "learn.result",
    "read": "learn.answer:read_crystal",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ecdlib' has no attribute {name!r}")
    home, _, own = _HOMES[name].partition(":")
    return getattr(import_module(f"ecdlib.{home}"), own or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
