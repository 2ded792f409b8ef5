"""Atoms of a crystal and their periodic images near the cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ecdlib.density.core import Floats


def atoms_around(lattice: Floats, positions: Floats, reach: float) -> tuple[Floats, NDArray[np.intp]]:
    """The atoms of a cell, moved into it, and all their images up to a distance beyond its faces.

    Args:
        lattice: ``(3, 3)``, Å, rows are the cell vectors.
        positions: fractional coordinates ``(n, 3)``.
        reach: Å.

    Returns:
        Cartesian coordinates ``(m, 3)``, Å, those of the cell's own atoms first, and the number of the atom that each
        is an image of ``(m,)``.

    Example:
        >>> points, owner = atoms_around(4 * np.eye(3), np.array([[0.0, 0.0, 0.5]]), 1)
        >>> points.tolist(), owner.tolist()
        ([[0.0, 0.0, 2.0], [4.0, 0.0, 2.0], [0.0, 4.0, 2.0], [4.0, 4.0, 2.0]], [0, 0, 0, 0])
    """
    margin = reach * np.linalg.norm(np.linalg.inv(lattice), axis=0) + 1e-9
    places, owner = positions % 1, np.arange(len(positions))
    for axis, m in enumerate(margin):
        steps = np.arange(-np.ceil(m), np.ceil(m) + 1)
        x = places[:, axis] + steps[np.argsort(np.abs(steps), kind="stable"), None]  # the atoms themselves first
        step, atom = ((x > -m) & (x < 1 + m)).nonzero()
        places, owner = places[atom], owner[atom]
        places[:, axis] = x[step, atom]
    return places @ lattice, owner
