"""Readers and writers for the density files that users have. ``read_density`` picks by name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element
from pymatgen.io.vasp import Chgcar, Poscar
from pymatgen.io.vasp.inputs import BadPoscarWarning

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.density.core import ChargeDensity, VaspBlocks
from ecdlib.density.store import DensityStore, load_density
from ecdlib.density.valence import read_potcar

OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
Source = str | os.PathLike[str]


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """Path of the decompressed file: parsing a compressed stream directly is 20 times slower."""
    if not path.is_file():
        raise EcdError(path, "no such file", "Check the path.")
    if path.stat().st_size == 0:
        raise EcdError(path, "the file is empty", "Write or copy it again.")
    if path.suffix not in OPENERS:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / path.stem
        try:
            with OPENERS[path.suffix](path) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the disk, not the file
                raise EcdError(path, f"cannot be unpacked ({error})", "Free space in the temporary folder.") from error
            raise EcdError(path, "the compressed file is damaged or cut off", "Copy it again.") from error
        yield target


def check_electrons(density: ChargeDensity) -> ChargeDensity:
    """Refuse a density whose electron count betrays mixed-up units, else return it.

    The count of a neutral or charged cell is a whole number (checked to 0.05 + 0.01 %), at least half an electron
    per atom and at most all electrons of the atoms.

    Raises:
        EcdError: otherwise.
    """
    count, atoms = density.n_electrons, len(density.species)
    everything = sum(density.numbers)
    whole = abs(count - round(count)) <= 0.05 + 1e-4 * count
    if atoms and not (whole and 0.5 * atoms <= count <= 1.01 * everything + 1):
        raise EcdError(
            density.name,
            f"holds {count:.4g} electrons, which does not fit {density.formula} ({atoms} atoms, {everything} in all)",
            "Check the units: CHGCAR holds density times cell volume, cube e/bohr³, npz e/Å³.",
        )
    return density


def _numbers_of_first_block(path: Path) -> int:
    """Numbers (with a decimal point) that follow the grid of a CHGCAR; with spin those of the moments, too."""
    with open(path, "rb") as f:
        f.readline()  # the comment may be empty
        while f.readline().strip():
            pass
        while not f.readline().strip():  # the grid itself
            pass
        count = 0
        for line in f:
            if b"." not in line and line.strip():  # the next block's grid
                break
            if line.startswith(b"augmentation"):
                break
            count += line.count(b".")
    return count


def read_chgcar(path: Source, convention: str | None = None) -> ChargeDensity:
    """Read a VASP CHGCAR (plain, .gz, .bz2 or .xz; non-spin, collinear, non-collinear), parsed by pymatgen.

    Spin densities and augmentation occupancies are kept in ``density.vasp``, so that writing gives them back. A POTCAR
    or POTCAR.spec beside the file says the valence and the potentials, if it has all the elements. A file that was
    written here says in its first line if its density is not VASP's.

    Raises:
        EcdError: missing, empty, truncated or malformed file, or values that do not fit the header.
    """
    path = Path(path)
    with _plain(path) as plain, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's remarks on POSCAR style
        warnings.filterwarnings("error", "Elements in POSCAR cannot be determined")  # it would call them H, He, Li
        try:
            chgcar = Chgcar.from_file(str(plain))
        except BadPoscarWarning as error:
            remedy = "Write their symbols into the line above the numbers of atoms."
            raise EcdError(path, "unknown species: the header names no elements", remedy) from error
        except Exception as error:  # pymatgen raises many kinds; each means the same to the user
            detail = re.sub(r"\s+", " ", str(error))[:120]
            raise EcdError(
                path, f"is not a complete CHGCAR ({detail})", "Copy it again, or let VASP finish writing it."
            ) from error
        numbers = _numbers_of_first_block(plain)
    shapes = {np.shape(block) for block in chgcar.data.values()}
    if len(shapes) > 1:
        raise EcdError(path, f"blocks of different grids {sorted(shapes)}", "Write the file again with one NGXF grid.")
    structure = chgcar.structure
    if not structure.volume > 1e-3:
        raise EcdError(path, "the cell vectors span no volume", "Check the lattice in the file's header (units: Å).")
    blocks = VaspBlocks({k: v for k, v in chgcar.data.items() if k != "total"}, dict(chgcar.data_aug or {}))
    density = ChargeDensity(
        np.asarray(chgcar.data["total"]) / structure.volume,
        structure.lattice.matrix,
        tuple(site.specie.symbol for site in structure),
        structure.frac_coords,
        path.name,
        convention or _stated_convention(chgcar.poscar.comment),
        (f"read {path.name}",),
    )
    if numbers > density.values.size and numbers != density.values.size + len(structure):  # pymatgen skips the rest
        what = f"holds {numbers} numbers for a grid of {'x'.join(map(str, density.shape))}"
        raise EcdError(path, what, "Correct the grid in the line below the atoms, or copy the file again.")
    potcar = read_potcar(path.parent, density.species) or {}
    density = replace(density, vasp=blocks, valence={e: n for e, (_, n) in potcar.items()} or None)
    if convention or _CONVENTION in chgcar.poscar.comment:  # not of VASP
        return density
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


def read_cube_density(path: Source, convention: str | None = None) -> ChargeDensity:
    """Read a Gaussian cube file (e/bohr³ -> e/Å³), plain or compressed, parsed by ASE.

    The second number of an atom's line says its valence, where it is neither 0 nor the atomic number.

    Raises:
        EcdError: missing, truncated or malformed file.
    """
    from ase.data import atomic_numbers
    from ase.io.cube import read_cube  # ase is slow to import
    from ase.units import Bohr

    path = Path(path)
    with _plain(path) as plain:
        try:
            with open(plain) as f:
                cube = read_cube(f)
            atoms, species = cube["atoms"], tuple(cube["atoms"].symbols)
            with open(plain) as f:
                comment = f.readline()
                header = [f.readline().split() for _ in range(5 + len(species))][5:]
            charges = {s: float(line[1]) for s, line in zip(species, header, strict=True)}
            whole = {e: round(n) for e, n in charges.items() if abs(n - round(n)) < 1e-3}  # no partial charges
            positions = np.linalg.solve(atoms.cell[:].T, (atoms.positions - np.asarray(cube["origin"])).T).T
        except (ValueError, IndexError, OverflowError, np.linalg.LinAlgError) as error:
            raise EcdError(path, "is not a complete cube file", "Copy it again, or write it again.") from error
    stated = len(whole) == len(charges) and all(
        0 < n < atomic_numbers[e] or n == atomic_numbers[e] <= 2 for e, n in whole.items()
    )
    return ChargeDensity(
        np.asarray(cube["data"]) / Bohr**3,
        atoms.cell[:],
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
    with _plain(path) as plain:
        try:
            with open(plain, "rb") as f, np.load(f, allow_pickle=False) as z:  # np.load leaves a damaged file open
                values, numbers = z["rho"], z["numbers"]
                cell, positions = z["cell"].astype(np.float64), z["positions"].astype(np.float64)
                convention = str(z["convention"]) or None if "convention" in z else None
            species = tuple(Element.from_Z(int(n)).symbol for n in numbers)
        except Exception as error:  # numpy, zipfile and zlib raise many kinds; each means the same to the user
            remedy = "It needs the arrays rho, cell, positions, numbers; if it had them, copy it again."
            raise EcdError(path, "is not a density .npz", remedy) from error
    return ChargeDensity(values, cell, species, positions, path.name, convention, (f"read {path.name}",))


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
        return DensityStore(file)[name]
    path = Path(text)
    if "+" in text and not path.exists():
        core, valence = text.split("+", 1)
        return read_aeccar(core, valence)
    if not path.exists() and re.fullmatch(r"[A-Za-z0-9().]+_\d+", text):
        return load_density(text)
    if path.suffix == ".h5" and path.is_file():
        raise EcdError(path, "is a store of several crystals", f"Name one: {path}::NAME")
    stem = path.stem if path.suffix in OPENERS else path.name
    readers: dict[str, Any] = {".npz": read_npz, ".cube": read_cube_density, ".cub": read_cube_density}
    try:
        return check_electrons(readers.get(Path(stem).suffix, read_chgcar)(path))
    except EcdError as error:
        if error.source != path.name:
            raise
        raise EcdError(path, error.problem, error.remedy) from error  # many folders hold a CHGCAR: the whole path


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
    blocks = density.vasp or VaspBlocks({}, {})
    order = np.argsort(density.species, kind="stable") if density.vasp is None else np.arange(len(density.species))
    structure = density.structure
    structure = type(structure).from_sites([structure[int(i)] for i in order])
    data: dict[str, Any] = {"total": np.asarray(density.values, dtype=np.float64) * density.volume, **blocks.spin}
    data["total"] = data["total"] + 0.0  # pymatgen cannot write -0.0
    with atomic_write(path) as temporary:
        chgcar = Chgcar(structure, data, data_aug=blocks.augmentation or None)
        chgcar.name = _comment(density)  # the first line
        chgcar.write_file(str(temporary))


def write_cube(density: ChargeDensity, path: Source) -> None:
    """Write a Gaussian cube file (e/bohr³), atomically.

    Raises:
        EcdError: a folder that cannot be written.
    """
    from ase import Atoms
    from ase.io.cube import write_cube as ase_write_cube
    from ase.units import Bohr

    atoms = Atoms(density.species, scaled_positions=density.positions, cell=density.lattice, pbc=True)
    with atomic_write(path) as temporary, open(temporary, "w") as f:
        ase_write_cube(f, atoms, density.values * Bohr**3, comment=_comment(density))


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
    with atomic_write(path) as temporary:
        text = Poscar(density.structure, comment=" ".join(density.name.split())).get_str(significant_figures=12)
        temporary.write_text(text, encoding="utf-8")


def writer(path: Source) -> Callable[[ChargeDensity, Source], None]:
    """What writes the format that the name asks for: ``.cube``, ``.npz``, ``POSCAR``, anything else is a CHGCAR.

    Raises:
        EcdError: a compressed format or a store.
    """
    suffix = Path(path).suffix
    if suffix in (".h5", ".hdf5"):
        raise EcdError(path, "is the name of a store", "Write a CHGCAR, cube or npz; `ecd convert` writes stores.")
    if suffix in OPENERS:
        raise EcdError(path, "compressed files are read but not written", "Write it plain and compress it.")
    if Path(path).name.startswith("POSCAR"):
        return write_poscar
    return {".cube": write_cube, ".npz": write_npz}.get(suffix, write_chgcar)


def write_density(density: ChargeDensity, path: Source) -> None:
    """Write a density in the format that the name asks for (see :func:`writer`).

    Raises:
        EcdError: a compressed format or a store, or a folder that cannot be written.
    """
    writer(path)(density, path)
