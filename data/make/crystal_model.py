"""Train the shipped models of any crystal, on all labelled crystals.

    python data/make/crystal_model.py structure               writes data/models/crystal.npz
    python data/make/crystal_model.py structure+potential     writes data/models/crystal-potential.npz

A quarter of an hour of one core each; resumable. Features of all structures are computed first (minutes, cached).
"""

import sys
from typing import cast

from ecdlib.base.resources import ROOT
from ecdlib.learn.any_crystal import Inputs
from ecdlib.learn.crystal_model import MODELS, train_crystal_model

if __name__ == "__main__":
    inputs = cast(Inputs, sys.argv[1])
    out = ROOT / "data" / "models" / f"{MODELS[inputs]}.npz"
    for target, found in train_crystal_model(out, inputs=inputs).items():
        print(f"{target}: {found:.4g}")
