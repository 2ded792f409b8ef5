"""Tables that ship with the project: crystals, labels, structures."""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ecdlib.base.resources import data_file, read_once
from ecdlib.data.properties import PROPERTIES, labelled
from ecdlib.density.store import DensityStore, load_densities

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: Crystal systems from low to high symmetry, and the last space group of each.
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
LAST_GROUPS = (2, 15, 74, 142, 167, 194, 230)


def crystal_system(spacegroup: int) -> str:
    """Of a space group number.

    >>> [crystal_system(n) for n in (2, 15, 74, 142, 167, 194, 230)]
    ['triclinic', 'monoclinic', 'orthorhombic', 'tetragonal', 'trigonal', 'hexagonal', 'cubic']
    """
    return SYSTEMS[int(np.searchsorted(LAST_GROUPS, spacegroup))]


def load_crystals() -> pd.DataFrame:
    """Labels of 6,059 crystals of the Materials Project, indexed by name (``formula_spacegroup``).

    Columns: material_id, formula, spacegroup, crystal_system, n_sites; bulk_modulus, shear_modulus, youngs_modulus
    (GPa), poisson_ratio, debye_temperature (K); cohesive_energy, formation_energy, total_energy (eV/atom); band_gap
    (eV); original_split (train, val, test).

    Example:
        >>> load_crystals()["material_id"]["NaCl_225"]
        'mp-22862'
    """
    return pd.read_csv(data_file("mp_crystals.csv"), index_col="name")


def load_cubic_targets() -> pd.DataFrame:
    """What the bundled cubic crystals are labelled with, indexed by name.

    Columns: formula, spacegroup, and the properties of :data:`ecdlib.data.properties.PROPERTIES` with labels
    ``"cubic"``: bulk_modulus (GPa, Materials Project), total_energy (eV/atom, GPAW, relative to the atoms of its data
    sets).
    """
    table, labels = load_densities("cubic").table, load_crystals()
    own = {"total_energy": table["energy"] / table["n_atoms"]}
    columns: dict[str, Any] = {t: own[t] if t in own else labels[t] for t in labelled("cubic")}
    return table[["formula", "spacegroup"]].assign(**columns)


@dataclass(frozen=True)
class Labelled:
    """Bundled densities and their labels, aligned."""

    densities: DensityStore  #: ``n`` densities, each read when it is asked for
    table: pd.DataFrame  #: ``n`` rows: formula, spacegroup, and the properties of PROPERTIES; NaN where there is none

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, column: str) -> pd.Series:
        return self.table[column]


def load(which: Literal["cubic", "general"] = "cubic") -> Labelled:
    """Densities (see :func:`ecdlib.density.store.load_densities`) and labels.

    Energies are in eV/atom: the total energy is that of the calculation that gave the density, all other labels are the
    Materials Project's (:func:`load_crystals`).

    Example:
        >>> data = load("cubic")
        >>> len(data), data.densities[0].formula, round(float(data["bulk_modulus"].mean()))
        (892, 'AgAsF6', 115)
    """
    densities = load_densities(which)
    own = densities.table["energy"] / densities.table["n_atoms"]
    labels = load_crystals().reindex(densities.table.index)[list(PROPERTIES)].assign(total_energy=own)
    return Labelled(densities, densities.table[["formula", "spacegroup"]].join(labels))


def load_structures() -> dict[str, Structure]:
    """Crystal structures: 6,059 by the names of :func:`load_crystals`, 1,943 binary ones by material id.

    They are read once and shared: copy one before you change it.

    Example:
        >>> load_structures()["NaCl_225"].composition.reduced_formula
        'NaCl'
    """
    return dict(_structures())


@read_once
def _structures() -> dict[str, Structure]:
    from pymatgen.core import Structure

    raw: dict[str, Any] = {}
    for name in ("mp_structures.json.xz", "mp_binary_structures.json.xz"):
        with lzma.open(data_file(name), "rt") as f:
            raw |= json.load(f)
    return {name: Structure(e["lattice"], e["species"], e["frac_coords"]) for name, e in raw.items()}


def load_matbench_elasticity() -> pd.DataFrame:
    """Matbench v0.1 elasticity: 10,987 entries with log10 K and log10 G (GPa), official folds, CGCNN's predictions."""
    return pd.read_csv(data_file("matbench_elasticity.csv"))
