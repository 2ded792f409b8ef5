"""Trivial controls: errors that a model has to beat before its own mean anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures

from ecdlib.density.core import Floats
from ecdlib.features.autocorrelation import QUANTILES

FLOOR = 1e-4  # e/Å³, taken for a median density that is smaller


def controls(log_target: bool) -> dict[str, Callable[[], Any]]:
    """Makers of two unfitted estimators by name; both take the quantiles of the density, ``(n, 12)`` in e/Å³.

    The first predicts the mean of the training crystals and ignores its input. The second fits a parabola in one
    number, the logarithm of the median density.

    Args:
        log_target: the parabola is fitted to the logarithm of the target, for positive properties.

    Example:
        >>> quantiles = np.exp(np.linspace(-2, 1, 9))[:, None] * np.ones(12)
        >>> K = 30 * quantiles[:, 0] ** 1.5
        >>> mean, parabola = (make().fit(quantiles, K).predict(quantiles[:1]) for make in controls(True).values())
        >>> bool(np.isclose(mean, K.mean()).all()), bool(np.isclose(parabola, K[0]).all())
        (True, True)
    """

    def parabola() -> Any:
        median = FunctionTransformer(_log_median)
        model = make_pipeline(median, PolynomialFeatures(2), LinearRegression())
        return TransformedTargetRegressor(model, func=np.log, inverse_func=np.exp) if log_target else model

    return {"mean of the training crystals": DummyRegressor, "parabola in the log of the median density": parabola}


def _log_median(quantiles: Floats) -> Floats:
    """``(n, 1)`` logarithms of the median of the density."""
    return np.log(np.maximum(quantiles[:, [QUANTILES.index(0.5)]], FLOOR))
