"""Results that are tables: a CSV file, and beside it what is to be known of it, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ecdlib.base.errors import atomic_write
from ecdlib.base.resources import data_file


def note_beside(table: Path) -> Path:
    """The file of JSON that belongs to a table."""
    return table.with_name(f"{table.name.split('.')[0]}.json")


def write_table(out: Path, rows: pd.DataFrame, note: Mapping[str, Any], digits: int | None = 5) -> None:
    """Write a table (``.csv``, or ``.csv.xz``) and its note, each atomically.

    Args:
        digits: significant ones of each number; None keeps all.
    """
    compression: Literal["xz"] | None = "xz" if out.suffix == ".xz" else None
    number = None if digits is None else f"%.{digits}g"
    with atomic_write(out) as temporary:
        rows.to_csv(temporary, index=False, float_format=number, compression=compression)
    with atomic_write(note_beside(out)) as temporary:
        temporary.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def load_study(name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Table and note of a bundled study: the name of a file ``results/NAME.csv.xz``, such as ``"three_point"``."""
    note: dict[str, Any] = json.loads(data_file(f"results/{name}.json").read_text(encoding="utf-8"))
    return pd.read_csv(data_file(f"results/{name}.csv.xz")), note
