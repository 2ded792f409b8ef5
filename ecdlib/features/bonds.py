"""Which elements are neighbours in a crystal: pair statistics in terms of what elements have in common."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from pymatgen.core import Structure

from ecdlib.density.core import Floats
from ecdlib.features.composition import element_properties

#: Coordinates of an element: principal components of its MAGPIE properties.
COORDINATES = 8
#: Centres and widths of the shells, in units of the sum of two covalent radii.
SHELLS = ((0.85, 0.1), (1.0, 0.1), (1.15, 0.12), (1.35, 0.16), (1.6, 0.2), (1.9, 0.22))
#: Atoms further apart count for nothing (units as above; and Å).
REACH, LONGEST = 2.4, 9.0


@lru_cache(maxsize=1)
def _elements() -> tuple[Floats, Floats]:
    """Coordinates ``(94, 1 + COORDINATES)``, the first of them 1, and covalent radii (Å) of H to Pu."""
    table = element_properties()
    standard = (table - table.mean()) / table.std()
    left, _, _ = np.linalg.svd(standard.to_numpy(), full_matrices=False)
    coordinates = left[:, :COORDINATES] * np.sqrt(len(table))
    return np.column_stack([np.ones(len(table)), coordinates]), table["CovalentRadius"].to_numpy() / 100


def bond_statistics(structure: Structure) -> Floats:
    """Mean over atoms i of Σ_j s(d_ij/(R_i + R_j)) e_i ⊗ e_j, for Gaussian shells s and coordinates e of the elements.

    The first component of e is 1, so that the numbers of neighbours, the sums of their coordinates and the products of
    both partners' coordinates are in it. The choice of cell and the orientation do not enter.

    Returns:
        ``(shells * 45,)``: of each shell the distinct elements of the symmetric matrix (9, 9).

    Raises:
        EcdError: an element beyond Pu.
    """
    coordinates, radii = _elements()
    number = np.array([site.specie.Z for site in structure])
    e, radius = coordinates[number - 1], radii[number - 1]
    reach = min(REACH * 2 * radius.max(), LONGEST)
    i, j, _, distance = structure.get_neighbor_list(reach, exclude_self=True)
    relative = distance / (radius[i] + radius[j])
    distinct = np.triu_indices(e.shape[1])
    found = []
    for centre, width in SHELLS:
        weight = np.exp(-0.5 * ((relative - centre) / width) ** 2) * (relative < REACH)
        found.append(((e[i] * weight[:, None]).T @ e[j] / len(structure))[distinct])
    return np.concatenate(found)
