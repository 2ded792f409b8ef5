"""ChargeDensity: the one object that every reader returns and every step takes."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ecdlib.base.elements import NUMBERS
from ecdlib.base.errors import EcdError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure
    from pymatgen.io.common import VolumetricData
    from pymatgen.io.vasp.outputs import Chgcar

Floats = NDArray[np.floating[Any]]
CLOSE = 0.5  #: Å, atoms nearer than this are an error
LONGEST = 1000  #: Å, of a cell vector
FLAT = 0.1  #: Å, smallest distance of a cell's opposite faces
MOST_VOXELS = 2**26  #: of a grid (about 400³): reading takes up to 1.5 GB for them
FAR = 1000  #: cells, beyond which a fractional coordinate is an error
#: e/Å³; valence densities of PAW potentials stay below half of it.
CORE_PEAK = 100.0
BOHR = 0.5291772105638411  #: Å, as in ASE
SYMPREC = 0.01  #: Å, within which atoms of a crystal structure count as equivalent


os.environ.setdefault("SPGLIB_WARNING", "OFF")  # it prints dozens of lines where it finds no symmetry


@contextmanager
def spglib_errors_handled() -> Iterator[None]:
    """Without spglib's remark that a call may return None now and will raise later: for calls that expect both."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        yield


def symmetry_dataset(cell: Any, symprec: float) -> Any:
    """spglib's symmetry dataset of a cell (lattice, positions, numbers); None without atoms or if none is found.

    Those of the last thousand cells are kept: many steps ask for the same one.

    Args:
        symprec: tolerance in Å.
    """
    lattice, positions, numbers = cell
    lattice, positions = (np.asarray(values, dtype=float).tobytes() for values in (lattice, positions))
    return _symmetry_dataset(lattice, positions, tuple(int(number) for number in numbers), symprec)


@lru_cache(maxsize=1024)
def _symmetry_dataset(lattice: bytes, positions: bytes, numbers: tuple[int, ...], symprec: float) -> Any:
    import spglib

    if not numbers:
        return None
    cell: Any = np.frombuffer(lattice).reshape(3, 3), np.frombuffer(positions).reshape(-1, 3), numbers
    with spglib_errors_handled():
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

    Example:
        >>> cell = 3.0 * np.eye(3)
        >>> ChargeDensity(np.full((8, 8, 8), 1 / 27), cell, ("Li",), [[0, 0, 0]], name="even")
        ChargeDensity(even: Li, 8x8x8, 27.00 Å³, 1.000 electrons)
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
            raise EcdError(self.name, f"values of type {values.dtype} are not a density", "Give real numbers in e/Å³.")
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float64)
        lattice = np.asarray(self.lattice, dtype=np.float64)
        positions = np.asarray(self.positions, dtype=np.float64)
        if values.ndim != 3 or min(values.shape) < 2:
            raise EcdError(
                self.name,
                f"a density needs a 3-D grid of at least 2 voxels a side, but this one has shape {values.shape}",
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
                f"{len(self.species)} species need as many positions of 3 numbers, not shape {positions.shape}"
                + ("" if np.isfinite(positions).all() else " and hold NaN or infinity"),
                "Check the file's header.",
            )
        unknown = sorted({s for s in self.species if s not in NUMBERS})
        if unknown:
            raise EcdError(
                self.name, f"unknown species {', '.join(unknown)}", "Write element symbols into the file's header."
            )
        if not float(values.mean(dtype=np.float64)) > 0:
            raise EcdError(
                self.name,
                "the total charge is not positive",
                "A spin or difference density is not a charge density: give the total.",
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
        return [NUMBERS[s] for s in self.species]

    def symmetry(self, symprec: float) -> Any:
        """spglib's symmetry dataset of the atoms; None if there are no atoms or no symmetry is found.

        Args:
            symprec: tolerance in Å.
        """
        return symmetry_dataset((self.lattice, self.positions, self.numbers), symprec)

    @property
    def structure(self) -> Structure:
        """The crystal as a pymatgen structure."""
        from pymatgen.core import Lattice, Structure

        return Structure(Lattice(self.lattice), list(self.species), self.positions)

    @property
    def formula(self) -> str:
        """Reduced formula."""
        from pymatgen.core import Composition

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen's remark that He, Ne and Ar have no electronegativity
            return str(Composition("".join(self.species)).reduced_formula) if self.species else ""

    @classmethod
    def from_pymatgen(
        cls, volumetric: VolumetricData, *, unit: Literal["e", "e/bohr3", "e/Å3"] = "e", name: str = "density"
    ) -> ChargeDensity:
        """The total density of a pymatgen ``Chgcar`` or other ``VolumetricData``.

        Args:
            unit: of the numbers. A ``Chgcar`` holds ρ·V in electrons; what pymatgen reads from a cube file holds
                e/bohr³.

        Raises:
            EcdError: see :func:`check_electrons`; a wrong unit shows there.

        Example:
            >>> from pymatgen.core import Lattice, Structure
            >>> from pymatgen.io.vasp import Chgcar
            >>> structure = Structure(Lattice.cubic(2.0), ["H"], [[0, 0, 0]])
            >>> density = ChargeDensity.from_pymatgen(Chgcar(structure, {"total": np.ones((4, 4, 4))}))
            >>> float(density.values[0, 0, 0]), round(density.n_electrons, 9)
            (0.125, 1.0)
        """
        structure = volumetric.structure
        scale = {"e": 1 / structure.volume, "e/bohr3": BOHR**-3, "e/Å3": 1.0}[unit]
        blocks = {key: values for key, values in volumetric.data.items() if key != "total"}
        vasp = VaspBlocks(blocks, dict(volumetric.data_aug or {})) if unit == "e" else None
        species = tuple(site.specie.symbol for site in structure)
        values = np.asarray(volumetric.data["total"]) * scale
        return check_electrons(cls(values, structure.lattice.matrix, species, structure.frac_coords, name, vasp=vasp))

    def to_pymatgen(self) -> Chgcar:
        """A pymatgen ``Chgcar``, which holds ρ·V.

        Spin densities and augmentation occupancies that came with the density are in it, unless a step has changed the
        density since. Atoms of one element are put together, as VASP wants them.
        """
        from pymatgen.io.vasp.outputs import Chgcar  # slow to import

        blocks = self.vasp or VaspBlocks({}, {})
        order = np.argsort(self.species, kind="stable") if self.vasp is None else np.arange(len(self.species))
        structure = self.structure
        structure = structure.from_sites([structure[int(i)] for i in order])
        total = np.asarray(self.values, dtype=np.float64) * self.volume + 0.0  # pymatgen cannot write -0.0
        return Chgcar(structure, {"total": total, **blocks.spin}, data_aug=blocks.augmentation or None)

    @classmethod
    def from_ase(cls, atoms: Atoms, values: Floats, *, name: str = "density") -> ChargeDensity:
        """ASE ``Atoms`` and a density ``(nx, ny, nz)`` in e/Å³, as GPAW's ``get_pseudo_density`` gives it.

        Raises:
            EcdError: see :class:`ChargeDensity` and :func:`check_electrons`.
        """
        positions = atoms.get_scaled_positions(wrap=False)
        return check_electrons(cls(values, np.asarray(atoms.cell), tuple(atoms.symbols), positions, name))

    def to_ase(self) -> tuple[Atoms, Floats]:
        """ASE ``Atoms`` and the density, ``(nx, ny, nz)`` in e/Å³."""
        from ase import Atoms

        atoms = Atoms(self.species, scaled_positions=self.positions, cell=self.lattice, pbc=True)
        return atoms, np.array(self.values)

    def step(self, what: str, **changes: Any) -> ChargeDensity:
        """A copy with ``changes`` applied and ``what`` appended to the history."""
        return replace(self, history=(*self.history, what), vasp=None, **changes)

    def __repr__(self) -> str:
        grid = "x".join(map(str, self.shape))
        size = f"{self.volume:.2f} Å³, {self.n_electrons:.3f} electrons"
        return f"ChargeDensity({self.name}: {self.formula}, {grid}, {size})"


def misplaced(lattice: Floats, positions: Floats) -> str:
    """What is wrong with a cell and the fractional coordinates of its atoms; empty if nothing is.

    Example:
        >>> misplaced(4 * np.eye(3), np.array([[0, 0, 0], [0, 0, 0.9]]))
        'has atoms only 0.40 Å apart'
    """
    if not (np.isfinite(lattice).all() and np.isfinite(positions).all()):
        return "holds numbers that are not finite"
    heights = 1 / np.maximum(np.linalg.norm(np.linalg.pinv(lattice), axis=0), 1e-12)  # between opposite faces, Å
    volume = float(abs(np.linalg.det(lattice)))
    if volume < 1e-3 or heights.min() < FLAT:
        return "its cell vectors span no volume"
    if (longest := float(np.linalg.norm(lattice, axis=1).max())) > LONGEST:
        return f"has a cell vector of {longest:.3g} Å"
    if not len(positions):
        return ""
    if np.abs(positions).max() > FAR:
        return f"has atoms more than {FAR} cells away"
    if len(positions) > 1000 and volume / len(positions) < CLOSE**3 / 2**0.5:  # the densest packing of spheres
        return f"has atoms less than {CLOSE} Å apart"
    nearest = _nearest(lattice, positions - np.floor(positions), CLOSE / heights)
    return f"has atoms only {nearest:.2f} Å apart" if nearest < CLOSE else ""


def _nearest(lattice: Floats, positions: Floats, margin: Floats) -> float:
    """Smallest distance of two atoms or their images, Å, within ``margin`` (fractions) around the cell."""
    images = itertools.product(*(range(-int(np.ceil(m)), int(np.ceil(m)) + 1) for m in margin))
    moved = [positions + image for image in images if any(image)]
    around = np.concatenate([p[((p > -margin) & (p < 1 + margin)).all(1)] for p in moved])
    points = np.concatenate([positions, around]) @ lattice
    return float(cKDTree(points).query(points[: len(positions)], k=2)[0][:, 1].min()) if len(points) > 1 else np.inf


def check_atoms(density: ChargeDensity) -> None:
    """Refuse a density whose atoms or cell cannot be.

    Raises:
        EcdError: see :func:`misplaced`.
    """
    if problem := misplaced(density.lattice, density.positions):
        raise EcdError(density.name, problem, "Check lattice and coordinates in the file's header (units: Å).")


def check_electrons(density: ChargeDensity) -> ChargeDensity:
    """Refuse a density whose electron count betrays mixed-up units, else return it.

    The count of a neutral or charged cell is a whole number (checked to 0.05 + 0.01 %), at least half an electron
    per atom and at most all electrons of the atoms. A sum of core and valence densities, whose cores the grid does not
    hold, is known from its peaks and from its count, which is short of all electrons.

    Raises:
        EcdError: otherwise.
    """
    count, atoms = density.n_electrons, len(density.species)
    everything = sum(density.numbers)
    if 0.85 * everything < count < 0.99 * everything and density.values.max() > CORE_PEAK:
        what = f"holds {count:.4g} of {everything} electrons, with a peak of {density.values.max():.3g} e/Å³: "
        what += "the sum of core and valence densities on a grid that cannot hold the cores"
        raise EcdError(density.name, what, "Give the CHGCAR of the same calculation.")
    whole = abs(count - round(count)) <= 0.05 + 1e-4 * count
    if atoms and not (whole and 0.5 * atoms <= count <= 1.01 * everything + 1):
        raise EcdError(
            density.name,
            f"holds {count:.4g} electrons, which does not fit {density.formula} ({atoms} atoms, {everything} in all)",
            "Check the units: CHGCAR holds density times cell volume, cube e/bohr³, npz e/Å³.",
        )
    return density
