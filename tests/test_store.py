"""The symmetry-reduced store: one value per symmetry-distinct voxel, for any space group, without loss."""

from __future__ import annotations

import runpy
import warnings
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import spglib
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT, data_file
from ecdlib.density.core import ChargeDensity
from ecdlib.density.store import (
    DensityStore,
    load_densities,
    load_density,
    load_selection,
    symmetry_reduce,
    voxel_orbits,
    write_store,
)

#: Space group, lattice, species and positions of the asymmetric unit: each crystal system, some with glides or screws.
GROUPS = {
    2: (Lattice.from_parameters(3, 3.5, 4, 80, 95, 105), ["Li", "H"], [[0, 0, 0], [0.2, 0.3, 0.4]]),
    14: (Lattice.monoclinic(3, 4, 5, 100), ["Li"], [[0.1, 0.2, 0.3]]),
    62: (Lattice.orthorhombic(4, 5, 6), ["Li"], [[0.1, 0.25, 0.4]]),
    136: (Lattice.tetragonal(4.6, 3), ["Ti", "O"], [[0, 0, 0], [0.3, 0.3, 0]]),
    152: (Lattice.hexagonal(4.9, 5.4), ["Si", "O"], [[0.47, 0, 1 / 3], [0.41, 0.27, 0.45]]),
    166: (Lattice.hexagonal(4.5, 11.9), ["Bi"], [[0, 0, 0.23]]),
    194: (Lattice.hexagonal(3.2, 5.2), ["Mg"], [[1 / 3, 2 / 3, 0.25]]),
    198: (Lattice.cubic(5), ["Fe", "Si"], [[0.14] * 3, [0.84] * 3]),
    225: (Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]),
    227: (Lattice.cubic(5.4), ["Si"], [[0.125] * 3]),
}
GRIDS = {152: (6, 6, 9), 166: (6, 6, 12), 194: (6, 6, 8)}


def symmetric_density(group: int, grid: tuple[int, int, int], seed: int = 0, name: str = "") -> ChargeDensity:
    """A random field made symmetric by averaging it over its crystal's operations, one voxel after the other."""
    lattice, species, positions = GROUPS[group]
    structure = Structure.from_spacegroup(group, lattice, species, positions)
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    found = dataset(cell)
    assert found.number == group
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.1, 2, grid)
    total = np.zeros(grid)
    x = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), -1)
    for rotation, translation in zip(found.rotations, found.translations, strict=True):
        voxel = (x @ rotation.T + translation) * grid
        assert np.abs(voxel - voxel.round()).max() < 1e-3, "choose a grid that the space group maps onto itself"
        total += values[tuple(np.moveaxis(voxel.round().astype(int) % grid, -1, 0))]
    species_names = tuple(site.specie.symbol for site in structure)
    return ChargeDensity(
        (total / len(found.rotations)).astype(np.float32),
        structure.lattice.matrix,
        species_names,
        structure.frac_coords,
        name or f"group {group}",
    )


def dataset(cell: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # spglib's, on how it reports errors
        return spglib.get_symmetry_dataset(cell, symprec=1e-3)


def same(a: ChargeDensity, b: ChargeDensity) -> bool:
    return (
        np.array_equal(a.values, b.values)
        and np.array_equal(a.lattice, b.lattice)
        and np.array_equal(a.positions, b.positions)
        and (a.species, a.name, a.convention) == (b.species, b.name, b.convention)
    )


@pytest.mark.parametrize("group", GROUPS)
def test_a_symmetric_field_is_stored_once_per_orbit_and_comes_back_exactly(group, tmp_path):
    density = symmetric_density(group, GRIDS.get(group, (8, 8, 8)))
    report = write_store(tmp_path / "s.h5", [density])
    back = DensityStore(tmp_path / "s.h5")[density.name]
    assert same(back, density)
    order = len(dataset((density.lattice, density.positions, density.numbers)).rotations)
    stored = report["stored"].iloc[0]
    assert density.values.size / order <= stored < (1 if order == 1 else 0.6) * density.values.size
    assert report["error"].iloc[0] == 0


@given(
    st.sampled_from(sorted(GROUPS)),
    st.integers(0, 50),
    st.sampled_from([(8, 8, 8), (12, 12, 12), (5, 6, 7), (6, 6, 12)]),
)
def test_any_field_on_any_grid_comes_back(tmp_path_factory, group, seed, grid):
    """Noise has none of its atoms' symmetry, and the grid may not fit the operations: all voxels are kept."""
    lattice, species, positions = GROUPS[group]
    structure = Structure.from_spacegroup(group, lattice, species, positions)
    values = np.random.default_rng(seed).normal(0.5, 1, grid).astype(np.float32)
    values += np.float32(max(0, 0.1 - values.mean()))
    density = ChargeDensity(
        values,
        structure.lattice.matrix,
        tuple(s.specie.symbol for s in structure),
        structure.frac_coords,
    )
    path = tmp_path_factory.mktemp("store") / "s.h5"
    report = write_store(path, [density])
    assert report["stored"].iloc[0] == report["voxels"].iloc[0] == values.size
    assert same(DensityStore(path)[density.name], density)


def test_operations_that_do_not_fit_the_grid_are_left_out():
    """The diamond glide shifts by 1/4: on 6 voxels it is no voxel map, and only the others reduce."""
    density = symmetric_density(227, (8, 8, 8))
    found = dataset((density.lattice, density.positions, density.numbers))
    orbit, first = voxel_orbits(found.rotations, found.translations, (6, 6, 6))
    quarter = np.abs(found.translations * 6 - np.round(found.translations * 6)).max(1) > 0.1
    assert quarter.any()
    assert not quarter.all()
    other, other_first = voxel_orbits(found.rotations[~quarter], found.translations[~quarter], (6, 6, 6))
    assert np.array_equal(orbit, other)
    assert np.array_equal(first, other_first)
    assert len(first) < 216


def brute_force_orbits(rotations, translations, grid) -> tuple[list[int], list[int]]:
    """Orbit of each voxel, found one voxel and one operation at a time; orbits numbered by their smallest voxel."""
    smallest = {}
    for voxel in np.ndindex(*grid):
        images = []
        for rotation, translation in zip(rotations, translations, strict=True):
            image = [
                round((sum(rotation[i][j] * voxel[j] / grid[j] for j in range(3)) + translation[i]) * grid[i]) % grid[i]
                for i in range(3)
            ]
            images.append((image[0] * grid[1] + image[1]) * grid[2] + image[2])
        smallest[(voxel[0] * grid[1] + voxel[1]) * grid[2] + voxel[2]] = min(images)
    first = sorted(set(smallest.values()))
    return [first.index(smallest[i]) for i in range(len(smallest))], first


@pytest.mark.parametrize("group", [14, 136, 152, 194, 198, 227])
def test_orbits_agree_with_a_loop_over_voxels_and_operations(group):
    """Among them the non-symmorphic P2_1/c, P4_2/mnm, P3_121, P6_3/mmc, P2_13 and Fd-3m (primitive cell)."""
    lattice, species, positions = GROUPS[group]
    structure = Structure.from_spacegroup(group, lattice, species, positions)
    if group == 227:
        structure = structure.get_primitive_structure()
    found = dataset((structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers))
    assert found.number == group
    assert np.abs(found.translations - found.translations.round()).max() > 0.2, "has glides or screws"
    grid = {152: (3, 3, 6), 194: (6, 6, 4)}.get(group, (4, 4, 4))
    orbit, first = voxel_orbits(found.rotations, found.translations, grid)
    expected_orbit, expected_first = brute_force_orbits(found.rotations.tolist(), found.translations.tolist(), grid)
    assert orbit.tolist() == expected_orbit
    assert first.tolist() == expected_first


def test_a_small_asymmetry_is_averaged_and_reported_a_large_one_kept():
    density = symmetric_density(225, (8, 8, 8))
    peak = density.values.max()
    for size, kept_whole in ((2e-5, False), (1e-2, True)):
        values = density.values.copy()
        values[1, 2, 3] += size * peak
        changed = density.step("nudged", values=values)
        rotations, _, stored, error = symmetry_reduce(changed)
        assert (len(stored) == values.size) == kept_whole
        assert (len(rotations) == 1) == kept_whole
        assert (error == 0) if kept_whole else (0 < error <= size * 1.01)
        assert len(symmetry_reduce(changed, tolerance=0)[2]) == values.size


def test_atoms_of_a_spin_order_do_not_force_their_symmetry_on_the_density():
    """Two iron atoms of opposite moment hold different densities although the atoms are alike."""
    values = np.random.default_rng(0).uniform(0.5, 1, (6, 6, 6)).astype(np.float32)
    density = ChargeDensity(values, 3 * np.eye(3), ("Fe", "Fe"), np.array([[0, 0, 0], [0.5] * 3]), "FeFe")
    assert len(symmetry_reduce(density)[2]) == values.size


def test_a_store_holds_what_is_known_of_each_crystal(tmp_path):
    a, b = load_density("LiH_225"), load_density("WC_187")
    write_store(tmp_path / "s.h5", [a, b], energy={"LiH_225": -6.1}, magnetic_moment={"WC_187": 0.5}, method="by hand")
    store = DensityStore(tmp_path / "s.h5")
    assert store.names == ["LiH_225", "WC_187"]
    assert len(store) == 2
    assert "WC_187" in store
    assert "NaCl_225" not in store
    assert [d.name for d in store] == store.names
    assert (store.convention, store.method) == (a.convention, "by hand")
    assert store.table["energy"].tolist()[0] == -6.1
    assert np.isnan(store.table["energy"].iloc[1])
    assert store.table["magnetic_moment"].tolist() == [0.0, 0.5]
    assert store.table["n_electrons"].tolist() == [2, 18]
    assert store.table["spacegroup"].tolist() == [225, 187]
    with h5py.File(tmp_path / "s.h5") as h:  # an ordinary HDF5 file for everybody else
        assert list(h["name"].asstr()) == store.names


@pytest.mark.parametrize(
    "name", ["LiH_225", "BeCu_221", "BP_216", "Si_227", "V_229", "WC_187", "Be_194", "Ga_139", "TiAl_123"]
)
def test_a_bundled_entry_survives_being_written_and_read_again(name, tmp_path):
    density = load_density(name)
    report = write_store(tmp_path / "s.h5", [density])
    assert same(DensityStore(tmp_path / "s.h5")[name], density)
    assert report["stored"].iloc[0] < 0.1 * report["voxels"].iloc[0]


@pytest.mark.parametrize(("which", "part"), [("cubic-all", 0), ("cubic-all", 1), ("general-all", 0), ("pairs", 0)])
def test_every_bundled_density_integrates_to_its_electrons(which, part):
    """All 1,125 (in three parts), and the pairs: finite, of positive charge, electrons to 3e-4."""
    store = load_densities(which)
    assert len(store) == {"cubic-all": 958, "general-all": 167, "pairs": 99}[which]
    table = store.table.sort_values(["grid", "spacegroup"])
    names = list(table.index)[part::2] if which == "cubic-all" else list(table.index)
    errors = {n: abs(store[n].n_electrons - table["n_electrons"][n]) for n in names}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < 3e-4, f"{worst} is off by {errors[worst]}"


def test_the_alternative_sets_hold_other_electrons_and_say_so():
    pairs, cubic = load_densities("pairs"), load_densities("cubic")
    assert pairs.convention != cubic.convention
    for name in pairs.names:
        assert pairs.table["n_electrons"][name] != cubic.table["n_electrons"][name]


def test_densities_of_two_conventions_do_not_go_into_one_store(tmp_path):
    one, other = load_densities("pairs")["Pd_225"], load_densities("cubic")["Pt_225"]
    with pytest.raises(EcdError, match="2 valence conventions"):
        write_store(tmp_path / "s.h5", [one, other])
    assert list(tmp_path.iterdir()) == []


def test_names_are_unique_and_something_must_be_written(tmp_path):
    density = load_density("LiH_225")
    with pytest.raises(EcdError, match="two entries with this name"):
        write_store(tmp_path / "s.h5", [density, density])
    with pytest.raises(EcdError, match="nothing to write"):
        write_store(tmp_path / "s.h5", [])
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_midway_leaves_nothing_and_keeps_what_was_there(tmp_path):
    density = load_density("LiH_225")
    write_store(tmp_path / "s.h5", [density])
    before = (tmp_path / "s.h5").read_bytes()

    def breaks():
        yield load_density("WC_187")
        raise KeyboardInterrupt

    for target in ("s.h5", "new.h5"):
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path / target, breaks())
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]
    assert (tmp_path / "s.h5").read_bytes() == before


def test_a_store_is_much_smaller_than_the_text_it_replaces():
    """The autoencoder paper compresses to 1/117; symmetry alone, without any loss, does better on cubic crystals."""
    store = load_densities("cubic-all")
    voxels = sum(int(np.prod(grid)) for grid in store.table["grid"])
    text = voxels * 18  # bytes a value takes in a CHGCAR
    assert text / store.path.stat().st_size > 117


def test_the_frozen_selections_are_the_crystals_of_the_latent_database_in_their_order():
    """Results of the book are made of them: another crystal, or another order, would change its numbers."""
    with np.load(data_file("latents.npz"), allow_pickle=False) as z:
        frozen = z["names"].tolist()
    assert load_selection("densities-988") == frozen
    assert load_selection("cubic-892") + load_selection("general-96") == frozen
    for which in ("cubic", "general"):
        store, everything = load_densities(which), load_densities(f"{which}-all")
        assert store.names == everything.names[: len(store)]
        assert list(store.table.index) == store.names
        assert everything.names[-1] not in store
        with pytest.raises(EcdError, match="no such crystal"):
            store[everything.names[-1]]


def test_a_selection_of_a_store_gives_the_same_densities_in_the_order_asked_for():
    store = load_densities("cubic-all")
    part = store.select(["NaCl_225", "LiH_225"])
    assert [d.name for d in part] == part.names == ["NaCl_225", "LiH_225"]
    assert same(part["LiH_225"], store["LiH_225"])
    with pytest.raises(EcdError, match="no such crystal"):
        store.select(["nothing"])
    with pytest.raises(EcdError, match=r"no such selection of densities\. Choose one of: cubic-892"):
        load_selection("nothing")


def test_held_out_crystals_are_a_tenth_and_share_no_formula_with_the_others():
    table = pd.concat([load_densities("cubic-all").table, load_densities("general-all").table])
    names = load_selection("held-out")
    assert 0.1 <= len(names) / len(table) < 0.105
    assert not set(table["formula"][names]) & set(table["formula"].drop(names))
    making = runpy.run_path(str(ROOT / "data" / "make" / "selections.py"))
    assert making["held_out"](table["formula"]) == names, "drawn by the seed that the script states"
    assert load_selection("lean") == list(table.index[table["spacegroup"].isin([216, 221, 225])])
