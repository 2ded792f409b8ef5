"""Studies of the chapter "What does the calculation add?": _build/inputs/NAME.npz, to ship in data/inputs. Resumes.

python data/make/inputs.py [NAME ...]
"""

from __future__ import annotations

import sys
from typing import Any

from ecdlib.base.resources import ROOT
from ecdlib.learn.inputs import InputsParameters, run_inputs

OUT = ROOT / "_build" / "inputs"
MAIN = (
    *("superposed", "self-consistent", "both densities", "composition", "superposed + composition"),
    *("self-consistent + composition", "potential + composition", "superposed + composition + potential"),
)
SEEDS = ("superposed", "self-consistent", "both densities", "superposed + composition", "self-consistent + composition")
CURVE = ("superposed", "self-consistent", "superposed + composition", "self-consistent + composition")
VASP = (
    *("superposed", "descriptors", "superposed + descriptors"),
    *("superposed + composition", "superposed + descriptors + composition"),
)
STUDIES: dict[str, dict[str, Any]] = {
    "cubic": {},
    "pairs": {"scheme": "pairs", "inputs": MAIN},
    "prototypes": {"scheme": "prototypes", "inputs": MAIN},
    "curve-100": {"inputs": CURVE, "train": 100},
    "curve-200": {"inputs": CURVE, "train": 200},
    "curve-400": {"inputs": CURVE, "train": 400},
    "all": {"crystals": "all", "inputs": MAIN},
    "vasp": {"crystals": "vasp", "inputs": VASP, "folds": 3},
    "elements": {"scheme": "elements", "inputs": SEEDS},
    "cubic-seed1": {"inputs": SEEDS, "seed": 1},
    "cubic-seed2": {"inputs": SEEDS, "seed": 2},
    "cubic-all": {"crystals": "cubic-all", "inputs": MAIN},
}

if __name__ == "__main__":
    for name in sys.argv[1:] or STUDIES:
        run_inputs(InputsParameters.checked(STUDIES[name], "full"), OUT / f"{name}.npz", name="data/make/inputs.py")
