"""Real VASP files against our own densities of the same crystals: how far apart, and what is predicted from them.

The files (from public test suites, not copied here) lie in one folder as ``CHGCAR.NAME.gz``; in another our own
densities at their geometries as ``NAME.npz``, where there are any (``ecd density POSCAR --with gpaw -o NAME.npz``).
The shipped files are added. Minutes of one core::

    python data/make/vasp_files.py FILES OURS data/valence/vasp_files.csv
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.resources import data_file
from ecdlib.density.cell import resample, to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_density
from ecdlib.density.store import DensityStore
from ecdlib.density.valence import (
    apart,
    normal_equations,
    recognize,
    solve,
    to_convention,
    to_ours,
    vasp_numbers,
    vasp_pbe,
)
from ecdlib.learn.predict import DEFAULT_MODEL, load_predictors

#: Two files of one crystal, the second with a set that the table lacks: what two numbers fitted to the first one do.
PAIRS = {"Fe3O4_pv": ("Fe3O4", "Fe")}
Numbers = Mapping[str, tuple[float, float]]


def distance(theirs: ChargeDensity, ours: ChargeDensity, numbers: Numbers) -> float:
    """How far two densities of one crystal are apart, %."""
    a, b = to_conventional(to_convention(theirs, calibration=numbers)), to_conventional(to_convention(ours))
    grid = [max(n) for n in zip(a.shape, b.shape, strict=True)]
    return 100 * apart(resample(a.values, grid), resample(b.values, grid))


def moment(density: ChargeDensity) -> float:
    """Total magnetic moment of a VASP file, Bohr magnetons per cell; NaN if it is not spin-polarized."""
    spin = density.vasp.spin if density.vasp else {}
    parts = [float(np.mean(values)) for values in spin.values()]  # as in the file, times the volume
    return float(np.linalg.norm(parts)) if parts else np.nan


def calibrations(name: str, density: ChargeDensity, folder: Path) -> Iterator[tuple[str, Numbers, str]]:
    """Ways to take a file's potentials: a name, the numbers, and what else is to be said."""
    valence, table = recognize(density), vasp_pbe()
    known = vasp_numbers(valence)
    yield "whole shells", {}, ""
    if known:
        yield "the table", known, ""
    other = {e: tuple(map(float, table.loc[e, ["a", "b"]])) for e in valence.electrons if e in table.index}
    if set(other) - set(known):
        yield "the standard set", other, ""
    if name in PAIRS:
        first, element = PAIRS[name]
        reference = to_ours(read_density(folder / f"CHGCAR.{first}.gz"))
        as_ours = ChargeDensity(
            reference.values, reference.lattice, reference.species, reference.positions, first, "gpaw-0.9.20000"
        )
        one = normal_equations(density, as_ours, [element], known=known)
        found = solve([one])
        ends = f"{100 * one.apart({}):.0f} % apart before, {100 * one.apart(found):.1f} % after"
        yield f"fitted to {first}", known | found, ends


def rows(name: str, path: Path, own: ChargeDensity | None) -> Iterator[dict[str, Any]]:
    """Rows of one file: one for each way, and one from our own density."""
    try:
        density = read_density(path)
        valence = recognize(density)
    except EcdError as error:
        yield {"file": path.name, "numbers": "refused", "note": error.problem}
        return
    about = {"file": path.name, "formula": density.formula, "atoms": len(density.species), "valence": str(valence)}
    about["moment"] = round(moment(density), 2)
    predictors = load_predictors(DEFAULT_MODEL)

    def predicted(of: ChargeDensity, numbers: Numbers) -> dict[str, float]:
        found = predictors[0].model.features(of, None, numbers)
        return {p.target: p.predict(found)[0] for p in predictors}

    for label, numbers, note in calibrations(name, density, path.parent):
        row = about | {"numbers": label, "note": note} | predicted(density, numbers)
        row["apart"] = distance(density, own, numbers) if own else np.nan
        yield row
    if own is not None:
        yield about | {"moment": np.nan, "valence": str(recognize(own)), "numbers": "ours"} | predicted(own, {})


def main(files: Path, ours: Path, out: Path) -> None:
    """Write the table."""
    shipped = DensityStore(data_file("vasp/gpaw.h5"))
    found: list[dict[str, Any]] = []
    for name in ("NaCl", "Li", "Li_spin"):
        found += rows(name, data_file(f"vasp/CHGCAR.{name}.gz"), shipped[name.split("_")[0]])
    for path in sorted(files.glob("CHGCAR*.gz")):
        name = path.name.split(".")[1]
        own = next(
            (ours / f"{n}.npz" for n in (name, PAIRS.get(name, ("",))[0]) if (ours / f"{n}.npz").is_file()), None
        )
        found += rows(name, path, read_density(own) if own else None)
        print(path.name, flush=True)
    columns = ["file", "formula", "atoms", "valence", "moment", "numbers", "apart", "bulk_modulus", "total_energy"]
    with atomic_write(out) as temporary:
        pd.DataFrame(found)[[*columns, "note"]].to_csv(temporary, index=False, float_format="%.5g")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
