"""Readers and writers for the density files that users have. ``read_density`` picks by name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ecdlib.base.arrays import read_arrays
from ecdlib.base.elements import NUMBERS, symbol
from ecdlib.base.errors import DAMAGED, EcdError, atomic_write, check_input, told_as
from ecdlib.density.core import (
    BOHR,
    MOST_VOXELS,
    ChargeDensity,
    Floats,
    VaspBlocks,
    check_atoms,
    check_electrons,
)
from ecdlib.density.numbers import NumbersFile, Surplus
from ecdlib.density.store import load_density, open_store
from ecdlib.density.valence import read_potcar

if TYPE_CHECKING:
    from pymatgen.core import Lattice

OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
#: Bytes of a file when it is unpacked.
UNPACKED_LIMIT = 4_000_000_000
MOST_ATOMS = 10_000
Source = str | os.PathLike[str]


def packing(path: Source) -> str:
    """The suffix of a compressed file, in lower case; empty for another."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in OPENERS else ""


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """A file's content, unpacked on the way, and the bytes that it can have at most.

    Raises:
        EcdError: it cannot be read, or the compressed stream is damaged.
    """
    size = check_input(path).stat().st_size
    packed = packing(path)
    try:
        with OPENERS[packed](path) if packed else open(path, "rb") as stream:
            yield stream, UNPACKED_LIMIT if packed else size
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk, not the file
            raise EcdError(path, f"cannot be read ({error})", "Check the disk, or copy it again.") from error
        raise EcdError(path, "the compressed file is damaged or cut off", "Copy it again.") from error


def _check_counts(shape: tuple[int, ...], atoms: int, most_numbers: int) -> None:
    """Refuse counts of a header before memory is taken for them; ``most_numbers`` are all that the file can hold."""
    if not 1 <= atoms <= MOST_ATOMS:
        raise ValueError(f"a header with {atoms} atoms, not 1 to {MOST_ATOMS}")
    if min(shape) < 2:
        raise ValueError(f"a grid of {'x'.join(map(str, shape))}, which needs at least 2 voxels a side")
    voxels = int(np.prod(np.array(shape, dtype=object)))
    if voxels > most_numbers:
        raise ValueError(f"a grid of {'x'.join(map(str, shape))}, more than the file can hold")
    if voxels > MOST_VOXELS:
        raise ValueError(f"a grid of {'x'.join(map(str, shape))}, larger than {MOST_VOXELS} voxels (about 400³)")


class GridError(ValueError):
    """Numbers that do not fit the grid."""


class Header(NamedTuple):
    """The header of a POSCAR or CHGCAR."""

    symbols: list[str]  #: for each number of atoms; none in files of VASP 4
    counts: list[int]
    cartesian: bool
    first: int  #: line of the first position

    @property
    def lines(self) -> int:
        """Number of lines, from the start, that hold it."""
        return self.first + sum(self.counts)


def check_header(lines: list[str]) -> Header:
    """Check the counts in the header of a POSCAR or CHGCAR before memory is taken for them.

    Raises:
        ValueError: no atom counts, or counts that fit neither the species nor the lines with positions.
    """
    words = [line.split("#")[0].split() for line in lines[5 : 5 + MOST_ATOMS + 50]]
    kinds = [bool(row) and all(word.isascii() and word.isdigit() for word in row) for row in words]
    first = kinds.index(True) if True in kinds[:11] else len(words)
    last = first + kinds[first:].index(False) if False in kinds[first:] else len(words)
    symbols = list(chain.from_iterable(words[:first]))
    counts = [int(word) for word in chain.from_iterable(words[first:last])]
    selective = bool(words[last:] and words[last] and words[last][0][0] in "sS")
    places = list(takewhile(bool, words[last + 1 + selective :]))
    if not counts:
        raise ValueError("no atom counts in the header")
    if symbols and len(symbols) != len(counts):
        raise ValueError(f"{len(symbols)} species with {len(counts)} atom counts")
    if min(counts) < 1 or sum(counts) > len(places):
        raise ValueError(f"{len(places)} positions for {sum(counts)} atoms")
    if any(len(line.split()) != 3 for line in lines[2:5]) or len(lines[1].split()) != 1:
        raise ValueError("the header needs a scale and three vectors of three numbers")
    mode = words[last + selective][:1]
    return Header(symbols, counts, mode != [] and mode[0][0] in "cCkK", 5 + last + 1 + selective)


class NoElements(ValueError):
    """A header of VASP 4 that does not say which elements the atoms are."""


def _header(text: NumbersFile) -> tuple[str, Lattice, tuple[str, ...], Floats]:
    """Comment, lattice, species and fractional coordinates from the header of a CHGCAR.

    Raises:
        ValueError: counts that contradict each other, or no elements.
    """
    from pymatgen.core import Lattice

    lines: list[str] = []
    while (line := text.line()) is not None and (line.strip() or not lines):
        lines.append(line)
        if len(lines) > MOST_ATOMS + 50:
            raise ValueError(f"no empty line after the atoms within {len(lines)} lines")
    header = check_header(lines)
    if header.lines != len(lines) or line is None:
        raise ValueError("more positions than atoms, or no empty line after them")
    places = [line.split() for line in lines[header.first :]]
    species = [
        s.split("_")[0].split("/")[0] for s, n in zip(header.symbols, header.counts, strict=False) for _ in range(n)
    ]
    species = species or [next((word for word in words[3:] if word in NUMBERS), "") for words in places]
    if not all(species):
        raise NoElements("the header names no elements")
    vectors = np.array([line.split() for line in lines[2:5]], dtype=float)
    scale = float(lines[1])
    if scale < 0:  # the volume of the cell
        scale = (-scale / abs(np.linalg.det(vectors))) ** (1 / 3)
    lattice, positions = Lattice(vectors * scale), np.array([words[:3] for words in places], dtype=float)
    if header.cartesian:
        positions = lattice.get_fractional_coords(positions * scale)
    return lines[0].strip(), lattice, tuple(species), positions


def _blocks(text: NumbersFile, atoms: int) -> tuple[list[Floats], list[dict[int, Any]]]:
    """Grids of a CHGCAR after its header, and the augmentation occupancies of each; nothing else may be there.

    VASP writes for each grid three numbers of voxels, the values with x fastest, and occupancies; before the second
    grid and those after it the moments of the atoms.
    """
    grids: list[Floats] = []
    occupancies: list[dict[int, Any]] = []
    moments = 0
    while (line := text.line()) is not None:
        words = line.split()
        if not words:
            continue
        if line.lstrip().startswith("augmentation occupancies") and grids and not moments:
            atom, n = int(words[-2]), int(words[-1])
            if not (1 <= atom <= atoms and 0 < n <= text.most_numbers):
                raise ValueError(f"{n} augmentation occupancies of atom {atom}")
            values: Any = text.numbers(n)
            if "imaginary" in line:
                values = occupancies[-1][atom] + 1j * values
            elif atom in occupancies[-1]:
                raise ValueError(f"augmentation occupancies of atom {atom} twice")
            occupancies[-1][atom] = values
        elif len(words) == 3 and all(word.isascii() and word.isdigit() for word in words):
            nx, ny, nz = map(int, words)
            _check_counts((nx, ny, nz), atoms, text.most_numbers)
            if grids and moments not in (0, atoms, 3 * atoms):
                raise _too_many(grids[-1].shape)
            if grids and (nx, ny, nz) != grids[0].shape:
                raise GridError(f"blocks of different grids {sorted({(nx, ny, nz), grids[0].shape})}")
            try:
                grids.append(text.numbers(nx * ny * nz).reshape((nx, ny, nz), order="F"))
            except Surplus as error:
                raise _too_many((nx, ny, nz)) from error
            occupancies.append({})
            moments = 0
        elif grids and all(_is_number(word) for word in words):
            moments += len(words)
            if moments > 3 * atoms:
                break
        else:
            raise ValueError(f"unexpected text {line.strip()[:40]!r}")
    if not grids:
        raise ValueError("no grid after the atoms")
    if moments:
        raise _too_many(grids[-1].shape)
    if len(grids) not in (1, 2, 4):
        raise GridError(f"holds {len(grids)} grids, not 1, 2 (spin) or 4 (non-collinear)")
    return grids, occupancies


def _too_many(shape: tuple[int, ...]) -> GridError:
    return GridError(f"holds more numbers than its grid of {'x'.join(map(str, shape))}")


def _is_number(word: str) -> bool:
    try:
        return bool(np.isfinite(float(word)))
    except ValueError:
        return False


def read_chgcar(path: Source, convention: str | None = None) -> ChargeDensity:
    """Read a VASP CHGCAR (plain, .gz, .bz2 or .xz; non-spin, collinear, non-collinear).

    Spin densities and augmentation occupancies are kept in ``density.vasp``, so that writing gives them back. A POTCAR
    or POTCAR.spec beside the file says the valence and the potentials, if it has all the elements. A file that was
    written here says in its first line if its density is not VASP's. Every number of the file is counted; Fortran's
    exponents of three digits (``0.69880420394-101``) are read as what they mean.

    Raises:
        EcdError: missing, empty, truncated or malformed file, or values that do not fit the header.
    """
    path = Path(path)
    with _opened(path) as (stream, size):
        try:
            text = NumbersFile(stream, size)
            comment, lattice, species, positions = _header(text)
            grids, occupancies = _blocks(text, len(species))
        except NoElements as error:
            remedy = "Write their symbols into the line above the atom counts."
            raise EcdError(path, "unknown species: the header names no elements", remedy) from error
        except GridError as error:
            remedy = "Correct the grid in the line below the atoms, or copy the file again."
            raise EcdError(path, str(error), remedy) from error
        except (EOFError, lzma.LZMAError, zlib.error, OSError, EcdError):
            raise
        except Exception as error:  # whatever is not where it should be means the same to the user
            detail = re.sub(r"\s+", " ", str(error))[:120]
            raise EcdError(
                path, f"is not a complete CHGCAR ({detail})", "Copy it again, or let VASP finish writing it."
            ) from error
    if not lattice.volume > 1e-3:
        raise EcdError(path, "the cell vectors span no volume", "Check the lattice in the file's header (units: Å).")
    names = {1: ("total",), 2: ("total", "diff"), 4: ("total", "diff_x", "diff_y", "diff_z")}[len(grids)]
    spin = dict(zip(names[1:], grids[1:], strict=True))
    augmentation = dict(zip(names, occupancies, strict=True)) if any(occupancies) else {}
    density = ChargeDensity(
        np.divide(grids[0], lattice.volume, order="C"),
        lattice.matrix,
        species,
        positions,
        path.name,
        convention or _stated_convention(comment),
        (f"read {path.name}",),
    )
    potcar = read_potcar(path.parent, density.species) or {}
    stated = {e: n for e, (_, n) in potcar.items()} or None
    density = replace(density, vasp=VaspBlocks(spin, augmentation), valence=stated)
    if density.convention or (_CONVENTION in comment and not potcar):
        return density  # not of VASP
    return replace(density, potentials={e: title for e, (title, _) in potcar.items()})


def read_aeccar(core: Source, valence: Source) -> ChargeDensity:
    """All-electron density: the sum of AECCAR0 (core) and AECCAR2 (valence).

    Raises:
        EcdError: as :func:`read_chgcar`, or if the two differ in grid or cell.
    """
    a, b = read_chgcar(core), read_chgcar(valence)
    if a.shape != b.shape or not np.allclose(a.lattice, b.lattice, atol=1e-4) or a.species != b.species:
        raise EcdError(core, f"grid, cell or atoms differ from {valence}", "Take both files from one calculation.")
    return check_electrons(b.step(f"+ {a.name}", values=a.values + b.values, convention="all-electron"))


def _cube_header(text: NumbersFile) -> tuple[list[list[float]], str, str]:
    """Rows of numbers of a cube's header (origin, three of voxels, atoms) and its two lines of comment."""
    first, second = text.line(), text.line()
    rows: list[list[float]] = []
    for i in range(4):
        rows.append([float(word) for word in (text.line() or "").split()])
        if len(rows[-1]) not in ((4, 5) if i == 0 else (4,)) or rows[-1][0] != int(rows[-1][0]):
            raise ValueError("no count and three numbers in each line of the header")
    atoms = int(rows[0][0])
    if atoms < 0 or rows[0][4:] not in ([], [1.0]):
        raise CubeError("holds orbitals, not a density", "Write the total density as a cube with one value per voxel.")
    if min(row[0] for row in rows[1:4]) < 0:
        raise CubeError("has a negative number of voxels", "Write it with lengths in bohr, which are positive numbers.")
    _check_counts(tuple(int(row[0]) for row in rows[1:4]), atoms, text.most_numbers)
    for _ in range(atoms):
        rows.append([float(word) for word in (text.line() or "").split()])
        if len(rows[-1]) != 5 or rows[-1][0] != int(rows[-1][0]) or not 0 <= rows[-1][0] <= 118:
            raise ValueError("an atom's line needs its atomic number, charge and three coordinates")
    if not np.isfinite(list(chain.from_iterable(rows))).all():
        raise ValueError("numbers in the header that are not finite")
    return rows, first or "", second or ""


class CubeError(EcdError):
    """A sound cube file of something else."""

    def __init__(self, problem: str, remedy: str):
        super().__init__("", problem, remedy)


def read_cube_density(path: Source, convention: str | None = None) -> ChargeDensity:
    """Read a Gaussian cube file (e/bohr³ -> e/Å³), plain or compressed.

    The second number of an atom's line says its valence, where it is neither 0 nor the atomic number. As in ASE, a
    second comment that names the order of the loops (``OUTER LOOP: X, ...``) is followed, and a file of castep2cube
    ends each axis with its first voxel again.

    Raises:
        EcdError: missing, truncated or malformed file, or one of orbitals.
    """

    path = Path(path)
    with _opened(path) as (stream, size):
        try:
            text = NumbersFile(stream, size)
            rows, comment, second = _cube_header(text)
            shape = tuple(int(row[0]) for row in rows[1:4])
            data = text.numbers(int(np.prod(shape))).reshape(shape)
            while (line := text.line()) is not None:
                if line.strip():
                    raise ValueError("more numbers than voxels")
            inclusive = "castep2cube" in second
            if "OUTER LOOP" in second.upper():
                data = data.transpose(["XYZ".index(word[0]) for word in second.upper().split()[2::3]])
            data = data[:-1, :-1, :-1] if inclusive else data
            cell = np.array([(row[0] - inclusive) * np.array(row[1:]) for row in rows[1:4]]) * BOHR
            species = tuple(symbol(int(row[0])) if row[0] else "X" for row in rows[4:])
            places = (np.array([row[2:] for row in rows[4:]]) - rows[0][1:4]) * BOHR
            positions = np.linalg.solve(cell.T, places.T).T
        except CubeError as error:
            raise EcdError(path, error.problem, error.remedy) from error
        except (ValueError, IndexError, OverflowError, np.linalg.LinAlgError) as error:
            detail = re.sub(r"\s+", " ", str(error))[:120]
            raise EcdError(
                path, f"is not a complete cube file ({detail})", "Copy it again, or write it again."
            ) from error
    charges = {s: row[1] for s, row in zip(species, rows[4:], strict=True)}
    whole = {
        e: round(n) for e, n in charges.items() if abs(n) < 1000 and abs(n - round(n)) < 1e-3
    }  # no partial charges
    numbers = {s: int(row[0]) for s, row in zip(species, rows[4:], strict=True)}
    stated = len(whole) == len(charges) and all(0 < n < numbers[e] or n == numbers[e] <= 2 for e, n in whole.items())
    return ChargeDensity(
        data / BOHR**3,
        cell,
        species,
        positions,
        path.name,
        convention or _stated_convention(comment),
        (f"read {path.name}",),
        valence=whole if stated and whole else None,
    )


def read_npz(path: Source) -> ChargeDensity:
    """Read an .npz written by :func:`write_npz` or ``ecd density`` (e/Å³, Å).

    Raises:
        EcdError: missing or damaged file, or keys other than rho, cell, positions, numbers.
    """
    path = Path(path)
    with _opened(path) as (stream, size):
        try:
            with _sought(stream, size) if packing(path) else nullcontext(stream) as sought:
                z = read_arrays(sought)
            values, numbers = z["rho"], z["numbers"]
            cell, positions = z["cell"].astype(np.float64), z["positions"].astype(np.float64)
            convention = str(z["convention"]) or None if "convention" in z else None
            if values.ndim == 3:  # what else it may be is said below
                _check_counts(values.shape, len(numbers) or 1, values.size)
            species = tuple(symbol(int(n)) for n in numbers)
        except (EOFError, lzma.LZMAError, zlib.error) as error:
            if packing(path):
                raise
            raise _no_npz(path) from error
        except DAMAGED as error:
            raise _no_npz(path) from error
    return ChargeDensity(values, cell, species, positions, path.name, convention, (f"read {path.name}",))


def _no_npz(path: Path) -> EcdError:
    remedy = "It needs the arrays rho, cell, positions, numbers; if it had them, copy it again."
    return EcdError(path, "is not a density .npz", remedy)


@contextmanager
def _sought(stream: IO[bytes], size: int) -> Iterator[IO[bytes]]:
    """A copy of an unpacked stream in which one can seek, in a file without a name, of which nothing can stay."""
    with tempfile.TemporaryFile() as copy:
        while piece := stream.read(2**20):
            copy.write(piece)
            if copy.tell() > size:
                raise ValueError("too large when unpacked")
        yield copy


def read_density(source: Source) -> ChargeDensity:
    """Read any supported file and check its electron count.

    Args:
        source: a CHGCAR (also .gz, .bz2, .xz), ``*.cube``, ``*.npz``, or one crystal of a store as
            ``file.h5::name``; bundled crystals also by name alone (``"NaCl_225"``); ``AECCAR0+AECCAR2`` for their sum.

    Raises:
        EcdError: with the file's name, what is wrong and what to do.
    """
    text = os.fspath(source)
    if "::" in text:
        file, name = text.split("::", 1)
        return open_store(file)[name]
    path = Path(text)
    if "+" in text and not _exists(path):
        core, valence = text.split("+", 1)
        return read_aeccar(core, valence)
    if not _exists(path) and re.fullmatch(r"[A-Za-z0-9().]+_\d+", text):
        return load_density(text)
    check_input(path)
    if path.suffix == ".h5":
        raise EcdError(path, "is a store of several crystals", f"Name one: {path}::NAME")
    stem = path.stem if packing(path) else path.name
    readers: dict[str, Any] = {".npz": read_npz, ".cube": read_cube_density, ".cub": read_cube_density}
    with told_as(path, path.name):
        density = readers.get(Path(stem).suffix.lower(), read_chgcar)(path)
        check_atoms(density)
        return check_electrons(density)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no permission, or too long a name
        return False


#: How the comment line of a file that was written here says which convention its density has.
_CONVENTION = "valence convention "
_NOT_KNOWN = "not known"


def _comment(density: ChargeDensity) -> str:
    """Comment line of a file: name and, where it is known, the valence convention."""
    of_vasp = density.convention is None and density.potentials is not None
    known = "" if of_vasp else f"; {_CONVENTION}{density.convention or _NOT_KNOWN}"
    return " ".join(f"{density.name}{known}".replace("Å", "Ang").split())


def _stated_convention(comment: str) -> str | None:
    stated = comment.partition(_CONVENTION)[2].strip().replace("Ang", "Å")
    return stated if stated not in ("", _NOT_KNOWN) else None


def write_chgcar(density: ChargeDensity, path: Source) -> None:
    """Write a CHGCAR that VASP, VESTA and pymatgen open, atomically.

    What came with the file it was read from (spin densities, augmentation occupancies) is written back, unless a
    step has changed the density since.

    Raises:
        EcdError: a folder that cannot be written.
    """
    with atomic_write(path) as temporary:
        chgcar = density.to_pymatgen()
        chgcar.name = _comment(density)  # the first line
        chgcar.write_file(str(temporary))


def write_cube(density: ChargeDensity, path: Source) -> None:
    """Write a Gaussian cube file (e/bohr³), atomically.

    Raises:
        EcdError: a folder that cannot be written.
    """
    from ase.io.cube import write_cube as ase_write_cube

    atoms, values = density.to_ase()
    with atomic_write(path) as temporary, open(temporary, "w") as f:
        ase_write_cube(f, atoms, values * BOHR**3, comment=_comment(density))


def write_npz(density: ChargeDensity, path: Source) -> None:
    """Write a compressed .npz (rho in e/Å³, cell in Å, positions fractional, numbers), atomically.

    Raises:
        EcdError: a folder that cannot be written.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as f:
        np.savez_compressed(
            f,
            rho=density.values,
            cell=density.lattice,
            positions=density.positions,
            numbers=density.numbers,
            convention=np.array(density.convention or ""),
        )


def write_poscar(density: ChargeDensity, path: Source) -> None:
    """Write the atoms alone, in POSCAR format with all digits, atomically.

    Raises:
        EcdError: a folder that cannot be written.
    """
    from pymatgen.io.vasp.inputs import Poscar  # slow to import

    with atomic_write(path) as temporary:
        text = Poscar(density.structure, comment=" ".join(density.name.split())).get_str(significant_figures=12)
        temporary.write_text(text, encoding="utf-8")


def writer(path: Source) -> Callable[[ChargeDensity, Source], None]:
    """What writes the format that the name asks for: ``.cube``, ``.npz``, ``POSCAR``, anything else is a CHGCAR.

    Raises:
        EcdError: a compressed format or a store.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".h5", ".hdf5"):
        raise EcdError(path, "is the name of a store", "Write a CHGCAR, cube or npz; `ecd convert` writes stores.")
    if packing(path):
        raise EcdError(path, "compressed files are read but not written", "Write it uncompressed, then compress it.")
    if Path(path).name.startswith("POSCAR"):
        return write_poscar
    return {".cube": write_cube, ".npz": write_npz}.get(suffix, write_chgcar)


def write_density(density: ChargeDensity, path: Source) -> None:
    """Write a density in the format that the name asks for (see :func:`writer`).

    Raises:
        EcdError: a compressed format or a store, or a folder that cannot be written.
    """
    writer(path)(density, path)
