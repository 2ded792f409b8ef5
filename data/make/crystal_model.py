"""Train the shipped models of any crystal, on all labelled crystals.

    python data/make/crystal_model.py structure               writes data/models/crystal.npz
    python data/make/crystal_model.py structure+potential     writes data/models/crystal-potential.npz
    python data/make/crystal_model.py INPUTS new              learns the bulk modulus anew, with the crystals in no list

A quarter of an hour of one core each, minutes for the last; the first two resume. Features of all structures are
computed first (minutes, cached). The last one needs the extra "potential" if INPUTS have one.
"""

import sys
from typing import cast

from ecdlib.base.resources import ROOT
from ecdlib.learn.any_crystal import Inputs
from ecdlib.learn.crystal_model import MODELS, train_crystal_model
from ecdlib.learn.new_crystals import learn_new_crystals

if __name__ == "__main__":
    inputs = cast(Inputs, sys.argv[1])
    out = ROOT / "data" / "models" / f"{MODELS[inputs]}.npz"
    if sys.argv[2:] == ["new"]:
        learn_new_crystals(out)
    else:
        for target, found in train_crystal_model(out, inputs=inputs).items():
            print(f"{target}: {found:.4g}")
