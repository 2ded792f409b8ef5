"""Invariants of the 2-point statistics on spheres, against direct integrals and under all that must not change them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import CRYSTALS
from scipy.integrate import lebedev_rule
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from ecdlib.density.cell import resample, to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.store import load_densities, load_density
from ecdlib.density.valence import to_convention
from ecdlib.features.autocorrelation import autocorrelation, standardized_autocorrelation
from ecdlib.features.invariants import DEGREES, RADII, density_invariants, power_invariants


def random_density(shape: tuple[int, int, int], lattice: Any, seed: int = 0) -> ChargeDensity:
    return ChargeDensity(np.random.default_rng(seed).uniform(size=shape), lattice, (), np.empty((0, 3)))


def by_quadrature(G: Any, power: Any, r: float, degree: int) -> float:
    """∫ f(ru) Y*_lm(u) du over a Lebedev grid, for each m."""
    u, weights = lebedev_rule(47)
    f = np.cos(r * u.T @ G.T) @ power
    theta, phi = np.arccos(np.clip(u[2], -1, 1)), np.arctan2(u[1], u[0])
    coefficients = [(weights * f * sph_harm_y(degree, m, theta, phi).conj()).sum() for m in range(-degree, degree + 1)]
    return float(np.linalg.norm(coefficients))


def test_equals_the_integral_over_spheres() -> None:
    rng = np.random.default_rng(1)
    G, power = rng.uniform(-3, 3, (60, 3)), rng.uniform(size=60)
    G[0] = 0
    radii = (0.0, 0.7, 2.0, 5.0)
    found = power_invariants(G, power, radii, (0, 2, 4, 6, 8))
    direct = [[by_quadrature(G, power, r, degree) for r in radii] for degree in (0, 2, 4, 6, 8)]
    np.testing.assert_allclose(found, direct, atol=1e-6 * found.max())


def test_all_degrees_together_are_the_mean_square_on_the_sphere() -> None:
    """Parseval: Σ p_l² = ∫ f² du, once no wave has higher degrees."""
    G, power = np.random.default_rng(2).normal(size=(20, 3)), np.full(20, 0.3)
    u, weights = lebedev_rule(47)
    f = np.cos(1.5 * u.T @ G.T) @ power
    p = power_invariants(G, power, (1.5,), tuple(range(0, 17, 2)))
    np.testing.assert_allclose((p**2).sum(), (weights * f**2).sum(), rtol=1e-6)


def test_origin_holds_the_mean_square_of_the_density() -> None:
    density = random_density((5, 6, 4), CRYSTALS["triclinic"][0])
    p = density_invariants(density)
    assert p.shape == (len(DEGREES), len(RADII))
    np.testing.assert_allclose(p[0, 0], np.sqrt(4 * np.pi) * (density.values**2).mean(), rtol=1e-12)
    np.testing.assert_allclose(p[1:, 0], 0, atol=1e-12 * p[0, 0])


def test_agrees_with_the_autocorrelation_on_the_standard_grid() -> None:
    """Means over the voxels of a thin shell, in a case where the function hardly changes across it."""
    density = load_density("Fe3SnC_221")
    smooth = to_convention(density, smoothing=0.6)
    grid = standardized_autocorrelation(smooth, 51, 0.1, "density")
    x = 0.1 * np.arange(-25, 26)
    r = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    shell = np.abs(r - 2.0) < 0.05
    p = density_invariants(smooth, (2.0,), (0,))[0, 0] / np.sqrt(4 * np.pi)
    np.testing.assert_allclose(grid[shell].mean(), p, rtol=1e-3)


@pytest.mark.parametrize("name", ["triclinic", "hexagonal", "fcc"])
def test_rotations_and_inversion_change_nothing(name: str) -> None:
    density = random_density((6, 5, 7), CRYSTALS[name][0], seed=3)
    expected = density_invariants(density)
    for seed in range(3):
        turned = density.lattice @ Rotation.random(random_state=seed).as_matrix()
        found = density_invariants(density.step("turned", lattice=turned))
        np.testing.assert_allclose(found, expected, atol=1e-9 * expected.max())
    inverted = density.step("inverted", lattice=-density.lattice)
    np.testing.assert_allclose(density_invariants(inverted), expected, atol=1e-12 * expected.max())


def test_choice_of_cell_and_origin_change_nothing() -> None:
    coarse = random_density((3, 3, 3), CRYSTALS["fcc"][0], seed=4)
    density = coarse.step("resampled", values=resample(coarse.values, (9, 9, 9)))
    expected = density_invariants(density)
    tiled = np.tile(density.values, (2, 1, 3))
    supercell = density.step("repeated", values=tiled, lattice=density.lattice * [[2], [1], [3]])
    shifted = density.step("shifted", values=np.roll(density.values, (1, 2, 3), (0, 1, 2)))
    sheared = density.lattice.copy()
    sheared[1] += density.lattice[0]  # voxel (i, j, k) of the new cell is (i + j, j, k) of the old one
    i, j, k = np.indices(density.shape)
    other = density.step("another cell", values=density.values[(i + j) % 9, j, k], lattice=sheared)
    for same in (supercell, shifted, other):
        np.testing.assert_allclose(density_invariants(same), expected, atol=1e-7 * expected.max())


def test_cubic_crystals_have_no_second_degree() -> None:
    p = density_invariants(load_density("Fe3SnC_221"))
    assert p[1].max() < 1e-4 * p[2].max()
    store = load_densities("general")
    hexagonal = store[store.table.index[store.table["spacegroup"] == 194][0]]
    p = density_invariants(hexagonal)
    assert p[1].max() > 1e-2 * p[2].max()


@pytest.mark.parametrize("name", ["NaCl_225", "Fe3SnC_221"])
def test_the_conventional_cell_gives_the_same(name: str) -> None:
    density = to_convention(load_density(name))
    expected = density_invariants(density)
    np.testing.assert_allclose(density_invariants(to_conventional(density)), expected, atol=1e-6 * expected.max())


def test_sphere_mean_of_a_single_wave() -> None:
    density = random_density((8, 8, 8), 4 * np.eye(3))
    wave = 1 + 0.5 * np.cos(2 * np.pi * np.arange(8) / 8)[:, None, None] * np.ones((8, 8, 8))
    f = autocorrelation(density.step("wave", values=wave), "density")
    assert f[0, 0, 0] == pytest.approx(1.125)
    p = density_invariants(density.step("wave", values=wave), (1.3,), (0,))[0, 0]
    assert p == pytest.approx(np.sqrt(4 * np.pi) * (1 + 0.125 * np.sinc(2 * 1.3 / 4)), rel=1e-6)
