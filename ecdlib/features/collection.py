"""From density files to features: the steps of the Lean CNN paper in order, for one density or a collection."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.pieces import Pieces, in_pieces
from ecdlib.base.progress import tqdm
from ecdlib.base.resources import data_file
from ecdlib.base.workers import available_cores, map_chunks
from ecdlib.density.cell import to_conventional
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.io import read_density
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_selection, open_store
from ecdlib.density.valence import Valence, to_convention
from ecdlib.features.autocorrelation import (
    Field,
    cubic_average,
    density_quantiles,
    standardized_autocorrelation,
)

#: Features of a density, or of several, by the name of the block.
Blocks = dict[str, Floats]


@dataclass(frozen=True)
class FeatureSettings:
    """How a density becomes features; stored with them, so that a model can refuse others."""

    size: int = 51  #: odd number of voxels along each axis
    voxel: float = 0.2  #: voxel width, Å
    field: Field = "sqrt"  #: correlate √ρ (the paper) or the density itself
    conversion: Literal["fourier", "trilinear"] = "fourier"  #: way to the conventional cell
    #: the density as computed, or smoothed and in a valence convention (:data:`ecdlib.density.valence.Target`)
    convention: Literal["computed", "gpaw", "chemical"] = "computed"


#: Blocks of features, from a conventional cell without negative charge; adding one is a line.
FEATURES: dict[str, Callable[[ChargeDensity, FeatureSettings], Floats]] = {
    "autocorrelation": lambda density, s: standardized_autocorrelation(density, s.size, s.voxel, s.field),
    "quantiles": lambda density, _: density_quantiles(density),
}


def featurize(
    density: ChargeDensity,
    settings: FeatureSettings = FeatureSettings(),
    valence: Valence | None = None,
    calibration: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Blocks, dict[str, Any]]:
    """Valence convention, conventional cell, no negative charge, autocorrelation on the standard grid.

    Args:
        valence, calibration: for :func:`ecdlib.density.valence.to_convention`, if the settings ask for a convention.

    Returns:
        Features: ``autocorrelation (size, size, size)`` and ``quantiles (12,)`` of the filled density, e/Å³. And a row
        for the report: electrons and electrons moved out of negative regions, per input cell; peak and minimum (e/Å³)
        before and after the conversion, minimum after filling; clusters in the conventional cell, layers.

    Raises:
        EcdError: a density that cannot be converted.

    Example:
        >>> from ecdlib.density.store import load_density
        >>> features, row = featurize(load_density("LiH_225"), FeatureSettings(size=3))
        >>> features["autocorrelation"].shape, round(row["electrons"], 3)
        ((3, 3, 3), 2.0)
    """
    if settings.convention != "computed":
        density = to_convention(density, settings.convention, valence, calibration=calibration)
    cell = to_conventional(density, settings.conversion)
    filled = redistribute_negative_charge(cell)
    multiple = cell.volume / density.volume
    row = {
        "name": density.name,
        "formula": density.formula,
        "convention": density.convention or "",
        "a": float(np.linalg.norm(cell.lattice[0])),
        "electrons": density.n_electrons,
        "electrons_after": filled.density.n_electrons / multiple,
        "peak": float(density.values.max()),
        "peak_after": float(cell.values.max()),
        "minimum": float(density.values.min()),
        "minimum_after": float(cell.values.min()),
        "minimum_filled": float(filled.density.values.min()),
        "moved": filled.moved / multiple,
        "clusters": filled.clusters,
        "layers": filled.layers,
    }
    return {name: compute(filled.density, settings) for name, compute in FEATURES.items()}, row


def _distinct(features: Blocks) -> Blocks:
    """The values that are distinct under m-3m: what models take."""
    return features | {"autocorrelation": cubic_average(features["autocorrelation"])}


def statistics(
    density: ChargeDensity,
    settings: FeatureSettings = FeatureSettings(),
    valence: Valence | None = None,
    calibration: Mapping[str, tuple[float, float]] | None = None,
) -> Blocks:
    """Distinct values of what :func:`featurize` gives: ``autocorrelation (k,)`` and ``quantiles (12,)``, e/Å³.

    Raises:
        EcdError: see :func:`featurize`.
    """
    return _distinct(featurize(density, settings, valence, calibration)[0])


def expand_sources(sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Each store (``*.h5``) becomes one ``file.h5::name`` per crystal, in an order that reads fast; files stay."""
    expanded: list[str] = []
    for source in (os.fspath(s) for s in sources):
        if os.path.exists(source):
            source = os.path.abspath(source)  # workers elsewhere have another current folder
        if source.endswith(".h5") and os.path.isfile(source):
            try:
                expanded += [f"{source}::{name}" for name in open_store(source).fastest]
            except EcdError:  # reported when its turn comes
                expanded.append(f"{source}::*")
        else:
            expanded.append(source)
    return expanded


Featurized = tuple[str, Blocks | None, dict[str, Any]]


def _work(sources: list[str], settings: FeatureSettings) -> list[Featurized]:
    """Featurize a few sources in a worker; a failure becomes a row with ``error``."""
    results: list[Featurized] = []
    for source in sources:
        try:
            features, row = featurize(read_density(source), settings)
            features["autocorrelation"] = features["autocorrelation"].astype(np.float32)
            results.append((source, features, {"source": source, **row}))
        except Exception as error:  # whatever one file does, the others go on
            message = str(error) if isinstance(error, EcdError) else f"{source}: {type(error).__name__}: {error}"
            results.append((source, None, {"source": source, "name": source, "error": message}))
    return results


def _featurized(
    chunks: Sequence[list[str]],
    settings: FeatureSettings,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Iterator[list[Featurized]]:
    """What comes of the chunks, as they complete."""
    with tqdm(total=sum(map(len, chunks)), unit="density", desc="Featurizing", disable=not progress) as bar:
        for results in map_chunks(_work, chunks, settings, scheduler=scheduler, workers=workers or available_cores()):
            yield results
            bar.update(len(results))


def _chunks(sources: list[str]) -> list[list[str]]:
    """The same chunks of up to 16 wherever the same sources are featurized."""
    size = max(1, min(16, len(sources) // 16))
    return [sources[i : i + size] for i in range(0, len(sources), size)]


def featurize_collection(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: FeatureSettings = FeatureSettings(),
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Featurize many densities into one HDF5 file, in parallel and with bounded memory.

    An interrupted run resumes; at most the last few densities are computed again. A source that cannot be used is
    reported in the returned table and does not stop the run; the same call tries it again.

    Args:
        sources: density files, and stores (all their crystals).
        out: file to write: a dataset for each block of features, ``autocorrelation (n, size, size, size)`` float32 and
            ``quantiles (n, 12)``; ``source``, ``report`` (one JSON text each), and the settings as JSON in the
            attribute ``settings``. If it is there, of the same sources and settings and complete, it is returned.
        scheduler: address of a Dask scheduler; by default processes on this machine.
        workers: local processes, by default one per core.

    Returns:
        One row per source (see :func:`featurize`), with a column ``error`` that is empty where all went well.

    Raises:
        EcdError: no usable source at all, a finished or interrupted run with other settings or sources at the same
            place, no disk space, or no answer from the scheduler.
    """
    out = Path(out)
    todo = list(dict.fromkeys(expand_sources(sources)))
    made_of = {"settings": asdict(settings), "sources": _digest(todo)}
    stamps = _digest([_stamp(source) for source in todo])
    if out.exists() and (rows := _finished(out, made_of, stamps)):
        return _table(rows)
    chunks = {f"{i}": chunk for i, chunk in enumerate(_chunks(todo))}
    names = {chunk[0]: name for name, chunk in chunks.items()}
    failed: dict[str, list[dict[str, Any]]] = {}
    with in_pieces(out, "ecd featurize", made_of) as pieces:
        rest = [chunk for name, chunk in chunks.items() if name not in pieces]
        for results in _featurized(rest, settings, scheduler, workers, progress):
            name, good = names[results[0][0]], [r for r in results if r[1] is not None]
            failed[name] = [row for _, features, row in results if features is None]
            if good:
                _save(pieces, f"{name}-some" if failed[name] else name, good)
        failures = [row for name in chunks for row in failed.get(name, [])]
        if not pieces.names:
            problem = failures[0]["error"] if failures else "Give at least one density."
            raise EcdError(failures[0]["name"] if failures else out, "no usable density", problem)
        merged = [part for name in chunks if (part := name if name in pieces else f"{name}-some") in pieces]
        rows = _merge(pieces, merged, out, made_of | {"stamps": "" if failures else stamps})
    return _table(rows + failures)


def _stamp(source: str) -> list[int]:
    """Size and time of a source's file; a bundled crystal has none."""
    try:
        found = os.stat(source.split("::")[0])
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _save(pieces: Pieces, name: str, results: list[Featurized]) -> None:
    """Features and report of the densities of a chunk, as a piece."""
    blocks: Any = {block: np.stack([features[block] for _, features, _ in results if features]) for block in FEATURES}
    texts = {"source": [source for source, _, _ in results], "report": [json.dumps(row) for _, _, row in results]}
    pieces.save(name, blocks | {key: np.array(values) for key, values in texts.items()})


def _merge(pieces: Pieces, names: list[str], out: Path, made_of: dict[str, Any]) -> list[dict[str, Any]]:
    """Write the pieces into one file; returns the rows of the report."""
    needed = sum(pieces.path(name).stat().st_size for name in names)
    if shutil.disk_usage(pieces.folder).free < needed + 2**20:  # HDF5 crashes where the disk is full
        raise EcdError(out, "no disk space left", "Free some and run the same command again: it resumes.")
    rows: list[dict[str, Any]] = []
    with atomic_write(out) as temporary, h5py.File(temporary, "w") as h:
        for key, value in made_of.items():
            h.attrs[key] = json.dumps(value)
        for arrays in map(pieces.load, names):
            for key, values in arrays.items():
                text, shape = values.dtype.kind == "U", values.shape[1:]
                kind = h5py.string_dtype() if text else values.dtype
                if key not in h:
                    h.create_dataset(key, (0, *shape), kind, maxshape=(None, *shape), chunks=(1, *shape))
                h[key].resize(len(rows) + len(values), axis=0)
                h[key][len(rows) :] = values.astype(object) if text else values
            rows += [json.loads(text) for text in arrays["report"]]
    return rows


def _finished(out: Path, made_of: dict[str, Any], stamps: str) -> list[dict[str, Any]]:
    """Rows of the report of a finished file; none if some of its sources could not be used, or have changed since.

    Raises:
        EcdError: a file of other settings or sources, or something else.
    """
    try:
        with h5py.File(out) as h:
            found = {key: json.loads(h.attrs[key]) for key in (*made_of, "stamps")}
            rows = [json.loads(text) for text in h["report"].asstr()[:]]
    except (OSError, KeyError, ValueError) as error:
        raise EcdError(out, "is not a readable feature file", "Remove it, or choose another name.") from error
    if {key: found[key] for key in made_of} != made_of:
        raise EcdError(out, "was made with other settings or sources", "Remove it, or choose another name with --out.")
    return rows if found["stamps"] == stamps else []


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows).assign(error=lambda t: t["error"].fillna("") if "error" in t else "")
    return table.set_index("name")


def load_features(path: str | os.PathLike[str]) -> tuple[Blocks, pd.DataFrame, FeatureSettings]:
    """Read what :func:`featurize_collection` wrote: blocks of features, report, settings.

    Raises:
        EcdError: missing or damaged file.
    """
    try:
        with h5py.File(path) as h:
            report = pd.DataFrame([json.loads(text) for text in h["report"].asstr()[:]]).set_index("name")
            settings = FeatureSettings(**json.loads(h.attrs["settings"]))
            return {block: h[block][:] for block in FEATURES}, report, settings
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise EcdError(path, "is not a readable feature file", "Make it with `ecd featurize`.") from error


def bundled_features(
    settings: FeatureSettings = FeatureSettings(), names: Sequence[str] | None = None
) -> tuple[Blocks, pd.DataFrame]:
    """Features of bundled crystals, reduced to the values that are distinct under m-3m.

    Computed once for each settings, names, data and code (``_build/cache``), then read.

    Args:
        names: crystals wanted; by default the selection ``densities-988``.

    Returns:
        Blocks ``autocorrelation (n, k)`` (see :func:`cubic_average`) and ``quantiles (n, 12)``, and the report, in the
        order of the names.
    """
    names = load_selection("densities-988") if names is None else list(names)

    def make() -> Arrays:
        stores = [data_file(f"ecd_{which}.h5") for which in ("cubic", "general")]
        found: dict[str, tuple[Blocks, dict[str, Any]]] = {}
        sources = [s for s in expand_sources(stores) if s.split("::")[1] in set(names)]
        for source, features, row in (each for results in _featurized(_chunks(sources), settings) for each in results):
            if features is None:
                raise EcdError(source, "a bundled density could not be featurized", row["error"])
            found[row["name"]] = _distinct(features), row
        rows = [found[name][1] for name in names]
        blocks = {block: np.stack([found[name][0][block] for name in names]) for block in FEATURES}
        return blocks | {"report": np.array(json.dumps(rows))}

    found = cached("features", make, settings, names)
    report = pd.DataFrame(json.loads(str(found["report"]))).set_index("name")
    return {block: found[block].astype(np.float64) for block in FEATURES}, report
