"""Errors as the papers define them."""

from __future__ import annotations

import numpy as np

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
