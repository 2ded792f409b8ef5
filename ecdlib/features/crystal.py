"""Features of a crystal of any lattice, from its structure alone, in named blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from pymatgen.core import Element, Structure
from scipy import constants
from tqdm import tqdm

from ecdlib.base.cached import cached
from ecdlib.data.tables import load_structures
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.superpose import AtomicWaves
from ecdlib.features.autocorrelation import density_quantiles
from ecdlib.features.bonds import pair_statistics
from ecdlib.features.composition import magpie_features
from ecdlib.features.invariants import CONVENTIONS, CUTOFF, density_invariants, power_invariants, wave_power

#: Heaviest element with form factors: Pu.
HEAVIEST = 94
#: e/Å³, below which densities are taken as equal; and the share of p_0 below which a higher degree is.
EMPTY, ISOTROPIC = 1e-4, 1e-3


#: g/cm³ of an atomic mass unit in a cubic Å.
GRAMS_PER_CM3 = constants.atomic_mass * 1e27


@lru_cache(maxsize=1)
def atomic_masses() -> Floats:
    """Masses of H to Pu, u ``(94,)``."""
    return np.array([float(Element.from_Z(z).atomic_mass) for z in range(1, HEAVIEST + 1)])


def log_invariants(p: Floats) -> Floats:
    """ln p_0, then ln(p_l/p_0 + :data:`ISOTROPIC`) of the other degrees without r = 0, where they vanish; ``(k,)``."""
    return np.concatenate([np.log(p[0]), np.log(p[1:, 1:] / p[0, 1:] + ISOTROPIC).ravel()])


def log_quantiles(density: ChargeDensity) -> Floats:
    """Logarithms of :func:`ecdlib.features.autocorrelation.density_quantiles`; ``(12,)``."""
    return np.log(np.maximum(density_quantiles(density), EMPTY))


def density_features(density: ChargeDensity) -> dict[str, Floats]:
    """Blocks of a density that was brought to a convention (:func:`ecdlib.density.valence.to_convention`).

    They compare with those of superposed atoms in the same convention, but do not mix with them in one column.
    """
    return {"invariants": log_invariants(density_invariants(density)), "quantiles": log_quantiles(density)}


def structure_features(structure: Structure) -> dict[str, Floats]:
    """Blocks of one crystal.

    Returns:
        For both conventions, of superposed atoms, ``"invariants CONVENTION"`` ``(121,)`` and ``"quantiles CONVENTION"``
        ``(12,)``; ``"bonds"`` ``(270,)``, see :func:`ecdlib.features.bonds.bond_statistics`; ``"elements"`` ``(94,)``,
        the square root of each element's share of the atoms; ``"size"`` ``(2,)``, logarithms of the volume of an atom
        (Å³) and of the mass density (g/cm³).

    Raises:
        EcdError: an element without form factors.
    """
    lattice, positions = reduced_cell(structure)
    sites = [site.specie for site in structure]
    numbers = np.array([element.Z for element in sites])
    volume = abs(float(np.linalg.det(lattice)))
    symbols = tuple(element.symbol for element in sites)
    waves = AtomicWaves(lattice, symbols, positions)
    F = waves.coefficients(CONVENTIONS)
    near = waves.squared <= CUTOFF**2 * (1 + 1e-9)
    invariants = power_invariants(waves.G[near], wave_power(F[:, near], volume))
    blocks = {}
    for convention, p, values in zip(CONVENTIONS, invariants, waves.on_grid(F), strict=True):
        blocks[f"invariants {convention}"] = log_invariants(p)
        blocks[f"quantiles {convention}"] = log_quantiles(ChargeDensity(values, lattice, symbols, positions))
    shares = np.bincount(numbers, minlength=HEAVIEST + 1)[1:] / len(numbers)
    density = atomic_masses()[numbers - 1].sum() * GRAMS_PER_CM3 / volume
    size = np.log([volume / len(numbers), density])
    bonds = pair_statistics(lattice, positions @ lattice, numbers)
    return blocks | {"bonds": bonds, "elements": np.sqrt(shares), "size": size}


def reduced_cell(structure: Structure) -> tuple[Floats, Floats]:
    """Niggli's cell ``(3, 3)``, Å, and the fractional coordinates of the atoms there ``(n, 3)``.

    The grid of the quantiles depends on the cell.
    """
    reduced = structure.lattice.get_niggli_reduced_lattice()
    if reduced == structure.lattice:
        return structure.lattice.matrix, structure.frac_coords
    return reduced.matrix, reduced.get_fractional_coords(structure.cart_coords) % 1


def crystal_features(structures: Iterable[Structure], progress: bool = False) -> dict[str, Floats]:
    """Blocks of many crystals: those of :func:`structure_features` and ``"composition"`` (MAGPIE, 132); ``(n, k)``."""
    crystals = list(structures)
    rows = [structure_features(s) for s in tqdm(crystals, "Features", disable=not progress)]
    return joined_features(rows, [s.composition.reduced_formula for s in crystals])


def joined_features(rows: Sequence[Mapping[str, Floats]], formulas: Sequence[str]) -> dict[str, Floats]:
    """:func:`crystal_features` from the :func:`structure_features` and the formulas of crystals."""
    blocks = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return blocks | {"composition": magpie_features(list(formulas))}


def bundled_crystal_features(progress: bool = True) -> tuple[list[str], Mapping[str, Any]]:
    """Names of all bundled structures and :func:`crystal_features` of them, computed once (``_build/cache``)."""

    def make() -> dict[str, Any]:
        structures = load_structures()
        blocks = crystal_features(structures.values(), progress)
        return {name: block.astype(np.float32) for name, block in blocks.items()} | {"name": np.array(list(structures))}

    blocks = cached("crystal-features", make)
    return list(blocks.pop("name")), blocks
