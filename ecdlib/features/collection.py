"""From density files to features: the steps of the Lean CNN paper in order, for one density or a collection."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file
from ecdlib.base.workers import available_cores, map_chunks
from ecdlib.density.cell import to_conventional
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.io import read_density
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import DensityStore, load_selection
from ecdlib.density.valence import Valence, to_convention
from ecdlib.features.autocorrelation import (
    QUANTILES,
    Field,
    cubic_average,
    density_quantiles,
    standardized_autocorrelation,
)

#: Columns of the report that hold :func:`ecdlib.features.autocorrelation.density_quantiles`.
QUANTILE_NAMES = tuple(f"quantile {q:g}" for q in QUANTILES)


class Busy(EcdError):
    """A file that another run is writing."""


@dataclass(frozen=True)
class FeatureSettings:
    """How a density becomes features; stored with them, so that a model can refuse others."""

    size: int = 51  #: odd number of voxels along each axis
    voxel: float = 0.2  #: voxel width, Å
    field: Field = "sqrt"  #: correlate √ρ (the paper) or the density itself
    conversion: Literal["fourier", "trilinear"] = "fourier"  #: way to the conventional cell
    #: the density as computed, or smoothed and in a valence convention (:data:`ecdlib.density.valence.Target`)
    convention: Literal["computed", "gpaw", "chemical"] = "computed"


def featurize(
    density: ChargeDensity,
    settings: FeatureSettings = FeatureSettings(),
    valence: Valence | None = None,
    calibration: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Floats, dict[str, Any]]:
    """Valence convention, conventional cell, no negative charge, autocorrelation on the standard grid.

    Args:
        valence, calibration: for :func:`ecdlib.density.valence.to_convention`, if the settings ask for a convention.

    Returns:
        ``(size, size, size)`` features, and a row for the report: electrons and electrons moved out of negative
        regions, per input cell; peak and minimum (e/Å³) before and after the conversion, minimum after filling;
        clusters in the conventional cell, layers, quantiles of the filled density (e/Å³).

    Raises:
        EcdError: a density that cannot be converted.
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
        **dict(zip(QUANTILE_NAMES, map(float, density_quantiles(filled.density)), strict=True)),
    }
    return standardized_autocorrelation(filled.density, settings.size, settings.voxel, settings.field), row


def statistics(
    density: ChargeDensity,
    settings: FeatureSettings = FeatureSettings(),
    valence: Valence | None = None,
    calibration: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Floats, Floats]:
    """What :func:`bundled_features` keeps of one density: distinct values of the autocorrelation, and quantiles (e/Å³).

    Raises:
        EcdError: see :func:`featurize`.
    """
    correlation, row = featurize(density, settings, valence, calibration)
    return cubic_average(correlation), np.array([row[name] for name in QUANTILE_NAMES])


def expand_sources(sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Each store (``*.h5``) becomes one ``file.h5::name`` per crystal, in an order that reads fast; files stay."""
    expanded: list[str] = []
    for source in (os.fspath(s) for s in sources):
        if os.path.exists(source):
            source = os.path.abspath(source)  # workers elsewhere have another current folder
        if source.endswith(".h5") and os.path.isfile(source):
            try:
                table = DensityStore(source).table.sort_values(["grid", "spacegroup"], kind="stable")
            except EcdError:  # reported when its turn comes
                expanded.append(f"{source}::*")
                continue
            expanded += [f"{source}::{name}" for name in table.index]
        else:
            expanded.append(source)
    return expanded


def _work(sources: list[str], settings: FeatureSettings) -> list[tuple[str, Floats | None, dict[str, Any]]]:
    """Featurize a few sources in a worker; a failure becomes a row with ``error``."""
    results: list[tuple[str, Floats | None, dict[str, Any]]] = []
    for source in sources:
        try:
            features, row = featurize(read_density(source), settings)
            results.append((source, features.astype(np.float32), {"source": source, **row}))
        except Exception as error:  # whatever one file does, the others go on
            message = str(error) if isinstance(error, EcdError) else f"{source}: {type(error).__name__}: {error}"
            results.append((source, None, {"source": source, "name": source, "error": message}))
    return results


def _check_space(out: Path, settings: FeatureSettings) -> None:
    """Refuse to go on where the disk is nearly full: HDF5 would crash and leave a damaged file."""
    if shutil.disk_usage(out.parent).free < 16 * settings.size**3 + 2**20:
        raise EcdError(out, "no disk space left", "Free some and run the same again: it goes on where it stopped.")


def _resume(partial: Path, settings: FeatureSettings) -> set[str]:
    """Sources that an interrupted run has left in ``partial``; the file is made if it is not there."""
    label, shape = json.dumps(asdict(settings)), (settings.size,) * 3
    if not partial.exists():
        with h5py.File(partial, "w") as h:
            h.attrs["settings"] = label
            h.create_dataset("features", (0, *shape), "f4", maxshape=(None, *shape), chunks=(1, *shape))
            for key in ("source", "report"):
                h.create_dataset(key, (0,), h5py.string_dtype(), maxshape=(None,))
    try:
        with h5py.File(partial) as h:
            found, done = h.attrs["settings"], set(h["source"].asstr()[:]) - {""}  # an entry cut off
    except BlockingIOError as error:
        remedy = "Wait for it, or choose another file."
        raise Busy(partial, "is being written by another run", remedy) from error
    except (OSError, KeyError) as error:
        remedy = "Remove it and run again."
        raise EcdError(partial, "is left from an interrupted run and damaged", remedy) from error
    if found != label:
        raise EcdError(partial, "holds an interrupted run of other settings", "Remove it, or use its settings.")
    return done


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

    Results are appended to ``<out>.partial``; if a run is interrupted, the next one goes on from there. A source that
    cannot be used is reported in the returned table and does not stop the run.

    Args:
        sources: density files, and stores (all their crystals).
        out: file to write: ``features (n, size, size, size)`` float32, ``source``, ``report`` (one JSON text
            each), and the settings as JSON in the attribute ``settings``.
        scheduler: address of a Dask scheduler; by default processes on this machine.
        workers: local processes, by default one a core.

    Returns:
        One row per source (see :func:`featurize`), with a column ``error`` that is empty where all went well.

    Raises:
        EcdError: no usable source at all, an ``out.partial`` of other settings or sources, no disk space, or no
            answer from the scheduler.
    """
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    todo = list(dict.fromkeys(expand_sources(sources)))
    failed: list[dict[str, Any]] = []
    kept = int(partial.exists())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out, settings)
        done = _resume(partial, settings)
        if done - set(todo):
            raise EcdError(partial, "holds an interrupted run of other sources", "Remove it, or give its sources too.")
        kept = len(done)
        rest = [s for s in todo if s not in done]
        workers = workers or available_cores()
        per_chunk = max(1, min(16, len(rest) // (4 * workers)))
        chunks = [rest[i : i + per_chunk] for i in range(0, len(rest), per_chunk)]
        bar = tqdm(
            total=len(todo), initial=len(todo) - len(rest), unit="density", desc="Featurizing", disable=not progress
        )
        with h5py.File(partial, "a") as h, bar:
            for results in map_chunks(_work, chunks, settings, scheduler=scheduler, workers=workers):
                for source, features, row in results:
                    if features is None:
                        failed.append(row)
                        continue
                    _check_space(out, settings)
                    for key, value in (("features", features), ("report", json.dumps(row)), ("source", source)):
                        h[key].resize(kept + 1, axis=0)
                        h[key][kept] = value
                    kept += 1
                h.flush()
                bar.update(len(results))
            rows = [json.loads(text) for text in h["report"].asstr()[:]]
        if not rows:
            problem = failed[0]["error"] if failed else "Give at least one density."
            raise EcdError(failed[0]["name"] if failed else out, "no usable density", problem)
        os.replace(partial, out)
    except OSError as error:
        raise EcdError(out, f"cannot be written ({error})", "Free disk space or choose another folder.") from error
    finally:
        if not kept:
            with suppress(OSError):  # not there, or the folder is none
                partial.unlink()
    table = pd.DataFrame(rows + failed).assign(error=lambda t: t["error"].fillna("") if "error" in t else "")
    return table.set_index("name")


def load_features(path: str | os.PathLike[str]) -> tuple[Floats, pd.DataFrame, FeatureSettings]:
    """Read what :func:`featurize_collection` wrote: features ``(n, size, size, size)``, report, settings.

    Raises:
        EcdError: missing or damaged file.
    """
    try:
        with h5py.File(path) as h:
            report = pd.DataFrame([json.loads(text) for text in h["report"].asstr()[:]]).set_index("name")
            return h["features"][:], report, FeatureSettings(**json.loads(h.attrs["settings"]))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise EcdError(path, "is not a readable feature file", "Make it with `ecd featurize`.") from error


def bundled_features(
    settings: FeatureSettings = FeatureSettings(), names: Sequence[str] | None = None
) -> tuple[Floats, pd.DataFrame]:
    """Features of bundled crystals, reduced to the values that are distinct under m-3m.

    Computed once for each settings, names, data and code (``_build/cache``), then read.

    Args:
        names: crystals wanted; by default the selection ``densities-988``.

    Returns:
        ``(n, k)`` values (see :func:`cubic_average`) and the report, in the order of the names.
    """
    stores = [data_file(f"ecd_{which}.h5") for which in ("cubic", "general")]
    names = load_selection("densities-988") if names is None else list(names)

    def make() -> Arrays:
        sources = [
            s for s in expand_sources([data_file(path.name) for path in stores]) if s.split("::")[1] in set(names)
        ]
        with TemporaryDirectory() as folder:
            full = Path(folder) / "features.h5"
            table = featurize_collection(sources, full, settings)
            bad = table.index[table["error"] != ""]
            if len(bad):
                raise EcdError(bad[0], "a bundled density could not be featurized", str(table["error"][bad[0]]))
            with h5py.File(full) as h:
                reduced = np.stack([cubic_average(features) for features in h["features"]])
                report = pd.DataFrame([json.loads(text) for text in h["report"].asstr()[:]])
        order = pd.Index(report["name"]).get_indexer(names)
        text = report.iloc[order].to_json(orient="records", double_precision=15)
        return {"features": reduced[order], "report": np.array(text)}

    found = cached("features", make, settings, names)
    report = pd.DataFrame(json.loads(str(found["report"]))).set_index("name")
    return found["features"].astype(np.float64), report
