"""Lattice constant and bulk modulus of a cubic crystal by an equation of state, with GPAW: for new_crystals.py.

A script of its own, like ``ecdlib/dft/gpaw_script.py``: it runs in the Python that has GPAW and needs only gpaw, ase,
scipy and numpy. Plane waves, PBE, not spin-polarized::

    python3 equation_of_state.py TASK.json

The task holds ``symbols``, ``positions`` (fractional), ``cell`` (of lattice constant 1), ``a`` (a first guess, Å), all
of a crystal whose atoms symmetry keeps in place. Three steps: a search for the volume, with few k-points and the
pressure corrected for the finite basis; at least five calculations on a ladder of volumes, 3 per cent apart, extended
until the minimum lies within; the third-order Birch-Murnaghan equation (F. Birch, Phys. Rev. 71, 809 (1947)) fitted to
energies and pressures together, with the constant pressure of the finite basis as one more parameter.

It writes lines of JSON: ``{"volume": ..., "energy": ..., "pressure": ...}`` after each calculation, then
``{"done": {...}}``, or ``{"error": {"problem": ..., "remedy": ...}}`` and exit status 1.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import Bohr, GPa, Hartree

SOFT_CUTOFF, HARD_CUTOFF = 400.0, 600.0  # eV, plane waves
HARD = {"H", "B", "C", "N", "O", "F"}  # elements that need the higher one
METAL, INSULATOR, COARSE = 0.25, 0.35, 0.50  # 1/Å, distance of k-points
GAP = 0.4  # eV, above which a crystal counts as an insulator
SMEARING = 0.2  # eV, Marzari-Vanderbilt
STEP = 0.03  # of the logarithm of the volume
REACH = 8  # steps that the ladder may reach up or down
NEAR = 3.2  # steps from the minimum within which calculations are fitted
ENERGY, PRESSURE, PRIOR = 3e-4, 0.15, 1.5  # eV, GPa, 1: weights of the fit; the last is how far B' may be from 4.5


def say(**line: Any) -> None:
    """One line of JSON to whoever started this."""
    print(json.dumps(line), flush=True)


def birch_murnaghan(v: Any, e0: float, v0: float, b: float, b1: float) -> tuple[Any, Any]:
    """Energy (eV) and pressure (eV/Å³) at volumes (Å³) of the third-order equation of state."""
    x = (v0 / v) ** (2 / 3)
    energy = e0 + 9 * v0 * b / 16 * ((x - 1) ** 3 * b1 + (x - 1) ** 2 * (6 - 4 * x))
    return energy, 1.5 * b * (x**3.5 - x**2.5) * (1 + 0.75 * (b1 - 4) * (x - 1))


def fit(volume: Any, energy: Any, pressure: Any) -> dict[str, float]:
    """The equation of state through volumes (Å³), energies (eV) and pressures (GPa).

    Returns:
        volume (Å³), bulk_modulus (GPa), derivative (B'), energy (eV), basis_pressure (GPa), rms (meV).
    """
    from scipy.optimize import least_squares

    v, e, p = (np.asarray(x, dtype=float) for x in (volume, energy, pressure))
    low = int(np.argmin(e))

    def residuals(q: Any) -> Any:
        fitted, pressed = birch_murnaghan(v, *q[:4])
        shifted = pressed / GPa + q[4] * v[low] / v
        return np.concatenate([(fitted - e) / ENERGY, (shifted - p) / PRESSURE, [(q[3] - 4.5) / PRIOR]])

    slope = max(-np.polyfit(np.log(v), p * GPa, 1)[0], 0.01)
    found = least_squares(residuals, [e[low], v[low], slope, 4.5, 0.0], x_scale=[1, v[low] / 10, 0.5, 1, 1]).x
    rms = np.sqrt(np.mean((birch_murnaghan(v, *found[:4])[0] - e) ** 2)) * 1e3
    names = ("energy", "volume", "bulk_modulus", "derivative", "basis_pressure", "rms")
    values = (found[0], found[1], found[2] / GPa, found[3], found[4], rms)
    return {name: float(x) for name, x in zip(names, values, strict=True)}


def grid(atoms: Any, cutoff: float, margin: float) -> list[int]:
    """Even numbers of points that fast Fourier transforms like, close enough for twice the cutoff."""
    spacing = np.pi / np.sqrt(4 * cutoff / Hartree) * Bohr
    points = []
    for edge in atoms.cell.lengths():
        n = 2 * int(np.ceil(edge * margin / spacing / 2))
        while _rest(n) > 1:
            n += 2
        points.append(n)
    return points


def _rest(n: int) -> int:
    """What is left of ``n`` without its factors 2, 3, 5 and 7."""
    for p in (2, 3, 5, 7):
        while n % p == 0:
            n //= p
    return n


def kpoints(atoms: Any, distance: float) -> list[int]:
    """Numbers of Gamma-centred k-points along the reciprocal vectors."""
    return [max(2, int(np.ceil(2 * np.pi * length / distance - 1e-6))) for length in atoms.cell.reciprocal().lengths()]


class Calculations:
    """Self-consistent calculations of one crystal at several volumes."""

    def __init__(self, task: dict[str, Any]):
        self.task = task
        self.cutoff = HARD_CUTOFF if HARD & set(task["symbols"]) else SOFT_CUTOFF

    def atoms(self, volume: float) -> Any:
        """The cell of this volume (Å³)."""
        cell = np.array(self.task["cell"], dtype=float)
        cell *= (volume / abs(np.linalg.det(cell))) ** (1 / 3)
        return Atoms(self.task["symbols"], cell=cell, scaled_positions=self.task["positions"], pbc=True)

    def __call__(self, volume: float, kpts: list[int], gpts: list[int], corrected: bool) -> tuple[float, float, float]:
        """Energy (eV), pressure (GPa) and gap (eV); a second, slower try where the first does not converge."""
        from gpaw import GPAW, PW, FermiDirac, KohnShamConvergenceError, MarzariVanderbilt, Mixer

        for mixer, occupations, most in (
            (Mixer(0.25, 8, 20), MarzariVanderbilt(SMEARING), 60),
            (Mixer(0.05, 5, 50), FermiDirac(SMEARING), 200),
        ):
            atoms = self.atoms(volume)
            atoms.calc = calc = GPAW(
                mode=PW(self.cutoff, dedecut="estimate" if corrected else None),
                xc="PBE",
                spinpol=False,
                kpts={"size": kpts, "gamma": True},
                gpts=gpts,
                occupations=occupations,
                mixer=mixer,
                maxiter=most,
                convergence={"density": 2e-5, "eigenstates": 4e-8},
                txt=None,
            )
            try:
                energy = float(atoms.get_potential_energy(force_consistent=True))
            except KohnShamConvergenceError:
                continue
            pressure = -float(np.mean(atoms.get_stress()[:3])) / GPa
            say(volume=volume, energy=energy, pressure=pressure)
            return energy, pressure, _gap(calc)
        raise RuntimeError("a calculation did not converge")


def _gap(calc: Any) -> float:
    """Kohn-Sham gap (eV) on the k-points; 0 for metals."""
    electrons = calc.get_number_of_electrons()
    filled = round(electrons / 2)
    if abs(electrons / 2 - filled) > 1e-6:
        return 0.0
    bands = np.array([calc.get_eigenvalues(k) for k in range(len(calc.get_ibz_k_points()))])
    return float(max(0.0, bands[:, filled].min() - bands[:, filled - 1].max())) if bands.shape[1] > filled else 0.0


def search(run: Calculations, volume: float) -> tuple[float, float]:
    """A volume close to equilibrium (Å³), and the gap there (eV), by Newton's method on the pressure."""
    kpts = kpoints(run.atoms(volume), COARSE)
    seen: list[tuple[float, float]] = []
    for _ in range(9):
        _, pressure, gap = run(volume, kpts, grid(run.atoms(volume), run.cutoff, 1.02), corrected=True)
        here, slope = float(np.log(volume)), 90.0
        if seen:
            before = min(seen, key=lambda point: abs(point[0] - here))
            slope = float(np.clip(-(pressure - before[1]) / (here - before[0]), 5, 600))
        seen.append((here, pressure))
        argument = 1 + 4.5 * pressure / slope
        step = float(np.clip(np.log(argument) / 4.5 if argument > 0.2 else -0.3, -0.25, 0.25))
        volume = float(np.exp(here + step))
        if abs(step) < (0.04 if len(seen) > 1 else 0.01):
            return volume, gap
    raise RuntimeError("the search for the volume did not converge")


def equation_of_state(task: dict[str, Any]) -> dict[str, Any]:
    """What the fit gives (:func:`fit`), the lattice constant ``a`` (Å), and the calculations it rests on."""
    run = Calculations(task)
    unit = abs(np.linalg.det(np.array(task["cell"], dtype=float)))
    middle, gap = search(run, task["a"] ** 3 * unit)
    atoms = run.atoms(middle)
    kpts, gpts = kpoints(atoms, INSULATOR if gap > GAP else METAL), grid(atoms, run.cutoff, 1.045)
    points: dict[int, tuple[float, float, float]] = {}
    todo = [0, -1, 1, -2, 2]
    while todo:
        for i in todo:
            volume = middle * float(np.exp(STEP * i))
            energy, pressure, _ = run(volume, kpts, gpts, corrected=False)
            points[i] = volume, energy, pressure
        low, high = min(points), max(points)
        at = float(np.log(fit(*zip(*(points[i] for i in sorted(points)), strict=True))["volume"] / middle)) / STEP
        above, below = at > high - 0.75 and high < REACH, at < low + 0.75 and low > -REACH
        todo = [high + 1] if above else [low - 1] if below else []
    if not low < at < high:
        raise RuntimeError("no minimum of the energy was found")
    near = [points[i] for i in sorted(points) if abs(i - at) <= NEAR]
    done = fit(*zip(*near, strict=True))
    return done | {
        "a": (done["volume"] / unit) ** (1 / 3),
        "cutoff": run.cutoff,
        "kpoints": kpts,
        "points": near,
        "calculations": len(points),
    }


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as f:
        given = json.load(f)
    try:
        say(done=equation_of_state(given))
    except Exception as error:
        say(error={"problem": f"the calculation failed ({' '.join(str(error).split())})", "remedy": "Leave it out."})
        sys.exit(1)
