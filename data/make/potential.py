"""Elastic tensors by the foundation potential SevenNet-l3i5, as data/potential/sevennet_l3i5.npz holds them.

    python data/make/potential.py STRUCTURES.json.xz OUT.npz [PROCESSES]

STRUCTURES.json.xz is a file like data/mp_structures.json.xz. Crystals that the potential cannot be asked about are
named and left out; small ones come first. A run that was cut off resumes. Needs the extra ``potential``; numbers are
kept in half precision.
"""

from __future__ import annotations

import json
import lzma
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure
from tqdm import tqdm

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.pieces import in_pieces
from ecdlib.base.resources import sha256
from ecdlib.base.workers import in_processes
from ecdlib.features.potential import TRIANGLE, PotentialTensors
from ecdlib.features.sevennet import check_crystal, potential_tensors

CHUNK = 8


def halved(found: PotentialTensors) -> dict[str, Any]:
    """Arrays as they are stored: the distinct elements of each tensor, all in half precision."""
    tensors = {name: getattr(found, name)[:, *TRIANGLE] for name in ("clamped", "relaxed")}
    others = {name: getattr(found, name) for name in ("stress", "softest", "atomic")}
    return {"name": found.names} | {name: x.astype(np.float16) for name, x in (tensors | others).items()}


def usable(name: str, structure: Structure) -> bool:
    """Whether the potential can be asked; if not, says why."""
    try:
        check_crystal(structure, name)
    except EcdError as error:
        tqdm.write(str(error))
        return False
    return True


def piece(names: tuple[str, ...], structures: tuple[Structure, ...]) -> tuple[dict[str, Any], float]:
    """What is stored of some crystals, and the seconds that it took."""
    began = time.monotonic()
    return halved(potential_tensors(structures, names, progress=False)), time.monotonic() - began


def main(source: Path, out: Path, processes: int) -> None:
    """Compute what is missing and write the file."""
    with lzma.open(source, "rt") as f:
        given = {name: Structure(e["lattice"], e["species"], e["frac_coords"]) for name, e in json.load(f).items()}
    crystals = [(name, s) for name, s in tqdm(given.items(), "Reading") if usable(name, s)]
    crystals.sort(key=lambda crystal: len(crystal[1]))
    tasks = {f"{i:06d}": tuple(zip(*crystals[i : i + CHUNK], strict=True)) for i in range(0, len(crystals), CHUNK)}
    with in_pieces(out, "potential", {"structures": sha256(source)}) as pieces:
        missing = [name for name in tasks if name not in pieces]
        done = in_processes(piece, [tasks[name] for name in missing], processes)
        for i, (arrays, seconds) in tqdm(done, "Pieces", len(missing)):
            pieces.save(missing[i], arrays, seconds)
        parts = [pieces.load(name) for name in pieces.names]
        with atomic_write(out) as temporary:
            np.savez_compressed(temporary, **{key: np.concatenate([p[key] for p in parts]) for key in parts[0]})


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    except EcdError as error:
        sys.exit(str(error))
