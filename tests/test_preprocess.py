"""Conversion to the conventional cell and redistribution of negative charge."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrho.pgrid import PGrid
from scipy import ndimage

from ecdlib.base.errors import EcdError
from ecdlib.density.cell import (
    compare_conversions,
    conventional_cell,
    conventional_grid,
    fast_length,
    to_conventional,
)
from ecdlib.density.core import ChargeDensity
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_density

CENTRED = {"fcc": 4, "rocksalt": 4, "bcc": 2, "rhombohedral": 3, "base-centred": 2}
SIDES = st.tuples(*[st.integers(3, 6)] * 3)


def whole_box(T: Any, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A grid of the conventional cell that holds all plane waves of the input's grid, odd along its second axis."""
    nx, ny, nz = (int(2 * np.abs(row) @ (np.array(shape) // 2)) for row in T)
    return nx + 2, ny + 1, nz + 2


# Conversion


@pytest.mark.parametrize("kind", CENTRED)
@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 5, 5), (4, 5, 6)], ids=str)
def test_conversion_equals_the_trigonometric_sum_at_the_new_voxels(kind, shape, crystal, fractional, trigonometric):
    density = crystal(kind, shape)
    T, _ = conventional_cell(density)
    grid = whole_box(T, shape)
    converted = to_conventional(density, grid=grid)
    # The new vectors are T @ lattice, so the point with new coordinates x has the old coordinates x @ T.
    np.testing.assert_allclose(converted.values, trigonometric(density.values, fractional(grid) @ T), atol=1e-13)
    assert "0.0e+00 of the spectral power" in converted.history[-1]


@given(SIDES, SIDES, st.sampled_from([*CENTRED, "hexagonal", "triclinic", "supercell of fcc"]), st.integers(0, 99))
def test_conversion_conserves_the_electrons_on_any_grid(crystal, shape, grid, kind, seed):
    """Also on a grid too coarse for the field: the mean density is the one wave that always fits."""
    density = crystal(kind, shape, seed)
    converted = to_conventional(density, grid=grid)
    cells = converted.volume / density.volume
    assert converted.n_electrons == pytest.approx(cells * density.n_electrons, rel=1e-14)


@pytest.mark.parametrize(("kind", "multiple"), CENTRED.items())
def test_conventional_cell_is_that_of_the_crystal(kind, multiple, crystal):
    density = crystal(kind, (4, 4, 4))
    converted = to_conventional(density)
    assert converted.volume == pytest.approx(multiple * density.volume, rel=1e-12)
    assert len(converted.species) == multiple * len(density.species)
    assert np.abs(np.triu(converted.lattice, 1)).max() < 1e-12, "a along x, b in the xy plane"
    assert (np.diag(converted.lattice) > 0).all()
    assert converted.structure.is_valid(tol=1.0), "no two atoms on one site"
    again = to_conventional(converted)
    assert np.array_equal(again.values, converted.values), "it is its own conventional cell"
    if kind in ("fcc", "rocksalt", "bcc"):
        np.testing.assert_allclose(converted.lattice, 4.0 * np.eye(3), atol=1e-12)


@pytest.mark.parametrize("kind", [*CENTRED, "supercell of fcc", "zincblende"])
def test_the_density_at_the_atoms_stays_with_the_atoms(kind, crystal, waves, trigonometric):
    lattice_waves = waves(2)
    shape, period = ((8, 8, 8), 1) if kind != "supercell of fcc" else ((8, 8, 16), 2)
    values = np.tile(lattice_waves.on((8, 8, 8)), (1, 1, period))
    density = crystal(kind, values)
    assert density.shape == shape
    T, _ = conventional_cell(density)
    converted = to_conventional(density, grid=(32, 32, 32))
    old = {s: trigonometric(values, p[None])[0] for s, p in zip(density.species, density.positions, strict=True)}
    new = trigonometric(converted.values, converted.positions)
    for symbol, position, value in zip(converted.species, converted.positions, new, strict=True):
        in_old = position @ T
        match = [s for s, p in zip(density.species, density.positions, strict=True) if abs_wrap(p - in_old) < 1e-6]
        assert match == [symbol], "each new atom is a periodic image of an old one"
        if kind != "rhombohedral":  # its two atoms of one species differ in this field
            assert value == pytest.approx(old[symbol], abs=1e-10)
        assert value == pytest.approx(trigonometric(values, in_old[None])[0], abs=1e-10)


def abs_wrap(delta: Any) -> float:
    return float(np.abs(delta - np.round(delta)).max())


@pytest.mark.parametrize("grid", [(12, 12, 12), (11, 13, 12), (15, 15, 15)], ids=str)
def test_supercell_comes_back_to_the_conventional_cell(grid, crystal, waves, fractional):
    """A supercell of the primitive cell, whose conventional vectors are no integer combination of its own."""
    field = waves(1)
    density = crystal("supercell of fcc", np.tile(field.on((4, 4, 4)), (1, 1, 2)))
    T, lattice = conventional_cell(density)
    assert np.abs(T - T.round()).max() > 0.1
    converted = to_conventional(density, grid=grid)
    np.testing.assert_allclose(lattice, 4.0 * np.eye(3), atol=1e-12)
    in_primitive = fractional(grid) @ T * [1, 1, 2]
    np.testing.assert_allclose(converted.values, field(in_primitive), atol=1e-12)
    assert converted.n_electrons == pytest.approx(2 * density.n_electrons, rel=1e-13)
    assert len(converted.species) == 4


@pytest.mark.parametrize("kind", ["CsCl", "hexagonal", "triclinic"])
@pytest.mark.parametrize("grid", [(10, 12, 14), (15, 10, 20)], ids=str)
def test_band_limited_data_is_resampled_without_loss_on_its_own_lattice(kind, grid, crystal, waves):
    field = waves(2)
    density = crystal(kind, field.on((5, 6, 7)))
    resampled = to_conventional(density, grid=grid)
    T, _ = conventional_cell(density)
    if np.array_equal(T, np.eye(3)):
        np.testing.assert_allclose(resampled.values, field.on(grid), atol=1e-12)
        back = to_conventional(resampled, grid=(5, 6, 7))
        np.testing.assert_allclose(back.values, density.values, atol=1e-12)
    assert resampled.n_electrons == pytest.approx(density.n_electrons, rel=1e-13)
    assert kind == "triclinic" or np.array_equal(T, np.eye(3))


@pytest.mark.parametrize("n", [4, 5, 6])
def test_upsampled_noise_passes_through_its_voxels_and_shares_the_nyquist_term(n, crystal, fractional, trigonometric):
    """Noise has power at the Nyquist frequency of an even grid, which a one-sided treatment would get wrong."""
    density = crystal("simple cubic", (n, n, n))
    fine = to_conventional(density, grid=(3 * n,) * 3)
    np.testing.assert_allclose(fine.values[::3, ::3, ::3], density.values, atol=1e-13)
    np.testing.assert_allclose(fine.values, trigonometric(density.values, fractional(fine.shape)), atol=1e-13)
    mirrored = ChargeDensity(
        np.roll(density.values[::-1, ::-1, ::-1], 1, (0, 1, 2)), density.lattice, density.species, density.positions
    )
    fine_mirrored = to_conventional(mirrored, grid=fine.shape).values
    np.testing.assert_allclose(np.roll(fine_mirrored[::-1, ::-1, ::-1], 1, (0, 1, 2)), fine.values, atol=1e-13)


@pytest.mark.parametrize(
    ("kind", "grid"), [("rocksalt", (16, 16, 16)), ("bcc", (8, 16, 16)), ("rhombohedral", (8, 8, 24))]
)
def test_conversion_agrees_with_pyrho(kind, grid, crystal, waves):
    """mp-pyrho interpolates linearly on an upsampled grid: exact where the new voxels fall on that grid's."""
    density = crystal(kind, waves(1).on((8, 8, 8)))
    T, _ = conventional_cell(density)
    theirs = PGrid(density.values, density.lattice).get_transformed(T.astype(int).tolist(), list(grid), up_sample=2)
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), -1) @ T * 16
    on_grid = np.abs(points - points.round()).max(-1) < 1e-9
    ours = to_conventional(density, grid=grid).values
    assert on_grid.mean() > 0.3
    np.testing.assert_allclose(ours[on_grid], theirs.grid_data[on_grid], atol=1e-10)


@pytest.mark.parametrize("kind", ["fcc", "bcc", "rhombohedral", "hexagonal", "supercell of fcc"])
@pytest.mark.parametrize("grid", [(7, 9, 10), (12, 12, 12)], ids=str)
def test_trilinear_route_is_periodic_linear_interpolation(kind, grid, crystal, fractional):
    density = crystal(kind, (4, 5, 6))
    T, _ = conventional_cell(density)
    voxels = np.moveaxis(fractional(grid) @ T * density.shape, -1, 0)
    expected = ndimage.map_coordinates(density.values, voxels, order=1, mode="grid-wrap")
    converted = to_conventional(density, "trilinear", grid)
    np.testing.assert_allclose(converted.values, expected, atol=1e-9)
    assert "trilinear" in converted.history[-1]


def test_history_says_what_does_not_fit_the_new_grid(crystal, fractional):
    """Two waves of equal power, one of which a 6-voxel grid cannot hold: half of the varying power is lost."""
    x = fractional((16, 16, 16))[..., 0]
    density = crystal("simple cubic", 2 + np.cos(2 * np.pi * 2 * x) + np.cos(2 * np.pi * 5 * x))
    coarse = to_conventional(density, grid=(6, 6, 6))
    share = 0.5 / (2**2 + 0.5 + 0.5)
    assert f"{share:.1e} of the spectral power outside" in coarse.history[-1]
    np.testing.assert_allclose(coarse.values[:, 0, 0], 2 + np.cos(2 * np.pi * 2 * np.arange(6) / 6), atol=1e-13)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("phase", [0.0, 0.4])
def test_a_wave_at_the_nyquist_frequency_of_the_new_grid_keeps_what_that_grid_sees_of_it(
    axis, phase, crystal, fractional
):
    """+n/2 and -n/2 are one wave there: both halves must arrive."""
    x, coarse = fractional((12, 12, 12)), fractional((6, 6, 6))
    density = crystal("simple cubic", 2 + np.cos(2 * np.pi * 3 * x[..., axis] + phase) * np.cos(2 * np.pi * x[..., 0]))
    expected = 2 + np.cos(2 * np.pi * 3 * coarse[..., axis] + phase) * np.cos(2 * np.pi * coarse[..., 0])
    if axis == 0:  # its product with the slow wave holds frequencies 2 and 4, of which 4 does not fit
        expected = 2 + np.cos(2 * np.pi * 2 * coarse[..., 0] + phase) / 2
    np.testing.assert_allclose(to_conventional(density, grid=(6, 6, 6)).values, expected, atol=1e-13)


def test_default_grid_keeps_the_resolution(crystal):
    for kind, shape in itertools.product(CENTRED, [(8, 8, 8), (9, 10, 12)]):
        density = crystal(kind, shape)
        _, lattice = conventional_cell(density)
        grid = conventional_grid(density, lattice)
        reach = min(n // 2 / length for n, length in zip(grid, np.linalg.norm(lattice, axis=1), strict=True))
        heights = 1 / np.linalg.norm(np.linalg.inv(density.lattice), axis=0)
        assert reach >= (np.array(shape) // 2 / heights).min() - 1e-9, "the sphere of waves that the input holds"
        assert all(n % 4 == 0 for n in grid)
    assert [fast_length(n) for n in (0, 4, 4.1, 41, 44, 97)] == [4, 4, 8, 44, 44, 100]


def test_the_electrons_of_a_bundled_crystal_survive_the_conversion():
    density = load_density("LiH_225")
    exact, linear = to_conventional(density), to_conventional(density, "trilinear")
    assert exact.n_electrons == pytest.approx(4 * density.n_electrons, rel=1e-12)
    assert linear.n_electrons == pytest.approx(4 * density.n_electrons, rel=1e-2)
    assert abs(linear.n_electrons - 4 * density.n_electrons) > 1e-9, "linear interpolation is not conservative"
    row = compare_conversions(density)
    assert row["converted"]
    assert row["electrons_fourier"] == pytest.approx(row["electrons"], rel=1e-12)
    assert row["peak_fourier"] == pytest.approx(row["peak"], rel=1e-3)
    assert 0 < row["rms_trilinear"] < 0.05


def test_comparison_also_where_cell_and_grid_keep_their_size(crystal):
    """Hexagonal vectors at 60° become the usual 120°: another cell of the same volume on the same grid."""
    lattice = np.array([[3, 0, 0], [1.5, 1.5 * 3**0.5, 0], [0, 0, 5.0]])
    values = np.random.default_rng(0).uniform(1, 2, (8, 8, 16))
    density = ChargeDensity(values, lattice, ("Mg",), np.zeros((1, 3)))
    assert to_conventional(density).volume == pytest.approx(density.volume)
    assert compare_conversions(density)["converted"]


def test_a_left_handed_cell_becomes_right_handed_and_the_crystal_is_not_mirrored(fractional, trigonometric):
    lattice = np.array([[3, 0.1, -0.3], [0.4, 3.3, 0.2], [0.5, -0.7, -3.7]])
    values = np.random.default_rng(0).uniform(1, 2, (4, 5, 6))
    density = ChargeDensity(values, lattice, ("Li", "H"), np.array([[0.1, 0, 0], [0.4, 0.5, 0.6]]))
    T, conventional = conventional_cell(density)
    assert np.linalg.det(lattice) < 0 < np.linalg.det(conventional)
    rotation = np.linalg.solve(T @ lattice, conventional)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)
    grid = (9, 8, 10)
    converted = to_conventional(density, grid=grid)
    np.testing.assert_allclose(converted.values, trigonometric(values, fractional(grid) @ T), atol=1e-13)


def test_coinciding_atoms_are_refused(crystal):
    density = crystal("CsCl", (4, 4, 4)).step("moved", positions=np.zeros((2, 3)), species=("Cs", "Cs"))
    with pytest.raises(EcdError, match="do two coincide"):
        to_conventional(density)


# Negative charge


def cube(values: Any) -> ChargeDensity:
    return ChargeDensity(np.asarray(values, dtype=float), 4.0 * np.eye(3), (), np.empty((0, 3)))


def with_wells(seed: int, shape: tuple[int, int, int], wells: int = 1, depth: float = 3.0) -> Any:
    """Positive noise with a few small negative regions."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.05, 1, shape)
    for _ in range(wells):
        spot = tuple(rng.integers(0, n) for n in shape)
        values[spot] = -rng.uniform(0.1, depth)
        neighbour = ((spot[0] + 1) % shape[0], spot[1], spot[2])
        values[neighbour] = -rng.uniform(0, 0.5)
    return values


FACES = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]


def around(voxels: set[tuple[int, ...]], shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Face neighbours, across the cell boundary, that are not among the voxels themselves."""
    return {
        tuple((c + d) % n for c, d, n in zip(v, face, shape, strict=True)) for v in voxels for face in FACES
    } - voxels


def the_papers_rule(values: Any) -> tuple[Any, list[set[tuple[int, ...]]]]:
    """One cluster after the other, layer by layer, as section 2.2.2 says; and the voxels each cluster touched.

    Layers of different clusters must not meet: the paper does not say what happens then.
    """
    rho = values.copy()
    negative = {tuple(map(int, v)) for v in np.argwhere(rho < 0)}
    regions = []
    while negative:
        cluster = {negative.pop()}
        while more := around(cluster, rho.shape) & negative:
            cluster |= more
            negative -= more
        charge = sum(rho[v] for v in cluster)  # the negative charge of the cluster
        region = set(cluster)
        while True:
            layer = sorted(around(region, rho.shape))
            region |= set(layer)
            positive = [v for v in layer if rho[v] > 0]
            held = sum(rho[v] for v in positive)
            if held > -charge:
                for v in positive:
                    rho[v] = (held + charge) / len(positive)
                break
            for v in positive:
                rho[v] = 0
            charge += held
        for v in cluster:
            rho[v] = 0
        regions.append(region)
    return rho, regions


@pytest.mark.parametrize("seed", range(12))
def test_the_papers_rule_for_one_cluster(seed):
    values = with_wells(seed, (7, 6, 5), depth=1.0 + seed)
    expected, regions = the_papers_rule(values)
    assert len(regions) == 1
    result = redistribute_negative_charge(cube(values))
    np.testing.assert_allclose(result.density.values, expected, atol=1e-13)
    assert result.clusters == 1
    assert result.moved == pytest.approx(-values[values < 0].sum() * cube(values).voxel_volume)


@pytest.mark.parametrize("seed", range(4))
def test_separated_clusters_are_filled_each_from_its_own_surroundings(seed):
    """The paper's rule and its conservation hold cluster by cluster."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.05, 1, (27, 7, 7))
    for block, depth in enumerate((0.5, 3, 9)):  # one well in the middle of each third, up to 3 layers deep
        y, z = rng.integers(0, 7, 2)
        values[4 + 9 * block, [y, (y + 1) % 7], z] = -depth * rng.uniform(0.5, 1, 2)
    expected, regions = the_papers_rule(values)
    for a, b in itertools.combinations(regions, 2):
        assert not (a & b), "this test needs clusters whose layers do not meet"
    result = redistribute_negative_charge(cube(values))
    assert result.clusters == len(regions) == 3
    np.testing.assert_allclose(result.density.values, expected, atol=1e-13)
    for region in regions:
        index = tuple(np.array(sorted(region)).T)
        assert result.density.values[index].sum() == pytest.approx(values[index].sum(), abs=1e-12)
    untouched = np.ones(values.shape, bool)
    untouched[tuple(np.array(sorted(set().union(*regions))).T)] = False
    assert np.array_equal(result.density.values[untouched], values[untouched])


def test_a_density_without_negative_voxels_stays_as_it_is_in_double_precision():
    density = load_density("Fe3SnC_221")
    assert density.values.dtype == np.float32
    result = redistribute_negative_charge(density.step("shifted", values=np.maximum(density.values, np.float32(0.01))))
    assert (result.clusters, result.layers, result.moved) == (0, 0, 0.0)
    assert result.density.values.dtype == np.float64, "means of a million voxels lose seven digits otherwise"
    assert np.array_equal(result.density.values, np.maximum(density.values, np.float32(0.01)))


def test_a_layer_that_just_fills_the_cluster_is_emptied_and_the_next_one_evened_out():
    """ρ+ = |ρ-| is the paper's 'less or equal': the layer is zeroed, and the remnant spread over the next."""
    values = np.random.default_rng(0).integers(1, 9, (9, 9, 9)).astype(float)
    values[4, 4, 4] = -sum(values[tuple(np.add((4, 4, 4), f))] for f in FACES)
    result = redistribute_negative_charge(cube(values))
    filled = result.density.values
    assert result.layers == 2
    assert all(filled[tuple(np.add((4, 4, 4), f))] == 0 for f in FACES)
    second = around({(4, 4, 4)} | around({(4, 4, 4)}, (9, 9, 9)), (9, 9, 9))
    assert len({round(filled[v], 12) for v in second}) == 1
    assert filled.sum() == pytest.approx(values.sum(), abs=1e-11)
    np.testing.assert_allclose(filled, the_papers_rule(values)[0], atol=1e-13)


def test_layers_of_zeros_are_passed_over_and_stay_zero():
    values = np.ones((9, 9, 9))
    values[2:7, 2:7, 2:7] = 0.0
    values[4, 4, 4] = -2.0
    filled = redistribute_negative_charge(cube(values)).density.values
    np.testing.assert_allclose(filled, the_papers_rule(values)[0], atol=1e-13)
    assert (filled[2:7, 2:7, 2:7] == 0).all(), "only positive voxels share the remnant"
    assert filled.sum() == pytest.approx(values.sum(), abs=1e-11)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cluster_across_the_cell_boundary_is_one(axis):
    values = np.ones((6, 7, 8))
    index = [3, 3, 3]
    for at in (0, -1):
        index[axis] = at
        values[tuple(index)] = -0.5
    result = redistribute_negative_charge(cube(values))
    assert result.clusters == 1
    index[axis] = 2
    values_apart = np.ones((6, 7, 8))
    values_apart[tuple(index)] = values_apart[3, 3, 0 if axis != 2 else 6] = -0.5
    assert redistribute_negative_charge(cube(values_apart)).clusters == 2


@given(st.tuples(*[st.integers(2, 6)] * 3), st.integers(0, 10**6), st.floats(0.01, 0.98))
def test_any_field_of_positive_charge_ends_without_negative_values(shape, seed, share):
    """Even where most of the cell is negative and all clusters run into each other."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    values += share * np.abs(values).mean() - values.mean()
    result = redistribute_negative_charge(cube(values))
    assert result.density.values.min() >= 0
    assert result.density.values.sum() == pytest.approx(values.sum(), abs=1e-12 * np.abs(values).sum())
    assert result.moved == pytest.approx(-values[values < 0].sum() * cube(values).voxel_volume)


@given(st.integers(0, 10**6), st.tuples(*[st.integers(-3, 3)] * 3), st.permutations([0, 1, 2]), st.booleans())
def test_the_result_does_not_depend_on_the_cells_origin_or_the_order_of_its_axes(seed, shift, axes, inverted):
    """Also where clusters meet: an order of the clusters would show here."""
    values = with_wells(seed, (6, 6, 6), wells=4, depth=8.0)

    def moved(field: Any) -> Any:
        field = np.roll(field, shift, (0, 1, 2)).transpose(axes)
        return field[::-1, ::-1, ::-1] if inverted else field

    there = moved(redistribute_negative_charge(cube(values)).density.values)
    np.testing.assert_allclose(redistribute_negative_charge(cube(moved(values))).density.values, there, atol=1e-12)


def test_an_all_positive_field_is_left_alone():
    values = np.random.default_rng(0).uniform(0, 1, (5, 6, 7))
    values[0, 0, 0] = 0.0
    result = redistribute_negative_charge(cube(values))
    assert np.array_equal(result.density.values, values)
    assert (result.clusters, result.layers, result.moved) == (0, 0, 0.0)


def test_single_precision_fields_are_filled_in_double_precision():
    values = with_wells(3, (6, 6, 6)).astype(np.float32)
    result = redistribute_negative_charge(ChargeDensity(values, np.eye(3), (), np.empty((0, 3))))
    assert result.density.values.sum() == pytest.approx(values.sum(dtype=np.float64), abs=1e-12)


def test_negative_wells_of_a_bundled_crystal_keep_the_crystals_symmetry():
    density = to_conventional(load_density("BaTiO3_221"))
    assert density.values.min() < 0
    result = redistribute_negative_charge(density)
    filled = result.density.values
    assert filled.min() >= 0
    assert result.density.n_electrons == pytest.approx(density.n_electrons, rel=1e-12)
    assert 0 < result.moved < 0.05 * density.n_electrons
    for image in (filled.transpose(1, 2, 0), filled.transpose(1, 0, 2), np.roll(filled[::-1], 1, 0)):
        np.testing.assert_allclose(image, filled, atol=1e-4 * filled.max())
    assert "redistributed" in result.density.history[-1]
