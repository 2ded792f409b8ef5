"""Autocorrelations and their trigonometric interpolation onto the standard grid."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrho.utils import interpolate_fourier
from scipy import ndimage

from ecdlib.base.errors import EcdError
from ecdlib.density.cell import conventional_cell, to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_density
from ecdlib.features.autocorrelation import autocorrelation, cubic_average, standardized_autocorrelation
from ecdlib.features.collection import featurize

SHAPES = st.tuples(*[st.integers(2, 6)] * 3)
LATTICES = {
    "cubic": 3.1 * np.eye(3),
    "orthorhombic": np.diag([2.0, 3.0, 3.7]),
    "left-handed": np.diag([2.0, 3.0, -3.7]),
    "hexagonal": np.array([[3, 0, 0], [-1.5, 1.5 * 3**0.5, 0], [0, 0, 5.0]]),
    "lower triangular": np.array([[3, 0, 0], [0.4, 3.3, 0], [-0.5, 0.7, 3.7]]),
    "upper triangular": np.array([[3, 0.4, -0.5], [0, 3.3, 0.7], [0, 0, 3.7]]),
    "fcc primitive": 2.0 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]]),
    "triclinic": np.array([[3, 0.1, -0.3], [0.4, 3.3, 0.2], [-0.5, 0.7, 3.7]]),
}


def density_of(values: Any, lattice: Any = None) -> ChargeDensity:
    return ChargeDensity(values, 3.0 * np.eye(3) if lattice is None else lattice, (), np.empty((0, 3)))


def noise(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0, 2, shape)


def grid_of(size: int, voxel: float) -> Any:
    """Vectors r of the standard grid, (size, size, size, 3) in Å."""
    x = voxel * (np.arange(size) - size // 2)
    return np.stack(np.meshgrid(x, x, x, indexing="ij"), -1)


# On the density's own grid


@given(SHAPES, st.sampled_from(["sqrt", "density"]), st.integers(0, 99))
def test_autocorrelation_is_the_mean_product_of_all_pairs_at_that_distance(shape, field, seed):
    values = noise(shape, seed)
    root = np.sqrt(values) if field == "sqrt" else values
    expected = np.empty(shape)
    for r in np.ndindex(*shape):
        expected[r] = np.mean([root[s] * root[tuple((np.array(s) + r) % shape)] for s in np.ndindex(*shape)])
    np.testing.assert_allclose(autocorrelation(density_of(values), field), expected, atol=1e-13)


@given(SHAPES, st.integers(0, 99))
def test_at_zero_distance_it_holds_the_mean_density_and_nowhere_more(shape, seed):
    values = noise(shape, seed)
    f = autocorrelation(density_of(values))
    assert f[0, 0, 0] == pytest.approx(values.mean(), rel=1e-13)
    assert f.max() <= f[0, 0, 0] * (1 + 1e-13)
    assert autocorrelation(density_of(values), "density")[0, 0, 0] == pytest.approx((values**2).mean(), rel=1e-13)


@given(SHAPES, st.tuples(*[st.integers(0, 5)] * 3), st.integers(0, 99))
def test_it_does_not_see_the_cells_origin_nor_inversion(shape, shift, seed):
    values = noise(shape, seed)
    f = autocorrelation(density_of(values))
    np.testing.assert_allclose(autocorrelation(density_of(np.roll(values, shift, (0, 1, 2)))), f, atol=1e-13)
    np.testing.assert_allclose(autocorrelation(density_of(values[::-1, ::-1, ::-1])), f, atol=1e-13)
    np.testing.assert_allclose(np.roll(f[::-1, ::-1, ::-1], 1, (0, 1, 2)), f, atol=1e-13)


def test_it_agrees_with_scipys_periodic_correlation():
    values = noise((4, 6, 8))
    expected = ndimage.correlate(np.sqrt(values), np.sqrt(values), mode="wrap") / values.size
    np.testing.assert_allclose(np.fft.fftshift(autocorrelation(density_of(values))), expected, atol=1e-13)


# On the standard grid


@pytest.mark.parametrize("kind", LATTICES)
@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 5, 5), (4, 5, 6), (7, 6, 5)], ids=str)
@pytest.mark.parametrize("field", ["sqrt", "density"])
def test_standard_values_are_the_trigonometric_sum_on_any_lattice(kind, shape, field, trigonometric):
    """Noise on even grids has power at the Nyquist frequency: half of it belongs to either sign."""
    density = density_of(noise(shape), LATTICES[kind])
    points = grid_of(7, 0.63) @ np.linalg.inv(density.lattice)
    expected = trigonometric(autocorrelation(density, field), points)
    features = standardized_autocorrelation(density, 7, 0.63, field)
    np.testing.assert_allclose(features, expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("n", [4, 5, 6])
def test_standard_values_pass_through_the_voxels_of_the_density(n):
    """A standard grid that is twice as fine as the density's, on a cubic cell."""
    density = density_of(noise((n, n, n)), n * 0.5 * np.eye(3))
    f = autocorrelation(density)
    features = standardized_autocorrelation(density, 4 * n + 1, 0.25)
    index = np.arange(-n, n + 1) % n
    np.testing.assert_allclose(features[::2, ::2, ::2], f[np.ix_(index, index, index)], atol=1e-13)


def test_standard_values_agree_with_pyrhos_fourier_interpolation(waves):
    density = density_of(waves(1).on((8, 8, 8)), 4.0 * np.eye(3))
    theirs = interpolate_fourier(arr_in=autocorrelation(density, "density"), shape=[16, 16, 16])
    features = standardized_autocorrelation(density, 15, 0.25, "density")
    index = np.arange(-7, 8) % 16
    np.testing.assert_allclose(features, theirs[np.ix_(index, index, index)], atol=1e-11)


@given(st.sampled_from(sorted(LATTICES)), SHAPES, st.tuples(*[st.integers(0, 5)] * 3), st.integers(0, 99))
def test_standard_values_are_even_and_do_not_see_the_origin(kind, shape, shift, seed):
    values = noise(shape, seed)
    features = standardized_autocorrelation(density_of(values, LATTICES[kind]), 5, 0.7)
    np.testing.assert_allclose(features[::-1, ::-1, ::-1], features, atol=1e-12)
    assert features[2, 2, 2] == pytest.approx(values.mean(), rel=1e-12)
    assert features.max() <= features[2, 2, 2] * (1 + 1e-12), "nowhere more than at r = 0, between voxels either"
    shifted = density_of(np.roll(values, shift, (0, 1, 2)), LATTICES[kind])
    np.testing.assert_allclose(standardized_autocorrelation(shifted, 5, 0.7), features, atol=1e-11)


@pytest.mark.parametrize("kind", ["fcc", "bcc", "rocksalt", "rhombohedral", "base-centred"])
def test_primitive_cell_conventional_cell_and_supercell_agree(kind, crystal, waves):
    """They describe one and the same crystal; √ρ is band-limited here, so that nothing is lost between the grids."""
    primitive = crystal(kind, waves(1).on((8, 8, 8)) ** 2)
    conventional = to_conventional(primitive, grid=(16, 16, 16) if kind != "rhombohedral" else (16, 16, 32))
    # the conventional cell in the primitive one's orientation, so that r means the same
    rotation = np.linalg.solve(primitive.lattice, np.linalg.inv(conventional_cell(primitive)[0]) @ conventional.lattice)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    turned = ChargeDensity(conventional.values, conventional.lattice @ rotation.T, (), np.empty((0, 3)))
    doubled = ChargeDensity(
        np.tile(primitive.values, (2, 1, 1)), primitive.lattice * [[2], [1], [1]], (), np.empty((0, 3))
    )
    features = standardized_autocorrelation(primitive, 9, 0.7)
    np.testing.assert_allclose(standardized_autocorrelation(turned, 9, 0.7), features, atol=1e-10)
    np.testing.assert_allclose(standardized_autocorrelation(doubled, 9, 0.7), features, atol=1e-10)


def test_a_bundled_crystal_and_its_2x1x1_supercell_have_the_same_features():
    density = redistribute_negative_charge(load_density("BeCu_221")).density
    supercell = ChargeDensity(
        np.tile(density.values, (2, 1, 1)), density.lattice * [[2], [1], [1]], (), np.empty((0, 3))
    )
    a, b = (standardized_autocorrelation(d, 21, 0.5) for d in (density, supercell))
    np.testing.assert_allclose(a, b, atol=1e-11)


def test_features_of_a_cubic_crystal_have_all_48_symmetries():
    blocks, row = featurize(load_density("LiH_225"))
    features = blocks["autocorrelation"]
    assert features.shape == (51, 51, 51)
    assert features[25, 25, 25] == pytest.approx(row["electrons"] / load_density("LiH_225").volume, rel=1e-6)
    for image in images(features):
        np.testing.assert_allclose(image, features, atol=1e-6 * features.max())


def images(features: Any) -> Any:
    """The 48 orientations of a cube's grid."""
    for axes, flips in itertools.product(itertools.permutations(range(3)), itertools.product([1, -1], repeat=3)):
        yield features.transpose(axes)[tuple(slice(None, None, f) for f in flips)]


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_cubic_average_is_the_mean_over_the_48_orientations(size):
    features = noise((2, 3, size, size, size))
    averaged = np.mean([list(images(f)) for f in features.reshape(6, size, size, size)], axis=1)
    wedge = [(i, j, k) for k in range(size // 2 + 1) for j in range(k + 1) for i in range(j + 1)]
    wedge.sort(key=lambda c: c[::-1])  # by the largest component, then the second, as the docstring's order
    index = tuple(size // 2 + np.array(wedge).T)
    reduced = cubic_average(features)
    assert reduced.shape == (2, 3, (h := (size + 1) // 2) * (h + 1) * (h + 2) // 6)
    np.testing.assert_allclose(reduced.reshape(6, -1), averaged[:, *index], atol=1e-14)


def test_the_papers_grid_has_3276_distinct_values():
    assert cubic_average(np.zeros((51, 51, 51))).shape == (3276,)


def test_field_of_the_density_itself_may_be_negative():
    values = noise((4, 4, 4)) - 0.3
    assert (values < 0).any()
    features = standardized_autocorrelation(density_of(values), 3, 0.2, "density")
    assert features[1, 1, 1] == pytest.approx((values**2).mean())


def test_what_cannot_be_correlated_is_refused():
    density = density_of(noise((4, 4, 4)))
    negative = density_of(noise((4, 4, 4)) - 0.3)
    for call in (autocorrelation, standardized_autocorrelation):
        with pytest.raises(EcdError, match=r"negative in places.*redistribute_negative_charge"):
            call(negative)
    for size in (0, 4, -3):
        with pytest.raises(EcdError, match="odd size"):
            standardized_autocorrelation(density, size)
    for voxel in (0.0, -0.2, float("nan")):
        with pytest.raises(EcdError, match="voxel width must be positive"):
            standardized_autocorrelation(density, 3, voxel)
