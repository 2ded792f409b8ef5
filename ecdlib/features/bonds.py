"""Which elements are neighbours in a crystal: pair statistics in terms of what elements have in common."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure
from pymatgen.optimization.neighbors import find_points_in_spheres

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
    numbers = np.array([site.specie.Z for site in structure])
    return pair_statistics(structure.lattice.matrix, structure.cart_coords, numbers)


def pair_statistics(lattice: Floats, positions: Floats, numbers: NDArray[np.integer[Any]]) -> Floats:
    """:func:`bond_statistics` of atoms at Cartesian positions ``(n, 3)`` in a lattice ``(3, 3)``, Å."""
    coordinates, radii = _elements()
    reach = min(REACH * 2 * radii[numbers - 1].max(), LONGEST)
    points, cell = (np.ascontiguousarray(x, dtype=float) for x in (positions, lattice))
    i, j, _, distance = find_points_in_spheres(points, points, reach, np.ones(3, dtype=np.int64), cell, 1e-8)
    elements, kind = np.unique(numbers, return_inverse=True)
    e, radius = coordinates[elements - 1], radii[elements - 1]
    pair = kind[i] * len(elements) + kind[j]
    relative = distance / (radius[:, None] + radius).ravel()[pair]
    counted = ((i != j) | (distance > 1e-8)) & (relative < REACH)  # not the atom itself
    pair, relative = pair[counted], relative[counted]
    distinct = np.triu_indices(e.shape[1])
    found = []
    for centre, width in SHELLS:
        weight = np.exp(-0.5 * ((relative - centre) / width) ** 2)
        shares = np.bincount(pair, weight, len(elements) ** 2).reshape(len(elements), -1) / len(numbers)
        found.append((e.T @ shares @ e)[distinct])
    return np.concatenate(found)
