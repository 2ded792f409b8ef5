"""One crystal: from a file, an object of pymatgen or ASE, or by name; sound, or refused in one line."""

from __future__ import annotations

import gzip
import json
import os
import re
import warnings
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from ecdlib.base.errors import DAMAGED, EcdError, check_input
from ecdlib.data.tables import load_structures
from ecdlib.density.core import misplaced
from ecdlib.density.io import check_header

PATTERNS = ("*.cif", "*.cif.gz", "*.vasp", "*.vasp.gz", "*.poscar", "*.poscar.gz", "poscar*", "contcar*")
TOO_LARGE = 20_000_000  #: bytes of one crystal's text
MANY = 2000  #: atoms of the largest cell that is taken
VACUUM = 8.0  #: Å between planes of atoms, beyond which a cell is not a bulk crystal
TIGHT = 0.6  #: of the sum of two covalent radii: atoms nearer than this are suspect


def read_structure(source: Any) -> Structure:
    """A crystal from whatever holds one.

    Args:
        source: a file (CIF, POSCAR, pymatgen's JSON, all also .gz, or any other format that pymatgen or ASE reads),
            the name of a labelled crystal (``"NaCl_225"``), a pymatgen ``Structure`` or ASE ``Atoms``.

    Returns:
        The cell as given, of plain elements. :func:`structure_warnings` says what is odd about it.

    Raises:
        EcdError: nothing of that kind; sites occupied in part, overlapping atoms, no atoms, unknown elements, a cell
            without volume, more than :data:`MANY` atoms.
    """
    shown = source if isinstance(source, (str, os.PathLike)) else type(source).__name__
    try:
        structure = checked(_given(source))
    except ValueError as error:
        raise EcdError(shown, str(error), "Give an ordered crystal: CIF, POSCAR, or a Structure.") from error
    if len(structure) > MANY:
        what = f"has {len(structure):,} atoms; the limit is {MANY:,}"
        raise EcdError(shown, what, "Give its primitive cell.")
    return structure


def _given(source: Any) -> Structure:
    if isinstance(source, Structure):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return _from_ase(source)
    path = Path(source)
    try:
        check_input(path)
    except EcdError as error:
        if error.problem != "no such file":
            raise
        structures = load_structures()
        if str(source) in structures:
            return structures[str(source)]
        remedy = "Check the path; labelled crystals have names like NaCl_225."
        raise EcdError(source, "no such file, and no labelled crystal of that name", remedy) from error
    with open(path, "rb") as f:
        mapping = f.read(100).lstrip().startswith(b"{")
    if path.suffix.lower() in (".yaml", ".yml"):  # pymatgen would import what it names, as from JSON
        raise EcdError(source, "is YAML, which is not read", "Give CIF, POSCAR or JSON.")
    if not (mapping or is_crystal_file(path.name)):
        for read in (Structure.from_file, _read_ase):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return read(path)
            except Exception:
                continue
    try:
        return parse_structure(structure_text(path))
    except ValueError:
        raise
    except DAMAGED as error:
        raise ValueError(f"cannot be read ({error})") from error


def _read_ase(path: Path) -> Structure:
    import ase.io  # slow to import, and seldom needed

    return _from_ase(ase.io.read(path))


def _from_ase(atoms: Any) -> Structure:
    if not all(hasattr(atoms, name) for name in ("cell", "symbols", "get_scaled_positions")):
        raise ValueError("is neither a structure nor the name of one")
    cell = np.asarray(atoms.cell)
    if not np.linalg.det(cell):
        raise ValueError("its cell vectors span no volume")
    return Structure(Lattice(cell), list(atoms.symbols), atoms.get_scaled_positions(wrap=False))


def structure_warnings(structure: Structure) -> list[str]:
    """What is odd about a crystal, one sentence each: no bulk (vacuum), or atoms nearer than their radii allow."""
    found = []
    heights = 1 / np.linalg.norm(np.linalg.inv(structure.lattice.matrix), axis=0)
    planes = np.sort(structure.frac_coords % 1, axis=0)
    gaps = heights * np.diff(np.concatenate([planes, planes[:1] + 1]), axis=0).max(0)
    if open_axes := [f"{gap:.0f} Å along {axis}" for axis, gap in zip("abc", gaps, strict=True) if gap > VACUUM]:
        kind = ("slab", "wire", "molecule in a box")[len(open_axes) - 1]
        found.append(f"looks like a {kind} (vacuum of {', '.join(open_axes)}): the models know only bulk crystals")
    from ase.data import covalent_radii

    radii = covalent_radii[list(structure.atomic_numbers)]
    first, second, _, distance = structure.get_neighbor_list(2 * TIGHT * radii.max(), exclude_self=True)
    share = distance / (radii[first] + radii[second])
    if len(share) and share.min() < TIGHT:
        i = int(share.argmin())
        pair = "-".join(structure[int(n)].specie.symbol for n in (first[i], second[i]))
        found.append(f"has atoms suspiciously close to each other ({pair} {distance[i]:.2f} Å)")
    return found


def is_crystal_file(name: str) -> bool:
    """Whether a name is that of a CIF or POSCAR."""
    return any(fnmatch(name.lower(), pattern) for pattern in PATTERNS)


def structure_text(path: Path) -> str:
    """Text of a file that holds one crystal, unpacked; ValueError or OSError if it is too large or not a file."""
    if not path.is_file():
        raise ValueError("is not a regular file")
    with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as f:
        content = f.read(TOO_LARGE + 1)
    if len(content) > TOO_LARGE:
        raise ValueError(f"is larger than {TOO_LARGE // 1_000_000} MB")
    return content.decode()


def parse_structure(text: str) -> Structure:
    """The crystal that a text holds: CIF, POSCAR or pymatgen's JSON, which is told from the text itself.

    Only lattice, elements and coordinates are taken from JSON: nothing that it names is imported or executed.

    Raises:
        ValueError: with what is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's remarks on style
        warnings.filterwarnings("error", "Elements in POSCAR cannot be determined")  # it would call them H, He, Li
        try:
            if text.lstrip().startswith("{"):
                structure = structure_from_json(json.loads(text))
            elif re.search(r"^[ \t]*(data_|loop_|_cell_)", text, re.MULTILINE | re.IGNORECASE):
                structure = _from_cif(text)
            else:
                check_header(text.splitlines())
                structure = _from_poscar(text)
        except UserWarning as error:
            raise ValueError("names no elements above the atom counts") from error
        except RecursionError as error:
            raise ValueError("is nested too deeply") from error
        except Exception as error:  # pymatgen raises many kinds; each means the same to the user
            detail = " ".join(str(error).split())[:150]
            raise ValueError(f"is not a complete CIF, POSCAR or JSON of a crystal ({detail})") from error
    return checked(structure)


def _from_poscar(text: str) -> Structure:
    from pymatgen.io.vasp.inputs import Poscar  # slow to import

    return Poscar.from_str(text, default_names=None, read_velocities=False).structure


def _from_cif(text: str) -> Structure:
    from pymatgen.io.cif import CifParser

    parser = CifParser.from_str(text, check_cif=False)
    structures = parser.parse_structures(primitive=False, on_error="raise")
    if len(structures) != 1:
        raise ValueError(f"holds {len(structures)} crystals, not one")
    (structure,) = structures
    mismatch = parser.check(structure) or ""
    if structure.is_ordered and mismatch.startswith(("Missing elements", "Incorrect stoichiometry")):
        raise ValueError("its atoms are not those of its formula")  # cut off, or no hydrogen
    return structure


def structure_from_json(data: Mapping[str, Any]) -> Structure:
    """Lattice, elements and coordinates of pymatgen's JSON; what else it names is neither imported nor executed."""
    sites = data["sites"]
    species = [{each["element"]: each["occu"] for each in site["species"]} for site in sites]
    return Structure(data["lattice"]["matrix"], species, [site["abc"] for site in sites])


def checked(structure: Structure) -> Structure:
    """The crystal, of plain elements; ValueError if it has no atoms, is disordered or :func:`misplaced`."""
    if not len(structure):
        raise ValueError("holds no atoms")
    if not structure.is_ordered:
        raise ValueError("is disordered (sites occupied partly or by several elements); an ordered cell is needed")
    elements = [getattr(site.specie, "element", site.specie) for site in structure]
    if not all(isinstance(element, Element) for element in elements):
        raise ValueError("holds something that is not an element")
    if problem := misplaced(structure.lattice.matrix, structure.frac_coords):
        raise ValueError(problem)
    plain = [Element.from_Z(element.Z) for element in elements]  # deuterium is hydrogen
    return Structure(Lattice(structure.lattice.matrix), plain, structure.frac_coords)
