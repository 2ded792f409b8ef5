"""Labels, split and predictions of pydemi 0.2.0, with the digits that matter: data/pydemi/targets.csv.xz.

python data/make/pydemi_targets.py TARGETS.csv.xz OUT.csv.xz
"""

from __future__ import annotations

import sys

import pandas as pd

if __name__ == "__main__":
    pd.read_csv(sys.argv[1]).to_csv(sys.argv[2], index=False, float_format="%.6g")
