"""Train the shipped model of any crystal: ``python data/make/crystal_model.py`` writes ``data/models/crystal.npz``.

A quarter of an hour of one core; resumable. Features of all structures are computed first (minutes, cached).
"""

from ecdlib.base.resources import ROOT
from ecdlib.learn.crystal_model import train_crystal_model

if __name__ == "__main__":
    for target, found in train_crystal_model(ROOT / "data" / "models" / "crystal.npz").items():
        print(f"{target}: {found:.4g}")
