"""What chapters on cubic crystals show and what takes minutes: data/results/NAME.csv.xz and .json, one core, resumable.

python data/make/lean_studies.py conversion          exact and trilinear change of cell, all bundled densities
python data/make/lean_studies.py channels            what the channels of a portable density contribute
python data/make/lean_studies.py learning_curve      errors with fewer training crystals
python data/make/lean_studies.py cubic_elements      errors for crystals with an element never seen
"""

import sys

from ecdlib.base.resources import ROOT
from ecdlib.learn.lean_studies import run_channels, run_conversion, run_learning_curve, run_unseen_elements

RUNS = {
    "conversion": run_conversion,
    "channels": run_channels,
    "learning_curve": run_learning_curve,
    "cubic_elements": run_unseen_elements,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or RUNS:
        RUNS[name](ROOT / "data" / "results" / f"{name}.csv.xz")
