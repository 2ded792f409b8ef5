"""Rotated pictures and supercells through the fusion models: data/results/rotations.csv.xz, supercells.csv.xz and their
.json, resumable, a quarter of an hour of one core.
"""

from ecdlib.base.resources import ROOT
from ecdlib.learn.redescribed import run_redescribed

if __name__ == "__main__":
    folder = ROOT / "data" / "results"
    run_redescribed(folder / "rotations.csv.xz", folder / "supercells.csv.xz")
