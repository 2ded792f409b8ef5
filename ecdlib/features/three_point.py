"""3-point correlations: the next statistics after the autocorrelation, for cubic crystals.

f(r1, r2) is the mean over s of √ρ(s) √ρ(s + r1) √ρ(s + r2). With the first vector fixed it is the correlation of a
product of two fields with the third, one FFT each (D. T. Fullwood, S. R. Niezgoda, B. L. Adams and S. R. Kalidindi,
Prog. Mater. Sci. 55, 477 (2010), https://doi.org/10.1016/j.pmatsci.2009.08.002).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.progress import tqdm
from ecdlib.density.cell import resample, to_conventional
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_densities

#: First vectors, in units of :data:`STEP`: along an edge, a face diagonal and the diagonal of the cube.
FIRST = (
    *((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)),
    *((1, 1, 0), (2, 2, 0), (3, 3, 0)),
    *((1, 1, 1), (2, 2, 2), (3, 3, 3)),
)
STEP = 0.75  #: Å, of both vectors
REACH = 4  #: steps of the second vector along each axis
VOXEL = 0.3  #: Å, of the grid that √ρ is taken to: finer detail of it is left out


@lru_cache(maxsize=1)
def _operations() -> NDArray[np.intp]:
    """The 48 rotations and reflections of the cube, ``(48, 3, 3)``."""
    found = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3), dtype=int)
        matrix[range(3), list(order)] = signs
        found.append(matrix)
    return np.array(found)


@lru_cache(maxsize=len(FIRST))
def _orbits(first: tuple[int, int, int]) -> NDArray[np.intp]:
    """Number of the orbit of each second vector under the operations that keep the first one, ``(9³,)``."""
    x = np.arange(-REACH, REACH + 1)
    second = np.stack(np.meshgrid(x, x, x, indexing="ij"), -1).reshape(-1, 3)
    keep = [R for R in _operations() if (R @ first == first).all()]
    key = np.array([100**2, 100, 1])
    _, orbit = np.unique(np.min([(second @ R.T + REACH) @ key for R in keep], axis=0), return_inverse=True)
    return orbit


def _turned(values: Floats, spacegroup: int) -> list[Floats]:
    """The field, and as many of its images as the average over the cube's 48 operations needs.

    A cubic crystal has the 12 rotations of the tetrahedron; inversion and a diagonal mirror make the rest of them.
    """
    inverted = np.roll(values[::-1, ::-1, ::-1], 1, axis=(0, 1, 2))
    if spacegroup >= 221:
        return [values]
    if spacegroup >= 207:
        return [values, inverted]
    if spacegroup >= 200:
        return [values, values.transpose(1, 0, 2)]
    return [values, inverted, values.transpose(1, 0, 2), inverted.transpose(1, 0, 2)]


def three_point(density: ChargeDensity) -> Floats:
    """3-point correlations of √ρ of a cubic crystal, the mean over the 48 orientations.

    Args:
        density: without negative values, in the conventional cell (see
            :func:`ecdlib.features.collection.featurize`).

    Returns:
        ``(1710,)`` in (e/Å³)^(3/2): for each of the ten vectors of :data:`FIRST` the values at the distinct second
        vectors, up to 3 Å along each axis.

    Raises:
        ValueError: the cell is not a cube.
    """
    a = float(density.lattice[0, 0])
    if np.abs(density.lattice - a * np.eye(3)).max() > 1e-3 * a:
        raise ValueError("the conventional cell is not a cube")
    n = int(np.ceil(a / VOXEL / 2)) * 2 + 1  # odd: no mode without its mirror image
    values = resample(np.sqrt(density.values), (n,) * 3)
    found = density.symmetry(1e-2)
    images = _turned(values, 0 if found is None else int(found.number))
    return np.asarray(np.mean([_oriented(image, a) for image in images], axis=0))


def _oriented(values: Floats, a: float) -> Floats:
    n = len(values)
    m = scipy.fft.fftfreq(n, 1 / n)
    spectrum = scipy.fft.fftn(values, workers=1) / values.size
    waves = np.exp(2j * np.pi / a * np.outer(STEP * np.arange(-REACH, REACH + 1), m))  # (9, n)
    parts = []
    for first in FIRST:
        x, y, z = (np.exp(2j * np.pi / a * STEP * f * m) for f in first)
        moved = scipy.fft.ifftn(spectrum * (x[:, None, None] * y[:, None] * z), workers=1).real * values.size
        # Σ_m P*(m) S(m) exp(i k r2), P the spectrum of the product of the first two fields
        cross = np.conj(scipy.fft.fftn(values * moved, workers=1) / values.size) * spectrum
        for axis in range(3):
            cross = np.moveaxis(np.tensordot(waves, cross, (1, axis)), 0, axis)
        orbit = _orbits(first)
        parts.append(np.bincount(orbit, cross.real.ravel()) / np.bincount(orbit))
    return np.concatenate(parts)


def bundled_three_point(names: Sequence[str], progress: bool = True) -> Floats:
    """:func:`three_point` of bundled cubic crystals, ``(n, 1710)``; computed once (``_build/cache``)."""

    def make() -> Arrays:
        store = load_densities("cubic-all")
        cells: Any = (redistribute_negative_charge(to_conventional(store[name])).density for name in names)
        rows = [three_point(cell) for cell in tqdm(cells, "3-point", len(names), disable=not progress)]
        return {"values": np.stack(rows).astype(np.float32)}

    return cached("three-point", make, tuple(names))["values"].astype(np.float64)
