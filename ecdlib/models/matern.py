"""The Matérn-5/2 function m(d) = (1 + √5 d + 5 d²/3) exp(-√5 d), of squared distances."""

from __future__ import annotations

import numpy as np

from ecdlib.density.core import Floats


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Squared distances between the rows of two arrays."""
    d = a @ b.T  # of one array with itself in half the time
    d *= -2
    d += np.einsum("ij,ij->i", a, a)[:, None]
    d += np.einsum("ij,ij->i", b, b)
    return np.maximum(d, 0, out=d)


def matern(squared: Floats) -> Floats:
    """m(d) of squared distances."""
    r = np.asarray(5.0 * squared)
    found = r / 3
    np.sqrt(r, out=r)
    found += r
    found += 1
    found *= np.exp(np.negative(r, out=r), out=r)
    return found


def matern_with_slope(squared: Floats) -> tuple[Floats, Floats]:
    """m(d) of squared distances, and its derivative by them."""
    r = np.sqrt(5 * squared)
    decay = np.exp(-r)
    return decay * (1 + r + r**2 / 3), -5 / 6 * decay * (1 + r)
