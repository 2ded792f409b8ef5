"""Named descriptors of the bundled densities and of their superposed atoms: data/results/descriptors.csv and .json.

    python data/make/named_descriptors.py

A quarter of an hour of one core. Chemical electrons only, no labels.
"""

from __future__ import annotations

import time

import pandas as pd
from tqdm import tqdm

from ecdlib.base.provenance import provenance
from ecdlib.base.resources import ROOT
from ecdlib.density.store import load_densities, load_density
from ecdlib.features.descriptors import density_descriptors, structure_descriptors
from ecdlib.learn.table import write_table


def main() -> None:
    """Make the table."""
    begun = time.time()
    names = [name for which in ("cubic-all", "general-all") for name in load_densities(which).names]
    rows = {}
    for name in tqdm(names):
        density = load_density(name)
        found = {"density": density_descriptors(density), "atoms": structure_descriptors(density.structure)}
        rows[name] = pd.concat(found)
    table = pd.DataFrame(rows).T
    table.columns = pd.Index([f"{of} {name}" for of, name in table.columns])
    note = {"provenance": provenance("data/make/named_descriptors.py", {}, time.time() - begun)}
    write_table(ROOT / "data" / "results" / "descriptors.csv", table.rename_axis("name").reset_index(), note)


if __name__ == "__main__":
    main()
