"""The one table of properties: adding one is one line here and a column of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Sets of crystals: the cubic densities, all crystals of LatentMatFusion, Matbench's elasticity.
Labels = Literal["cubic", "fusion", "matbench"]


@dataclass(frozen=True)
class Property:
    """What one needs to know of a property to learn and to show it."""

    symbol: str  #: short name, as the papers' tables print it
    unit: str
    labels: tuple[Labels, ...]  #: sets of crystals that are labelled with it
    positive: bool = False  #: then what a conversion costs is relative to it
    logarithmic: bool = False  #: varies over orders of magnitude: models may learn its logarithm


#: LatentMatFusion calls the cohesive energy (free atoms) a formation energy; the true one has its own line. The total
#: energy is GPAW's, relative to the atoms of its data sets.
PROPERTIES = {
    "bulk_modulus": Property("K", "GPa", ("cubic", "fusion", "matbench"), positive=True, logarithmic=True),
    "youngs_modulus": Property("E", "GPa", ("fusion",), positive=True, logarithmic=True),
    "shear_modulus": Property("G", "GPa", ("fusion", "matbench"), positive=True, logarithmic=True),
    "cohesive_energy": Property("cohesive energy", "eV/atom", ("fusion",)),
    "debye_temperature": Property("Debye", "K", ("fusion",), positive=True, logarithmic=True),
    "formation_energy": Property("formation energy", "eV/atom", ("fusion",)),
    "total_energy": Property("total energy", "eV/atom", ("cubic",)),
}
#: Unit of each property.
UNITS = {name: p.unit for name, p in PROPERTIES.items()}


def labelled(which: Labels) -> list[str]:
    """Properties that a set of crystals is labelled with.

    >>> labelled("cubic")
    ['bulk_modulus', 'total_energy']
    """
    return [name for name, p in PROPERTIES.items() if which in p.labels]
