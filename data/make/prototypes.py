"""Prototypes of the bundled crystals and atoms in their primitive cells: data/screening/prototypes.csv.xz and .json.

Two minutes of one core.
"""

import time

import pandas as pd

from ecdlib.base.provenance import provenance
from ecdlib.base.resources import data_folder
from ecdlib.crystals.hypothetical import described
from ecdlib.data.tables import load_structures
from ecdlib.density.core import SYMPREC
from ecdlib.learn.any_crystal import write_predictions

if __name__ == "__main__":
    begun = time.monotonic()
    rows = [(name, *described(structure)) for name, structure in load_structures().items()]
    table = pd.DataFrame(rows, columns=["name", "prototype", "primitive"])
    note = {"provenance": provenance("data/make/prototypes.py", {"symprec": SYMPREC}, time.monotonic() - begun)}
    write_predictions(data_folder() / "screening" / "prototypes.csv.xz", table, note)
