"""Crystals from databases: the Materials Project, GNoME, and the labelled crystals that ship here."""

from __future__ import annotations

import json
import re
import zipfile
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecdlib.base.errors import EcdError
from ecdlib.crystals.candidate import BAND_GAP, Candidate, Crystals, Failure, candidate, left_out, number
from ecdlib.crystals.download import AGAIN, MATERIALS_PROJECT, explained, materials_project
from ecdlib.crystals.files import rows
from ecdlib.data.structures import TOO_LARGE
from ecdlib.data.tables import load_crystals, load_structures

if TYPE_CHECKING:
    from ecdlib.crystals.sources import Options

CHUNK = 500  #: structures that are asked for at once
GNOME = "GNoME"
GNOME_SUMMARY = "stable_materials_summary.csv"
#: Archives of CIFs and the column of the summary that names their files, the most reliable one first.
GNOME_ARCHIVES = {
    "by_composition.zip": "Composition",
    "by_id.zip": "MaterialId",
    "by_reduced_formula.zip": "Reduced Formula",
}


def read_materials_project(source: str, options: Options) -> Crystals:
    """What the Materials Project has with a band gap of 0.1 to 3.0 eV, sorted by id.

    Tested against a local server that answers as mp-api 0.46 expects. First ids and band gaps, then structures by id
    in chunks: what changes meanwhile does not shift the pages.
    """
    return _summaries(materials_project(options.api_key, options.endpoint, use_document_model=False), options.filter)


def _summaries(rester: Any, filter: bool) -> Crystals:
    with ExitStack() as stack:
        with explained():
            summary = stack.enter_context(rester).materials.summary
            fields = ["material_id", "band_gap", "elements"]
            listed = [dict(each) for each in summary.search(band_gap=BAND_GAP, fields=fields)]
            gaps = {
                str(each["material_id"]): each["band_gap"]
                for each in listed
                if not (filter and left_out(each["elements"], each["band_gap"]))
            }
        ids = iter(sorted(gaps, key=lambda id: (len(id), id)))
        while chunk := list(islice(ids, CHUNK)):
            with explained():
                found = summary.search(material_ids=chunk, fields=["material_id", "structure"], chunk_size=CHUNK)
                structures = {str(each["material_id"]): each["structure"] for each in found}
            for id in chunk:
                if id in structures:
                    yield candidate(id, partial(json.dumps, structures[id]), MATERIALS_PROJECT, gaps[id])
                else:
                    yield Failure(id, f"the API lists it but sends no structure. {AGAIN}")


def read_gnome(source: str, options: Options) -> Crystals:
    """The published files of GNoME (A. Merchant et al., Nature 624, 80, 2023) in the folder that the source names.

    GNoME's ``DATASET.md`` (github.com/google-deepmind/materials_discovery) documents ``stable_materials_summary.csv``
    with the columns used here (Composition, MaterialId, Reduced Formula, Bandgap) and the archives
    ``by_composition.zip``, ``by_id.zip`` and ``by_reduced_formula.zip``, whose CIF files are named by these columns.
    It does not document the members' exact names; programs of others read ``by_composition/Br2Fe4Ho1Tm3.CIF`` and so
    on, and report one file for each row. Of the archives in the folder that one is taken whose names are unique;
    ``DATASET.md`` notes a mistake in names of ``by_id.zip`` before August 2024. None of this was tested on the files
    themselves. The archive is read in place.
    """
    folder, filter = Path(source.partition(":")[2]), options.filter
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
        raise EcdError(archive, "is not a sound zip archive", "Download it again.") from error
    needed = {column, "Composition", "MaterialId", "Bandgap"}
    with members:
        for chunk in rows(summary):
            if isinstance(chunk, Failure):
                yield chunk
                continue
            if missing := sorted(needed - set(chunk.columns)):
                raise EcdError(summary, f"has no column {', '.join(missing)}", remedy)
            for name, composition, id, gap in chunk[[column, "Composition", "MaterialId", "Bandgap"]].to_numpy():
                band_gap, elements = number(gap), re.findall(r"[A-Z][a-z]?", composition)
                if filter and (band_gap is None or left_out(elements, band_gap)):
                    continue
                text = partial(_member, members, f"{archive.stem}/{name}.CIF")
                yield candidate(id, text, GNOME, band_gap)


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


def read_labelled(source: str, options: Options) -> Crystals:
    """The 6,059 bundled crystals of :func:`ecdlib.data.tables.load_crystals`, with their band gaps."""
    structures, gaps = load_structures(), load_crystals()["band_gap"]
    for name, gap in gaps.items():
        known = number(gap)
        info = {"hypothetical": False} | ({} if known is None else {"band_gap": known})
        yield Candidate(str(name), structures[str(name)], "labelled", info)
