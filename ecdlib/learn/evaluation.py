"""Errors as the papers define them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ecdlib.density.core import Floats


def nmae(truth: Floats, prediction: Floats) -> float:
    """Normalized mean absolute error in percent (Lean CNN paper, section 4): mean |S - Ŝ| / |mean S| · 100."""
    return float(np.abs(truth - prediction).mean() / abs(np.mean(truth)) * 100)


def mape(truth: Floats, prediction: Floats) -> float:
    """Mean absolute percentage error, of the samples whose value is not within 1 % of the largest from zero."""
    away = np.abs(truth) > 0.01 * np.abs(truth).max()
    return float(np.abs((prediction - truth) / np.where(away, truth, 1))[away].mean() * 100)


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


def in_order(family: pd.Series, truth: pd.Series, prediction: pd.Series) -> pd.Series:
    """Share of the pairs within a family that a prediction puts in the right order; half is chance.

    Args:
        family: of each crystal, say its formula if polymorphs are to be told apart.
        truth, prediction: of each crystal; the same index.

    Returns:
        One value for each family with two different true values.

    Example:
        >>> family = pd.Series(["SiO2", "SiO2", "TiO2", "TiO2", "ZnO"])
        >>> in_order(family, pd.Series([1.0, 2, 3, 4, 5]), pd.Series([10.0, 20, 4, 3, 9])).to_dict()
        {'SiO2': 1.0, 'TiO2': 0.0}
    """
    found = {}
    pair = [x.loc[family.index].to_numpy() for x in (truth, prediction)]
    for name, rows in sorted(family.groupby(family).indices.items()):
        if len(rows) < 2:
            continue
        i, j = np.triu_indices(len(rows), 1)
        true, said = (np.sign(x[rows[i]] - x[rows[j]]) for x in pair)
        if true.any():
            found[name] = float((true == said)[true != 0].mean())
    return pd.Series(found, dtype=float)


def resampled_ranks(X: pd.DataFrame, y: pd.Series, resamples: int, seed: int = 0) -> Floats:
    """Spearman's rank correlation of each column with ``y``, on samples drawn with replacement.

    Returns:
        ``(resamples, columns)``.
    """
    rng, found = np.random.default_rng(seed), np.empty((resamples, X.shape[1]))
    both = np.column_stack([X.to_numpy(dtype=float), y.to_numpy(dtype=float)])
    for i in range(resamples):
        found[i] = _rank_correlation(both[rng.integers(len(both), size=len(both))])
    return found


def rank_correlations(
    X: pd.DataFrame, y: pd.Series, resamples: int = 300, seed: int = 0, given: pd.Series | None = None
) -> pd.DataFrame:
    """Spearman's rank correlation of each column with ``y``, and where 95 % of the resamples lie.

    Args:
        X: one column for each quantity, rows as in ``y``.
        given: a quantity whose ranks are taken out of both first, by linear regression (partial correlation).

    Returns:
        ``value``, ``low``, ``high``; a row for each column of ``X``.

    Example:
        >>> x = pd.DataFrame({"same order": [1.0, 2, 4, 9], "other way": [4.0, 3, 2, 1]})
        >>> rank_correlations(x, pd.Series([0.1, 0.2, 0.3, 0.4]))["value"].round(3).tolist()
        [1.0, -1.0]
    """
    if given is not None:
        base = given.rank().to_numpy()
        rest = pd.concat([X.rank(), y.rank().rename("y")], axis=1)
        slope = rest.apply(lambda column: np.polyfit(base, column, 1)[0])
        rest = rest - np.outer(base, slope)
        X, y = rest.drop(columns="y"), rest["y"]
    value = _rank_correlation(np.column_stack([X.to_numpy(dtype=float), y.to_numpy(dtype=float)]))
    low, high = np.nanquantile(resampled_ranks(X, y, resamples, seed), [0.025, 0.975], axis=0)
    return pd.DataFrame({"value": value, "low": low, "high": high}, index=X.columns)


def _rank_correlation(both: Floats) -> Floats:
    """Of all columns but the last with the last."""
    from scipy.stats import rankdata

    ranks = rankdata(both, axis=0)
    ranks -= ranks.mean(0)
    norms = np.sqrt((ranks**2).sum(0))
    with np.errstate(invalid="ignore"):  # a column that is the same everywhere
        return np.asarray(ranks[:, :-1].T @ ranks[:, -1] / (norms[:-1] * norms[-1]))
