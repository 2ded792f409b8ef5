"""The same crystal, described otherwise: what a rotation of its picture keeps."""

from __future__ import annotations

import numpy as np
import pytest

from ecdlib.data.properties import labelled
from ecdlib.density.store import load_density
from ecdlib.features.common_grid import padded_grid
from ecdlib.learn.redescribed import ANGLES, AXES, CELLS, INPUTS, MODELS, PAIR, rotated_pictures
from ecdlib.learn.table import load_study


@pytest.mark.parametrize("axis", range(3))
def test_a_quarter_turn_renames_axes_and_no_turn_does_nothing(axis: int) -> None:
    picture = padded_grid(load_density("CaMg2_194"), 32)
    turned = rotated_pictures(picture, axis, (0, 90))
    assert turned is not None
    np.testing.assert_allclose(turned[0], picture, atol=1e-6)
    assert turned[1].sum() == pytest.approx(picture.sum(), rel=1e-6)
    np.testing.assert_allclose(np.sort(turned[1].ravel()), np.sort(picture.ravel()), atol=1e-6)
    assert not np.allclose(turned[1], picture)


def test_a_block_that_does_not_fit_is_not_rotated() -> None:
    picture = np.zeros((8, 8, 8))
    picture[:7, :7, :2] = 1
    assert rotated_pictures(picture, 2, (45,)) is None
    assert rotated_pictures(picture, 2, (90,)) is not None


def test_shipped_predictions_are_complete() -> None:
    rotations, note = load_study("rotations")
    assert note["provenance"]["commit"]
    crystals = rotations["crystal"].nunique()
    assert crystals >= 30
    assert len(rotations) == crystals * len(ANGLES) * len(AXES) * len(MODELS) * len(INPUTS) * len(labelled("fusion"))
    assert rotations.loc[rotations["angle"] == 0, "kept"].to_numpy() == pytest.approx(1, abs=1e-4)
    spread = rotations.groupby(["model", "inputs", "property", "crystal", "axis"])["predicted"].std()
    assert (spread > 0).mean() > 0.99, "an input that rotates changes the prediction"
    supercells, _ = load_study("supercells")
    assert len(supercells) == len(PAIR) * len(CELLS) * len(MODELS) * len(INPUTS) * len(labelled("fusion"))
