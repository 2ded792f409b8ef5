"""Where the crystals of a screening come from: files, tables, databases, what ships here, made-up ones; one by one."""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from pymatgen.core import Element, Structure

from ecdlib.base.errors import DAMAGED, EcdError, check_input
from ecdlib.crystals.download import AGAIN, MATERIALS_PROJECT, explained, materials_project
from ecdlib.data.structures import TOO_LARGE, is_crystal_file, parse_structure, structure_text
from ecdlib.data.tables import load_crystals, load_structures

#: eV: the paper screens crystals with a band gap within (CGCNN elasticity, 1).
BAND_GAP = (0.1, 3.0)

#: The elements without a stable isotope. The paper excludes "radioactive elements" and does not print which; bismuth,
#: whose isotope lives 2e19 years, counts as stable here.
RADIOACTIVE = frozenset(Element.from_Z(z).symbol for z in (43, 61, *range(84, 119)))

COLUMNS = ("structure", "cif", "poscar")  #: of a table, the first that is there holds the crystals
CHUNK = 500  #: rows or structures that are held at once

GNOME = "GNoME"
GNOME_SUMMARY = "stable_materials_summary.csv"
#: Archives of CIFs and the column of the summary that names their files, the most reliable one first.
GNOME_ARCHIVES = {
    "by_composition.zip": "Composition",
    "by_id.zip": "MaterialId",
    "by_reduced_formula.zip": "Reduced Formula",
}

GRAMMAR = (
    "Give a folder or file of crystals (CIF, POSCAR), a table (.csv) with a column structure, cif or poscar, "
    "materials-project, gnome:FOLDER, labelled, or hypothetical[:N[:SEED]]."
)


@dataclass(frozen=True)
class Candidate:
    """A crystal to screen: ordered, of elements, with a sound cell.

    Attributes:
        id: unique within its source.
        structure: the cell as the source gives it.
        source: ``"files"``, ``"table"``, ``"Materials Project"``, ``"GNoME"``, ``"labelled"`` or ``"hypothetical"``.
        info: ``band_gap`` (eV) where known; ``hypothetical``, True for what :mod:`hypothetical` makes, then
            also ``prototype`` and ``parent``.
    """

    id: str
    structure: Structure
    source: str
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A crystal of a source that cannot be used, and why."""

    id: str
    message: str


Crystals = Iterator[Candidate | Failure]


def paper_filter(structure: Structure, band_gap: float | None) -> str:
    """Why the paper's filter leaves a crystal out; empty if it passes.

    The paper (1 and 2.1) keeps band gaps from 0.1 to 3.0 eV and excludes simple substances and compounds of
    radioactive elements (see :data:`RADIOACTIVE`).

    Args:
        band_gap: eV; None where it is not known, which passes.

    >>> salt = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    >>> paper_filter(salt, 5.0)
    'band gap of 5 eV is not within 0.1 to 3 eV'
    >>> paper_filter(salt, None)
    ''
    """
    return _left_out([element.symbol for element in structure.composition.elements], band_gap)


def _left_out(elements: Sequence[str], band_gap: float | None) -> str:
    if band_gap is not None and not BAND_GAP[0] <= band_gap <= BAND_GAP[1]:
        return f"band gap of {band_gap:g} eV is not within {BAND_GAP[0]:g} to {BAND_GAP[1]:g} eV"
    if radioactive := sorted(RADIOACTIVE.intersection(elements)):
        return f"radioactive: {', '.join(radioactive)}"
    return "a single element" if len(set(elements)) == 1 else ""


def read_source(
    source: str, *, api_key: str | None = None, filter: bool = False, endpoint: str | None = None
) -> Crystals:
    """The crystals of a source, one after the other; what cannot be used comes as a :class:`Failure` between them.

    Memory stays small: a crystal is read when it is asked for. The order is the same every time.

    Sources:
        a folder: all CIF and POSCAR files in it and below (``*.cif``, ``*.vasp``, ``*.poscar``, ``POSCAR*``,
            ``CONTCAR*``, also ``.gz``); the id is the path in the folder. One such file alone, too.
        a table: ``.csv`` or ``.csv.gz`` with a column ``structure``, ``cif`` or ``poscar`` that holds CIF or POSCAR
            text or pymatgen's JSON; ids from ``material_id`` or ``id``, else numbers of rows from 1; ``band_gap`` in
            eV if there.
        ``materials-project``: what it has with a band gap of 0.1 to 3.0 eV, sorted by id (the key: ``api_key`` or the
            environment variable MP_API_KEY). Tested against a local server that answers as mp-api 0.46 expects.
        ``gnome:FOLDER``: the published files of GNoME (A. Merchant et al., Nature 624, 80, 2023), see below.
        ``labelled``: the 6,059 bundled crystals of :func:`ecdlib.data.tables.load_crystals`, with their band gaps.
        ``hypothetical``, ``hypothetical:N`` or ``hypothetical:N:SEED``: see :mod:`ecdlib.crystals.hypothetical`.

    GNoME's ``DATASET.md`` (github.com/google-deepmind/materials_discovery) documents ``stable_materials_summary.csv``
    with the columns used here (Composition, MaterialId, Reduced Formula, Bandgap) and the archives
    ``by_composition.zip``, ``by_id.zip`` and ``by_reduced_formula.zip``, whose CIF files are named by these columns.
    It does not document the members' exact names; programs of others read ``by_composition/Br2Fe4Ho1Tm3.CIF`` and so
    on, and report one file for each row. Of the archives in the folder that one is taken whose names are unique;
    ``DATASET.md`` notes a mistake in names of ``by_id.zip`` before August 2024. None of this was tested on the files
    themselves. The archive is read in place.

    Args:
        filter: leave out what :func:`paper_filter` names; of GNoME also crystals without a band gap, as the paper
            must have done. GNoME and the Materials Project then read only structures that pass.
        endpoint: address of the Materials Project's API, if not mp-api's.

    Raises:
        EcdError: no such source, or nothing in it can be used (after the last crystal).
    """
    crystals, early = _open(source, api_key, filter, endpoint)
    return _checked(source, crystals, filter and not early)


def _open(source: str, api_key: str | None, filter: bool, endpoint: str | None) -> tuple[Crystals, bool]:
    """The crystals of a source, and whether it filters itself."""
    kind, _, rest = source.partition(":")
    if source == "materials-project":
        return _materials_project(materials_project(api_key, endpoint, use_document_model=False), filter), True
    if kind == "gnome" and rest:
        return _gnome(Path(rest), filter), True
    if source == "labelled":
        return _labelled(), False
    if kind == "hypothetical":
        return _hypothetical(source), False
    path = Path(source)
    if os.path.isdir(path):
        return _folder(path), False
    try:
        check_input(path)
    except EcdError as error:
        if error.problem == "no such file":
            raise EcdError(source, "no such file, folder or source", GRAMMAR) from error
        raise
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return _table(path), False
    if is_crystal_file(path.name):
        return iter([_candidate(path.name, partial(structure_text, path), "files")]), False
    raise EcdError(source, "is no kind of file that holds crystals", GRAMMAR)


def _checked(source: str, crystals: Crystals, filter: bool) -> Crystals:
    usable, left_out, failure = 0, "", None
    for each in crystals:
        if isinstance(each, Failure):
            failure = failure or each
            yield each
        elif filter and (reason := paper_filter(each.structure, each.info.get("band_gap"))):
            left_out = f"{each.id}: {reason}"
        else:
            usable += 1
            yield each
    if not usable:
        if left_out:
            raise EcdError(source, f"no crystal passes the filter ({left_out})", "Leave the filter out.")
        why = f" ({failure.id}: {failure.message})" if failure else ""
        raise EcdError(source, f"holds no crystal that can be used{why}", GRAMMAR)


# One crystal


def _candidate(id: str, text: Callable[[], str], source: str, band_gap: Any = None) -> Candidate | Failure:
    try:
        structure = parse_structure(text())
    except DAMAGED as error:
        return Failure(id, " ".join(str(error).split()))
    gap = _number(band_gap)
    return Candidate(id, structure, source, {"hypothetical": False} | ({} if gap is None else {"band_gap": gap}))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


# Files


def _folder(folder: Path) -> Crystals:
    closed: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=closed.append):
        folders.sort()
        for name in sorted(files):
            if is_crystal_file(name):
                path = Path(root) / name
                yield _candidate(path.relative_to(folder).as_posix(), partial(structure_text, path), "files")
    yield from (Failure(str(error.filename), f"cannot be opened ({error.strerror})") for error in closed)


def _rows(path: Path) -> Iterator[pd.DataFrame | Failure]:
    """A table in chunks, as text; a Failure at the place where it is damaged."""
    row = 0
    try:
        with pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=CHUNK) as chunks:
            for chunk in chunks:
                yield chunk
                row += len(chunk)
    except DAMAGED as error:  # what came before is used
        detail = " ".join(str(error).split())[:150]
        yield Failure(path.name, f"cannot be read beyond row {row} ({detail})")


def _table(path: Path) -> Crystals:
    row = 0
    for chunk in _rows(path):
        if isinstance(chunk, Failure):
            yield chunk
            continue
        column = next((c for c in COLUMNS if c in chunk), None)
        if column is None:
            problem = f"has no column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
            raise EcdError(path, problem, f"Its columns: {', '.join(map(str, chunk.columns))[:200]}.")
        key = next((c for c in ("material_id", "id") if c in chunk), None)
        for _, values in chunk.iterrows():
            row += 1
            id = (str(values[key]) if key else "") or str(row)
            yield _candidate(id, partial(str, values[column]), "table", values.get("band_gap"))


# The Materials Project


def _materials_project(rester: Any, filter: bool) -> Crystals:
    """First ids and band gaps, then structures by id in chunks: what changes meanwhile does not shift the pages."""
    with ExitStack() as stack:
        with explained():
            summary = stack.enter_context(rester).materials.summary
            fields = ["material_id", "band_gap", "elements"]
            listed = [dict(each) for each in summary.search(band_gap=BAND_GAP, fields=fields)]
            gaps = {
                str(each["material_id"]): each["band_gap"]
                for each in listed
                if not (filter and _left_out(each["elements"], each["band_gap"]))
            }
        ids = iter(sorted(gaps, key=lambda id: (len(id), id)))
        while chunk := list(islice(ids, CHUNK)):
            with explained():
                found = summary.search(material_ids=chunk, fields=["material_id", "structure"], chunk_size=CHUNK)
                structures = {str(each["material_id"]): each["structure"] for each in found}
            for id in chunk:
                if id in structures:
                    yield _candidate(id, partial(json.dumps, structures[id]), MATERIALS_PROJECT, gaps[id])
                else:
                    yield Failure(id, f"the API lists it but sends no structure. {AGAIN}")


# GNoME


def _gnome(folder: Path, filter: bool) -> Crystals:
    remedy = f"Download {GNOME_SUMMARY} and by_composition.zip (github.com/google-deepmind/materials_discovery)."
    summary = folder / GNOME_SUMMARY
    if not summary.is_file():
        raise EcdError(folder, f"holds no {GNOME_SUMMARY}", remedy)
    archive = next((folder / name for name in GNOME_ARCHIVES if (folder / name).is_file()), None)
    if archive is None:
        raise EcdError(folder, f"holds none of {', '.join(GNOME_ARCHIVES)}", remedy)
    column = GNOME_ARCHIVES[archive.name]
    try:
        members = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise EcdError(archive, "is no sound zip archive", "Download it again.") from error
    needed = {column, "Composition", "MaterialId", "Bandgap"}
    with members:
        for chunk in _rows(summary):
            if isinstance(chunk, Failure):
                yield chunk
                continue
            if missing := sorted(needed - set(chunk.columns)):
                raise EcdError(summary, f"has no column {', '.join(missing)}", remedy)
            for name, composition, id, gap in chunk[[column, "Composition", "MaterialId", "Bandgap"]].to_numpy():
                number, elements = _number(gap), re.findall(r"[A-Z][a-z]?", composition)
                if filter and (number is None or _left_out(elements, number)):
                    continue
                text = partial(_member, members, f"{archive.stem}/{name}.CIF")
                yield _candidate(id, text, GNOME, number)


def _member(members: zipfile.ZipFile, name: str) -> str:
    """Text of an archive's member, read in memory; the name may lack its folder or have a small suffix."""
    bare = name.rsplit("/", 1)[1]
    for each in (name, bare, name[:-4] + ".cif", bare[:-4] + ".cif"):
        try:
            info = members.getinfo(each)
        except KeyError:
            continue
        if info.file_size > TOO_LARGE:
            raise ValueError(f"is larger than {TOO_LARGE // 1_000_000} MB")
        try:
            return members.read(info).decode()
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # damaged, encrypted, odd packing
            raise ValueError(f"cannot be unpacked ({error})") from error
    raise ValueError(f"the archive has no {name}")


# What ships here


def _labelled() -> Crystals:
    structures, gaps = load_structures(), load_crystals()["band_gap"]
    for name, gap in gaps.items():
        number = _number(gap)
        info = {"hypothetical": False} | ({} if number is None else {"band_gap": number})
        yield Candidate(str(name), structures[str(name)], "labelled", info)


def _hypothetical(source: str) -> Crystals:
    from ecdlib.crystals.hypothetical import hypothetical_crystals  # that module needs this one

    match = re.fullmatch(r"hypothetical(?::(\d{1,9}))?(?::(\d{1,9}))?", source)
    if match is None:
        raise EcdError(source, "is not understood", "Write hypothetical, hypothetical:N or hypothetical:N:SEED.")
    arguments = {key: int(value) for key, value in zip(("n", "seed"), match.groups(), strict=True) if value}
    return hypothetical_crystals(**arguments)
