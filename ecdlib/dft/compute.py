"""Compute the charge density of a crystal with GPAW, by the recipe of the bundled densities."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_npz
from ecdlib.dft import gpaw_script

INSTALL = "Install it (conda-forge: gpaw; Debian: apt-get install gpaw gpaw-data), or name the Python that has it."
RECIPE = (
    f"PBE, plane waves {gpaw_script.CUTOFF:g} eV, k-points {gpaw_script.KPOINT_DENSITY:g} per 1/Å, "
    f"Marzari-Vanderbilt smearing {gpaw_script.SMEARING:g} eV, standardized primitive cell"
)


def _import_error(python: str) -> str:
    """Why ``python`` cannot run the recipe; empty if it can."""
    try:
        probe = subprocess.run(
            [python, "-c", "import gpaw, ase, spglib"],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=os.path.abspath(os.sep),  # not where a folder named gpaw may lie
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (probe.stderr.strip().splitlines() or ["it stopped"])[-1] if probe.returncode else ""


def find_gpaw_python(python: str | os.PathLike[str] | None = None) -> str:
    """The first interpreter that can import gpaw, ase and spglib.

    ``python`` alone if given; else the running one, ``python3`` on the PATH outside its virtual environment, and
    ``/usr/bin/python3``, in this order.

    Raises:
        EcdError: none can; the message says how to install GPAW.
    """
    if python is not None:
        if problem := _import_error(os.fspath(python)):
            raise EcdError(os.fspath(python), f"cannot run GPAW ({problem})", INSTALL)
        return os.fspath(python)
    own = os.path.dirname(sys.executable)
    outside = os.pathsep.join(p for p in os.environ.get("PATH", "").split(os.pathsep) if p and p != own)
    candidates = dict.fromkeys(
        filter(None, (sys.executable, shutil.which("python3", path=outside), "/usr/bin/python3"))
    )
    for candidate in candidates:
        if not _import_error(candidate):
            return candidate
    raise EcdError("GPAW", f"none of {', '.join(candidates)} can import gpaw, ase and spglib", INSTALL)


def compute_density(
    structure: Structure,
    out: str | os.PathLike[str] | None = None,
    *,
    sets: Mapping[str, str] | None = None,
    python: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> ChargeDensity:
    """Valence electron density of a crystal from a self-consistent GPAW calculation.

    One process with one thread, seconds to minutes for small cells. The recipe (``gpaw_script.py``) is the one that
    made the bundled densities, parameter by parameter, tested with GPAW 22.8.0.

    Args:
        out: where to keep the result (.npz); nothing is kept if None. Fields: ``rho`` (nx, ny, nz), float32, e/Å³;
            ``cell`` (3, 3), Å; ``positions`` (n_atoms, 3), fractional; ``numbers`` (n_atoms,); ``energy``, eV per
            cell, relative to GPAW's non-spin-polarized reference atoms; ``n_electrons``, ``spacegroup``, ``gpaw``
            (its version), ``convention``.
        sets: names of GPAW's other PAW sets by element, ``{"Na": "1"}`` for ``Na.1.PBE``; the standard ones if None.
        python: the interpreter that has GPAW; searched for if None (see :func:`find_gpaw_python`).
        progress: called with one line of text per iteration.

    Returns:
        The density of spglib's *standardized primitive cell*: size, orientation and origin may differ from those of
        ``structure``. Its name is ``formula_spacegroup``, its convention names the PAW sets (``"gpaw-0.9.20000"``).

    Raises:
        EcdError: no GPAW; an element without PAW set; no convergence; ``out`` cannot be written. Nothing half-written
            is left.
    """
    interpreter = find_gpaw_python(python)
    choices = [f"{element}={name}" for element, name in (sets or {}).items()]
    with tempfile.TemporaryDirectory(prefix="ecd-compute-") as folder:
        # Away from ecdlib's own folder: Python puts a script's folder first among those it imports from.
        script = shutil.copy(gpaw_script.__file__, folder)
        from pymatgen.io.vasp.inputs import Poscar  # slow to import

        poscar, result = Path(folder, "POSCAR"), Path(folder, "density.npz")
        poscar.write_text(Poscar(structure).get_str(significant_figures=16))
        command = [interpreter, script, str(poscar), str(result), *choices]
        about = run_gpaw(command, structure.composition.reduced_formula, folder, progress)
        density = read_npz(result)
        if out is not None:
            with atomic_write(out) as temporary:
                shutil.copyfile(result, temporary)
    return replace(
        density,
        name=f"{density.formula}_{about['spacegroup']}",
        history=(f"GPAW {about['gpaw']}: {RECIPE}; {about['energy']:.6f} eV per cell",),
    )


def run_gpaw(command: list[str], name: str, folder: str, progress: Callable[[str], None] | None) -> dict[str, Any]:
    """Run the script to its end, passing on its progress; what it says when done, or an EcdError about ``name``."""
    log = Path(folder, "stderr.txt")
    done: dict[str, Any] = {}
    failure: dict[str, str] | None = None
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            errors="replace",
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                message = json.loads(line) if line.startswith('{"') else {}  # libraries may print, too
                done, failure = message.get("done", done), message.get("error", failure)
                if progress is not None and "iteration" in message:
                    progress(f"iteration {message['iteration']} of at most {message['of']}")
        except BaseException:  # an interrupt, or the caller's progress raised: do not wait for the calculation
            process.kill()
            raise
    if failure is not None:
        raise EcdError(name, failure["problem"], failure["remedy"])
    if process.returncode < 0:
        raise EcdError(
            name,
            f"the calculation was killed by signal {-process.returncode}",
            "If memory ran out, give a smaller cell.",
        )
    if process.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1].strip()
        raise EcdError(
            name, f"GPAW stopped with an error it does not explain ({last})", "Use GPAW 22.8.0, the version tested."
        )
    return done
