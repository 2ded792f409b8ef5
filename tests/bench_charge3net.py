"""Benchmark (not a test): the density that ChargE3Net predicts, at symmetry-distinct voxels and by pydemi itself.

One network, one crystal of two atoms and 48 operations, one core, one run. Needs the extra ``charge3net``, which the
book's environment leaves out::

    OMP_NUM_THREADS=1 python tests/bench_charge3net.py [voxels along an edge: 20]

Prints a table and writes ``_build/bench_charge3net.json``.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from pydemi import ml
from pydemi.io.base import Lattice as Cell
from pydemi.io.base import Structure as Crystal
from pymatgen.core import Lattice, Structure

from ecdlib.book.runs import BUILD
from ecdlib.density.charge3net import predict_density


def main(edge: int) -> None:
    torch.set_num_threads(1)
    rock_salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.2), ["Mg", "O"], [[0] * 3, [0.5] * 3])
    rock_salt = rock_salt.get_primitive_structure()
    crystal = Crystal(Cell(rock_salt.lattice.matrix), [site.specie.symbol for site in rock_salt], rock_salt.frac_coords)
    shape = (edge,) * 3
    predict_density(rock_salt, shape=(4, 4, 4))  # weights are read once, by both

    start = time.process_time()
    ours = predict_density(rock_salt, shape=shape)
    seconds = {"ecdlib": time.process_time() - start}
    start = time.process_time()
    theirs = ml.predict(crystal, shape=shape).rho.data
    seconds["pydemi"] = time.process_time() - start

    difference = float(np.abs(ours.values - theirs).max() / theirs.max())
    print(f"MgO, {edge}^3 voxels, one core ({ours.history[0]})")
    for name, t in seconds.items():
        print(f"{name:8s} {t:8.2f} s of the processor, ratio {t / seconds['ecdlib']:.3g}")
    print(f"largest difference, of the peak: {difference:.1e}")
    BUILD.mkdir(exist_ok=True)
    found = {"voxels": edge**3, "seconds": seconds, "largest_difference": difference}
    (BUILD / "bench_charge3net.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
