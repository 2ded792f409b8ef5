"""Which crystals train and which test: the one place for folds, and the one loop over the fits of a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecdlib.base.pieces import Pieces
from ecdlib.base.progress import tqdm
from ecdlib.density.core import Floats

Mask = NDArray[np.bool_]


def fold_numbers(n: int, folds: int, seed: int) -> NDArray[np.int8]:
    """``(n,)``: number of the fold that each sample tests in, shuffled."""
    from sklearn.model_selection import KFold

    number = np.empty(n, dtype=np.int8)
    for k, (_, part) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(number)):
        number[part] = k
    return number


def grouped_folds(group: Sequence[Any] | NDArray[Any], folds: int, seed: int) -> NDArray[np.int8]:
    """The same for samples that belong together: all of one group are in the same fold."""
    kinds, number = np.unique(np.asarray(group), return_inverse=True)
    return fold_numbers(len(kinds), min(folds, len(kinds)), seed)[number]


@dataclass(frozen=True)
class Fit:
    """A model to be fitted: the crystals that train it, and those for which its predictions count."""

    name: str
    train: Mask  #: ``(n,)``
    test: Mask  #: ``(n,)``


def folds_of(fold: NDArray[Any], name: str = "fold", among: Mask | None = None) -> list[Fit]:
    """The fits of a cross-validation, named ``name-k``.

    Args:
        fold: ``(n,)`` number of the fold of each sample.
        among: ``(n,)`` samples that take part; by default all.
    """
    among = np.ones(len(fold), dtype=bool) if among is None else among
    return [Fit(f"{name}-{k}", among & (fold != k), among & (fold == k)) for k in np.unique(fold[among])]


def run_fits(
    pieces: Pieces, fits: Iterable[Fit], fit: Callable[[Fit], Mapping[str, Any]], progress: bool | str = True
) -> None:
    """Make each fit that is not finished, one piece each.

    Args:
        fit: fits and predicts; returns the arrays of the piece.
        progress: whether to print a line before each fit, or how that line begins.
    """
    for number, f in enumerate(fits := list(fits), 1):
        if progress and f.name not in pieces:
            what = f"{progress}: " if isinstance(progress, str) else ""
            print(f"[{number}/{len(fits)}] {what}{f.name}, {f.train.sum()} crystals", flush=True)
        pieces.made(f.name, fit, f)


def joined(pieces: Pieces, fits: Iterable[Fit], key: str = "predicted") -> Floats:
    """An array of the fits' pieces as one: where several have a value, the last one's; NaN where none has."""
    whole: Any = np.nan
    for values in (pieces.load(f.name)[key] for f in fits):
        whole = np.where(np.isnan(values), whole, values)
    return np.asarray(whole, dtype=float)


def cross_validate(
    make_model: Callable[[], Any], X: Floats, y: Floats, folds: int = 10, seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """Out-of-fold predictions of a scikit-learn estimator; all that is fitted is fitted on the training part.

    Args:
        make_model: returns a fresh, unfitted estimator (a pipeline, if features are scaled or reduced).
        X: ``(n, ...)`` features.
        y: ``(n,)`` target.
        folds, seed: see :func:`fold_numbers`.

    Returns:
        One row per sample: ``fold``, ``truth``, ``prediction``, and ``std`` where the model gives one, else NaN.
    """
    fold, y = fold_numbers(len(y), folds, seed), np.asarray(y)
    rows = pd.DataFrame({"fold": fold.astype(int), "truth": y.astype(float), "prediction": np.nan, "std": np.nan})
    for f in tqdm(folds_of(fold), desc="Folds", disable=not progress):
        model = make_model().fit(X[f.train], y[f.train])
        try:
            prediction, std = model.predict(X[f.test], return_std=True)
        except TypeError:  # estimators without an uncertainty do not know the argument
            prediction, std = model.predict(X[f.test]), np.nan
        rows.loc[f.test, "prediction"] = prediction
        rows.loc[f.test, "std"] = std
    return rows
