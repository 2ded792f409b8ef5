"""A model of structures trained on a user's own labels: ``ecd train --labels mine.csv``."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from ecdlib.base.archive import write_archive
from ecdlib.base.errors import EcdError, check_input
from ecdlib.base.pieces import in_pieces
from ecdlib.base.resources import sha256
from ecdlib.data.structures import parse_structure, read_structure
from ecdlib.density.core import Floats
from ecdlib.density.io import read_density
from ecdlib.density.superpose import structure_of
from ecdlib.features.crystal import HEAVIEST, crystal_features
from ecdlib.learn.any_crystal import INNER_FOLDS, LEARNABLE, STRUCTURE, Learned, PropertyModel, scaled, take, unscaled
from ecdlib.learn.crystal_model import HalfPrecision, fit_property, shared_arrays, space_group, standard
from ecdlib.learn.evaluation import scores
from ecdlib.learn.intervals import membership
from ecdlib.learn.protocol import folds_of, grouped_folds, joined, run_fits
from ecdlib.models.stacked import COVERAGE

#: Fewer crystals do not tell a model from a guess.
FEWEST = 30
#: Ratio of the largest label to the smallest, from which on logarithms are learned.
WIDE = 20.0
FOLDS = 5
#: Crystals of one formula and space group whose volumes are that near are the same.
SAME_VOLUME = 1e-3
#: Columns that hold the crystals, if there is one of these; else it is the first column.
CRYSTALS = ("file", "structure", "cif", "path")
CHUNK = 200  # crystals whose features make a piece


@dataclass(frozen=True)
class OwnLabels:
    """A user's table, checked."""

    column: str
    unit: str
    structures: list[Structure]
    labels: Floats  #: ``(n,)``

    @property
    def learned(self) -> Learned:
        """How the labels are learned: as logarithms where they are positive and vary over more than :data:`WIDE`."""
        low, high = float(self.labels.min()), float(self.labels.max())
        return Learned(self.unit, "log" if low > 0.01 and high > WIDE * low else "linear", signed=low < 0)


def read_labels(path: str | os.PathLike[str], column: str = "", unit: str = "") -> OwnLabels:
    """Read and check a CSV file with one crystal a row.

    Args:
        path: a column of files of structures or densities (relative to the CSV), names of labelled crystals, or texts
            (CIF, POSCAR, pymatgen's JSON): one of :data:`CRYSTALS`, or the first; and a column of numbers. Of a density
            its structure is taken.
        column: of the numbers; may be left out if only one column holds numbers.
        unit: of the numbers; may be left out if the column is called like ``K (GPa)`` or like a property that is known
            here. ``"1"`` for pure numbers.

    Raises:
        EcdError: no such file or column, a crystal that cannot be read, a label that is no number, the same crystal
            twice, fewer than :data:`FEWEST` crystals, labels that are all the same, an unknown unit.
    """
    path = check_input(path)
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise EcdError(path, f"is no table ({error})", "Give a CSV file with a line of column names.") from error
    if table.empty:
        raise EcdError(path, "holds no crystals", f"At least {FEWEST} are needed.")
    crystals = next((c for c in table.columns if str(c).lower() in CRYSTALS), table.columns[0])
    others = {str(c): pd.to_numeric(table[c], errors="coerce") for c in table.columns if c != crystals}
    shares = {name: float(np.isfinite(values).mean()) for name, values in others.items()}
    numeric: list[str] = []
    for enough in (1.0, 0.5, 1 / len(table)):  # complete columns, else those that are numbers mostly, else in part
        numeric = numeric or [name for name, share in shares.items() if share >= enough]
    column = column or (numeric[0] if len(numeric) == 1 else next(iter(others)) if len(others) == 1 else "")
    if others and not numeric and not column:
        first = ", ".join(f"'{name}' holds {_shown(table[name].iloc[0])}" for name in others)
        raise EcdError(
            path, f"has no column of numbers: in row 2, {first}", "Write the labels as plain numbers, as 12.5."
        )
    if column not in others:
        what = f"has no column '{column}'" if column else f"has {len(numeric)} columns of numbers"
        remedy = f"Name one with --column: {', '.join(others)}." if others else "Add one with the labels."
        raise EcdError(path, what, remedy)
    labels = others[column].to_numpy(dtype=float)
    if (bad := np.flatnonzero(~np.isfinite(labels))).size:
        shown = _shown(table[column].iloc[int(bad[0])])
        what = f"has no number in '{column}' in {_rows(bad)}, which holds {shown}"
        what = what.replace(", which holds", ", the first of which holds") if bad.size > 1 else what
        raise EcdError(path, what, "Write a plain number, as 12.5, or leave the row out.")
    if len(table) < FEWEST:
        raise EcdError(path, f"holds {len(table)} crystals", f"At least {FEWEST} are needed.")
    if np.ptp(labels) < 1e-9 * np.abs(labels).max():
        raise EcdError(path, f"has the same label in every row of '{column}'", "Nothing can be learned from it.")
    stated = re.search(r"[(\[](.+)[)\]]\s*$", column)
    unit = unit or (stated[1] if stated else LEARNABLE[column].unit if column in LEARNABLE else "")
    if not unit:
        raise EcdError(
            path, f"the unit of '{column}' is not known", "Say it: --unit GPa, or --unit 1 for pure numbers."
        )
    structures = [_crystal(text, row, path) for row, text in enumerate(table[crystals].astype(str))]
    _check_distinct(structures, path)
    return OwnLabels(column, "" if unit == "1" else unit, structures, labels)


def _shown(held: Any) -> str:
    """What a field of the table holds, in words."""
    return "nothing" if pd.isna(held) else f"'{str(held)[:40]}'"


def _rows(numbers: Any) -> str:
    """Rows as a spreadsheet counts them, the line of names being the first."""
    shown = ", ".join(str(n + 2) for n in numbers[:5])
    return f"row{'s' * (len(numbers) > 1)} {shown}{', ...' * (len(numbers) > 5)}"


def _crystal(text: str, row: int, path: Path) -> Structure:
    file = path.parent / text
    try:
        if "\n" in text or text.lstrip().startswith("{"):
            found = read_structure(parse_structure(text))
        else:
            found = _read(file if file.is_file() or "::" in text else text)
    except (EcdError, ValueError, OSError) as error:
        raise EcdError(f"{path}, {_rows([row])}", f"{error}", "Leave the row out, or correct it.") from error
    if heavy := sorted({site.specie.symbol for site in found if site.specie.Z > HEAVIEST}):
        raise EcdError(f"{path}, {_rows([row])}", f"holds {', '.join(heavy)}", "Elements up to Pu are known here.")
    return found


def _read(source: Path | str) -> Structure:
    """The structure of a file of either kind, or of a name."""
    try:
        return read_structure(source)
    except EcdError as error:
        try:
            return structure_of(read_density(source))
        except EcdError:
            raise error from None


def _formula(structure: Structure) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's remark that He, Ne and Ar have no electronegativity
        return structure.composition.reduced_formula


def _names(structures: Sequence[Structure]) -> list[str]:
    return [f"{_formula(s)}_{space_group(s)}" for s in structures]


def _check_distinct(structures: Sequence[Structure], path: Path) -> None:
    volumes = [s.volume / len(s) for s in structures]
    table = pd.DataFrame({"name": _names(structures), "volume": np.log(volumes)}).sort_values(["name", "volume"])
    twice = (table["name"].shift() == table["name"]) & (table["volume"].diff() < SAME_VOLUME)
    if twice.any():
        second = int(np.flatnonzero(twice)[0])
        both = sorted(int(i) for i in table.index[second - 1 : second + 1])
        raise EcdError(path, f"holds the same crystal twice, in {_rows(both)}", "Keep one row of each crystal.")


def train_on_labels(data: OwnLabels, source: Path, out: Path, progress: bool = True) -> pd.Series:
    """Train, cross-validate and write a model that ``ecd predict --model`` takes; resumes.

    The model is that of :class:`ecdlib.learn.any_crystal.PropertyModel`, on structures alone. All crystals of one
    formula are in the same fold, inner or outer, so that no polymorph gives an answer away. Intervals are as wide as
    the cross-validation says they must be (:func:`wider`).

    Args:
        source: file of the table, whose hash stands in the provenance.
        out: file to write (``.npz``).

    Returns:
        ``MAE``, ``RMSE``, ``R2`` of the cross-validation, ``MAE of the mean`` (of the training crystals, as a model
        that knows nothing), ``within`` (share of labels within the 95 % interval, whose width is that of the other
        folds), ``crystals``.
    """
    formulas = np.array([_formula(s) for s in data.structures])
    fold, inner = grouped_folds(formulas, FOLDS, 0), grouped_folds(formulas, INNER_FOLDS, 1)
    parameters = {"labels": sha256(source), "column": data.column, "unit": data.unit}
    labels, learned = data.labels, data.learned
    with in_pieces(out, "ecd train", parameters) as pieces:
        cells = [standard(s) for s in data.structures]
        parts = [
            pieces.made(f"features-{start:06d}", crystal_features, cells[start : start + CHUNK], progress)
            for start in range(0, len(cells), CHUNK)
        ]
        blocks = {name: np.concatenate([part[name] for part in parts]) for name in STRUCTURE}

        def fit(f: Any) -> dict[str, Floats]:
            model = PropertyModel(data.column, learned=learned)
            model.fit(take(blocks, f.train), labels[f.train], fold=inner[f.train])
            predicted = np.full((len(labels), 4), np.nan)
            predicted[f.test, :3], predicted[f.test, 3] = model.predict(take(blocks, f.test)), labels[f.train].mean()
            return {"predicted": predicted}

        fits = folds_of(fold)
        run_fits(pieces, fits, fit, progress)
        value, low, high, mean = joined(pieces, fits).T
        found = pd.Series(scores(labels, value)).drop("NMAE")
        found["MAE of the mean"] = np.abs(labels - mean).mean()
        ratio = beyond(labels, value, low, high, learned)
        found["within"] = float((ratio <= [wider(ratio[fold != k]) for k in fold]).mean())
        found["crystals"] = len(labels)
        scaler = HalfPrecision(STRUCTURE).fit(blocks)
        frame = pd.DataFrame({data.column: labels}, index=_distinct_names(data.structures))
        member = membership([space_group(s) for s in data.structures], blocks["elements"])
        piece = fit_property(data.column, "structure", frame, blocks, scaler, member, {}, learned, inner)
        del piece["ratio"]
        piece["factors"][-1] += np.log(factor := wider(ratio))
        piece["out of fold"] = stretched(piece["out of fold"], factor, learned)
        arrays = shared_arrays(frame.index.to_numpy(), blocks, scaler)
        arrays |= {f"{data.column}/{key}": value for key, value in piece.items()}
        meta: dict[str, Any] = {
            "kind": "crystal",
            "inputs": "structure",
            "targets": [data.column],
            "learned": {data.column: asdict(learned)},
        }
        meta |= {"errors": {data.column: found["MAE"]}, "provenance": pieces.provenance()}
        write_archive(out, arrays, meta)
    return found


def beyond(labels: Floats, value: Floats, low: Floats, high: Floats, learned: Learned) -> Floats:
    """How far each label lies from its prediction, in halves of its interval, on the scale that is learned ``(n,)``."""
    y, x, below, above = (scaled(values, learned) for values in (labels, value, low, high))
    return np.asarray(np.abs(y - x) / np.maximum(np.where(y < x, x - below, above - x), 1e-12))


def wider(ratio: Floats) -> float:
    """How much wider intervals must be to hold :data:`ecdlib.models.stacked.COVERAGE` of new crystals.

    A model fitted to few crystals knows them too well, its inner folds included. The quantile is that of conformal
    prediction: of n distances the (n + 1) · 0.95th smallest.

    Args:
        ratio: see :func:`beyond`, of crystals in folds that the models have not seen.

    Example:
        >>> wider(np.arange(1, 20) / 10), wider(np.arange(1, 40) / 10)
        (1.9, 3.8)
    """
    level = min(1.0, np.ceil((len(ratio) + 1) * COVERAGE) / len(ratio))
    return float(np.quantile(ratio, level, method="inverted_cdf"))


def stretched(answers: Floats, factor: float, learned: Learned) -> Floats:
    """Values, lows and highs ``(n, 3)`` with intervals that many times as wide, on the scale that is learned."""
    value, low, high = (scaled(column, learned) for column in answers.T.astype(float))
    ends = [value, value - factor * (value - low), value + factor * (high - value)]
    return np.stack([unscaled(end, learned) for end in ends], axis=1).astype(np.float32)


def _distinct_names(structures: Sequence[Structure]) -> list[str]:
    """Formula and space group; of several crystals that share both, a number sets the later ones apart."""
    names = pd.Series(_names(structures))
    number = names.groupby(names).cumcount()
    return list(names.where(number == 0, names + " " + (number + 1).astype(str)))
