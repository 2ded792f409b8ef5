"""What the autoencoder on the paper's grid leaves of the test crystals: data/results/reconstruction.csv.xz and .json.

And what principal components keep of their latents. A quarter of an hour of one core.
"""

from ecdlib.base.resources import ROOT
from ecdlib.learn.reconstruction import run_reconstruction

if __name__ == "__main__":
    run_reconstruction(ROOT / "data" / "results" / "reconstruction.csv.xz", "padded-16-128")
