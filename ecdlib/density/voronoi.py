"""Electrons in the cells of the atoms: each point of space belongs to the atom that is nearest to it (Voronoi)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.images import atoms_around

#: Atoms that may be equally near to a point.
_SHARING = 16
#: Å: distances that differ by less are equal.
_EQUAL = 1e-4


def electrons_by_element(density: ChargeDensity) -> pd.DataFrame:
    """Electrons and volume of each element's nearest-atom cells; a voxel equally near to several atoms is shared.

    A plane halfway between two atoms takes no account of their sizes, so that these are numbers to compare crystals
    with, not charges of ions.

    Returns:
        Index: elements; columns ``atoms``, ``valence electrons`` and ``volume`` (Å³) of all of them in the cell.

    Raises:
        EcdError: a density whose elements are not known.

    Example:
        >>> import ecdlib as ecd
        >>> electrons_by_element(ecd.read("LiH_225"))["valence electrons"].sum().round(3).item()
        2.0
    """
    lattice = density.lattice
    reach = np.linalg.norm(lattice, axis=1).sum() / 2  # no point is farther from all images of an atom
    points, owner = atoms_around(lattice, density.positions, reach)
    tree, atoms = cKDTree(points), len(density.species)
    weights = np.zeros((2, atoms))
    values = density.values
    for i, plane in enumerate(values):  # of one plane of voxels at a time: little memory
        points = _plane(i, values.shape) @ lattice
        for rows, nearest, share in _owners(points, tree, owner):
            weights[0] += np.bincount(nearest, share * plane.ravel()[rows], atoms)
            weights[1] += np.bincount(nearest, share, atoms)
    weights *= density.volume / values.size
    table = pd.DataFrame(weights.T, columns=["valence electrons", "volume"]).assign(element=density.species, atoms=1)
    return table.groupby("element", sort=False)[["atoms", "valence electrons", "volume"]].sum()


def _plane(i: int, shape: tuple[int, ...]) -> Floats:
    """Fractional coordinates of the voxels with the first index ``i``."""
    b, c = np.meshgrid(*(np.arange(n) / n for n in shape[1:]), indexing="ij")
    return np.stack([np.full(b.size, i / shape[0]), b.ravel(), c.ravel()], axis=1)


def _owners(points: Floats, tree: cKDTree, owner: NDArray[np.intp]) -> list[tuple[Any, Any, Any]]:
    """Numbers of points, of the atoms nearest to them, and the share of each: points with one owner, and the others."""
    distance, found = tree.query(points, k=2)
    tied = distance[:, 1] - distance[:, 0] < _EQUAL
    alone = np.flatnonzero(~tied)
    parts = [(alone, owner[found[alone, 0]], np.ones(len(alone)))]
    if tied.any():
        distance, found = tree.query(points[tied], k=min(_SHARING, tree.n))
        equal = distance - distance[:, :1] < _EQUAL
        rows, columns = np.nonzero(equal)
        parts.append((np.flatnonzero(tied)[rows], owner[found[rows, columns]], 1 / equal.sum(1)[rows]))
    return parts
