"""Errors as the papers define them, and the one cross-validation for all models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import KFold
from tqdm import tqdm

from ecdlib.density.core import Floats


def nmae(truth: Floats, prediction: Floats) -> float:
    """Normalized mean absolute error in percent (Lean CNN paper, section 4): mean |S - Ŝ| / |mean S| · 100."""
    return float(np.abs(truth - prediction).mean() / abs(np.mean(truth)) * 100)


def scores(truth: Floats, prediction: Floats) -> dict[str, float]:
    """``MAE`` and ``RMSE`` in the target's unit, ``R2``, ``NMAE`` in percent (see :func:`nmae`)."""
    truth, prediction = np.asarray(truth, dtype=float), np.asarray(prediction, dtype=float)
    residual = truth - prediction
    return {
        "MAE": float(np.abs(residual).mean()),
        "RMSE": float(np.sqrt((residual**2).mean())),
        "R2": float(1 - (residual**2).sum() / ((truth - truth.mean()) ** 2).sum()),
        "NMAE": nmae(truth, prediction),
    }


def deal(n: int, folds: int, seed: int) -> NDArray[np.int8]:
    """Number of the fold of each of ``n`` samples, shuffled."""
    number = np.empty(n, dtype=np.int8)
    for k, (_, part) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(number)):
        number[part] = k
    return number


def cross_validate(
    make_model: Callable[[], Any], X: Floats, y: Floats, folds: int = 10, seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """Out-of-fold predictions of a scikit-learn estimator; all that is fitted is fitted on the training part.

    Args:
        make_model: returns a fresh, unfitted estimator (a pipeline, if features are scaled or reduced).
        X: ``(n, ...)`` features.
        y: ``(n,)`` target.
        folds, seed: shuffled K-fold split.

    Returns:
        One row per sample: ``fold``, ``truth``, ``prediction``, and ``std`` where the model gives one, else NaN.
    """
    rows = pd.DataFrame({"fold": -1, "truth": np.asarray(y, dtype=float), "prediction": np.nan, "std": np.nan})
    split = KFold(folds, shuffle=True, random_state=seed).split(X)
    for fold, (train, test) in enumerate(tqdm(split, total=folds, desc="Folds", disable=not progress)):
        model = make_model().fit(X[train], np.asarray(y)[train])
        try:
            prediction, std = model.predict(X[test], return_std=True)
        except TypeError:  # estimators without an uncertainty do not know the argument
            prediction, std = model.predict(X[test]), np.nan
        rows.loc[test, "fold"] = fold
        rows.loc[test, "prediction"] = prediction
        rows.loc[test, "std"] = std
    return rows
