"""How far predictions move between VASP's densities, as ChargE3Net predicts them, and ours.

Minutes of one core, for all crystals of ``data/valence/vasp_pbe.h5``; resumable, one file for each crystal::

    python data/make/vasp_movement.py _build/vasp_movement data/valence/vasp_movement.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from ecdlib.base.errors import atomic_write
from ecdlib.learn.predict import DEFAULT_MODEL, load_predictors
from ecdlib.learn.vasp import vasp_crystals, vasp_movement

#: Properties by model: of the fusion models the one that all models have.
PROPERTIES = {
    DEFAULT_MODEL: ("bulk_modulus", "total_energy"),
    "fusion-lightgbm": ("bulk_modulus",),
    "fusion-attention": ("bulk_modulus",),
}


def main(cache: Path, out: Path) -> None:
    """Predict what the cache lacks, then write the table."""
    cache.mkdir(parents=True, exist_ok=True)
    models = {
        model: [p for p in load_predictors(model) if p.target in targets] for model, targets in PROPERTIES.items()
    }
    files = []
    for name in vasp_crystals().index:
        files.append(cache / f"{name}.csv")
        if not files[-1].is_file():
            found = [vasp_movement(p, [name]).assign(model=model) for model, p in models.items()]
            with atomic_write(files[-1]) as temporary:
                pd.concat(found).to_csv(temporary, index=False)
            print(name, flush=True)
    with atomic_write(out) as temporary:
        pd.concat(map(pd.read_csv, files)).to_csv(temporary, index=False, float_format="%.5g")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
