"""Named descriptors: known cases, and what must not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import CRYSTALS
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

import ecdlib as ecd
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_folder
from ecdlib.density.cell import resample, supercell, to_conventional
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.valence import to_convention
from ecdlib.features.descriptors import (
    UNITS,
    at_bonds,
    at_hole,
    density_descriptors,
    largest_holes,
    one_point,
    structure_descriptors,
    two_point,
)


def same(found: ChargeDensity, density: ChargeDensity, tolerance: float = 2e-3) -> None:
    a, b = density_descriptors(found), density_descriptors(density)
    scale = np.maximum(b.abs(), 0.05)
    assert ((a - b).abs() / scale < tolerance).all()


def moved(density: ChargeDensity, shift: Floats) -> ChargeDensity:
    """The same crystal seen from another origin, not at a voxel."""
    k = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in density.shape), indexing="ij")
    phase = np.exp(-2j * np.pi * sum(s * along for s, along in zip(shift, k, strict=True)))
    values = np.fft.ifftn(np.fft.fftn(density.values) * phase).real
    return density.step("moved", values=values, positions=(density.positions + shift) % 1)


@pytest.fixture(params=["NaCl_225", "TiAl_123"], scope="module")
def density(request: pytest.FixtureRequest) -> ChargeDensity:
    """Smoothed, so that a coarse grid holds all its waves."""
    found = to_convention(ecd.read(request.param))
    return replace(found, values=resample(found.values, [28] * 3))


def by_hand(density: ChargeDensity) -> dict[str, float]:
    """Of a density as it is, without its conversion."""
    return one_point(density) | two_point(density) | at_bonds(density) | at_hole(density)


def close(a: ChargeDensity, b: ChargeDensity, tolerance: float) -> None:
    one, other = by_hand(a), by_hand(b)
    for name, value in one.items():
        assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance * 0.05), name


def test_rotation_does_not_matter(density: ChargeDensity) -> None:
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    close(replace(density, lattice=density.lattice @ turn.T), density, 1e-6)


def test_origin_does_not_matter(density: ChargeDensity) -> None:
    close(moved(density, np.array([0.13, 0.27, 0.391])), density, 0.03)  # quantiles of a grid


def test_cell_does_not_matter(density: ChargeDensity) -> None:
    close(supercell(density, (1, 2, 1)), density, 1e-6)
    close(to_conventional(density), density, 0.03)
    skewed = replace(density, lattice=np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) @ density.lattice)
    n = max(density.shape)
    plain = replace(density, values=resample(density.values, (n, n, n)))
    i = np.indices((n, n, n))
    values = plain.values[(i[0] + i[1]) % n, i[1], i[2]]
    positions = density.positions @ np.linalg.inv([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    close(replace(skewed, values=values, positions=positions % 1), plain, 1e-4)


def test_all_of_a_file_do_not_depend_on_its_grid() -> None:
    density = ecd.read("NaCl_225")
    finer = replace(density, values=resample(density.values, [n + 8 for n in density.shape]))
    same(finer, density)


def test_directions() -> None:
    cubic, tetragonal = (density_descriptors(ecd.read(name)) for name in ("NaCl_225", "TiAl_123"))
    assert cubic["anisotropy"] < 1e-6 < tetragonal["anisotropy"] < 1
    assert 0 < cubic["directionality"] < 1


def test_what_binds_is_seen() -> None:
    salt, metal, covalent = (density_descriptors(ecd.read(name)) for name in ("NaCl_225", "Al_225", "Si_227"))
    assert metal["flatness"] > 0.5 > 0.2 > max(salt["flatness"], covalent["flatness"])
    assert covalent["bond deformation"] > 5 * max(salt["bond deformation"], metal["bond deformation"])
    assert covalent["bond curvature"] < 0 < salt["bond curvature"], "a maximum of the bond; a saddle"
    assert metal["half volume"] > 0.4 > salt["half volume"]
    assert all(x["bond waist"] < 0 for x in (salt, metal, covalent))


def test_codes_hardly_matter() -> None:
    """The same crystal by VASP, with potentials that count other electrons."""
    ours, vasp = ecd.read("NaCl_225"), ecd.read(str(data_folder() / "vasp" / "CHGCAR.NaCl.gz"))
    one, other = density_descriptors(ours), density_descriptors(vasp)
    for name in ("mean", "spread", "half volume", "correlation length", "bond density", "bond waist"):
        assert other[name] == pytest.approx(one[name], rel=0.1), name


def test_of_structures_nothing_is_deformed() -> None:
    found = structure_descriptors(ecd.read("NaCl_225").structure)
    assert found["bond deformation"] == 0
    own = density_descriptors(ecd.read("NaCl_225"))
    assert found["mean"] == pytest.approx(own["mean"], rel=1e-3)
    assert list(found.index) == list(UNITS)


@pytest.mark.parametrize(
    ("name", "radius"),
    [("fcc", 0.5), ("bcc", 5**0.5 / 4), ("simple cubic", 3**0.5 / 2), ("diamond", 3**0.5 / 4)],
)
def test_holes_of_known_lattices(name: str, radius: float) -> None:
    lattice, species, positions = CRYSTALS[name]
    structure = Structure(lattice, species, positions)
    holes = largest_holes(structure)
    far = structure.lattice.get_all_distances(holes, structure.frac_coords).min(1)
    assert far == pytest.approx(np.full(len(holes), 4.0 * radius), rel=1e-6)


@pytest.mark.parametrize("name", ["triclinic", "monoclinic", "rhombohedral", "hexagonal"])
def test_no_place_is_farther_from_the_atoms_than_the_holes(name: str) -> None:
    lattice, species, positions = CRYSTALS[name]
    structure = Structure(lattice, species, positions)
    holes = largest_holes(structure)
    far = structure.lattice.get_all_distances(holes, structure.frac_coords).min(1)
    anywhere = np.random.default_rng(0).random((4000, 3))
    assert far.max() >= structure.lattice.get_all_distances(anywhere, structure.frac_coords).min(1).max()
    assert far.min() > far.max() * 0.98


def test_the_hole_between_thin_layers_is_found() -> None:
    slab = Structure(Lattice.tetragonal(2.0, 20.0), ["Cu"], [[0, 0, 0]])
    assert np.allclose(largest_holes(slab), [[0.5, 0.5, 0.5]])


def test_atoms_are_needed() -> None:
    empty = ChargeDensity(np.ones((4, 4, 4)), np.eye(3), (), np.empty((0, 3)))
    with pytest.raises(EcdError, match="holds no atoms"):
        density_descriptors(empty)
