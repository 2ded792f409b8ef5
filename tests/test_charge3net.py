"""Densities that ChargE3Net predicts: the same as pydemi's own, with the crystal's symmetry."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from ecdlib.base.errors import EcdError
from ecdlib.density import charge3net
from ecdlib.density.charge3net import predict_density

needs_pydemi = pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in charge3net.REQUIRES), reason="pydemi[ml] is not installed"
)
ROCK_SALT = Structure(2.1 * Lattice([[0, 1, 1], [1, 0, 1], [1, 1, 0]]).matrix, ["Mg", "O"], [[0, 0, 0], [0.5] * 3])


@needs_pydemi
def test_the_density_is_what_pydemi_itself_predicts() -> None:
    from pydemi import ml
    from pydemi.io.base import Lattice as Cell
    from pydemi.io.base import Structure as Crystal

    shape = (8, 8, 8)
    mine = predict_density(ROCK_SALT, shape=shape)
    cell = Crystal(Cell(ROCK_SALT.lattice.matrix), ["Mg", "O"], ROCK_SALT.frac_coords)
    theirs = ml.predict(cell, shape=shape).rho.data
    assert np.abs(mine.values - theirs).max() < 1e-5 * theirs.max()
    assert mine.n_electrons == pytest.approx(8)
    assert mine.valence == {"Mg": 2, "O": 6}
    assert mine.potentials == {"Mg": "PAW_PBE Mg 13Apr2007", "O": "PAW_PBE O 08Apr2002"}


@needs_pydemi
def test_a_crystal_without_symmetry_is_evaluated_everywhere() -> None:
    moved = ROCK_SALT.copy()
    moved.translate_sites([1], [0.05, 0.02, 0.01])
    density = predict_density(moved, shape=(4, 4, 4))
    assert density.history == ("predicted by ChargE3Net at 64 of 64 voxels",)
    assert density.n_electrons == pytest.approx(8)


@needs_pydemi
def test_an_element_that_the_network_has_not_seen() -> None:
    with pytest.raises(EcdError, match=r"does not know Kr\. Compute the density \(ecd density --with gpaw\)\."):
        predict_density(Structure(3 * np.eye(3), ["Kr"], [[0, 0, 0]]))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "e3nn" else name)
    with pytest.raises(EcdError, match=r'charge3net: needs e3nn\. pip install "ecdlib\[charge3net\]"'):
        predict_density(ROCK_SALT)
