"""Files of arrays with a note in JSON, ``meta``: results, trained models, databases."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ecdlib.base.arrays import read_arrays
from ecdlib.base.errors import atomic_write


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and ``meta`` of a file.

    Raises:
        One of :data:`ecdlib.base.errors.DAMAGED`: a missing or damaged file.
    """
    arrays = read_arrays(path)
    meta = json.loads(str(arrays.pop("meta")))
    if not isinstance(meta, dict):
        raise ValueError("meta")
    return arrays, meta


def write_archive(path: str | os.PathLike[str], arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write it compressed, atomically."""
    with atomic_write(path) as temporary, open(temporary, "wb") as f:
        np.savez_compressed(f, **dict(arrays), meta=np.array(json.dumps(dict(meta))))
