"""Screening: moduli and what follows from them for any number of crystals, in one Parquet table (CGCNN paper, 3.3)."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pymatgen.core import Structure
from tqdm import tqdm

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.pieces import Pieces, in_pieces
from ecdlib.base.resources import data_file, sha256
from ecdlib.base.workers import available_cores, map_chunks
from ecdlib.crystals.candidate import Candidate, Failure
from ecdlib.crystals.sources import read_source
from ecdlib.data.tables import crystal_system
from ecdlib.density.core import Floats, symmetry
from ecdlib.elastic.moduli import QUANTITIES, elastic_quantities
from ecdlib.features.crystal import GRAMS_PER_CM3
from ecdlib.learn.model_file import load_model, model_files

CHUNK = 500  #: crystals that a worker takes at once

#: Columns of the table and their units: those of the paper's Tables A1 and A2 with their uncertainty, and what is known
#: of the crystal. Atoms, volume and mass are of the primitive cell; ``*_std`` are standard deviations.
COLUMNS: dict[str, str] = {
    "id": "",
    "formula": "",
    "source": "",
    "hypothetical": "",
    "prototype": "",
    "spacegroup": "",
    "crystal_system": "",
    "n_atoms": "atoms in the primitive cell",
    "density": "g/cm³",
    "volume": "Å³",
    "mass": "u",
    "band_gap": "eV, where known",
    "bulk_modulus": "GPa",
    "bulk_modulus_std": "GPa",
    "shear_modulus": "GPa",
    "shear_modulus_std": "GPa",
    **{
        f"{name}{suffix}": {"v": "m/s", "youngs": "GPa", "debye": "K"}.get(name.split("_")[0], "")
        for name in QUANTITIES
        for suffix in ("", "_std")
    },
    "unseen_elements": "not among the training crystals",
    "in_training": "formula and space group are among the training crystals: the deviations are then too large",
}
_TYPES = dict.fromkeys(("id", "formula", "source", "prototype", "crystal_system", "unseen_elements"), pa.string())
_TYPES |= {"hypothetical": pa.bool_(), "in_training": pa.bool_(), "spacegroup": pa.int32(), "n_atoms": pa.int32()}
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.float32())) for name in COLUMNS])


@dataclass(frozen=True)
class Screened:
    """What a screening ended with."""

    predicted: int
    failed: list[str]  #: one line each
    before: bool = False  #: whether an earlier run had finished it


def crystal_columns(candidate: Candidate, found: Any) -> dict[str, Any]:
    """What the table says about a crystal besides predictions.

    Args:
        found: its :func:`ecdlib.density.core.symmetry`.

    Raises:
        EcdError: no symmetry found.
    """
    if found is None:
        raise EcdError(candidate.id, "has no symmetry that spglib can find", "Check its cell and coordinates.")
    composition, volume = candidate.structure.composition, candidate.structure.volume
    atoms, weight = len(candidate.structure), float(composition.weight)
    primitive = len(np.unique(found.mapping_to_primitive)) / atoms
    return {
        "id": candidate.id,
        "formula": composition.reduced_formula,
        "source": candidate.source,
        "hypothetical": bool(candidate.info.get("hypothetical", False)),
        "prototype": str(candidate.info.get("prototype", "")),
        "spacegroup": int(found.number),
        "crystal_system": crystal_system(found.number),
        "n_atoms": round(atoms * primitive),
        "density": weight * GRAMS_PER_CM3 / volume,
        "volume": volume * primitive,
        "mass": weight * primitive,
        "band_gap": candidate.info.get("band_gap"),
    }


class ModuliModel(Protocol):
    """A model that answers which moduli a structure has."""

    elements: set[int]  #: atomic numbers among its training crystals
    trained_on: set[str]  #: formula and space group of its training crystals
    correlation: float  #: of the errors of K and G

    def prepare(self, structure: Structure, symmetry: Any) -> Any:
        """What it predicts one crystal from.

        Raises:
            EcdError: a crystal that it cannot take.
        """

    def moduli(self, prepared: Sequence[Any]) -> tuple[Floats, Floats]:
        """K and G (GPa) and the standard deviations of their logarithms to base 10, ``(n, 2)`` each."""


def predict_elasticity(candidates: Sequence[Candidate], model: ModuliModel) -> tuple[pd.DataFrame, list[str]]:
    """The table of :data:`COLUMNS` for crystals, and one line for each that cannot be used."""
    rows, prepared, failed = [], [], []
    for candidate in candidates:
        try:
            found = symmetry(candidate.structure)
            row, ready = crystal_columns(candidate, found), model.prepare(candidate.structure, found)
        except EcdError as error:
            failed.append(f"{candidate.id}: {error.problem}. {error.remedy}")
            continue
        unseen = {e.symbol for e in set(candidate.structure.species) if e.Z not in model.elements}
        known = f"{row['formula']}_{row['spacegroup']}" in model.trained_on
        rows.append({**row, "unseen_elements": " ".join(sorted(unseen)), "in_training": known})
        prepared.append(ready)
    if not rows:
        return SCHEMA.empty_table().to_pandas(), failed
    table = pd.DataFrame(rows)
    (K, G), (K_std, G_std) = (columns.T for columns in model.moduli(prepared))
    table = table.assign(
        bulk_modulus=K,
        bulk_modulus_std=K * np.log(10) * K_std,
        shear_modulus=G,
        shear_modulus_std=G * np.log(10) * G_std,
    )
    more = elastic_quantities(
        K, G, table["density"], table["n_atoms"], table["volume"], K_std, G_std, model.correlation
    )
    return pd.concat([table, more.set_axis(table.index)], axis=1)[list(COLUMNS)], failed


def _load(path: str | Path) -> ModuliModel:
    model: ModuliModel = load_model(path)
    if not hasattr(model, "moduli"):
        remedy = "Give cgcnn, crystal, or a file of `ecd train-cgcnn --final`."
        raise EcdError(path, "is not a model of structures", remedy)
    return model


@lru_cache(maxsize=1)
def _model(name: str, digest: str) -> ModuliModel:
    """The model, if its file is the one that is meant: a worker elsewhere may have another."""
    (path,) = model_files(name)
    if sha256(path) != digest:
        raise EcdError(
            path, "differs from the model on a worker", "Give all machines the same checkout or shared folder."
        )
    return _load(path)


def _work(chunk: tuple[int, list[Candidate]], model: str, digest: str) -> tuple[int, pd.DataFrame, list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return chunk[0], *predict_elasticity(chunk[1], _model(model, digest))


def _chunks(
    crystals: Iterable[Candidate | Failure], pieces: Pieces, failed: list[str]
) -> Iterator[tuple[int, list[Candidate]]]:
    """Numbered chunks for the workers, without those that are done; ``failed`` gets a line for each failure."""
    number, chunk, ids = 0, [], set()
    for each in chain(crystals, [None]):
        if isinstance(each, Failure):
            failed.append(f"{each.id}: {each.message}")
            continue
        if each is not None and each.id in ids:
            failed.append(f"{each.id}: an earlier crystal has this id. Screen the sources one by one.")
            continue
        if each is not None:
            ids.add(each.id)
            chunk.append(each)
        if chunk and (len(chunk) == CHUNK or each is None):
            if (name := f"{number:06d}") not in pieces:
                yield number, chunk
            elif not set(pieces.load(name)["id"].tolist()) <= {c.id for c in chunk}:
                problem = "holds other crystals: a source has changed since"
                raise EcdError(pieces.folder, problem, "Remove it and run again.")
            number, chunk = number + 1, []


def _arrays(table: pd.DataFrame) -> dict[str, Any]:
    """Columns of a chunk, as its piece keeps them."""
    rows = pa.Table.from_pandas(table, schema=SCHEMA, preserve_index=False)
    columns = {field.name: rows[field.name].to_numpy() for field in SCHEMA}
    return {name: values.astype(str) if values.dtype == object else values for name, values in columns.items()}


def _rows(piece: Mapping[str, Any]) -> pa.Table:
    """What :func:`_arrays` has kept."""
    return pa.table([pa.array(piece[f.name], f.type, from_pandas=True) for f in SCHEMA], schema=SCHEMA)


def screen(
    sources: Sequence[str],
    out: Path,
    *,
    model: str = "cgcnn",
    paper_filter: bool = False,
    api_key: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Screened:
    """Predict all crystals of the sources and write a Parquet table of :data:`COLUMNS`.

    Crystals are read, predicted and written in chunks, so that memory stays small. An interrupted run resumes, if its
    sources have not changed; a finished table is not made again.

    Args:
        sources: see :func:`ecdlib.crystals.sources.read_source`.
        out: file to write (``.parquet``).
        model: ``"cgcnn"``, ``"crystal"`` (more accurate, slower), or a file of ``ecd train-cgcnn --final``.
        paper_filter: leave out what the paper does (see :func:`ecdlib.crystals.candidate.paper_filter`).
        scheduler: address of a Dask scheduler; by default processes on this machine.
        workers: local processes, by default one per core.

    Raises:
        EcdError: a source or model that cannot be used, nothing usable at all, a table made with other parameters at
            the same place; see also :func:`ecdlib.base.pieces.in_pieces`.
    """
    if out.is_dir():
        raise EcdError(out, "is a folder", "Give the name of a file.")
    model = str(Path(model).resolve()) if model.endswith(".npz") else model
    _load(model)  # what is wrong with it is said at once
    used = sha256(model_files(model)[0])
    _model(model, used)
    parameters = {"sources": list(sources), "model": used, "paper_filter": paper_filter}
    if out.is_file():
        found = load_screened(out)[1]["parameters"]
        if {key: found.get(key) for key in parameters} != parameters:
            raise EcdError(out, "was made with other parameters", "Remove it, or choose another name with --out.")
        return Screened(pq.read_metadata(out).num_rows, _failed(out), before=True)
    crystals = (each for source in sources for each in read_source(source, api_key=api_key, filter=paper_filter))
    failed: list[str] = []
    cores = workers or available_cores()
    with in_pieces(out, "ecd screen", parameters) as pieces:
        chunks, last = _chunks(crystals, pieces, failed), time.monotonic()
        done = len(pieces.names) * CHUNK
        with tqdm(unit=" crystals", desc="Screening", disable=not progress, initial=done) as bar:
            for number, table, wrong in map_chunks(_work, chunks, model, used, scheduler=scheduler, workers=cores):
                seconds, last = time.monotonic() - last, time.monotonic()
                if len(table):
                    lines = {"failed": np.array(wrong, dtype=str)}
                    pieces.save(f"{number:06d}", _arrays(table) | lines, seconds)
                else:
                    failed += wrong
                bar.update(len(table))
        failed += [line for name in pieces.names for line in pieces.load(name)["failed"].tolist()]
        if not pieces.names:
            raise EcdError(", ".join(sources), "no usable crystal", failed[0] if failed else "Give at least one.")
        made_by = pieces.provenance()
        made_by["device"] = f"Dask cluster at {scheduler}" if scheduler else f"CPU, {cores} processes"
        predicted = 0
        notes = {"columns": COLUMNS, "provenance": made_by, "failed": failed}
        metadata = {key: json.dumps(value) for key, value in notes.items()}
        with (
            atomic_write(out) as temporary,
            pq.ParquetWriter(temporary, SCHEMA.with_metadata(metadata), compression="zstd") as writer,
        ):
            for name in pieces.names:
                rows = _rows(pieces.load(name)).replace_schema_metadata(metadata)
                writer.write_table(rows)
                predicted += rows.num_rows
    return Screened(predicted, failed)


def _failed(path: Path) -> list[str]:
    lines: list[str] = json.loads((pq.read_schema(path).metadata or {}).get(b"failed", b"[]"))
    return lines


def load_screened(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table that :func:`screen` wrote, and its provenance.

    Raises:
        EcdError: missing file, or not such a table.
    """
    try:
        table = pq.read_table(path)
        made_by = json.loads(table.schema.metadata[b"provenance"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise EcdError(
            path, "is not a table of `ecd screen`", "Make it with `ecd screen SOURCE -o FILE.parquet`."
        ) from error
    return table.to_pandas(), made_by


def shipped_screening() -> tuple[pd.DataFrame, dict[str, Any]]:
    """The 80,000 hypothetical crystals that ship with the project, and their provenance (see :func:`compact`)."""
    return load_screened(data_file("screening/hypothetical.parquet"))


#: What :func:`compact` keeps; the rest follows from it (see :func:`ecdlib.elastic.moduli.elastic_quantities`).
KEPT: tuple[str, ...] = ("id", "formula", "prototype", "crystal_system", "spacegroup", "n_atoms", "density", "volume")
KEPT += ("bulk_modulus", "bulk_modulus_std", "shear_modulus", "shear_modulus_std", "unseen_elements")


def compact(table: str | Path, out: Path) -> None:
    """Write the columns :data:`KEPT` of a table of :func:`screen`, numbers to four digits: a tenth of its size.

    Raises:
        EcdError: see :func:`load_screened`.
    """
    rows, made_by = load_screened(table)
    rows = rows[list(KEPT)]
    for name in rows.columns[rows.dtypes == np.float32]:
        exponent = np.floor(np.log10(np.abs(rows[name].astype(float))))
        rows[name] = (np.round(rows[name].astype(float) / 10**exponent, 3) * 10**exponent).astype(np.float32)
    schema = pa.schema([SCHEMA.field(name) for name in KEPT]).with_metadata({"provenance": json.dumps(made_by)})
    with atomic_write(out) as temporary:
        kept = pa.Table.from_pandas(rows, schema=schema, preserve_index=False).replace_schema_metadata(schema.metadata)
        pq.write_table(kept, temporary, compression="zstd", compression_level=19)
