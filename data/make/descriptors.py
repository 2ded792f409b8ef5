"""Descriptors of VASP densities, of pydemi 0.2.0 (MIT licence), by our names: data/pydemi/descriptors.npz.

python data/make/descriptors.py DESCRIPTORS.npz TARGETS.csv.xz OUT.npz
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

if __name__ == "__main__":
    descriptors, targets, out = sys.argv[1:]
    names = pd.read_csv(targets, index_col="material_id")["name"]
    with np.load(descriptors, allow_pickle=False) as z:
        values = z["values"].astype(np.float32)
        found = names.loc[z["material_id"]].to_numpy(str)
        np.savez_compressed(out, names=found, descriptors=z["names"].astype(str), values=values)
