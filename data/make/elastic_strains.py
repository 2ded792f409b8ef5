"""Energies and times of a cubic crystal's strained cells with GPAW: makes the files of data/elastic/.

Needs a Python that has GPAW (see :mod:`ecdlib.dft.compute`), takes hours on one core, and resumes::

    python data/make/elastic_strains.py LiH_225 data/elastic/LiH_225.json
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from ase import Atoms
from ase.calculators.calculator import kpts2sizeandoffsets
from ase.units import Bohr, Hartree
from pymatgen.core import Element, Structure
from pymatgen.io.vasp import Poscar

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.pieces import in_pieces
from ecdlib.data.tables import load_structures
from ecdlib.density.cell import fast_length
from ecdlib.density.core import symmetry
from ecdlib.dft import gpaw_script
from ecdlib.dft.compute import RECIPE, find_gpaw_python, run_gpaw
from ecdlib.elastic.strain import MODES, Mode, strained_cell

#: Strains of each deformation: seven, as the paper counts them, one of which is none.
STRAINS = tuple(0.005 * i for i in range(-3, 4))
#: How often the density calculation is timed.
REPEATS = 5


def orthogonal_cell(structure: Structure) -> Structure:
    """The cell of a cubic crystal spanned by [110], [-110] and [001], in the cubic axes.

    All three deformations leave its vectors orthogonal. GPAW differentiates the density for PBE on its grid, with a
    stencil that changes when the angles do, and energies jump by some meV: strained primitive cells of a
    face-centred crystal do not compare with the unstrained one.

    Raises:
        EcdError: not cubic, or an atom that is no centre of inversion: a strain would move it within the cell.
    """
    given = symmetry(structure)
    if given is None or given.number < 195:
        raise EcdError(structure.formula, "is not cubic", "Take a cubic crystal.")
    cubic = Structure(given.std_lattice, [Element.from_Z(z) for z in given.std_types], given.std_positions)
    found = symmetry(cubic)
    shifts = found.translations[(found.rotations == -np.eye(3)).all(axis=(1, 2))]
    moved = 2 * cubic.frac_coords[:, None] - shifts
    if not (abs(moved - moved.round()) < 1e-2).all(-1).any(-1).all():
        problem = "has atoms that are no centre of inversion and would move within a strained cell"
        raise EcdError(structure.formula, problem, "Take one like rocksalt: the atoms are not relaxed here.")
    half = 0.5 if found.international.startswith("F") else 1.0
    cell = cubic.lattice.a * np.array([[half, half, 0], [-half, half, 0], [0, 0, 1]])
    species = [*cubic.species, *cubic.species]
    both = np.vstack([cubic.frac_coords, cubic.frac_coords + np.array([1, 0, 0])])
    positions = both * cubic.lattice.a @ np.linalg.inv(cell)
    keys = np.round(positions * 48).astype(int) % 48
    _, kept = np.unique(keys, axis=0, return_index=True)
    kept.sort()
    if len(kept) != round(len(cubic) * abs(np.linalg.det(cell)) / cubic.volume):
        raise EcdError(structure.formula, "could not be put into an orthogonal cell", "Take another crystal.")
    atoms = Structure(cell, [species[i] for i in kept], np.mod(positions[kept].round(10), 1))
    return atoms.get_sorted_structure()


#: Runs beside a copy of gpaw_script.py, in the Python that has GPAW: its parameters, but grids that are given.
_SCRIPT = """
import json, sys, time
import gpaw  # here, so that start_seconds holds it
import gpaw_script as recipe
from ase import Atoms

task = json.load(open(sys.argv[1]))
start = time.process_time()
try:
    if "poscar" in task:
        done = recipe.compute(task["poscar"], task["out"])
        done = {"energy": done["energy"], "gpaw": done["gpaw"], "setups": done["convention"]}
    else:
        atoms = Atoms(task["symbols"], cell=task["cell"], scaled_positions=task["positions"], pbc=True)
        atoms.calc = calc = recipe.calculator(False, kpts={"size": task["kpts"], "gamma": True}, gpts=task["gpts"])
        done = {"energy": float(atoms.get_potential_energy(force_consistent=True))}
        done["irreducible_kpoints"] = len(calc.get_ibz_k_points())
except Exception as error:
    recipe.say(error={"problem": f"the calculation failed ({error})", "remedy": "Take another crystal."})
    sys.exit(1)
recipe.say(done=dict(done, start_seconds=round(start, 3), cpu_seconds=round(time.process_time(), 3)))
"""


def run_strains(
    structure: Structure,
    name: str,
    out: Path,
    *,
    strains: Sequence[float] = STRAINS,
    python: str | None = None,
    progress: Callable[[str], None] = print,
) -> None:
    """Compute a cubic crystal's strained cells, one process with one thread each, and time them.

    The parameters are those of the bundled densities. The k-points and the real-space grid are chosen once, for the
    unstrained orthogonal cell (:func:`orthogonal_cell`), and kept. The density calculation that a prediction needs
    (:func:`ecdlib.dft.compute.compute_density`, primitive cell) is timed, too, ``REPEATS`` times.

    Args:
        name: of the crystal.
        out: JSON file (see :func:`ecdlib.elastic.strain.load_strains`).
        python: the interpreter that has GPAW; searched for if None.
        progress: called with one line of text per calculation.

    Raises:
        EcdError: no GPAW; an unsuitable or spin-polarized crystal; a calculation that failed; see also
            :func:`ecdlib.base.pieces.in_pieces`.
    """
    cell = orthogonal_cell(structure)
    symbols = [site.specie.symbol for site in cell]
    if magnetic := sorted(set(symbols) & set(gpaw_script.MOMENTS)):
        raise EcdError(name, f"holds {', '.join(magnetic)}, spin-polarized in the recipe", "Take another crystal.")
    settings = {
        "crystal": name,
        "cell": np.round(cell.lattice.matrix, 8).tolist(),
        "symbols": symbols,
        "positions": np.round(cell.frac_coords, 8).tolist(),
        "kpts": [int(n) for n in _kpoints(cell)],
        "gpts": _grid(cell.lattice.abc, max(strains)),
        "strains": [round(float(d), 10) for d in strains],
        "recipe": RECIPE.removesuffix(", standardized primitive cell"),
    }
    interpreter = find_gpaw_python(python)
    strained = [[(mode, d, 0) for d in settings["strains"] if d] for mode in MODES]
    tasks: list[tuple[str, float, int]] = [("none", 0.0, 0)]
    for repeat in range(REPEATS):  # spread out, because a busy machine is not equally fast all the time
        tasks += [("density", 0.0, repeat), *(strained[repeat] if repeat < len(strained) else [])]
    with in_pieces(out, "data/make/elastic_strains.py", settings) as pieces:
        for number, (mode, d, _) in enumerate(tasks):
            if (key := f"{number:03d}") not in pieces:
                done = _compute(interpreter, settings, structure, mode, d)
                pieces.save(key, {"calculation": np.array(json.dumps(done))}, done["seconds"])
                progress(f"{mode} {d:+.3f}: {done['energy']:.6f} eV, {done['cpu_seconds']:.1f} s")
        made: dict[str, Any] = {"device": "CPU, 1 core", "date": pieces.made_by["date"]}
        calculations = []
        for key, (mode, d, repeat) in zip(pieces.names, tasks, strict=True):
            done = json.loads(str(pieces.load(key)["calculation"]))
            made |= {what: done.pop(what) for what in ("gpaw", "setups") if what in done}
            calculations.append({"mode": mode, "strain": d, "repeat": repeat, **done})
        record = {"settings": settings, "calculations": calculations, "provenance": made}
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _kpoints(cell: Structure) -> Any:
    """Numbers of Gamma-centred k-points along the three vectors, by the recipe's density."""
    atoms = Atoms(cell=cell.lattice.matrix, pbc=True)
    return kpts2sizeandoffsets(density=gpaw_script.KPOINT_DENSITY, gamma=True, atoms=atoms)[0]


def _grid(lengths: Sequence[float], strain: float) -> list[int]:
    """Points of GPAW's real-space grid along each edge (Å), at the largest strain no wider apart than by default."""
    spacing = np.pi / (4 * gpaw_script.CUTOFF / Hartree) ** 0.5 * Bohr
    return [fast_length(edge * (1 + strain) / spacing) for edge in lengths]


def _compute(interpreter: str, settings: dict[str, Any], structure: Structure, mode: str, d: float) -> dict[str, Any]:
    """One calculation in a process of its own: energy, seconds, and what the script says of it."""
    with tempfile.TemporaryDirectory(prefix="ecd-elastic-") as name:
        folder = Path(name)
        shutil.copy(gpaw_script.__file__, folder)
        (folder / "strained.py").write_text(_SCRIPT, encoding="utf-8")
        task: dict[str, Any] = {key: settings[key] for key in ("symbols", "positions", "kpts", "gpts")}
        if mode == "density":
            (folder / "POSCAR").write_text(Poscar(structure).get_str(significant_figures=12))
            task = {"poscar": str(folder / "POSCAR"), "out": str(folder / "density.npz")}
        else:
            cell = settings["cell"] if mode == "none" else strained_cell(settings["cell"], cast(Mode, mode), d)
            vectors = np.asarray(cell, dtype=float)
            if abs(vectors @ vectors.T - np.diag((vectors**2).sum(1))).max() > 1e-6:
                raise EcdError(settings["crystal"], "a strained cell is not orthogonal", "Use orthogonal_cell.")
            task["cell"] = np.linalg.norm(vectors, axis=1).tolist()  # along x, y and z
        (folder / "task.json").write_text(json.dumps(task))
        begun = time.perf_counter()
        command = [interpreter, str(folder / "strained.py"), str(folder / "task.json")]
        done = run_gpaw(command, settings["crystal"], name, None)
        return {"energy": done.pop("energy"), "seconds": round(time.perf_counter() - begun, 3), **done}


if __name__ == "__main__":
    run_strains(load_structures()[sys.argv[1]], sys.argv[1], Path(sys.argv[2]))
