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
from ecdlib.density.superpose import superpose
from ecdlib.features.autocorrelation import density_quantiles
from ecdlib.features.bonds import bond_statistics
from ecdlib.features.composition import magpie_features
from ecdlib.features.invariants import CONVENTIONS, density_invariants, structure_invariants

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
    structure = structure.get_reduced_structure()  # the grid of the quantiles depends on the cell
    blocks = {}
    for convention in CONVENTIONS:
        blocks[f"invariants {convention}"] = log_invariants(structure_invariants(structure, convention))
        blocks[f"quantiles {convention}"] = log_quantiles(superpose(structure, convention))
    numbers = [site.specie.Z for site in structure]
    shares = np.bincount(numbers, minlength=HEAVIEST + 1)[1:] / len(numbers)
    density = atomic_masses()[np.array(numbers) - 1].sum() * GRAMS_PER_CM3 / structure.volume
    size = np.log([structure.volume / len(numbers), density])
    return blocks | {"bonds": bond_statistics(structure), "elements": np.sqrt(shares), "size": size}


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
