"""ChargeDensity: the one object that every reader returns and every step takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.core import Composition, Element, Lattice, Structure

from ecdlib.base.errors import EcdError

Floats = NDArray[np.floating[Any]]
SYMPREC = 0.01  #: Å, within which atoms of a crystal structure count as equivalent


def symmetry_dataset(cell: Any, symprec: float) -> Any:
    """spglib's symmetry dataset of a cell (lattice, positions, numbers); None without atoms or if none is found.

    Args:
        symprec: tolerance in Å.
    """
    if not len(cell[2]):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)  # both ways are handled
        try:
            return spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            return None


def symmetry(structure: Structure) -> Any:
    """spglib's symmetry dataset of a crystal within :data:`SYMPREC`; None if none is found."""
    return symmetry_dataset((structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers), SYMPREC)


@dataclass(frozen=True)
class VaspBlocks:
    """What a CHGCAR holds beside the total density: spin densities and augmentation occupancies, by block name."""

    spin: dict[str, Any]
    augmentation: dict[str, Any]


@dataclass(frozen=True, eq=False)
class ChargeDensity:
    """An electron charge density on a periodic cell. Immutable: each step returns a new one.

    Voxel ``(i, j, k)`` sits at fractional coordinate ``(i/nx, j/ny, k/nz)``; there is no endpoint.

    Attributes:
        values: ``(nx, ny, nz)``, electrons per Å³.
        lattice: ``(3, 3)``, Å, rows are the cell vectors.
        species: element symbol of each atom.
        positions: ``(n_atoms, 3)``, fractional coordinates.
        name: what messages and tables call it (a file name or ``formula_spacegroup``).
        convention: whose valence electrons it holds, where known, e.g. ``"gpaw-0.9.20000"``. Densities of
            different conventions hold different numbers of electrons and are not comparable.
        history: the steps applied so far, oldest first.
        vasp: what else the CHGCAR held, until a step changes the density.
        valence: valence electrons of each element, where the file or the user says so.
        potentials: titles of VASP's potentials by element (``"PAW_PBE Fe 06Sep2000"``), as far as they are known; None
            for densities of other codes.

    Raises:
        EcdError: values that are not finite, a flat or empty grid, a cell without volume, unknown species,
            or a total charge that is not positive.
    """

    values: Floats
    lattice: Floats
    species: tuple[str, ...]
    positions: Floats
    name: str = "density"
    convention: str | None = None
    history: tuple[str, ...] = ()
    vasp: VaspBlocks | None = None
    valence: Mapping[str, int] | None = None
    potentials: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.dtype.kind not in "fiu":
            raise EcdError(self.name, f"values of type {values.dtype} are no density", "Give real numbers in e/Å³.")
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float64)
        lattice = np.asarray(self.lattice, dtype=np.float64)
        positions = np.asarray(self.positions, dtype=np.float64)
        if values.ndim != 3 or min(values.shape) < 2:
            raise EcdError(
                self.name,
                f"a density needs a 3-D grid of at least 2 voxels a side, this has shape {values.shape}",
                "Check how the file was written.",
            )
        if not np.isfinite(values).all():
            raise EcdError(
                self.name,
                f"{np.count_nonzero(~np.isfinite(values))} values are NaN or infinite",
                "The calculation or the file is broken: write it again.",
            )
        if lattice.shape != (3, 3) or not np.isfinite(lattice).all() or abs(np.linalg.det(lattice)) < 1e-3:
            raise EcdError(
                self.name, "the cell vectors span no volume", "Check the lattice in the file's header (units: Å)."
            )
        if positions.shape != (len(self.species), 3) or not np.isfinite(positions).all():
            raise EcdError(
                self.name,
                f"{len(self.species)} species need as many positions of 3 numbers, these have shape {positions.shape}"
                + ("" if np.isfinite(positions).all() else " and hold NaN or infinity"),
                "Check the file's header.",
            )
        unknown = sorted({s for s in self.species if not Element.is_valid_symbol(s)})
        if unknown:
            raise EcdError(
                self.name, f"unknown species {', '.join(unknown)}", "Write element symbols into the file's header."
            )
        if not float(values.mean(dtype=np.float64)) > 0:
            raise EcdError(
                self.name,
                "the total charge is not positive",
                "A spin or difference density is no charge density: give the total.",
            )
        for key, value in (("values", values), ("lattice", lattice), ("positions", positions)):
            frozen = value.view()  # the caller's own array stays writable
            frozen.flags.writeable = False
            object.__setattr__(self, key, frozen)
        object.__setattr__(self, "species", tuple(self.species))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each cell vector."""
        nx, ny, nz = self.values.shape
        return nx, ny, nz

    @property
    def volume(self) -> float:
        """Cell volume in Å³."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in Å³."""
        return self.volume / self.values.size

    @property
    def n_electrons(self) -> float:
        """Electrons in the cell, ∫ρ dV."""
        return float(self.values.mean(dtype=np.float64)) * self.volume

    @property
    def numbers(self) -> list[int]:
        """Atomic number of each atom."""
        return [Element(s).Z for s in self.species]

    def symmetry(self, symprec: float) -> Any:
        """spglib's symmetry dataset of the atoms; None if there are no atoms or no symmetry is found.

        Args:
            symprec: tolerance in Å.
        """
        return symmetry_dataset((self.lattice, self.positions, self.numbers), symprec)

    @property
    def structure(self) -> Structure:
        """The crystal as a pymatgen structure."""
        return Structure(Lattice(self.lattice), list(self.species), self.positions)

    @property
    def formula(self) -> str:
        """Reduced formula."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen's remark that He, Ne and Ar have no electronegativity
            return str(Composition("".join(self.species)).reduced_formula) if self.species else ""

    def step(self, what: str, **changes: Any) -> ChargeDensity:
        """A copy with ``changes`` applied and ``what`` appended to the history."""
        return replace(self, history=(*self.history, what), vasp=None, **changes)

    def __repr__(self) -> str:
        grid = "x".join(map(str, self.shape))
        size = f"{self.volume:.2f} Å³, {self.n_electrons:.3f} electrons"
        return f"ChargeDensity({self.name}: {self.formula}, {grid}, {size})"
