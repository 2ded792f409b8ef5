"""Superposed free atoms: the density of a crystal before its atoms bind, from the structure alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from pymatgen.core import Lattice, Structure
from scipy.interpolate import CubicSpline

from ecdlib.base.errors import EcdError
from ecdlib.density.cell import fast_length
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.valence import SMOOTHING, WAVES, Target, atomic_form_factor

_BROAD = 0.5  # Å, of the Gaussian that makes a density comparable to atoms that are not bonded
_WAVES_OF_ATOMS = 8.0  # 1/Å
#: How the convention of a superposed density begins.
SUPERPOSED = "superposed atoms"
Complexes = NDArray[np.complexfloating[Any]]
Indices = tuple[NDArray[np.integer[Any]], ...]
#: Complex numbers that are held at once beside the result (64 MB).
_CHUNK = 4_000_000


def _sphere(lattice: Floats, cutoff: float) -> tuple[list[Floats], Indices, Floats]:
    """Waves within a sphere: G = 0 first, then one of each pair ±G.

    Returns:
        Integer modes along each axis, those of the last one from 0; indices into them; and reciprocal vectors (m, 3),
        1/Å.
    """
    reciprocal = 2 * np.pi * np.linalg.inv(lattice).T  # rows
    reach = np.floor(cutoff * np.linalg.norm(lattice, axis=1) / (2 * np.pi) + 1e-6).astype(int)
    modes = [np.arange(-n, n + 1.0) for n in reach[:2]] + [np.arange(reach[2] + 1.0)]
    metric = reciprocal @ reciprocal.T
    a, b, c = np.ix_(*modes)
    squared = metric[0, 0] * a**2 + (2 * metric[0, 1] * a + metric[1, 1] * b) * b + metric[2, 2] * c**2
    squared += 2 * (metric[0, 2] * a + metric[1, 2] * b) * c
    inside = squared <= cutoff**2 * (1 + 1e-9)
    inside[..., 0] &= ((b > 0) | ((b == 0) & (a > 0)))[..., 0]  # one of each pair
    indices = tuple(np.concatenate([[n], found]) for n, found in zip((*reach[:2], 0), inside.nonzero(), strict=True))
    chosen = np.stack([along[i] for along, i in zip(modes, indices, strict=True)], axis=1)
    return modes, indices, chosen @ reciprocal


def _phases(modes: list[Floats], positions: Floats) -> Complexes:
    """Sum over atoms of exp(-i G R), on the product of the modes of each axis."""
    a, b, c = (np.exp(-2j * np.pi * np.outer(positions[:, i], modes[i])) for i in range(3))
    total = np.empty((a.shape[1], b.shape[1], c.shape[1]), dtype=complex)
    rows = max(1, _CHUNK // b.size)
    for start in range(0, a.shape[1], rows):
        product = a[:, start : start + rows, None] * b[:, None, :]
        total[start : start + rows] = (product.reshape(len(positions), -1).T @ c).reshape(-1, *total.shape[1:])
    return total


def reciprocal_density(
    structure: Structure, convention: Target = "gpaw", *, cutoff: float = WAVES, smoothing: float = SMOOTHING
) -> tuple[Floats, Complexes]:
    """Fourier coefficients of the superposed density of neutral free atoms, without any grid.

        F(G) = exp(-G² smoothing²/2) Σ_atoms f(|G|) exp(-i G R),    ρ(r) = 1/V Σ_G F(G) exp(i G r)

    Args:
        convention: which electrons (see :data:`ecdlib.density.valence.Target`).
        cutoff: length of the longest wave, 1/Å, at most :data:`ecdlib.density.valence.WAVES`.
        smoothing: standard deviation of the Gaussian, Å.

    Returns:
        Reciprocal vectors G (m, 3) in 1/Å (2π included) and F(G) (m,), complex, electrons per cell. The first is
        G = 0, where F is the number of electrons; of each other pair ±G **one** is there, as F(-G) = F(G)*.

    Raises:
        EcdError: an element without form factors, or a cutoff beyond them.
    """
    if not 0 < cutoff <= WAVES:
        raise EcdError(f"cutoff {cutoff:g}", f"form factors end at {WAVES:g} 1/Å", "Choose a smaller cutoff, above 0.")
    waves = AtomicWaves.of(structure, cutoff)
    return waves.G, waves.coefficients([convention], smoothing)[0]


class AtomicWaves:
    """Waves of superposed free atoms within a sphere; what does not depend on the convention is computed once.

    Args:
        lattice: ``(3, 3)``, Å, rows are the cell vectors.
        symbols: element of each atom.
        positions: fractional coordinates ``(n_atoms, 3)``.
        cutoff: length of the longest wave, 1/Å.

    Attributes:
        G: ``(m, 3)``, see :func:`reciprocal_density`.
        squared: |G|² ``(m,)``.
    """

    def __init__(self, lattice: Floats, symbols: Sequence[str], positions: Floats, cutoff: float = WAVES):
        self.lattice, self.symbols, self.positions = lattice, np.array(symbols), positions
        self._modes, self._indices, self.G = _sphere(lattice, cutoff)
        self.squared: Floats = np.einsum("ij,ij->i", self.G, self.G)

    @classmethod
    def of(cls, structure: Structure, cutoff: float = WAVES) -> Self:
        """Those of a structure."""
        symbols = [site.specie.symbol for site in structure]
        return cls(np.asarray(structure.lattice.matrix), symbols, structure.frac_coords, cutoff)

    def coefficients(self, conventions: Sequence[Target], smoothing: float = SMOOTHING) -> Complexes:
        """F(G) in several conventions, ``(conventions, m)``."""
        elements = dict.fromkeys(self.symbols.tolist())
        splines = {element: [atomic_form_factor(element, c) for c in conventions] for element in elements}
        knots = next(iter(splines.values()))[0].x  # of all, at equal distances from 0 on
        lengths = np.sqrt(self.squared)
        piece = np.minimum((lengths / knots[1]).astype(np.intp), len(knots) - 2)
        t = lengths - knots[piece]
        flat = np.ravel_multi_index(self._indices, [len(along) for along in self._modes])
        F = np.zeros((len(conventions), len(self.G)), dtype=complex)
        for element, of_element in splines.items():
            phases = _phases(self._modes, self.positions[self.symbols == element]).ravel()[flat]
            for total, spline in zip(F, of_element, strict=True):
                total += _evaluated(spline, piece, t) * phases
        F *= np.exp(-self.squared * smoothing**2 / 2)
        return F

    def on_grid(self, F: Complexes) -> Floats:
        """Densities ``(n, nx, ny, nz)`` in e/Å³ with coefficients ``(n, m)``, on the smallest grid that holds them."""
        nx, ny, nz = shape = [fast_length(2 * along[-1] + 1) for along in self._modes]
        half = nx, ny, nz // 2 + 1
        a, b, c = (along[i].astype(int) for along, i in zip(self._modes, self._indices, strict=True))
        pair = c == 0  # this plane holds both of a pair
        places = [np.ravel_multi_index(m, half, "wrap") for m in ((a, b, c), (-a[pair], -b[pair], c[pair]))]
        found = np.empty((len(F), *shape))
        for values, f in zip(found, F * (nx * ny * nz / abs(np.linalg.det(self.lattice))), strict=True):
            spectrum = np.zeros(half, dtype=complex)
            spectrum.ravel()[places[0]] = f
            spectrum.ravel()[places[1]] = f[pair].conj()
            values[:] = scipy.fft.irfftn(spectrum, s=shape, workers=1, overwrite_x=True)
        return found


def _evaluated(spline: CubicSpline, piece: NDArray[np.intp], t: Floats) -> Floats:
    """A spline at distances ``t`` from the beginnings of pieces, which all form factors share."""
    found, *lower = (c.take(piece) for c in spline.c)
    for c in lower:
        found *= t
        found += c
    return np.asarray(found)


def superpose(
    structure: Structure, convention: Target = "gpaw", *, smoothing: float = SMOOTHING, name: str | None = None
) -> ChargeDensity:
    """Density of neutral free atoms at their places: what a crystal is before its electrons rearrange.

    Milliseconds for small cells. It compares with a self-consistent density that
    :func:`ecdlib.density.valence.to_convention` brought to the same convention with the same smoothing; the difference
    of the two is the deformation density.

    Args:
        convention: which electrons (see :data:`ecdlib.density.valence.Target`).
        smoothing: standard deviation of the Gaussian, Å.
        name: of the density; the reduced formula if None.

    Returns:
        The density on the cell as given. It holds all waves up to :data:`ecdlib.density.valence.WAVES`, on a grid of
        just under 0.2 Å. ``convention`` begins with :data:`SUPERPOSED`, so that no model takes it for a
        self-consistent one.

    Raises:
        EcdError: an element without form factors.

    Example:
        >>> from ecdlib.data.tables import load_structures
        >>> superpose(load_structures()["LiH_225"], "chemical")
        ChargeDensity(LiH: LiH, 24x24x24, 64.87 Å³, 8.000 electrons)
    """
    waves = AtomicWaves.of(structure)
    values = waves.on_grid(waves.coefficients([convention], smoothing))[0]
    kind = f"{convention}, smoothed {smoothing:g} Å"
    return ChargeDensity(
        values,
        waves.lattice,
        tuple(waves.symbols.tolist()),
        waves.positions,
        name or structure.composition.reduced_formula,
        f"{SUPERPOSED}, {kind}",
        (f"superposed from neutral free atoms, {kind}",),
    )


def structure_of(density: ChargeDensity) -> Structure:
    """Lattice and atoms of a density."""
    return Structure(Lattice(density.lattice), density.species, density.positions)


def misfit(density: ChargeDensity) -> float:
    """How far a density is from any superposition of atoms at its sites: 0 if it is one, 1 if atoms say nothing of it.

    The Fourier coefficients of the density, smoothed by a Gaussian of 0.5 Å, are fitted by two spheres for each
    element, the free atom and a point, so that any valence fits. The result is the norm of what remains, over the norm
    of the coefficients plus 5 % of what they were if all electrons were at one point (metals are nearly uniform).

    Raises:
        EcdError: an element without form factors.
    """
    modes, indices, G = _sphere(np.asarray(density.lattice), _WAVES_OF_ATOMS)
    nx, ny, nz = density.shape
    a, b, c = (along[i].astype(int) for along, i in zip(modes, indices, strict=True))
    known = (2 * np.abs(a) < nx) & (2 * np.abs(b) < ny) & (2 * c < nz)  # by the grid
    known[0] = False
    squared, (a, b, c) = (G[known] ** 2).sum(1), (x[known] for x in (a, b, c))
    weights = np.exp(-squared * _BROAD**2 / 2)
    spectrum = scipy.fft.rfftn(np.asarray(density.values, dtype=np.float64), workers=1)
    found = spectrum[a, b, c] * density.voxel_volume * weights
    columns = []
    for element in dict.fromkeys(density.species):
        own = np.array([s == element for s in density.species])
        phases = _phases(modes, density.positions[own])[indices][known] * weights
        columns += [phases * atomic_form_factor(element, "gpaw")(np.sqrt(squared)), phases]
    basis, wanted = (np.concatenate([x.real, x.imag]) for x in (np.stack(columns, axis=1), found))
    if len(wanted) < 2 * basis.shape[1]:  # too coarse a grid to say anything
        return 0.0
    rest = wanted - basis @ np.linalg.lstsq(basis, wanted, rcond=None)[0]
    scale = np.linalg.norm(wanted) + 0.05 * density.n_electrons * np.linalg.norm(weights)
    return float(np.linalg.norm(rest) / scale)
