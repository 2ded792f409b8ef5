"""Two claims that the Lean CNN paper does not test: data/results/NAME.csv.xz and .json, resumable, minutes of one core.

python data/make/lean_claims.py three_point      what 3-point correlations add to 2-point ones
python data/make/lean_claims.py normalization    Model C with normalized targets and without
"""

import sys

from ecdlib.base.resources import ROOT
from ecdlib.learn.lean_claims import run_normalization, run_three_point

RUNS = {"three_point": run_three_point, "normalization": run_normalization}

if __name__ == "__main__":
    for name in sys.argv[1:] or RUNS:
        RUNS[name](ROOT / "data" / "results" / f"{name}.csv.xz")
