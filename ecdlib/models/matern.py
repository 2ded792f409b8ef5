"""The Matérn-5/2 function m(d) = (1 + √5 d + 5 d²/3) exp(-√5 d), of squared distances."""

from __future__ import annotations

import numpy as np

from ecdlib.density.core import Floats


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Squared distances between the rows of two arrays."""
    d = a @ b.T
    d *= -2
    d += (a**2).sum(1)[:, None]
    d += (b**2).sum(1)
    return np.maximum(d, 0, out=d)


def matern(squared: Floats) -> Floats:
    """m(d) of squared distances."""
    r = np.sqrt(5 * squared)
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))


def matern_with_slope(squared: Floats) -> tuple[Floats, Floats]:
    """m(d) of squared distances, and its derivative by them."""
    r = np.sqrt(5 * squared)
    decay = np.exp(-r)
    return decay * (1 + r + r**2 / 3), -5 / 6 * decay * (1 + r)
