"""Named lists of the bundled densities, ``data/selections.json``.

Run it in a checkout::

    python data/make/selections.py

The frozen sets are those of the latent database, which was made before the stores grew. The held-out crystals are
drawn by formula, so that no polymorph of one of them has a density that a model may be fitted to.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ecdlib.base.resources import sha256
from ecdlib.density.store import DensityStore

SEED = 2026
SHARE = 0.1


def held_out(formulas: pd.Series) -> list[str]:
    """A seeded :data:`SHARE` of the crystals: whole formulas, in random order, until there are enough."""
    order = np.random.default_rng(SEED).permutation(sorted(set(formulas)))
    counts = formulas.value_counts()[order].cumsum()
    chosen = set(order[: int((counts < SHARE * len(formulas)).sum()) + 1])
    return [str(name) for name in formulas.index[formulas.isin(chosen)]]


def main(data: Path) -> None:
    cubic, general = (DensityStore(data / f"ecd_{which}.h5") for which in ("cubic", "general"))
    with np.load(data / "latents.npz", allow_pickle=False) as z:
        frozen = [str(name) for name in z["names"]]
    table = pd.concat([cubic.table, general.table])
    lean = table.index[table["spacegroup"].isin([216, 221, 225])]
    lists = {
        "cubic-892": ("cubic crystals of the book's results", [n for n in frozen if n in cubic]),
        "general-96": ("other crystals of the book's results", [n for n in frozen if n in general]),
        "densities-988": ("both, the crystals of the latent database", frozen),
        "lean": ("all of space groups 216, 221 and 225, those of the Lean CNN paper", list(map(str, lean))),
        "held-out": (f"a tenth of all, whole formulas, seed {SEED}", held_out(table["formula"])),
    }
    path = data / "selections.json"
    content = {name: {"what": what, "names": names} for name, (what, names) in lists.items()}
    path.write_text(json.dumps(content, indent=1) + "\n")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest[path.name] = {
        "what": f"named lists of the bundled densities: {', '.join(lists)}",
        "units": "",
        "source": "data/make/selections.py",
        "licence": "CC BY 4.0",
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
    }
    (data / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main(Path("data"))
