"""What is known of the models that come with the package, so that asking them needs no densities.

It follows from the model and the bundled densities, and is kept in a small table that ``data/make/known_models.py``
makes. Each entry holds the SHA-256 of its model; of any other model these things are computed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ecdlib.base.resources import data_file, data_folder, load_manifest, read_once

FILE = "models/known.json"


@read_once
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(data_file(FILE).read_text(encoding="utf-8"))
    return table


def facts(source: str) -> dict[str, Any]:
    """``domain`` and ``costs`` of the model of a file (see ``data/make/known_models.py``); empty if it is not known."""
    path, folder = Path(source), data_folder()
    if not path.is_relative_to(folder):
        return {}
    name = path.relative_to(folder).as_posix()
    found = _table().get(name, {})
    return found if found.get("sha256") == load_manifest().get(name, {}).get("sha256", "") else {}
