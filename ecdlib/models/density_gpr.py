"""The best model on the density here: a Gaussian process on the logarithms of 2-point and 1-point statistics.

It goes beyond the Lean CNN paper in three ways. Moduli and densities are positive and vary over orders of magnitude,
so their logarithms are compared. Quantiles of the density (1-point statistics) join the autocorrelations. And the
kernel has one length scale for each of these groups, found with the noise by maximizing the marginal likelihood of
the training part.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, RegressorMixin

from ecdlib.density.core import Floats
from ecdlib.features.autocorrelation import QUANTILES

FLOOR = 1e-6  # e/Å³, below which densities are taken as equal


class DensityGPR(RegressorMixin, BaseEstimator):
    """Gaussian process whose whole state is a few plain arrays (:attr:`state`), so that it can be stored.

    Matérn-5/2 kernel ``variance * k(sqrt(sum_g |Δz_g|² / l_g²))`` over groups g of features, with noise.

    Args:
        n_components: whitened principal components of the log autocorrelation.
        log_target: model the logarithm of the target, for positive properties; the value is then the median of the
            log-normal prediction, the standard deviation its own.
        channels: densities that each crystal is seen in (see :mod:`valence`); each has two groups of its own.
    """

    def __init__(self, n_components: int = 25, log_target: bool = False, channels: int = 1):
        self.n_components = n_components
        self.log_target = log_target
        self.channels = channels

    def _groups(self, X: Floats) -> list[Floats]:
        """Of each channel, whitened principal components and standardized log quantiles."""
        groups, s = [], self.state
        for i, part in enumerate(np.split(X, self.channels, axis=1)):
            correlations, quantiles = _logarithms(part)
            groups += [(correlations - s["centre"][i]) @ s["components"][i].T]
            groups += [(quantiles - s["mean"][i]) / s["scale"][i]]
        return groups

    def fit(self, X: Floats, y: Floats) -> Self:
        """Fit to ``X (n, channels * (k + 12))``, distinct autocorrelations and quantiles, and ``y (n,)``."""
        target = np.log(y) if self.log_target else np.asarray(y, dtype=np.float64)
        keep = min(self.n_components, len(X) - 1)
        parts = []
        for part in np.split(X, self.channels, axis=1):
            correlations, quantiles = _logarithms(part)
            centre, spread = correlations.mean(0), quantiles.std(0)
            _, singular, rows = np.linalg.svd(correlations - centre, full_matrices=False)
            components = rows[:keep] / (singular[:keep, None] / np.sqrt(len(X)))
            parts.append((centre, components, quantiles.mean(0), np.where(spread > 0, spread, 1.0)))
        names = ("centre", "components", "mean", "scale")
        self.state: dict[str, Any] = {
            name: np.stack(v) for name, v in zip(names, zip(*parts, strict=True), strict=True)
        }
        self.state |= {"offset": target.mean(), "unit": target.std()}
        groups = self._groups(X)
        z = (target - self.state["offset"]) / self.state["unit"]
        distances = [cdist(g, g, "sqeuclidean") for g in groups]
        start = np.log([10.0, *(np.sqrt(max(d.mean(), 1e-6)) for d in distances), 1e-2])
        limits = [(-4.6, 11.5), *[(-2.3, 9.2)] * len(groups), (-13.8, 2.3)]
        best = minimize(_negative_likelihood, start, (distances, z), jac=True, bounds=limits, method="L-BFGS-B")
        self.state |= {"hyperparameters": best.x, "training": np.hstack(groups).astype(np.float64), "z": z}
        self._prepare()
        return self

    def _split(self, rows: Floats) -> list[Floats]:
        """Columns of all groups side by side, group by group."""
        edges = np.cumsum([self.state["components"].shape[1], len(QUANTILES)] * self.channels)[:-1]
        return np.split(rows, edges, axis=1)

    def _prepare(self) -> None:
        s = self.state
        groups = self._split(s["training"])
        K, _ = _kernel(s["hyperparameters"], [cdist(g, g, "sqeuclidean") for g in groups])
        K[np.diag_indices_from(K)] += np.exp(s["hyperparameters"][-1])
        self._factor = cho_factor(K, lower=True)
        self._weights = cho_solve(self._factor, s["z"])

    def restore(self, state: dict[str, Any]) -> Self:
        """Take over what :attr:`state` of a fitted model holds.

        Raises:
            ValueError: of a model with another number of channels.
        """
        if len(state["components"]) != self.channels:
            raise ValueError(f"{len(state['components'])} channels, not {self.channels}")
        self.state = state
        self._prepare()
        return self

    def predict(self, X: Floats, return_std: bool = False) -> Any:
        """``(n,)`` predictions in the target's unit, and their standard deviations if asked for (noise included)."""
        s = self.state
        trained = self._split(s["training"])
        cross, _ = _kernel(
            s["hyperparameters"],
            [cdist(a, b, "sqeuclidean") for a, b in zip(self._groups(X), trained, strict=True)],
        )
        mean = cross @ self._weights * s["unit"] + s["offset"]
        value = np.exp(mean) if self.log_target else mean
        if not return_std:
            return value
        theta = np.exp(s["hyperparameters"])
        variance = theta[0] + theta[-1] - (cross.T * cho_solve(self._factor, cross.T)).sum(0)
        std = np.sqrt(np.maximum(variance, 0)) * s["unit"]
        return value, value * np.exp(std**2 / 2) * np.sqrt(np.expm1(std**2)) if self.log_target else std


def _logarithms(X: Floats) -> list[Floats]:
    """Logarithms of the correlations and of the quantiles."""
    log = np.log(np.maximum(np.asarray(X, dtype=np.float64), FLOOR))
    return np.split(log, [X.shape[1] - len(QUANTILES)], axis=1)


def _kernel(theta: Floats, distances: list[Floats]) -> tuple[Floats, Floats]:
    """Kernel matrix, and its derivative by each squared scaled distance."""
    squared = sum(d * np.exp(-2 * log_length) for d, log_length in zip(distances, theta[1:-1], strict=True))
    r = np.sqrt(5 * np.asarray(squared))
    decay = np.exp(theta[0] - r)
    return decay * (1 + r + r**2 / 3), -5 / 6 * decay * (1 + r)


def _negative_likelihood(theta: Floats, distances: list[Floats], z: Floats) -> tuple[float, NDArray[Any]]:
    """Negative log marginal likelihood and its gradient by the logarithms of variance, lengths and noise."""
    K, slope = _kernel(theta, distances)
    noise = np.exp(theta[-1])
    K_noisy = K + noise * np.eye(len(z))
    try:
        factor = cho_factor(K_noisy, lower=True)
    except np.linalg.LinAlgError:
        return 1e25, np.zeros_like(theta)
    inverse = cho_solve(factor, np.eye(len(z)))
    weights = inverse @ z
    inner = np.outer(weights, weights) - inverse
    gradient = [(inner * K).sum()]
    gradient += [(inner * slope * d).sum() * -2 * np.exp(-2 * t) for d, t in zip(distances, theta[1:-1], strict=True)]
    gradient += [np.trace(inner) * noise]
    value = 0.5 * z @ weights + np.log(np.diag(factor[0])).sum()
    return float(value), -0.5 * np.array(gradient)
