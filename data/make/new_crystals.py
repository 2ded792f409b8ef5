"""A test set that no list holds: data/new_crystals.csv and data/ecd_new.h5, computed with GPAW.

    python data/make/new_crystals.py [PROCESSES]
    python data/make/new_crystals.py control [PROCESSES]

The second makes data/new_crystals_control.csv: the same equations of state of labelled crystals, one of each prototype.

Labelled crystals are those that somebody found worth a calculation, mostly stable ones. What people ask about is not.
So eight prototypes are filled with elements drawn at random from those that stand at the same place in labelled
crystals of the prototype, and kept if the formula stands in no list of the book: many are unstable. Elements with a
magnetic moment (:data:`ecdlib.dft.gpaw_script.MOMENTS`) and those without a PAW set are left out. Lattice constant and
bulk modulus come from an equation of state (``equation_of_state.py``), the density from the recipe of all bundled
densities. Needs a Python that has GPAW; two to five minutes of one core for each crystal; resumable.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Composition, Element, Structure

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.pieces import in_pieces
from ecdlib.base.resources import ROOT
from ecdlib.data.tables import load_crystals, load_matbench_elasticity, load_structures
from ecdlib.density.core import ChargeDensity, symmetry
from ecdlib.density.store import write_store
from ecdlib.density.valence import known_sets
from ecdlib.dft import gpaw_script
from ecdlib.dft.compute import RECIPE, compute_density, find_gpaw_python, run_gpaw
from ecdlib.learn.inputs import prototype

#: By ratio of the elements, space group and atoms of the primitive cell.
PROTOTYPES = {
    ("AB_225", 2): "rock salt",
    ("AB_221", 2): "caesium chloride",
    ("AB_216", 2): "zinc blende",
    ("AB2_225", 3): "fluorite",
    ("AB3_221", 4): "Cu3Au",
    ("ABC_216", 3): "half-Heusler",
    ("ABC2_225", 4): "Heusler",
    ("ABC3_221", 5): "perovskite",
}
OF_EACH = 5
SEED = 0
NOT_DRAWN = {"He", "Ne", "Ar", "Kr", "Xe", *gpaw_script.MOMENTS}


def places(structure: Structure) -> list[str]:
    """Elements by the place they hold: number of atoms, then of nearest neighbours, then electronegativity."""
    distances = structure.distance_matrix + np.eye(len(structure)) * structure.lattice.a
    shell = 1.05 * distances.min()
    amounts = structure.composition.get_el_amt_dict()
    near = {s.specie.symbol: len(structure.get_neighbors(s, shell)) for s in structure}
    return sorted(amounts, key=lambda e: (amounts[e], near[e], Element(e).X, e))


def primitive(structure: Structure) -> Structure:
    """The standardized primitive cell."""
    found = symmetry(structure)
    assert found is not None
    cell = Structure(found.std_lattice, [Element.from_Z(z) for z in found.std_types], found.std_positions)
    return cell.get_primitive_structure()


def atomic_volumes() -> dict[str, float]:
    """Å³ of an atom of each element, whose sums come close to the volumes of the labelled cubic crystals."""
    crystals = load_crystals()
    cells = [load_structures()[name] for name in crystals.index[crystals["crystal_system"] == "cubic"]]
    shares = pd.DataFrame([cell.composition.get_el_amt_dict() for cell in cells]).fillna(0.0)
    scale = 1 / np.array([cell.volume for cell in cells])
    found = np.linalg.lstsq(shares.to_numpy() * scale[:, None], np.ones(len(cells)), rcond=1e-8)[0]
    return dict(zip(shares.columns, found, strict=True))


def drawable() -> set[str]:
    """Elements that have a PAW set and are not left out."""
    sets = known_sets()
    return set(sets["element"][sets["family"].str.startswith("gpaw")]) - NOT_DRAWN


def drawn() -> Iterator[tuple[str, Structure]]:
    """Name of the prototype and first guess of the primitive cell of each crystal."""
    crystals = load_crystals()
    lists = {*crystals["formula"], *load_matbench_elasticity()["formula"]}
    lists |= {s.composition.reduced_formula for s in load_structures().values()}
    known = {Composition(formula).reduced_formula for formula in lists}
    allowed, volumes, random = drawable(), atomic_volumes(), np.random.default_rng(SEED)
    cubic = crystals[crystals["crystal_system"] == "cubic"]
    kinds = pd.Series([prototype(str(name)) for name in cubic.index], cubic.index)
    for (kind, atoms), label in PROTOTYPES.items():
        cells = [primitive(load_structures()[name]) for name in kinds.index[kinds == kind]]
        cells = [cell for cell in cells if len(cell) == atoms]
        of_place = [sorted(set(found)) for found in zip(*map(places, cells), strict=True)]
        of_place = [[e for e in found if e in allowed] for found in of_place]
        done = 0
        while done < OF_EACH:
            elements = [str(random.choice(found)) for found in of_place]
            cell = cells[0].copy()
            cell.replace_species(dict(zip(places(cell), elements, strict=True)))
            formula = cell.composition.reduced_formula
            if len(set(elements)) < len(elements) or formula in known or places(cell) != elements:
                continue
            known.add(formula)
            done += 1
            cell.scale_lattice(max(sum(volumes[s.specie.symbol] for s in cell), 8.0 * len(cell)))
            yield label, cell


def labelled() -> Iterator[tuple[str, Structure]]:
    """Name and primitive cell of a labelled crystal of each prototype, drawn at random."""
    crystals, allowed, random = load_crystals(), drawable(), np.random.default_rng(SEED)
    names = [str(name) for name in crystals.index[crystals["crystal_system"] == "cubic"]]
    for kind, atoms in PROTOTYPES:
        same = [name for name in names if prototype(name) == kind]
        cells = [(name, primitive(load_structures()[name])) for name in same]
        fitting = [(name, cell) for name, cell in cells if len(cell) == atoms and allowed.issuperset(places(cell))]
        yield fitting[int(random.integers(len(fitting)))]


def control(processes: int) -> None:
    """Compute what is missing of the labelled crystals and write their file."""
    interpreter = find_gpaw_python()
    crystals = list(labelled())
    out = ROOT / "data" / "new_crystals_control.csv"
    with in_pieces(out, "data/make/new_crystals.py", {"control": True, "seed": SEED}) as pieces:

        def work(task: tuple[str, Structure]) -> None:
            if task[0] not in pieces:
                state = equation_of_state(task[1], interpreter)
                pieces.save(task[0], {"state": np.array(json.dumps(state))})
                print(task[0], f"{state['bulk_modulus']:.1f} GPa", flush=True)

        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(work, crystals))
        rows = [{"name": name} | json.loads(str(pieces.load(name)["state"])) for name, _ in crystals]
        table = pd.DataFrame(rows)[["name", "a", "bulk_modulus", "derivative", "basis_pressure", "rms", "cutoff"]]
        label = load_crystals()["bulk_modulus"].loc[table["name"]].to_numpy()
        with atomic_write(out) as temporary:
            table.assign(label=label).to_csv(temporary, index=False, float_format="%.6g")


def equation_of_state(cell: Structure, interpreter: str) -> dict[str, Any]:
    """What ``equation_of_state.py`` says of a crystal.

    Raises:
        EcdError: a calculation that failed.
    """
    unit = (abs(np.linalg.det(cell.lattice.matrix)) * conventional(cell)) ** (1 / 3)
    task = {
        "symbols": [site.specie.symbol for site in cell],
        "positions": cell.frac_coords.tolist(),
        "cell": (cell.lattice.matrix / unit).tolist(),
        "a": unit,
    }
    with tempfile.TemporaryDirectory(prefix="ecd-new-") as folder:
        script = shutil.copy(Path(__file__).with_name("equation_of_state.py"), folder)
        given = Path(folder, "task.json")
        given.write_text(json.dumps(task))
        name = cell.composition.reduced_formula
        return run_gpaw([interpreter, script, str(given)], name, folder, None)


def conventional(cell: Structure) -> int:
    """Primitive cells in the conventional cell."""
    found = symmetry(cell)
    assert found is not None
    return round(len(found.std_types) / len(cell))


def compute(cell: Structure, interpreter: str) -> dict[str, Any]:
    """Label and density of a crystal, or why there is none; arrays for a piece."""
    try:
        begun = time.monotonic()
        state = equation_of_state(cell, interpreter)
        relaxed = cell.copy()
        relaxed.scale_lattice(state["volume"])
        state["seconds"] = round(time.monotonic() - begun)
        with tempfile.TemporaryDirectory(prefix="ecd-new-") as folder:
            out = Path(folder, "density.npz")
            density = compute_density(relaxed, out, python=interpreter)
            with np.load(out, allow_pickle=False) as z:
                made = {name: z[name] for name in z.files}
    except EcdError as error:
        return {"state": np.array(json.dumps({"problem": error.problem}))}
    return made | {"state": np.array(json.dumps(state)), "name": np.array(density.name)}


def main(processes: int) -> None:
    """Compute what is missing and write both files."""
    interpreter = find_gpaw_python()
    crystals = list(drawn())
    out = ROOT / "data" / "new_crystals.csv"
    with in_pieces(out, "data/make/new_crystals.py", {"of_each": OF_EACH, "seed": SEED}) as pieces:

        def work(task: tuple[str, Structure]) -> None:
            formula = task[1].composition.reduced_formula
            if formula not in pieces:
                begun = time.monotonic()
                made = compute(task[1], interpreter)
                pieces.save(formula, made, time.monotonic() - begun)
                state = json.loads(str(made["state"]))
                print(formula, task[0], state.get("problem") or f"{state['bulk_modulus']:.1f} GPa", flush=True)

        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(work, crystals))
        rows, points, densities, energy = [], {}, [], {}
        for label, cell in crystals:
            formula = cell.composition.reduced_formula
            piece = pieces.load(formula)
            state = json.loads(str(piece["state"]))
            row = {"name": str(piece.get("name", "")), "formula": formula, "prototype": label}
            kept = ("a", "bulk_modulus", "derivative", "basis_pressure", "rms", "cutoff", "seconds", "problem")
            rows.append(row | {key: state.get(key, "") for key in kept})
            if name := row["name"]:
                points[name] = state["points"]
                energy[name] = float(piece["energy"])
                lattice, numbers = piece["cell"], piece["numbers"].tolist()
                symbols = tuple(Element.from_Z(z).symbol for z in numbers)
                density = ChargeDensity(piece["rho"], lattice, symbols, piece["positions"], name=name)
                densities.append(replace(density, convention=str(piece["convention"])))
        write_store(out.with_name("ecd_new.h5"), densities, energy=energy, method=RECIPE)
        with atomic_write(out) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.6g")
        with atomic_write(out.with_suffix(".json")) as temporary:
            note = {"points": points, "provenance": pieces.provenance()}
            temporary.write_text(json.dumps(note) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        given = sys.argv[1:]
        run = control if "control" in given else main
        run(next((int(word) for word in given if word.isdigit()), 1))
    except EcdError as error:
        sys.exit(str(error))
