"""Crystals from files: folders of CIF and POSCAR, and tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from ecdlib.base.errors import DAMAGED, EcdError
from ecdlib.crystals.candidate import Crystals, Failure, candidate
from ecdlib.data.structures import is_crystal_file, structure_text

COLUMNS = ("structure", "cif", "poscar")  #: of a table; the first one present holds the crystals
CHUNK = 500  #: rows that are held at once


def read_path(path: Path) -> Crystals | None:
    """The crystals of a folder or file; None for a file that is neither a table nor of a known format.

    A folder: all CIF and POSCAR files in it and below (``*.cif``, ``*.vasp``, ``*.poscar``, ``POSCAR*``,
    ``CONTCAR*``, also ``.gz``); the id is the path in the folder. A table: ``.csv`` or ``.csv.gz`` with a column
    ``structure``, ``cif`` or ``poscar`` that holds CIF or POSCAR text or pymatgen's JSON; ids from ``material_id`` or
    ``id``, else numbers of rows from 1; ``band_gap`` in eV if there.
    """
    if os.path.isdir(path):
        return _folder(path)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return _table(path)
    if is_crystal_file(path.name):
        return iter([candidate(path.name, partial(structure_text, path), "files")])
    return None


def _folder(folder: Path) -> Crystals:
    closed: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=closed.append):
        folders.sort()
        for name in sorted(files):
            if is_crystal_file(name):
                path = Path(root) / name
                yield candidate(path.relative_to(folder).as_posix(), partial(structure_text, path), "files")
    yield from (Failure(str(error.filename), f"cannot be opened ({error.strerror})") for error in closed)


def rows(path: Path) -> Iterator[pd.DataFrame | Failure]:
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
    for chunk in rows(path):
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
            yield candidate(id, partial(str, values[column]), "table", values.get("band_gap"))
