"""Two numbers for each of VASP's standard PBE potentials, from densities that ChargE3Net predicts for bundled crystals.

Needs ``pip install "ecdlib[charge3net]"``; about 20 s of one core for each of some 150 crystals. Resumable: one
file for each crystal in the cache folder, and what ``data/valence/vasp_pbe.h5`` holds already is not predicted again
(delete that file to do so)::

    python data/make/vasp_pbe.py _build/vasp_pbe [held-out crystals, the cheapest first: 80]

ChargE3Net (T. Koker et al., npj Comput. Mater. 10, 161 (2024)) with the weights that pydemi ships (S. K. Maurya, CMS
Lab, IIT Kanpur, MIT licence) stands for VASP: it was fine-tuned on VASP densities of 6,059 crystals, nearly all of
those that are used here among them.
"""

from __future__ import annotations

import json
import lzma
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from pymatgen.core import Composition
from pymatgen.symmetry.groups import PointGroup, sg_symbol_from_int_number

from ecdlib.base.errors import atomic_write
from ecdlib.base.resources import data_folder
from ecdlib.data.tables import load_crystals
from ecdlib.density.charge3net import CONVENTION, potentials, predict_density
from ecdlib.density.core import ChargeDensity
from ecdlib.density.store import DensityStore, load_densities, load_density, voxel_orbits, write_store
from ecdlib.density.valence import normal_equations, solve

PASSES = 3  # crystals of an element that calibrate its potential
TESTS = 80  # crystals that were held out from the network's training
METHOD = "ChargE3Net (pydemi 0.2.0, fine-tuned on VASP's densities: PAW-PBE, 500 eV)"
#: Å; waves beyond half of its inverse are weak, and the smoothing takes away what they fold back to (below 0.1 %).
SPACING = 0.2


def bundled() -> pd.DataFrame:
    """Bundled crystals of elements that both sides know: elements, cost (pairs of atoms and distinct voxels)."""
    known = set(potentials())
    rows = []
    table = pd.concat([load_densities(which).table for which in ("cubic-all", "general-all")])
    operations = {n: len(PointGroup.from_space_group(sg_symbol_from_int_number(n))) for n in set(table["spacegroup"])}
    for name, row in table.iterrows():
        elements = list(Composition(row["formula"]).as_dict())
        pairs = row["n_atoms"] / SPACING**3 / operations[row["spacegroup"]] * 4 / 3 * np.pi * 4**3
        rows.append({"name": name, "elements": elements, "cost": pairs})
    found = pd.DataFrame(rows).set_index("name")
    return found[[set(e) <= known for e in found["elements"]]]


def order(table: pd.DataFrame, passes: int = PASSES) -> list[str]:
    """Crystals such that every element is covered once before any twice; the cheapest for what they cover first."""
    chosen: dict[str, None] = {}
    count = dict.fromkeys(sorted({e for elements in table["elements"] for e in elements}), 0)
    for wanted in range(1, passes + 1):
        while missing := {e for e, n in count.items() if n < wanted}:
            rest = table[~table.index.isin(chosen)]
            gain = np.array([len(missing & set(elements)) for elements in rest["elements"]])
            if not gain.any():
                break
            name = str(rest.index[np.argmin((rest["cost"] + 4000) / np.maximum(gain, 1e-9) ** 1.5)])
            chosen[name] = None
            for e in table.loc[name, "elements"]:
                count[e] += 1
    return list(chosen)


def shipped() -> DensityStore | None:
    """The densities of an earlier run."""
    path = data_folder() / "valence/vasp_pbe.h5"
    return DensityStore(path) if path.is_file() else None


def densities(cache: Path, names: list[str]) -> None:
    """Predicted densities of crystals that an earlier run has not made, one file each."""
    made = shipped()
    for i, name in enumerate(names):
        path = cache / f"{name}.npz"
        if path.is_file() or (made is not None and name in made):
            continue
        began = time.process_time()
        own = load_density(name)
        density = predict_density(own.structure, SPACING, name=name)
        found = own.symmetry(1e-3)
        first = voxel_orbits(found.rotations, found.translations, density.shape)[1]
        with atomic_write(path) as temporary:
            np.savez(temporary, values=density.values.ravel()[first].astype(np.float32), grid=density.shape)
        print(f"{i + 1}/{len(names)} {name} {len(first)} voxels {time.process_time() - began:.0f} s", flush=True)


def held_out() -> set[str]:
    """Names of the crystals that were not in the network's training: the test split of pydemi's dataset."""
    path = Path(str(resources.files("pydemi"))) / "properties_v1.json.xz"
    with lzma.open(path) as f:
        dataset = json.load(f)["dataset"]
    split = dict(zip(dataset["material_id"], dataset["split"], strict=True))
    table = load_crystals()
    return set(table.index[table["material_id"].map(split) == "test"])


def read(cache: Path, name: str) -> ChargeDensity:
    """A density of the cache, or else of an earlier run."""
    own, known, path = load_density(name), potentials(), cache / f"{name}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as z:
            values, grid = z["values"], tuple(map(int, z["grid"]))
        found = own.symmetry(1e-3)
        values = values[voxel_orbits(found.rotations, found.translations, grid)[0]].reshape(grid)
    else:
        made = shipped()
        assert made is not None
        values = made[name].values
    elements = dict.fromkeys(own.species)
    return ChargeDensity(
        values,
        own.lattice,
        own.species,
        own.positions,
        name,
        CONVENTION,
        valence={e: known[e][1] for e in elements},
        potentials={e: known[e][0] for e in elements},
    )


def tables(cache: Path, fitted: list[str], tested: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of VASP's potentials, two numbers each, and the list of crystals.

    Both say how far VASP's and our densities are apart, in %: by whole shells, and with numbers that are fitted to
    other crystals (no number where an element is in none of them). For a potential that is the root mean square over
    the crystals that it is fitted to.
    """
    known = potentials()
    equations = {}
    for name in fitted + tested:
        density = read(cache, name)
        equations[name] = normal_equations(density, load_density(name), list(dict.fromkeys(density.species)))
    found = solve([equations[name] for name in fitted])
    apart = {}
    for name, one in equations.items():
        others = found if name in tested else solve([equations[n] for n in fitted if n != name])
        left_out = one.apart(others) if set(one.elements) <= set(others) else np.nan
        apart[name] = {"shells_apart": 100 * np.sqrt(one.missing), "left_out_apart": 100 * left_out}
    crystals = pd.DataFrame(apart).T.round(3)
    rows = []
    for element, (a, b) in found.items():
        mine = [n for n in fitted if element in equations[n].elements]
        rows.append(
            {"element": element, "title": known[element][0], "electrons": known[element][1], "a": a, "b": b}
            | np.sqrt((pd.DataFrame(apart).T.loc[mine] ** 2).mean()).round(3).to_dict()
            | {"crystals": " ".join(mine)}
        )
    crystals.insert(0, "held_out", crystals.index.isin(tested))
    return pd.DataFrame(rows).set_index("element"), crystals.rename_axis("name").sort_index()


def write_outputs(cache: Path, fitted: list[str], tested: list[str], out: Path) -> None:
    """Write the store of densities, the list of its crystals and the table of potentials."""
    found = [read(cache, n) for n in sorted(fitted + tested)]  # before those of an earlier run are written over
    write_store(out / "vasp_pbe.h5", found, method=METHOD)
    for name, table in zip(("vasp_pbe.csv", "vasp_crystals.csv"), tables(cache, fitted, tested), strict=True):
        with atomic_write(out / name) as temporary:
            table.to_csv(temporary)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    crystals, unseen = bundled(), held_out()
    is_test = crystals.index.isin(unseen)
    fitted = order(crystals[~is_test])
    tested = list(crystals[is_test].sort_values("cost").index[: int(sys.argv[2]) if len(sys.argv) > 2 else TESTS])
    densities(folder, fitted + tested)
    write_outputs(folder, fitted, tested, data_folder() / "valence")
