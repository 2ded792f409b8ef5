"""The density object, and reading and writing the files that users have."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import lzma
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.calculators.vasp import VaspChargeDensity
from ase.io.cube import read_cube
from ase.units import Bohr
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.io.common import VolumetricData
from pymatgen.io.vasp import Chgcar, Poscar

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_folder
from ecdlib.density.cell import to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import (
    check_electrons,
    read_aeccar,
    read_chgcar,
    read_cube_density,
    read_density,
    read_npz,
    write_chgcar,
    write_cube,
    write_density,
    write_npz,
)
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_densities, load_density, write_store

VASP = data_folder() / "vasp"


def electrons_of(species: tuple[str, ...], count: float, shape: tuple[int, int, int] = (4, 5, 6)) -> ChargeDensity:
    """Random density of so many electrons on a skewed cell."""
    lattice = np.array([[3, 0.1, -0.3], [0.4, 3.3, 0.2], [-0.5, 0.7, 3.7]])
    values = np.random.default_rng(len(species)).uniform(0.1, 1, shape)
    values *= count / (values.mean() * abs(np.linalg.det(lattice)))
    positions = np.random.default_rng(1).uniform(0, 1, (len(species), 3)).round(6)
    return ChargeDensity(values, lattice, species, positions, "made up")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three VASP fixtures, decompressed."""
    folder = tmp_path_factory.mktemp("vasp")
    for name in ("NaCl", "Li", "Li_spin"):
        (folder / name).write_bytes(gzip.decompress((VASP / f"CHGCAR.{name}.gz").read_bytes()))
    return {name: folder / name for name in ("NaCl", "Li", "Li_spin")}


# The object


def test_electrons_are_the_integral_of_the_density_over_the_cell():
    lattice = np.array([[3, 0.1, -0.3], [0.4, 3.3, 0.2], [-0.5, 0.7, 3.7]])
    density = ChargeDensity(np.full((2, 3, 4), 0.25), lattice, ("Li",), np.zeros((1, 3)))
    assert density.volume == pytest.approx(lattice[0] @ np.cross(lattice[1], lattice[2]))
    assert density.n_electrons == pytest.approx(0.25 * density.volume)
    assert density.voxel_volume == pytest.approx(density.volume / 24)
    assert density.shape == (2, 3, 4)


def test_a_density_cannot_be_changed_and_each_step_is_remembered(crystal):
    density = crystal("CsCl", (4, 4, 4))
    with pytest.raises(ValueError, match="read-only"):
        density.values[0, 0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        density.values = np.ones((2, 2, 2))
    later = density.step("doubled", values=2 * density.values)
    assert density.history == ()
    assert later.history == ("doubled",)
    assert later.n_electrons == pytest.approx(2 * density.n_electrons)
    assert later.species == ("Cs", "Cl")


def test_integers_become_floats_and_single_precision_stays(crystal):
    ones = np.ones((3, 3, 3))
    assert crystal("simple cubic", ones.astype(int)).values.dtype == np.float64
    assert crystal("simple cubic", ones.astype(np.float32)).values.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"values": np.ones((3, 3))}, "3-D grid"),
        ({"values": np.ones((3, 3, 1))}, "at least 2 voxels"),
        ({"values": np.zeros((0, 3, 3))}, "at least 2 voxels"),
        ({"values": np.full((3, 3, 3), "a")}, "not a density"),
        ({"values": np.ones((3, 3, 3)) * 1j}, "not a density"),
        ({"values": np.where(np.arange(27) == 5, np.nan, 1.0).reshape(3, 3, 3)}, "1 values are NaN"),
        ({"values": np.where(np.arange(27) < 2, -np.inf, 1.0).reshape(3, 3, 3)}, "2 values are NaN or infinite"),
        ({"values": np.zeros((3, 3, 3))}, "not positive"),
        ({"values": -np.ones((3, 3, 3))}, "not positive"),
        ({"lattice": np.ones((3, 3))}, "no volume"),
        ({"lattice": np.eye(2)}, "no volume"),
        ({"lattice": np.eye(3) * np.nan}, "no volume"),
        ({"species": ("Xx",)}, "unknown species Xx"),
        ({"species": ("Li", "Li")}, "2 species"),
        ({"positions": np.zeros((1, 2))}, "positions of 3 numbers"),
        ({"positions": np.full((1, 3), np.inf)}, "NaN or infinity"),
    ],
)
def test_what_is_no_density_is_refused(changes, problem):
    whole = {"values": np.ones((3, 3, 3)), "lattice": np.eye(3), "species": ("Li",), "positions": np.zeros((1, 3))}
    ChargeDensity(**whole)
    with pytest.raises(EcdError, match=problem) as caught:
        ChargeDensity(**{**whole, **changes}, name="this one")
    assert str(caught.value).startswith("this one: ")


def test_an_error_survives_the_way_back_from_a_worker_and_is_one_line():
    error = EcdError("file", "two\nlines", "Mend it.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "file: two lines. Mend it."


@pytest.mark.parametrize("gas", ["He", "Ne", "Ar"])
def test_formulas_need_no_electronegativity(gas):
    density = ChargeDensity(np.ones((2, 2, 2)), np.eye(3), (gas, gas), np.zeros((2, 3)))
    assert density.formula.startswith(gas)


# CHGCAR


@pytest.mark.parametrize(
    ("name", "electrons", "shape", "species", "volume"),
    [
        ("NaCl", 8, (56, 56, 56), ("Na", "Cl"), 45.303),
        ("Li", 1, (32, 32, 32), ("Li",), 20.148),
        ("Li_spin", 1, (48, 48, 48), ("Li",), 20.148),
    ],
)
def test_the_vasp_files_hold_their_valence_electrons(name, electrons, shape, species, volume):
    density = read_density(VASP / f"CHGCAR.{name}.gz")
    assert density.n_electrons == pytest.approx(electrons, abs=1e-5)
    assert (density.shape, density.species) == (shape, species)
    assert density.volume == pytest.approx(volume, abs=1e-3)
    assert density.values.min() > 0
    assert density.history == (f"read CHGCAR.{name}.gz",)


def test_a_chgcar_holds_density_times_volume(plain):
    """The first number of the file is that of the voxel at the origin, the second that of its neighbour along x."""
    density = read_density(plain["Li"])
    first = plain["Li"].read_text().splitlines()[11].split()
    expected = [float(number) / density.volume for number in first]
    np.testing.assert_allclose(density.values[: len(first), 0, 0], expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["NaCl", "Li", "Li_spin"])
def test_readers_of_pymatgen_and_ase_agree(name, plain):
    density = read_density(plain[name])
    theirs = Chgcar.from_file(str(plain[name]))
    np.testing.assert_allclose(density.values * density.volume, theirs.data["total"], rtol=1e-13)
    np.testing.assert_allclose(density.lattice, theirs.structure.lattice.matrix, atol=1e-12)
    ase = VaspChargeDensity(str(plain[name]))  # divides by the volume, too
    np.testing.assert_allclose(density.values, ase.chg[0], rtol=1e-9)
    np.testing.assert_allclose(density.lattice, ase.atoms[0].cell[:], atol=1e-9)
    np.testing.assert_allclose(density.positions, ase.atoms[0].get_scaled_positions(), atol=1e-9)
    if name == "Li_spin":
        np.testing.assert_allclose(density.vasp.spin["diff"] / density.volume, ase.chgdiff[0], rtol=1e-9)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files_read_the_same(suffix, pack, plain, tmp_path):
    packed = tmp_path / f"CHGCAR{suffix}"
    packed.write_bytes(pack(plain["Li"].read_bytes()))
    a, b = read_density(packed), read_density(plain["Li"])
    assert np.array_equal(a.values, b.values)
    assert np.array_equal(a.vasp.augmentation["total"][1], b.vasp.augmentation["total"][1])
    cube = tmp_path / "li.cube"
    write_cube(b, cube)
    (tmp_path / f"li.cube{suffix}").write_bytes(pack(cube.read_bytes()))
    assert np.array_equal(read_density(tmp_path / f"li.cube{suffix}").values, read_density(cube).values)


@pytest.mark.parametrize(("name", "blocks"), [("Li", ["total"]), ("Li_spin", ["total", "diff"])])
def test_spin_and_augmentation_come_back_from_rewriting(name, blocks, plain, tmp_path):
    density = read_density(plain[name])
    write_chgcar(density, tmp_path / "CHGCAR")
    back = read_density(tmp_path / "CHGCAR")
    np.testing.assert_allclose(back.values, density.values, rtol=1e-6)  # the writer rounds the cell to 1e-6 Å
    assert back.species == density.species
    assert list(back.vasp.augmentation) == blocks
    for block in blocks:
        assert list(back.vasp.augmentation[block]) == list(density.vasp.augmentation[block]) == [1]
        np.testing.assert_allclose(back.vasp.augmentation[block][1], density.vasp.augmentation[block][1], rtol=1e-6)
    assert list(back.vasp.spin) == blocks[1:]
    for block in blocks[1:]:
        np.testing.assert_allclose(back.vasp.spin[block], density.vasp.spin[block], rtol=1e-10)
    write_chgcar(back, tmp_path / "again")
    texts = [(tmp_path / name).read_text().split("\n", 1) for name in ("CHGCAR", "again")]
    assert [title for title, _ in texts] == [name, "CHGCAR"]
    assert texts[0][1] == texts[1][1]


def small_chgcar(path: Path, blocks: dict[str, Any], augmentation: Any = None) -> None:
    structure = Structure(Lattice.orthorhombic(3, 3.5, 4), ["Li", "H"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    Chgcar(structure, blocks, data_aug=augmentation).write_file(str(path))


def test_noncollinear_files_keep_their_three_components(tmp_path):
    rng = np.random.default_rng(0)
    total = rng.uniform(1, 2, (4, 5, 6))
    total *= 2 / total.mean()
    blocks = {"total": total, **{f"diff_{axis}": rng.normal(size=(4, 5, 6)) for axis in "xyz"}}
    augmentation = {name: {1: rng.normal(size=7), 2: rng.normal(size=3)} for name in blocks}
    small_chgcar(tmp_path / "CHGCAR", {**blocks, "diff": total}, augmentation)
    density = read_density(tmp_path / "CHGCAR")
    assert density.n_electrons == pytest.approx(2, abs=1e-8)
    write_chgcar(density, tmp_path / "again")
    for path in ("CHGCAR", "again"):
        back = read_density(tmp_path / path)
        for axis in "xyz":
            np.testing.assert_allclose(back.vasp.spin[f"diff_{axis}"], blocks[f"diff_{axis}"], rtol=1e-9)
        for block, sites in augmentation.items():
            for site, numbers in sites.items():
                np.testing.assert_allclose(back.vasp.augmentation[block][site], numbers, rtol=1e-9)


def test_spin_and_augmentation_are_dropped_once_the_density_has_changed(plain, tmp_path):
    """They belong to the density that was read: another grid or cell would make them nonsense."""
    density = read_density(plain["Li_spin"])
    for changed in (
        to_conventional(density, grid=(12, 12, 12)),
        redistribute_negative_charge(density.step("coarser", values=density.values[::6, ::6, ::6])).density,
    ):
        assert changed.vasp is None
        write_chgcar(changed, tmp_path / "CHGCAR")
        assert b"augmentation" not in (tmp_path / "CHGCAR").read_bytes()
        assert read_chgcar(tmp_path / "CHGCAR").vasp.spin == {}


def test_a_file_whose_moments_follow_the_density_without_augmentation_is_read(tmp_path):
    """VASP writes one moment per atom between the blocks."""
    total = np.random.default_rng(0).uniform(1, 2, (4, 5, 6))
    small_chgcar(tmp_path / "both", {"total": total * 2 / total.mean(), "diff": total / 10})
    text = (tmp_path / "both").read_text()
    grid = "   4   5   6\n"
    first, second = text.rindex(grid), text.index(grid)
    assert first != second
    (tmp_path / "CHGCAR").write_text(text[:first] + "  0.100000000000E+00  0.200000000000E+00\n" + text[first:])
    assert np.array_equal(
        read_density(tmp_path / "CHGCAR").vasp.spin["diff"], read_density(tmp_path / "both").vasp.spin["diff"]
    )


@given(st.permutations(["Na", "Cl", "Na", "Cl", "K"]))
def test_atoms_that_are_not_grouped_by_species_keep_their_places(tmp_path_factory, species):
    """A CHGCAR lists atoms by species: the order may change, the atom at each place may not."""
    density = electrons_of(tuple(species), 20)
    path = tmp_path_factory.mktemp("order") / "CHGCAR"
    write_chgcar(density, path)
    back = read_density(path)
    expected = {(s, *p) for s, p in zip(density.species, density.positions.tolist(), strict=True)}
    assert {(s, *p) for s, p in zip(back.species, back.positions.tolist(), strict=True)} == expected
    assert sorted(path.read_text().splitlines()[5].split()) == ["Cl", "K", "Na"], "each species once in the header"
    np.testing.assert_allclose(back.values, density.values, rtol=1e-6)


def test_what_is_written_opens_in_pymatgen_and_ase(tmp_path):
    density = load_density("LiH_225")
    write_chgcar(density, tmp_path / "CHGCAR")
    theirs = Chgcar.from_file(str(tmp_path / "CHGCAR"))
    np.testing.assert_allclose(theirs.data["total"] / density.volume, density.values, rtol=1e-5, atol=1e-9)
    assert theirs.structure.matches(density.structure)
    assert VaspChargeDensity(str(tmp_path / "CHGCAR")).chg[0].mean() == pytest.approx(density.values.mean(), rel=1e-6)
    write_chgcar(density, tmp_path / "CHGCAR.gz")
    assert gzip.decompress((tmp_path / "CHGCAR.gz").read_bytes()) == (tmp_path / "CHGCAR").read_bytes()


def test_negative_tiny_and_minus_zero_values_are_written(tmp_path):
    values = np.random.default_rng(0).uniform(1, 2, (3, 4, 5))
    values[0, 0, :4] = [-0.0, -0.5, 1e-120, -3e-9]
    density = ChargeDensity(values, 2 * np.eye(3), ("Li",), np.zeros((1, 3)))
    write_chgcar(density, tmp_path / "CHGCAR")
    np.testing.assert_allclose(read_chgcar(tmp_path / "CHGCAR").values, values, rtol=1e-10)


def test_aeccars_add_up(tmp_path):
    rng = np.random.default_rng(0)
    core, valence = rng.uniform(1, 2, (2, 4, 5, 6))
    core *= 2 / core.mean()
    valence *= 2 / valence.mean()
    small_chgcar(tmp_path / "AECCAR0", {"total": core})
    small_chgcar(tmp_path / "AECCAR2", {"total": valence})
    total = read_aeccar(tmp_path / "AECCAR0", tmp_path / "AECCAR2")
    np.testing.assert_allclose(total.values * total.volume, core + valence, rtol=1e-9)
    assert total.n_electrons == pytest.approx(4)
    assert total.convention == "all-electron"
    small_chgcar(tmp_path / "other", {"total": valence[:, :, ::2]})
    with pytest.raises(EcdError, match="differ from"):
        read_aeccar(tmp_path / "AECCAR0", tmp_path / "other")


# cube and npz


def test_cube_files_hold_electrons_per_cubic_bohr(tmp_path):
    density = electrons_of(("Li", "H"), 4)
    write_cube(density, tmp_path / "d.cube")
    with open(tmp_path / "d.cube") as f:
        ase = read_cube(f)
    np.testing.assert_allclose(ase["data"], density.values * Bohr**3, rtol=1e-5)
    theirs = VolumetricData.from_cube(tmp_path / "d.cube")
    np.testing.assert_allclose(theirs.data["total"], density.values * Bohr**3, rtol=1e-5)
    np.testing.assert_allclose(theirs.structure.lattice.matrix, density.lattice, atol=1e-4)
    back = read_density(tmp_path / "d.cube")
    np.testing.assert_allclose(back.values, density.values, rtol=1e-5)
    np.testing.assert_allclose(back.lattice, density.lattice, atol=1e-5)
    np.testing.assert_allclose(back.positions, density.positions, atol=1e-5)
    assert back.species == density.species
    assert back.n_electrons == pytest.approx(4, abs=1e-3)


def test_cubes_written_by_others_are_read(tmp_path):
    """pymatgen's writer, and a cube whose origin is not the cell's: positions are counted from it."""
    density = load_density("LiH_225")
    structure = density.structure
    volumetric = VolumetricData(structure, {"total": density.values.astype(float) * Bohr**3})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volumetric.to_cube(tmp_path / "theirs.cube")
    back = read_density(tmp_path / "theirs.cube")
    np.testing.assert_allclose(back.values, density.values, rtol=1e-4, atol=1e-5)
    write_cube(density, tmp_path / "ours.cube")
    lines = (tmp_path / "ours.cube").read_text().splitlines()
    shift = np.array([0.5, -1.0, 2.0])
    lines[2] = f"{len(density.species):5}" + "".join(f"{x:12.6f}" for x in shift)
    for i in range(6, 6 + len(density.species)):
        number, charge, *xyz = lines[i].split()
        lines[i] = f"{number} {charge} " + " ".join(f"{float(x) + s:.6f}" for x, s in zip(xyz, shift, strict=True))
    (tmp_path / "shifted.cube").write_text("\n".join(lines))
    np.testing.assert_allclose(read_cube_density(tmp_path / "shifted.cube").positions, density.positions, atol=1e-5)


@given(st.sampled_from([np.float32, np.float64]), st.sampled_from([None, "gpaw-0.9.20000"]), st.integers(0, 20))
def test_npz_files_give_back_what_was_written(tmp_path_factory, dtype, convention, seed):
    values = np.random.default_rng(seed).normal(1, 1, (3, 4, 5)).astype(dtype)
    density = ChargeDensity(np.abs(values), 2 * np.eye(3), ("Li", "H"), np.zeros((2, 3)), convention=convention)
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    write_npz(density, path)
    back = read_npz(path)
    assert np.array_equal(back.values, density.values)
    assert back.values.dtype == dtype
    assert np.array_equal(back.lattice, density.lattice)
    assert (back.species, back.convention) == (density.species, convention)
    with np.load(path) as arrays:  # no pickles: anybody can open it
        assert {"rho", "cell", "positions", "numbers", "convention"} == set(arrays)


@pytest.mark.parametrize("suffix", ["CHGCAR", "d.cube", "d.npz"])
def test_every_format_keeps_the_electrons_of_a_bundled_crystal(suffix, tmp_path):
    density = load_density("Al_225")
    assert density.values.min() < 0, "with negative wells"
    {"CHGCAR": write_chgcar, "d.cube": write_cube, "d.npz": write_npz}[suffix](density, tmp_path / suffix)
    back = read_density(tmp_path / suffix)
    assert back.n_electrons == pytest.approx(density.n_electrons, abs=1e-3)
    np.testing.assert_allclose(back.values, density.values, rtol=1e-4, atol=1e-7)
    assert back.formula == density.formula


@pytest.mark.parametrize("suffix", ["CHGCAR", "d.cube", "d.npz"])
@pytest.mark.parametrize("convention", [None, "gpaw-0.9.20000 (alternative sets)", "gpaw, smoothed 0.3 Å"])
def test_every_format_keeps_the_valence_convention(convention, suffix, tmp_path):
    for name in ("LiH_225", "Ω Å, a b", "", "two\nlines"):
        density = dataclasses.replace(load_density("LiH_225"), convention=convention, name=name)
        write_density(density, tmp_path / suffix)
        assert read_density(tmp_path / suffix).convention == convention


def test_a_poscar_holds_the_atoms_with_all_digits(tmp_path):
    density = to_conventional(load_density("NaCl_225"))
    write_density(density, tmp_path / "POSCAR.NaCl")
    structure = Structure.from_file(tmp_path / "POSCAR.NaCl")
    np.testing.assert_allclose(structure.lattice.matrix, density.lattice, atol=1e-10)
    assert sorted(s.specie.symbol for s in structure) == sorted(density.species)
    assert (tmp_path / "POSCAR.NaCl").read_text().startswith("NaCl_225\n")


# One name for all


def test_read_density_finds_bundled_crystals_and_entries_of_stores(tmp_path):
    density = load_density("LiH_225")
    assert np.array_equal(read_density("LiH_225").values, density.values)
    write_store(tmp_path / "mine.h5", [density])
    assert np.array_equal(read_density(f"{tmp_path / 'mine.h5'}::LiH_225").values, density.values)
    assert read_density("LiH_225").convention == load_densities("cubic").convention


def test_a_file_wins_over_a_bundled_crystal_of_its_name(tmp_path, monkeypatch, plain):
    monkeypatch.chdir(tmp_path)
    Path("LiH_225").write_bytes(plain["Li"].read_bytes())
    assert read_density("LiH_225").n_electrons == pytest.approx(1, abs=1e-4)


def test_a_sum_of_core_and_valence_densities_is_recognized():
    """As scripts make it for Bader's analysis from AECCAR0 and AECCAR2, on a grid that is too coarse for the cores."""
    values = np.full((20, 20, 20), 0.4)
    values[0, 0, 0] = 900  # e/Å³; the cores of iron and oxygen hold 12 electrons more than the grid
    lattice = 4.0 * np.eye(3)
    values *= 88 / (values.mean() * 64)
    density = ChargeDensity(values, lattice, ("Fe", "Fe", "O", "O", "O", "O", "O"), np.zeros((7, 3)))
    assert sum(density.numbers) == 92
    with pytest.raises(EcdError, match=r"88 of 92 electrons, with a peak of .* e/Å³: the sum of core and valence"):
        check_electrons(density)


@pytest.mark.parametrize(
    ("species", "count", "fits"),
    [
        (("Li",), 1, True),
        (("Li",), 3, True),  # all-electron
        (("Li",), 1.03, True),  # a coarse grid
        (("Li",), 1.5, False),  # no whole number
        (("Li",), 20.15, False),  # not divided by the volume
        (("Li",), 0.05, False),  # divided twice
        (("Li", "H"), 2, True),
        (("Li", "H"), 1, True),  # half an electron an atom
        (("Li", "H", "H", "H"), 1, False),
        ((), 3.3, True),  # no atoms, no count to compare with
    ],
)
def test_an_electron_count_that_cannot_be_betrays_the_units(species, count, fits):
    density = electrons_of(species, count)
    if fits:
        assert check_electrons(density) is density
    else:
        with pytest.raises(EcdError, match="Check the units"):
            check_electrons(density)


HEADERS = {
    "as VASP writes it": "c\n1.0\n4 0 0\n0.1 4.2 0\n0 -0.3 5\nNa Cl\n1 2\nDirect\n0 0 0\n.5 .5 .5\n.25 .1 0.9\n",
    "scale": "c\n1.3\n4 0 0\n0.1 4.2 0\n0 -0.3 5\nNa Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n",
    "volume": "c\n-90\n4 0 0\n0.1 4.2 0\n0 -0.3 5\nNa_pv Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n",
    "Cartesian": "c\n1.3\n4 0 0\n0.1 4.2 0\n0 -0.3 5\nNa Cl\n1 1\nCartesian\n0 0 0\n2 2.1 2.5\n",
    "selective": "c\n1\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n1 1\nSelective\nDirect\n0 0 0 T T F\n.5 .5 .5 F F F\n",
    "VASP 4": "c\n1\n4 0 0\n0 4 0\n0 0 4\n1 1\nDirect\n0 0 0 Na\n.5 .5 .5 Cl\n",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_are_read_as_pymatgen_does(kind, tmp_path):
    path = tmp_path / "CHGCAR"
    electrons = 8 if "1 2" not in HEADERS[kind] else 15
    path.write_text(f"{HEADERS[kind]}\n2 2 2\n" + 8 * f" {electrons}.0" + "\n")
    density, structure = read_chgcar(path), Poscar.from_str(HEADERS[kind]).structure
    assert np.array_equal(density.lattice, structure.lattice.matrix)
    assert density.species == tuple(site.specie.symbol for site in structure)
    assert np.allclose(density.positions, structure.frac_coords, atol=1e-14)
    assert density.n_electrons == pytest.approx(electrons)
