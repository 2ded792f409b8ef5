"""Studies of the chapter "What does the calculation add?": _build/inputs/NAME.npz, to ship in data/inputs. Resumes.

python data/make/inputs.py [NAME ...]
"""

from __future__ import annotations

import sys
from typing import Any

from ecdlib.base.resources import ROOT
from ecdlib.learn.inputs import INPUTS, StudyParameters, run_inputs

OUT = ROOT / "_build" / "inputs"
FIRST = tuple(INPUTS)[:14]
MORE = ("superposed + deformation + composition", "superposed + fluctuation", "superposed + fluctuation + composition")
MAIN = (
    *("superposed", "superposed + deformation", "composition"),
    *("superposed + composition", "superposed + deformation + composition"),
)
FEW = (
    *("superposed", "superposed + deformation"),
    *("superposed + composition", "superposed + deformation + composition"),
)
VASP = (
    *("superposed", "superposed + descriptors"),
    *("superposed + composition", "superposed + descriptors + composition"),
)
STUDIES: dict[str, dict[str, Any]] = {
    "cubic": {"inputs": FIRST},
    "cubic-more": {"inputs": MORE},
    "pairs": {"scheme": "pairs", "inputs": MAIN, "folds": 5},
    "curve-100": {"inputs": FEW, "train": 100, "folds": 5},
    "curve-300": {"inputs": FEW, "train": 300, "folds": 5},
    "all": {"crystals": "all", "inputs": FEW, "folds": 5},
    "vasp": {"crystals": "vasp", "inputs": VASP, "folds": 3, "train": 1500},
    "prototypes": {"scheme": "prototypes", "inputs": MAIN, "folds": 5},
    **{f"seed-{seed}": {"inputs": FEW, "seed": seed} for seed in range(1, 5)},
}

if __name__ == "__main__":
    for name in sys.argv[1:] or STUDIES:
        run_inputs(StudyParameters.checked(STUDIES[name], "full"), OUT / f"{name}.npz", name="data/make/inputs.py")
