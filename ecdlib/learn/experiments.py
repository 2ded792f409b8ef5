"""Partial results of the tasks that have not moved to :mod:`ecdlib.base.pieces` yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ecdlib.base.errors import DAMAGED, EcdError, atomic_write


def save_partial(path: Path, done: dict[str, Any]) -> None:
    """Write what an unfinished run has, atomically; :func:`read_partial` reads it."""
    with atomic_write(path) as temporary:
        np.savez(temporary, **done)


def read_partial(path: Path) -> dict[str, Any]:
    """Arrays that an interrupted run has left.

    Raises:
        EcdError: a damaged file.
    """
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            return dict(z)
    except DAMAGED as error:
        raise EcdError(path, "is left from an interrupted run and damaged", "Remove it and run again.") from error
