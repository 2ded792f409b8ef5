"""What asking the models of the wheel needs of the bundled densities, as a small table: data/models/known.json.

    python data/make/known_models.py

Minutes of one core. By the file of each model: ``sha256`` of it; ``domain``, the fields of
:class:`ecdlib.learn.domain.Domain`; ``costs``, by property and part of a conversion
(:data:`ecdlib.learn.conversion_cost.PARTS`), relative for positive properties.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ecdlib.base.errors import atomic_write
from ecdlib.base.resources import data_folder, sha256
from ecdlib.learn.conversion_cost import PARTS, cost
from ecdlib.learn.domain import DEFAULT_MODEL, Domain
from ecdlib.learn.known_models import FILE
from ecdlib.learn.predict import load_predictors

MODELS = (DEFAULT_MODEL, "fusion-lightgbm", "fusion-attention")


def main() -> None:
    """Make the table."""
    found: dict[str, Any] = {}
    for p in (p for model in MODELS for p in load_predictors(model)):
        path = Path(p.model.source)
        entry = found.setdefault(path.relative_to(data_folder()).as_posix(), {"sha256": sha256(path), "costs": {}})
        entry["domain"] = asdict(Domain.of(p.model.trained_on))
        entry["costs"][p.target] = {
            " ".join(map(str, part)): float(f"{cost(p.model, p.target, part, known=False):.8g}") for part in PARTS
        }
        print(path.name, p.target, entry["costs"][p.target], flush=True)
    with atomic_write(data_folder() / FILE) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
