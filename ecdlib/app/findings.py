"""What a page says of a crystal: computed in a process of its session, and written as a table."""

from __future__ import annotations

import logging
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


@lru_cache(maxsize=1)
def latent_database() -> LatentDatabase:
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

    records: list[dict[str, Any]]  #: see :class:`ecdlib.learn.answer.Answer`, with ``nearest`` and ``distance``
    nearest: pd.Series | None  #: None where no latent could be made
    words: str  #: how near the database it is, or why that is unknown


def examine(crystal: ChargeDensity | Structure, name: str, model: str) -> Finding:
    """Predict, and look for neighbours: of the model of structures in its training set, else in the latent database.

    Raises:
        EcdError: a crystal that the model cannot take.
    """
    nearest, words = None, ""
    if model == AUTO:
        structure = structure_of(crystal) if isinstance(crystal, ChargeDensity) else crystal
        done = answer(crystal)
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
    return Finding(records, nearest, words)


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
