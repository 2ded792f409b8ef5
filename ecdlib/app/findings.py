"""What a page says of a crystal: computed in a process of its session, and written as a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ecdlib.app.uploads import Source
from ecdlib.base.errors import EcdError
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.superpose import structure_of
from ecdlib.density.valence import to_ours
from ecdlib.learn.answer import AUTO, answer, named, structure_model
from ecdlib.learn.domain import DEFAULT_MODEL
from ecdlib.learn.explained import interval_parts
from ecdlib.learn.latents import LatentDatabase, load_latents

if TYPE_CHECKING:
    from pymatgen.core import Structure

CSV_COLUMNS = [
    "file",
    "model",
    "property",
    "value",
    "low",
    "high",
    "std",
    "unit",
    "conversion",
    "conversion_std",
    "warnings",
    "nearest",
    "distance",
]


#: The name of the model of structures together with the foundation potential.
WITH_POTENTIAL = f"{AUTO} with sevennet"


@lru_cache(maxsize=1)
def latent_database() -> LatentDatabase:
    """The bundled one."""
    return load_latents()


def nearness(database: LatentDatabase, latent: Floats) -> tuple[pd.Series, float]:
    """The five nearest crystals of the database with their distances, and how usual the smallest distance is.

    Returns:
        Names and distances, and the percentage of database crystals whose nearest neighbour is nearer than that.
    """
    nearest = database.nearest(latent)
    closer = np.searchsorted(database.spacing, float(nearest.iloc[0]))
    return nearest, 100 * float(closer) / len(database.spacing)


def nearness_text(nearest: pd.Series, percentile: float) -> str:
    """The result of :func:`nearness` in words."""
    head = f"The nearest crystal is {nearest.index[0]}, at a distance of {nearest.iloc[0]:.2f}."
    if percentile == 0:
        return (
            f"{head} No two crystals of the database are this close to each other: this is one of them, or nearly so."
        )
    if percentile <= 75:
        verdict = "The density is as close as the crystals of the database usually are."
    elif percentile <= 95:
        verdict = "The density is rather far from the database."
    else:
        verdict = "The density is far from the database: do not rely on the prediction."
    return f"{head} In the database, {percentile:.0f} % of the crystals have a neighbour closer than that. {verdict}"


@dataclass(frozen=True)
class Finding:
    """What one crystal and one model gave."""

    formula: str
    records: list[dict[str, Any]]  #: see :class:`ecdlib.learn.answer.Answer`, with ``nearest`` and ``distance``
    parts: pd.DataFrame  #: of the intervals, see :func:`ecdlib.learn.explained.interval_parts`
    nearest: pd.Series | None  #: None where no latent could be made
    words: str  #: how near the database it is, or why that is unknown


def examine(crystal: ChargeDensity | Structure, name: str, model: str) -> Finding:
    """Predict, and look for neighbours: of the model of structures in its training set, else in the latent database.

    Raises:
        EcdError: a crystal that the model cannot take.
    """
    nearest, words = None, ""
    structure = structure_of(crystal) if isinstance(crystal, ChargeDensity) else crystal
    if model in (AUTO, WITH_POTENTIAL):
        done = answer(crystal, potential=model == WITH_POTENTIAL)
        nearest = structure_model().nearest(structure)
        words = f"The nearest training crystal is {nearest.index[0]}, at a distance of {nearest.iloc[0]:.2f}."
    elif not isinstance(crystal, ChargeDensity):
        raise EcdError(name, f"holds no density, which {model} needs", f"Choose {AUTO}, or give a CHGCAR.")
    else:
        done = answer(crystal, model)
        try:
            nearest, percentile = nearness(latent_database(), latent_database().autoencoder.latent(to_ours(crystal)))
            words = nearness_text(nearest, percentile)
        except EcdError as error:
            words = str(error)
    first, distance = (nearest.index[0], float(nearest.iloc[0])) if nearest is not None else ("", np.nan)
    records = [{**r, "nearest": first, "distance": distance} for r in named(done, name).records]
    formula = structure.composition.reduced_formula
    return Finding(formula, records, interval_parts(records, structure), nearest, words)


def in_title(record: Mapping[str, Any]) -> str:
    """A property as the page calls it, with its unit."""
    words = record["property"].replace("youngs", "Young's").replace("debye", "Debye")
    if record["model"] == DEFAULT_MODEL and words == "total energy":
        words += " to the atoms of GPAW"  # not comparable to that of the Materials Project
    return f"{words} ({record['unit']})" if record["unit"] else words


def overview(findings: Mapping[str, Finding]) -> pd.DataFrame:
    """All crystals, one a row: file, formula, all values to four digits, nearest crystal and its distance."""
    rows = [
        {"file": file, "formula": finding.formula}
        | {in_title(r): float(f"{r['value']:.4g}") for r in finding.records}
        | {"nearest": r["nearest"], "distance": round(r["distance"], 2), "warnings": len(r["warnings"])}
        for file, finding in findings.items()
        for r in finding.records[:1]
    ]
    return pd.DataFrame(rows)


def examine_source(source: Source, model: str, folder: Path) -> Finding | EcdError:
    """What a model says of a file or crystal; an error is returned."""
    try:
        return examine(source.read(folder), source.shown, model)
    except Exception as error:
        return in_words(source.shown, error)


def in_words(name: str, error: Exception) -> EcdError:
    """What to tell the user; what nobody foresaw goes to the terminal."""
    if isinstance(error, EcdError):
        return error
    if isinstance(error, TimeoutError | ChildProcessError | MemoryError):
        why = str(error) if isinstance(error, TimeoutError) else "needs too much memory"
        return EcdError(name, why, "Use `ecd predict`, which has no limits.")
    logging.getLogger(__name__).error("%s", name, exc_info=error)
    return EcdError(name, "could not be evaluated", "See the terminal for what went wrong.")


def to_csv(findings: list[Finding]) -> str:
    """All results as CSV, one row for each file and property."""
    rows = [{**r, "warnings": "; ".join(r["warnings"])} for finding in findings for r in finding.records]
    return pd.DataFrame(rows, columns=CSV_COLUMNS).to_csv(index=False)
