"""3-point correlations: agreement with direct sums, and what the average over the cube's operations must not change."""

from __future__ import annotations

import numpy as np
import pytest

from ecdlib.density.cell import to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.store import load_density
from ecdlib.features import three_point as tp


def _density(values: np.ndarray, a: float) -> ChargeDensity:
    return ChargeDensity(values, a * np.eye(3), ("Po",), [[0, 0, 0]])


def test_agrees_with_direct_sums() -> None:
    """On a cell where one step is two voxels, the sum over all positions is direct."""
    n, a = 9, 4.5 * tp.STEP
    rng = np.random.default_rng(0)
    field = 1 + 0.2 * rng.random((n, n, n))
    found = tp._oriented(field, a)
    start = 0
    for first in tp.FIRST:
        orbit = tp._orbits(first)
        moved = np.roll(field, [-2 * f for f in first], (0, 1, 2))
        values = []
        for second in np.ndindex(*[2 * tp.REACH + 1] * 3):
            shift = [-2 * (s - tp.REACH) for s in second]
            values.append((field * moved * np.roll(field, shift, (0, 1, 2))).mean())
        direct = np.bincount(orbit, values) / np.bincount(orbit)
        np.testing.assert_allclose(found[start : start + len(direct)], direct, rtol=1e-10)
        start += len(direct)
    assert start == len(found) == 1710


@pytest.mark.parametrize("name", ["LiH_225", "AlSb_216"])
def test_orientation_origin_and_inversion_do_not_matter(name: str) -> None:
    cell = to_conventional(load_density(name))
    cell = cell.step("positive", values=np.maximum(cell.values, 0))
    found = tp.three_point(cell)
    values = np.asarray(cell.values)
    for other in (
        np.roll(values, (3, 1, 2), (0, 1, 2)),
        values.transpose(1, 0, 2),
        np.roll(values[::-1, ::-1, ::-1], 1, (0, 1, 2)),
        values.transpose(2, 0, 1)[:, ::-1],
    ):
        images = tp._turned(tp.resample(np.sqrt(other), (len(_field(cell)),) * 3), {"L": 225, "A": 216}[name[0]])
        turned = np.mean([tp._oriented(image, float(cell.lattice[0, 0])) for image in images], axis=0)
        np.testing.assert_allclose(turned, found, rtol=1e-3)


def _field(cell: ChargeDensity) -> np.ndarray:
    n = int(np.ceil(cell.lattice[0, 0] / tp.VOXEL / 2)) * 2 + 1
    return np.empty(n)


def test_second_vector_at_zero_is_a_two_point_statistic() -> None:
    """f(r1, 0) = <ρ(s) √ρ(s + r1)>, and a uniform density has the same value everywhere."""
    found = tp.three_point(_density(np.full((6, 6, 6), 4.0), 4.0))
    np.testing.assert_allclose(found, 8.0)
