"""Self-consistent PBE calculation of one crystal with GPAW: its valence electron density, as VASP's CHGCAR holds it.

A script of its own: it needs only gpaw, ase, spglib and numpy, and no other part of ecdlib, because GPAW often lives
in another Python (Debian's, say). :func:`ecdlib.dft.compute.compute_density` runs it. By hand, with OMP_NUM_THREADS=1::

    python3 gpaw_script.py POSCAR OUT.npz [Na=1 ...]

Density = pseudo density - pseudo core + valence compensation charges, on GPAW's fine FFT grid, in e/Å³. It integrates
to the number of valence electrons, may be negative close to nuclei, and is band-limited. The parameters are fixed:
they are those of the bundled densities (GPAW 22.8.0, data sets 0.9.20000), and only equal recipes compare. What
follows the files chooses other PAW sets for single elements: ``Na=1`` takes ``Na.1.PBE``, with one valence electron.

It writes lines of JSON to its standard output: ``{"iteration": 7, "of": 120}`` while it runs, then
``{"done": {...}}``, or ``{"error": {"problem": ..., "remedy": ...}}`` and exit status 1.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from glob import glob
from typing import Any

import numpy as np
import spglib
from ase import Atoms
from ase.io import read
from ase.units import Bohr

CUTOFF = 450.0  # eV, plane waves
KPOINT_DENSITY = 3.0  # per 1/Å, Gamma-centred
SMEARING = 0.1  # eV, Marzari-Vanderbilt
MAX_ITERATIONS = 120
MOMENTS = {"Cr": 3.0, "Mn": 4.0, "Fe": 3.0, "Co": 2.0, "Ni": 1.0}  # spin-polarized where one of these is present


class Failure(Exception):
    """``Failure(problem, remedy)``: an input that this recipe cannot compute."""


def primitive(atoms: Any) -> tuple[Any, int]:
    """The standardized primitive cell (tolerance 0.01 Å) and the number of its space group."""
    crystal = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
    standardized = spglib.standardize_cell(crystal, to_primitive=True, symprec=1e-2)
    symbol = spglib.get_spacegroup(crystal, symprec=1e-2)  # "Im-3m (229)"
    if standardized is None or symbol is None:
        raise Failure("spglib finds no crystal symmetry in it", "Check the lattice and that no two atoms coincide.")
    cell, positions, numbers = standardized
    return Atoms(numbers=numbers, cell=cell, scaled_positions=positions, pbc=True), int(
        symbol.split("(")[1].rstrip(")")
    )


def valence_density(calc: Any) -> np.ndarray[Any, Any]:
    """(nx, ny, nz) in e/Å³ from a converged plane-wave GPAW calculation."""
    d = calc.density
    d.interpolate_pseudo_density()
    fourier = d.pd3.zeros()
    moments = {a: D_sp[: d.nspins].sum(0) @ d.setups[a].Delta_pL for a, D_sp in d.D_asp.items()}
    d.ghat.add(fourier, moments)  # valence compensation charges
    d.map23.add_to2(fourier, d.nt_Q)  # + pseudo density
    d.map23.add_to2(fourier, -d.nspins * d.nct_q)  # - pseudo core density
    density: np.ndarray[Any, Any] = d.pd3.ifft(fourier) / Bohr**3
    return density


def dataset_version(path: str) -> str:
    """Version of the PAW data sets that the file at ``path`` belongs to, e.g. ``"0.9.20000"``; empty if unknown."""
    path = os.path.realpath(path)
    named = re.search(r"gpaw-(?:setups|data)-(\d[\w.]*\w)", path)  # as gpaw install-data unpacks them
    if named:
        return named.group(1)
    for record in glob(os.path.join(sys.prefix, "conda-meta", "gpaw-data-*.json")):
        if path.startswith(os.path.realpath(sys.prefix)):
            return os.path.basename(record).split("-")[2]
    if path.startswith("/usr/share/"):
        query = ["dpkg-query", "--show", "--showformat=${Version}", "gpaw-data"]
        try:
            return subprocess.run(query, capture_output=True, text=True, check=True).stdout.rsplit("-", 1)[0]
        except (OSError, subprocess.CalledProcessError):
            pass
    return ""


def say(**line: Any) -> None:
    """One line of JSON to whoever started this."""
    print(json.dumps(line), flush=True)


def calculator(spin: bool, **others: Any) -> Any:
    """GPAW with the recipe's parameters; ``others`` are k-points and, if given, points in real space and PAW sets."""
    from gpaw import GPAW, PW, MarzariVanderbilt, Mixer, MixerSum

    return GPAW(
        mode=PW(CUTOFF),
        xc="PBE",
        occupations=MarzariVanderbilt(SMEARING),
        maxiter=MAX_ITERATIONS,
        txt=None,
        mixer=MixerSum(0.2, 8, 30) if spin else Mixer(0.25, 8, 30),
        convergence={"density": 1e-5, "energy": 1e-5, "eigenstates": 1e-7},
        **others,
    )


def compute(poscar: str, out: str, *sets: str) -> dict[str, Any]:
    """Compute the crystal in ``poscar``, write ``out`` (.npz), return what a caller wants to know of it.

    Args:
        sets: ``element=name`` of PAW sets other than the standard ones.
    """
    try:
        given: Any = read(poscar, format="vasp")
        if not (len(given) and abs(given.get_volume()) > 1e-3):
            raise ValueError("no atoms, or a cell without volume")
    except Exception as error:
        raise Failure(
            "is not a readable POSCAR ({})".format(" ".join(str(error).split()) or type(error).__name__),
            "Write it in VASP 5 format, with the line of element symbols above the line of atom counts.",
        ) from error
    atoms, spacegroup = primitive(given)
    chosen = dict(s.split("=", 1) for s in sets)
    if absent := sorted(set(chosen) - set(atoms.symbols)):
        raise Failure(
            f"holds no {', '.join(absent)}, for which another PAW set is asked", "Choose sets of its elements."
        )

    import gpaw
    from gpaw.utilities import AtomsTooClose

    spin = any(s in MOMENTS for s in atoms.symbols)
    if spin:
        atoms.set_initial_magnetic_moments([MOMENTS.get(s, 0.0) for s in atoms.symbols])
    atoms.calc = calc = calculator(spin, kpts={"density": KPOINT_DENSITY, "gamma": True}, setups=chosen)
    calc.attach(lambda: say(iteration=calc.scf.niter, of=MAX_ITERATIONS), 1)
    try:
        energy = atoms.get_potential_energy(force_consistent=True)
    except gpaw.KohnShamConvergenceError as error:
        raise Failure(
            f"the calculation did not converge within {MAX_ITERATIONS} iterations",
            "Check the lattice and the positions. The recipe is fixed, so that densities compare; for a crystal that "
            "does not converge with it, read the CHGCAR or cube file of another calculation.",
        ) from error
    except AtomsTooClose as error:
        raise Failure(str(error).rstrip("."), "Check the positions and the scale of the lattice (Å).") from error
    except FileNotFoundError as error:
        missing = re.search(r'PAW dataset file "([A-Z][a-z]?(?:\.\w+)?)\.PBE', str(error))
        if missing is None:
            raise
        raise Failure(
            f"GPAW has no PAW set {missing.group(1)} in {' or '.join(map(str, gpaw.setup_paths))}",
            "If it has none for any element, install them (Debian: apt-get install gpaw-data; elsewhere: "
            "gpaw install-data); else read the CHGCAR or cube file of another calculation.",
        ) from error
    rho = valence_density(calc)
    electrons = float(rho.mean() * atoms.get_volume())
    expected = float(sum(s.Nv for s in calc.setups))
    if abs(electrons - expected) >= 1e-3:
        raise Failure(
            f"the density integrates to {electrons:.4f} electrons, not to the {expected:g} valence electrons",
            "Use GPAW 22.8.0, for which this recipe was written.",
        )
    about = {
        "energy": float(energy),
        "n_electrons": expected,
        "spacegroup": spacegroup,
        "gpaw": gpaw.__version__,
        "convention": "-".join(filter(None, ("gpaw", dataset_version(str(calc.setups[0].filename)))))
        + (" (alternative sets)" if sets else ""),
    }
    np.savez(
        out,
        rho=rho.astype(np.float32),
        cell=atoms.cell[:],
        positions=atoms.get_scaled_positions(),
        numbers=atoms.numbers,
        **about,
    )
    return dict(about, electrons=electrons, grid=rho.shape, minimum=float(rho.min()))


if __name__ == "__main__":
    try:
        say(done=compute(*sys.argv[1:]))
    except Failure as failure:
        problem, remedy = failure.args
        say(error={"problem": problem, "remedy": remedy})
        sys.exit(1)
