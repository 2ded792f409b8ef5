"""The symmetry-reduced store: one value per symmetry-distinct voxel, for any space group, without loss."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import spglib
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from ecdlib.datasets import load_densities, load_density
from ecdlib.density import ChargeDensity
from ecdlib.errors import EcdError
from ecdlib.store import DensityStore, symmetry_reduce, voxel_orbits, write_store

#: Space group, lattice, species and positions of its asymmetric unit: each crystal system, glides and screws among them.
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
GRIDS = {152: (6, 6, 9), 166: (8, 8, 12), 194: (6, 6, 8)}


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


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
def dataset(cell):
    return spglib.get_symmetry_dataset(cell, symprec=1e-3)


def same(a: ChargeDensity, b: ChargeDensity) -> bool:
    return (
        np.array_equal(a.values, b.values)
        and np.array_equal(a.lattice, b.lattice)
        and np.array_equal(a.positions, b.positions)
        and (a.species, a.name, a.convention) == (b.species, b.name, b.convention)
    )
