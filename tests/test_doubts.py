"""Whether a density fits its atoms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ecdlib.base.resources import data_file
from ecdlib.density.core import ChargeDensity
from ecdlib.density.doubts import ASYMMETRY, MISFIT, asymmetry, doubts
from ecdlib.density.io import read_density
from ecdlib.density.store import load_densities, load_density
from ecdlib.density.superpose import misfit, superpose


def reordered(density: ChargeDensity, values: np.ndarray) -> ChargeDensity:
    """The values in another order, x fastest as in a CHGCAR."""
    return density.step("reordered", values=values.reshape(density.shape, order="F"))


@pytest.mark.parametrize("which", ["cubic-all", "general-all", "pairs"])
def test_sound_densities_raise_no_doubts(which: str) -> None:
    """Ionic and metallic, of all valences; a few here, all with the slow tests."""
    for density in list(load_densities(which).names)[::100]:
        assert doubts(load_densities(which)[density]) == [], density


@pytest.mark.slow
@pytest.mark.parametrize("which", ["cubic-all", "general-all", "pairs"])
def test_no_sound_density_is_near_the_limits(which: str) -> None:
    for density in load_densities(which):
        assert misfit(density) < 0.65 * MISFIT, density.name
        assert asymmetry(density) < 0.1 * ASYMMETRY, density.name


@pytest.mark.parametrize("name", ["NaCl", "Li", "Li_spin"])
def test_vasps_densities_raise_no_doubts(name: str) -> None:
    assert doubts(read_density(data_file(f"vasp/CHGCAR.{name}.gz"))) == []


def test_superposed_atoms_do_not_depend_on_the_origin_and_fit_themselves() -> None:
    density = superpose(load_density("TiAl_123").structure, smoothing=0.0)
    assert misfit(density) < 0.01
    moved = density.step("moved", values=np.roll(density.values, (3, 5, 7), (0, 1, 2)))
    shift = np.array([3, 5, 7]) / density.shape
    assert misfit(replace(moved, positions=density.positions + shift)) == pytest.approx(misfit(density), abs=1e-9)
    assert misfit(moved) > MISFIT


@pytest.mark.parametrize("name", ["TiAl_123", "LiHPd_123", "WC_187"])
def test_damage_that_leaves_the_numbers_of_numbers_right_is_seen(name: str) -> None:
    density = load_density(name)
    flat = density.values.ravel(order="F")
    assert doubts(density) == []
    nx, ny, nz = density.shape
    permuted = density.step("axes", values=flat.reshape((nz, nx, ny), order="F"))
    half = np.concatenate([flat[: flat.size // 2], np.roll(flat[flat.size // 2 :], 5 * 40)])
    for wrong in (
        permuted,
        reordered(density, np.roll(flat, flat.size // 5)),  # a block at the wrong place
        reordered(density, half),  # 40 lines
        replace(density, positions=density.positions + np.array([0.1, 0.2, 0.3])),
        density.step("digit", values=np.where(np.arange(flat.size).reshape(density.shape) == 7, 10.0, density.values)),
    ):
        (text,) = doubts(wrong)
        assert "check axes, units and positions" in text
