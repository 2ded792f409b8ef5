"""Energies and times of a crystal's strained cells with GPAW: makes the files of data/elastic/.

Needs a Python that has GPAW (see :mod:`ecdlib.dft.compute`), takes minutes to hours on one core, and resumes::

    python data/make/elastic_strains.py LiH_225 data/elastic/LiH_225.json

A cubic crystal gets all seven strains of its three deformations. Any other is a sample: one strain of each of the six
components, in the primitive cell with the atoms held fixed; then the atoms are relaxed in the unstrained cell and in a
strained one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import kpts2sizeandoffsets
from ase.units import Bohr, Hartree
from pymatgen.core import Element, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp import Poscar

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.pieces import in_pieces
from ecdlib.data.tables import load_structures
from ecdlib.density.cell import fast_length
from ecdlib.density.core import symmetry
from ecdlib.dft import gpaw_script
from ecdlib.dft.compute import RECIPE, find_gpaw_python, run_gpaw
from ecdlib.elastic.strain import COMPONENTS, MODES, strained_cell

#: Strains of each deformation: seven, as the paper counts them, one of which is none.
STRAINS = tuple(0.005 * i for i in range(-3, 4))
#: How often the density calculation is timed.
REPEATS = 5
#: The same for a crystal that is not cubic.
FEW_STRAINS, FEW_REPEATS = (0.0, 0.01), 3
#: Strain in which its atoms are relaxed, after the unstrained cell.
RELAXED = ("zz", 0.01)
#: Force at which a relaxation ends, eV/Å.
FMAX = 0.02


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


def primitive_cell(structure: Structure) -> Structure:
    """The cell in which the recipe computes a density.

    Raises:
        EcdError: no symmetry found.
    """
    try:
        atoms, _ = gpaw_script.primitive(AseAtomsAdaptor.get_atoms(structure))
    except gpaw_script.Failure as failure:
        raise EcdError(structure.formula, *failure.args) from failure
    return AseAtomsAdaptor.get_structure(atoms)


#: Runs beside a copy of gpaw_script.py, in the Python that has GPAW: its parameters, but grids that are given.
_SCRIPT = """
import json, sys, time
import gpaw  # here, so that start_seconds holds it
import gpaw_script as recipe
from ase import Atoms
from ase.optimize import BFGS

def largest(forces):
    return float((forces**2).sum(axis=1).max() ** 0.5)

def relax(atoms, fmax):
    done = {"unrelaxed": float(atoms.get_potential_energy(force_consistent=True))}
    done["first_seconds"] = round(time.process_time(), 3)
    done["largest_force"] = largest(atoms.get_forces())
    optimizer = BFGS(atoms, logfile=None)
    optimizer.run(fmax=fmax, steps=50)
    if largest(atoms.get_forces()) > fmax:
        raise RuntimeError("no rest after 50 steps")
    cpu = time.process_time()
    return dict(
        done,
        energy=float(atoms.get_potential_energy(force_consistent=True)),
        force_evaluations=optimizer.nsteps + 1,
        positions=atoms.get_scaled_positions().round(8).tolist(),
        cpu_seconds=round(cpu, 3),
        stress=atoms.get_stress().tolist(),
        stress_seconds=round(time.process_time() - cpu, 3),
    )

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
        if "fmax" in task:
            done.update(relax(atoms, task["fmax"]))
except Exception as error:
    recipe.say(error={"problem": f"the calculation failed ({error})", "remedy": "Take another crystal."})
    sys.exit(1)
done.setdefault("cpu_seconds", round(time.process_time(), 3))
recipe.say(done=dict(done, start_seconds=round(start, 3)))
"""


def run_strains(
    structure: Structure,
    name: str,
    out: Path,
    *,
    strains: Sequence[float] | None = None,
    python: str | None = None,
    progress: Callable[[str], None] = print,
) -> None:
    """Compute a crystal's strained cells, one process with one thread each, and time them.

    The parameters are those of the bundled densities. The k-points and the real-space grid are chosen once, for the
    unstrained cell, and kept: that of :func:`orthogonal_cell` if the crystal is cubic, else that of
    :func:`primitive_cell`. The density calculation that a prediction needs
    (:func:`ecdlib.dft.compute.compute_density`, primitive cell) is timed, too, several times. The relaxations of a
    crystal that is not cubic begin at the fractional coordinates that the unstrained cell relaxes to.

    Args:
        name: of the crystal.
        out: JSON file (see :func:`ecdlib.elastic.strain.load_strains`).
        strains: of each deformation; ``STRAINS`` if None, ``FEW_STRAINS`` if the crystal is not cubic.
        python: the interpreter that has GPAW; searched for if None.
        progress: called with one line of text per calculation.

    Raises:
        EcdError: no GPAW; an unsuitable or spin-polarized crystal; a calculation that failed; see also
            :func:`ecdlib.base.pieces.in_pieces`.
    """
    given = symmetry(structure)
    cubic = given is not None and given.number >= 195
    cell = orthogonal_cell(structure) if cubic else primitive_cell(structure)
    modes: tuple[str, ...] = MODES if cubic else COMPONENTS
    strains = strains or (STRAINS if cubic else FEW_STRAINS)
    symbols = [site.specie.symbol for site in cell]
    if magnetic := sorted(set(symbols) & set(gpaw_script.MOMENTS)):
        raise EcdError(name, f"holds {', '.join(magnetic)}, spin-polarized in the recipe", "Take another crystal.")
    settings = {
        "crystal": name,
        "cell": np.round(cell.lattice.matrix, 8).tolist(),
        "symbols": symbols,
        "positions": np.round(cell.frac_coords, 8).tolist(),
        "kpts": [int(n) for n in _kpoints(cell)],
        "gpts": _grid(1 / np.array(cell.lattice.reciprocal_lattice_crystallographic.abc), max(strains)),
        "strains": [round(float(d), 10) for d in strains],
        "recipe": RECIPE.removesuffix(", standardized primitive cell"),
    }
    interpreter = find_gpaw_python(python)
    tasks: list[tuple[str, float, int]] = [("none", 0.0, 0)]
    repeats = REPEATS if cubic else FEW_REPEATS
    for repeat in range(repeats):  # spread out, because a busy machine is not equally fast all the time
        strained = [(mode, d, 0) for mode in modes[repeat::repeats] for d in settings["strains"] if d]
        tasks += [("density", 0.0, repeat), *strained]
    if not cubic:
        settings |= {"modes": modes, "fmax": FMAX}
    with in_pieces(out, "data/make/elastic_strains.py", settings) as pieces:

        def finished(key: str, mode: str, d: float, **changes: Any) -> dict[str, Any]:
            """The piece ``key``, made now unless it is there; ``changes`` of the settings ask for a relaxation."""
            if key not in pieces:
                done = _compute(interpreter, settings | changes, structure, mode, d, relax=bool(changes))
                pieces.save(key, {"calculation": np.array(json.dumps(done))}, done["seconds"])
                progress(f"{key} {mode} {d:+.3f}: {done['energy']:.6f} eV, {done['cpu_seconds']:.1f} s")
            found: dict[str, Any] = json.loads(str(pieces.load(key)["calculation"]))
            return found

        made: dict[str, Any] = {}
        calculations, relaxations = [], []
        for number, (mode, d, repeat) in enumerate(tasks):
            done = finished(f"{number:03d}", mode, d)
            made |= {what: done.pop(what) for what in ("gpaw", "setups") if what in done}
            calculations.append({"mode": mode, "strain": d, "repeat": repeat, **done})
        rest = settings["positions"]
        for mode, d in () if cubic else (("none", 0.0), RELAXED):
            done = finished(f"relaxed-{mode}", mode, d, positions=rest)
            rest = done["positions"]
            relaxations.append({"mode": mode, "strain": d, "repeat": 0, **done})
        made = pieces.provenance() | made | {"device": "CPU, 1 core"}
        del made["parameters"]  # the settings
        record: dict[str, Any] = {"settings": settings, "calculations": calculations}
        if relaxations:
            record["relaxations"] = relaxations
        record["provenance"] = made
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _kpoints(cell: Structure) -> Any:
    """Numbers of Gamma-centred k-points along the three vectors, by the recipe's density."""
    atoms = Atoms(cell=cell.lattice.matrix, pbc=True)
    return kpts2sizeandoffsets(density=gpaw_script.KPOINT_DENSITY, gamma=True, atoms=atoms)[0]


def _grid(lengths: Iterable[float], strain: float) -> list[int]:
    """Points of GPAW's real-space grid between opposite faces of the cell that are ``lengths`` (Å) apart.

    At the largest strain they are no wider apart than by default.
    """
    spacing = np.pi / (4 * gpaw_script.CUTOFF / Hartree) ** 0.5 * Bohr
    return [fast_length(edge * (1 + strain) / spacing) for edge in lengths]


def _compute(
    interpreter: str, settings: dict[str, Any], structure: Structure, mode: str, d: float, relax: bool = False
) -> dict[str, Any]:
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
            cell = settings["cell"] if mode == "none" else strained_cell(settings["cell"], mode, d)
            vectors = np.asarray(cell, dtype=float)
            task["cell"] = vectors.tolist()
            if "modes" not in settings:  # a cubic crystal
                if abs(vectors @ vectors.T - np.diag((vectors**2).sum(1))).max() > 1e-6:
                    raise EcdError(settings["crystal"], "a strained cell is not orthogonal", "Use orthogonal_cell.")
                task["cell"] = np.linalg.norm(vectors, axis=1).tolist()  # along x, y and z
            if relax:
                task["fmax"] = settings["fmax"]
        (folder / "task.json").write_text(json.dumps(task))
        begun = time.perf_counter()
        command = [interpreter, str(folder / "strained.py"), str(folder / "task.json")]
        done = run_gpaw(command, settings["crystal"], name, None)
        return {"energy": done.pop("energy"), "seconds": round(time.perf_counter() - begun, 3), **done}


if __name__ == "__main__":
    run_strains(load_structures()[sys.argv[1]], sys.argv[1], Path(sys.argv[2]))
