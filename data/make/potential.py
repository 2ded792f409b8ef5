"""Reduce the elastic tensors of a foundation potential to what models take from them: data/potential/sevennet_l3i5.npz.

    python data/make/potential.py TENSORS.npz mp_structures.json.xz OUT.npz

TENSORS.npz holds ``name``, ``C0`` and ``C`` (clamped and relaxed, GPa), ``stress`` (GPa), ``eig`` (eV/Å²) and ``x`` of
cells as ``spglib.find_primitive`` gives them (symprec 0.01). The tensors are turned into the IEEE frame of the crystal
(IEEE Standard on Piezoelectricity, 176-1987, as pymatgen implements it) and kept in half precision.
"""

from __future__ import annotations

import json
import lzma
import sys
import warnings

import numpy as np
import spglib
from pymatgen.analysis.elasticity import ElasticTensor
from pymatgen.core import Element, Structure

from ecdlib.features.potential import TRIANGLE


def main(tensors: str, structures: str, out: str) -> None:
    """Write the reduced file."""
    warnings.simplefilter("ignore")
    with lzma.open(structures, "rt") as f:
        crystals = json.load(f)
    with np.load(tensors) as z:
        rows = {name: z[name] for name in z.files}
    turned: dict[str, list[np.ndarray]] = {"C0": [], "C": []}
    for i, name in enumerate(rows["name"]):
        crystal = crystals[str(name)]
        given = crystal["lattice"], crystal["frac_coords"], [Element(e).Z for e in crystal["species"]]
        lattice, positions, numbers = spglib.find_primitive(given, symprec=1e-2) or given
        cell = Structure(lattice, [Element.from_Z(int(n)) for n in numbers], positions)
        rotation = ElasticTensor.get_ieee_rotation(cell)
        for key, found in turned.items():
            tensor = ElasticTensor.from_voigt(rows[key][i].astype(float))
            found.append(tensor.rotate(rotation, tol=1e-2).voigt[TRIANGLE])
        if i % 500 == 0:
            print(i, "of", len(rows["name"]), flush=True)
    half = {
        "clamped": np.array(turned["C0"]),
        "relaxed": np.array(turned["C"]),
        "stress": rows["stress"],
        "softest": rows["eig"],
        "atomic": rows["x"],
    }
    np.savez_compressed(out, name=rows["name"], **{key: v.astype(np.float16) for key, v in half.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
