"""Intervals hold in each group of crystals, for crystals that had no part in making them."""

from __future__ import annotations

import numpy as np
import pytest

from ecdlib.learn.answer import structure_model
from ecdlib.learn.intervals import (
    GROUPS,
    SMALLEST_GROUP,
    factors_of,
    group_coverage,
    group_factors,
    membership,
)

#: NaCl, MgO, Fe3Al, CrO2: numbers of their elements, and shares.
CRYSTALS = [{11: 0.5, 17: 0.5}, {12: 0.5, 8: 0.5}, {26: 0.75, 13: 0.25}, {24: 1 / 3, 8: 2 / 3}]


def test_groups_are_what_their_names_say() -> None:
    shares = np.zeros((4, 94))
    for row, crystal in zip(shares, CRYSTALS, strict=True):
        for number, share in crystal.items():
            row[number - 1] = share
    member = membership([225, 225, 225, 136], shares)
    found = [{name for name, inside in zip(GROUPS, row, strict=True) if inside} for row in member]
    assert found == [
        {"cubic"},
        {"cubic", "oxides"},
        {"cubic", "metals only", "magnetic elements"},
        {"tetragonal", "oxides", "magnetic elements"},
    ]
    assert membership([0], shares[:1])[0, GROUPS.index("triclinic")], "no symmetry was found"


def test_intervals_hold_in_groups_that_overlap() -> None:
    rng = np.random.default_rng(0)
    n = 8000
    member = np.zeros((n, len(GROUPS)), dtype=bool)
    member[np.arange(n), rng.integers(0, 5, n)] = True
    member[:, 7], member[:, 9] = rng.random(n) < 0.3, rng.random(n) < 0.5
    wide = np.exp(0.4 * member[:, 1] - 0.3 * member[:, 7] + 0.5 * member[:, 9])
    ratio = np.abs(rng.standard_t(4, n)) * wide
    half = n // 2
    logs = group_factors(ratio[:half], member[:half], 0.95)
    inside = ratio[half:] <= factors_of(logs, member[half:])
    for name, (share, count) in group_coverage(inside, member[half:]).items():
        assert share == pytest.approx(0.95, abs=3 * np.sqrt(2 * 0.95 * 0.05 / count)), name
    one = np.quantile(ratio[:half], 0.95)
    assert (ratio[half:] <= one)[member[half:, 9]].mean() < 0.93, "one factor for all would not do"


def test_a_small_group_has_no_factor_of_its_own() -> None:
    ratio = np.random.default_rng(0).exponential(size=1000)
    member = np.zeros((1000, len(GROUPS)), dtype=bool)
    member[: SMALLEST_GROUP - 1, 0] = True
    logs = group_factors(ratio, member, 0.9)
    assert not logs[:-1].any()
    assert np.exp(logs[-1]) == pytest.approx(np.quantile(ratio, 0.9))


@pytest.mark.parametrize("inputs", ["structure", "structure+potential"])
def test_intervals_of_the_shipped_models_hold_in_every_group(inputs) -> None:
    """Within two binomial standard errors of 95 %, with factors from other folds; of the many comparisons one in
    twenty may fall outside by chance."""
    coverage = structure_model(inputs).meta["coverage"]
    assert len(coverage) >= 14
    misses = [(share - 0.95) / np.sqrt(0.95 * 0.05 / n) for groups in coverage.values() for share, n in groups.values()]
    assert len(misses) > 100
    assert np.abs(misses).max() < 3
    assert (np.abs(misses) > 2).mean() <= 0.05
