"""Named numbers of a density, each with a meaning, a unit and no free parameter.

None depends on the choice of cell, origin or axes. They are taken of a density that is smoothed and in one valence
convention, so that codes and potentials do not enter (:func:`density_descriptors`); the functions below take any.
"""

from __future__ import annotations

from functools import cached_property

import finufft
import numpy as np
import pandas as pd
import scipy.fft
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.spatial import KDTree, Voronoi

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file, read_once
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.images import atoms_around
from ecdlib.density.superpose import structure_of, superpose
from ecdlib.density.valence import WAVES, Target, to_convention
from ecdlib.features.invariants import DEGREES, power_invariants

#: Unit of each descriptor.
UNITS = {
    "mean": "e/Å³",
    "median": "e/Å³",
    "spread": "1",
    "skewness": "1",
    "half volume": "1",
    "correlation length": "Å",
    "anisotropy": "1",
    "directionality": "1",
    "bond density": "e/Å³",
    "bond curvature": "e/Å⁵",
    "bond waist": "e/Å⁵",
    "bond deformation": "e/Å³",
    "hole density": "e/Å³",
    "flatness": "1",
}
#: What each descriptor is, in a few words.
MEANING = {
    "mean": "electrons per volume",
    "median": "density that half of the cell lies below",
    "spread": "standard deviation over mean",
    "skewness": "third moment: rare dense places make it positive",
    "half volume": "smallest share of the cell that holds half of the electrons",
    "correlation length": "over which the density changes",
    "anisotropy": "of the gradients: 0 if all directions are alike, 1 if only one counts",
    "directionality": "variation of the autocorrelation over the sphere of nearest neighbours",
    "bond density": "half-way between nearest neighbours",
    "bond curvature": "along the bond: positive where the density sags",
    "bond waist": "across the bond: negative where the density is drawn together",
    "bond deformation": "half-way between neighbours, beyond free atoms",
    "hole density": "where the nuclei are farthest",
    "flatness": "hole density over bond density",
}
#: Neighbours of an atom count as nearest up to this much beyond the shortest distance, holes of a crystal as largest.
SAME = 0.01


class _Field:
    """A periodic field, its waves, and what they say at any point."""

    def __init__(self, values: Floats, lattice: Floats):
        odd = [n + 1 - n % 2 for n in values.shape]  # no wave stands for two then
        self.values = resample(values, odd)
        self.reciprocal = 2 * np.pi * np.linalg.inv(lattice).T

    @cached_property
    def coefficients(self) -> NDArray[np.complex128]:
        return scipy.fft.fftshift(scipy.fft.fftn(self.values, workers=1)) / self.values.size

    @cached_property
    def G(self) -> Floats:
        """``(nx, ny, nz, 3)``, 1/Å."""
        modes = np.meshgrid(*(np.arange(-(n // 2), n // 2 + 1.0) for n in self.values.shape), indexing="ij")
        return np.stack(modes, axis=-1) @ self.reciprocal

    @cached_property
    def power(self) -> Floats:
        """|F|² of the fluctuation, (e/Å³)²; its sum is the variance."""
        power = self.coefficients.real**2 + self.coefficients.imag**2
        power[tuple(n // 2 for n in power.shape)] = 0.0
        return power

    def at(self, points: Floats, factor: Floats | complex = 1.0) -> Floats:
        """Sum of the waves, times a factor each, at fractional coordinates ``(k, 3)``."""
        phases = np.ascontiguousarray(((2 * np.pi * points).T + np.pi) % (2 * np.pi) - np.pi)
        waves = np.ascontiguousarray(self.coefficients * factor)
        return np.asarray(finufft.nufft3d2(*phases, waves, eps=1e-10, isign=1, nthreads=1).real)


def one_point(density: ChargeDensity) -> dict[str, float]:
    """What the values of the density say, wherever they are.

    ``mean`` <ρ>; ``median``; ``spread`` σ/<ρ> with σ² = <(ρ - <ρ>)²>; ``skewness`` <(ρ - <ρ>)³>/σ³; ``half volume``,
    the smallest share of the cell that holds half of the electrons.

    Example:
        >>> wave = 2 + np.cos(2 * np.pi * np.arange(8) / 8)[:, None, None] * np.ones((1, 2, 2))
        >>> found = one_point(ChargeDensity(wave, np.eye(3), (), np.empty((0, 3))))
        >>> round(found["mean"], 3), round(found["spread"] * 2**1.5, 3), round(abs(found["skewness"]), 3)
        (2.0, 1.0, 0.0)
    """
    values = np.sort(density.values.ravel().astype(float))[::-1]
    mean, sigma = values.mean(), values.std()
    share = np.arange(len(values) + 1) / len(values)
    held = np.concatenate([[0.0], np.cumsum(values)]) / values.sum()
    upto = int(np.argmax(held >= 0.5)) + 1  # before negative values take some back
    return {
        "mean": float(mean),
        "median": float(np.median(values)),
        "spread": float(sigma / mean),
        "skewness": float(((values - mean) ** 3).mean() / sigma**3) if sigma > 0 else 0.0,
        "half volume": float(np.interp(0.5, held[:upto], share[:upto])),
    }


def two_point(density: ChargeDensity) -> dict[str, float]:
    """What the autocorrelation C(r) = <δρ(s) δρ(s + r)> of the fluctuation δρ = ρ - <ρ> says.

    ``correlation length`` ℓ with ℓ² = C(0)/<|∇ρ|²>: averaged over all directions, C falls as C(0) (1 - r²/6ℓ² + ...).
    ``anisotropy`` of that fall, √(3/2) |T - tr(T)/3| / |T| for T = <∇ρ ∇ρ>: 0 in cubic crystals, 1 if the density
    changes along one axis only (the fractional anisotropy of tensors). ``directionality``: how much C varies over the
    sphere through the nearest neighbours, √(Σ_l p_l²)/(√(4π) C(0)) with degrees l = 2, 4, 6 of
    :mod:`ecdlib.features.invariants`; 0 in a liquid, and not in cubic crystals.

    Example:
        A wave cos(kx) has ℓ = 1/k, and changes along x alone.

        >>> wave = 2 + np.cos(2 * np.pi * np.arange(8) / 8)[:, None, None] * np.ones((1, 2, 2))
        >>> found = two_point(ChargeDensity(wave, 2 * np.pi * np.eye(3), ("H",), np.zeros((1, 3))))
        >>> round(found["correlation length"], 3), round(found["anisotropy"], 3)
        (1.0, 1.0)
    """
    field = _Field(density.values, density.lattice)
    strong = field.power > 1e-10 * max(field.power.max(), 1e-30)
    power, G = field.power[strong], field.G[strong]
    if not len(power):  # the same everywhere
        return {"correlation length": float("inf"), "anisotropy": 0.0, "directionality": 0.0}
    tensor = (G.T * power) @ G
    trace, variance = np.trace(tensor), power.sum()
    deviation = np.linalg.norm(tensor - np.eye(3) * trace / 3)
    radius = float(_bonds(structure_of(density))[3].mean())
    p = power_invariants(G, power, (radius,), DEGREES)[1:, 0]
    return {
        "correlation length": float(np.sqrt(variance / trace)),
        "anisotropy": float(np.sqrt(1.5) * deviation / np.linalg.norm(tensor)),
        "directionality": float(np.linalg.norm(p) / (np.sqrt(4 * np.pi) * variance)),
    }


def at_bonds(density: ChargeDensity, atoms: ChargeDensity | None = None) -> dict[str, float]:
    """What the density is half-way between nearest neighbours: mean over atoms of the mean over its shortest bonds.

    ``bond density`` ρ; ``bond curvature`` ∂²ρ/∂s² along the bond, positive where the density sags between the atoms;
    ``bond waist``, the mean of the two curvatures across it, negative where the density is drawn together in the bond;
    ``bond deformation``, ρ less that of superposed atoms.

    Args:
        atoms: superposed atoms in the same cell, for the last; 0 without.

    Example:
        Atoms on a simple cubic lattice in 4 + cos x + cos y + cos z: at (π, 0, 0) these are 4 - 1 + 1 + 1, and the
        density is a minimum along x, a maximum across.

        >>> x = np.cos(2 * np.pi * np.arange(8) / 8)
        >>> values = 4 + x[:, None, None] + x[:, None] + x
        >>> cubic = ChargeDensity(values, 2 * np.pi * np.eye(3), ("Po",), np.zeros((1, 3)))
        >>> {name: round(value, 3) for name, value in at_bonds(cubic).items()}
        {'bond density': 5.0, 'bond curvature': 1.0, 'bond waist': -1.0, 'bond deformation': 0.0}
    """
    structure = structure_of(density)
    i, midpoint, along, _ = _bonds(structure)
    count = np.bincount(i, minlength=len(structure))

    def mean(values: Floats) -> float:
        return float((np.bincount(i, values, minlength=len(structure)) / count).mean())

    field = _Field(density.values, density.lattice)
    hessian = {(a, b): field.at(midpoint, -field.G[..., a] * field.G[..., b]) for a in range(3) for b in range(a + 1)}
    curvature = sum((1 + (a != b)) * along[:, a] * along[:, b] * values for (a, b), values in hessian.items())
    across = (hessian[0, 0] + hessian[1, 1] + hessian[2, 2] - curvature) / 2
    found = field.at(midpoint)
    before = found if atoms is None else _Field(atoms.values, atoms.lattice).at(midpoint)
    return {
        "bond density": mean(found),
        "bond curvature": mean(np.asarray(curvature)),
        "bond waist": mean(across),
        "bond deformation": mean(found - before),
    }


def at_hole(density: ChargeDensity) -> dict[str, float]:
    """What the density is in the largest hole, the place farthest from all nuclei: ``hole density``.

    Of several holes as large the emptiest counts.

    Example:
        See :func:`at_bonds`: the hole of a simple cubic lattice is the centre of the cube, 4 - 3.

        >>> x = np.cos(2 * np.pi * np.arange(8) / 8)
        >>> values = 4 + x[:, None, None] + x[:, None] + x
        >>> cubic = ChargeDensity(values, 2 * np.pi * np.eye(3), ("Po",), np.zeros((1, 3)))
        >>> {name: round(value, 3) for name, value in at_hole(cubic).items()}
        {'hole density': 1.0}
    """
    holes = largest_holes(structure_of(density))
    return {"hole density": float(_Field(density.values, density.lattice).at(holes).min())}


def density_descriptors(density: ChargeDensity, convention: Target = "chemical") -> pd.Series:
    """All descriptors of a density by name, in the units of :data:`UNITS`.

    The density is converted and smoothed (:func:`ecdlib.density.valence.to_convention`) and brought to a grid of just
    under 0.2 Å, which holds all its waves. Then come :func:`one_point`, :func:`two_point`, :func:`at_bonds`,
    :func:`at_hole`, and ``flatness``, hole density over bond density: near 1 in simple metals, near 0 in molecular and
    many ionic crystals (after P. Mori-Sánchez and others, https://doi.org/10.1021/ja027708t, who take critical points).

    Args:
        convention: which electrons; the chemical ones, without closed shells, are those that bind.

    Raises:
        EcdError: no atoms; see also :func:`ecdlib.density.valence.to_convention`.

    Example:
        >>> from ecdlib.density.store import load_density
        >>> density_descriptors(load_density("Si_227"))[["bond density", "hole density"]].round(2).tolist()
        [0.45, 0.03]
    """
    if not density.species:
        raise EcdError(density.name, "holds no atoms, so bonds and holes are not known", "Give a file with its atoms.")
    atoms = superpose(structure_of(density), convention)
    return _descriptors(to_convention(density, convention), atoms)


def structure_descriptors(structure: Structure, convention: Target = "chemical") -> pd.Series:
    """The same of the superposed atoms of a structure, whose ``bond deformation`` is 0.

    Raises:
        EcdError: an element without form factors.
    """
    return _descriptors(superpose(structure, convention), None)


def _descriptors(density: ChargeDensity, atoms: ChargeDensity | None) -> pd.Series:
    longest = np.linalg.norm(density.lattice, axis=1)
    grid = [2 * int(np.ceil(WAVES * a / (2 * np.pi))) + 1 for a in longest]
    density = density.step("brought to a grid of just under 0.2 Å", values=resample(density.values, grid))
    found = one_point(density) | two_point(density) | at_bonds(density, atoms) | at_hole(density)
    found["flatness"] = found["hole density"] / found["bond density"]
    return pd.Series({name: found[name] for name in UNITS}, name=density.name)


def _bonds(structure: Structure) -> tuple[NDArray[np.intp], Floats, Floats, Floats]:
    """Shortest bonds of each atom: its number, fractional midpoint, unit vector, length (Å), one entry for each."""
    reach = 1.5 * (structure.volume / len(structure)) ** (1 / 3)
    while True:
        i, j, image, d = structure.get_neighbor_list(reach, exclude_self=True)
        shortest = np.full(len(structure), np.inf)
        np.minimum.at(shortest, i, d)
        if (shortest * (1 + SAME) < reach).all():
            break
        reach *= 1.5
    kept = d <= shortest[i] * (1 + SAME)
    i, start = i[kept], structure.frac_coords[i[kept]]
    step = structure.frac_coords[j[kept]] + image[kept] - start
    along = step @ structure.lattice.matrix
    return i, start + step / 2, along / np.linalg.norm(along, axis=1)[:, None], d[kept]


def bond_profile(density: ChargeDensity, points: int = 101) -> tuple[Floats, Floats]:
    """The density along a shortest bond: distances from the first atom, Å, and values, e/Å³, ``(points,)`` each.

    Example:
        See :func:`at_bonds`; atoms are 2π apart.

        >>> x = np.cos(2 * np.pi * np.arange(8) / 8)
        >>> values = 4 + x[:, None, None] + x[:, None] + x
        >>> cubic = ChargeDensity(values, 2 * np.pi * np.eye(3), ("Po",), np.zeros((1, 3)))
        >>> [along.round(2).tolist() for along in bond_profile(cubic, 3)]
        [[0.0, 3.14, 6.28], [7.0, 5.0, 7.0]]
    """
    _, midpoint, along, length = _bonds(structure_of(density))
    shortest = int(length.argmin())
    x = np.linspace(0, length[shortest], points)
    step = (x - length[shortest] / 2)[:, None] * along[shortest] @ np.linalg.inv(density.lattice)
    return x, _Field(density.values, density.lattice).at(midpoint[shortest] + step)


@read_once
def bundled_descriptors() -> dict[str, pd.DataFrame]:
    """Descriptors of the bundled densities, ``"density"``, and of their superposed atoms, ``"atoms"``, by name.

    Made by ``data/make/named_descriptors.py``.
    """
    table = pd.read_csv(data_file("results/descriptors.csv"), index_col="name")
    found = {of: table.filter(regex=f"^{of} ") for of in ("density", "atoms")}
    return {of: part.rename(columns=lambda name: name.partition(" ")[2]) for of, part in found.items()}


def largest_holes(structure: Structure) -> Floats:
    """Places farthest from all nuclei, vertices of the Voronoi cells of the atoms: fractional coordinates ``(k, 3)``.

    Example:
        >>> from pymatgen.core import Lattice
        >>> largest_holes(Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]])).round(3).tolist()
        [[0.5, 0.5, 0.5]]
    """
    reduced = structure.lattice.get_lll_reduced_lattice()
    reach = np.linalg.norm(reduced.matrix, axis=1).sum() / 2  # no hole is larger
    cartesian, _ = atoms_around(reduced.matrix, reduced.get_fractional_coords(structure.cart_coords), reach)
    vertices = Voronoi(cartesian).vertices
    fractional = reduced.get_fractional_coords(vertices)
    inside = ((fractional > -1e-6) & (fractional < 1 - 1e-6)).all(1)
    radius = KDTree(cartesian).query(vertices[inside])[0]
    largest = vertices[inside][radius > radius.max() * (1 - SAME)]
    return np.asarray(np.unique(structure.lattice.get_fractional_coords(largest).round(9) % 1, axis=0))
