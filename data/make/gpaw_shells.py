"""Form factors of valence shells in PAW densities, from the radial functions of GPAW's data sets.

A script of its own, as :mod:`gpaw_script`: it runs in the Python that has GPAW, takes a minute, and writes the
file that :mod:`ecdlib.density.valence` reads::

    python3 gpaw_shells.py form_factors.npz

A PAW density is a pseudo density with compensation charges. A shell of a free atom, and a closed shell in any crystal,
contributes occupation * (FT of the pseudo orbital squared + missing charge * FT of the compensation shape), a function
of G = abs(G) alone. Sets that GPAW ships are read. Shells that an element's standard set keeps in its core are taken
from GPAW's all-electron atom and made smooth as its sets are: a polynomial inside the standard set's cutoff radius,
the same compensation shape.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from glob import glob
from typing import Any

import numpy as np

WAVENUMBERS = np.arange(0, 16.01, 0.1)  # 1/Å


def fourier(grid: Any, density: Any) -> Any:
    """Spherical Fourier transform at :data:`WAVENUMBERS` of a radial density (1/bohr³) on GPAW's radial grid."""
    from ase.units import Bohr

    weights = 4 * np.pi * grid.r_g**2 * grid.dr_g * density
    return np.array([(weights * np.sinc(k * Bohr * grid.r_g / np.pi)).sum() for k in WAVENUMBERS])


def form_factor(grid: Any, orbital: Any, pseudo: Any, shape_radius: float) -> Any:
    """Pseudo orbital squared and its compensation charge, for one electron."""
    true, smooth = (fourier(grid, u**2 / (4 * np.pi)) for u in (orbital, pseudo))
    shape = fourier(grid, np.exp(-((grid.r_g / shape_radius) ** 2)))
    return smooth + (true[0] - smooth[0]) * shape / shape[0]


def shells_of_set(data: Any) -> dict[str, Any]:
    """Form factor of each occupied valence shell of a data set, by name such as ``"2p6"``."""
    rows = zip(data.n_j, data.l_j, data.f_j, data.phi_jg, data.phit_jg)  # noqa: B905 (GPAW's Python may be old)
    return {
        f"{n}{'spdf'[ell]}{f:g}": f * form_factor(data.rgd, phi, pseudo, data.shape_function["rc"])
        for n, ell, f, phi, pseudo in rows
        if n > 0 and f > 0
    }


def shells_of_core(symbol: str, data: Any) -> dict[str, Any]:
    """The same for the core shells that some other code counts as valence: one principal quantum number below the
    outermost, and 4f."""
    from gpaw.atom.all_electron import AllElectron
    from gpaw.atom.configurations import configurations, parameters

    outer = max([n for n in data.n_j if n > 0] + [n for n, *_ in configurations[symbol][1]])
    kept = set(zip(data.n_j, data.l_j))  # noqa: B905
    with contextlib.redirect_stdout(io.StringIO()):
        atom = AllElectron(symbol, "PBE", scalarrel=True)
        atom.run()
    cutoff = parameters.get(symbol, {}).get("rcut", 1.0)
    found = {}
    for n, ell, f, u in zip(atom.n_j, atom.l_j, atom.f_j, atom.u_j):  # noqa: B905
        if (n, ell) in kept or not (n == outer - 1 or (n, ell) == (4, 3)):
            continue
        radius = cutoff if np.isscalar(cutoff) else cutoff[min(ell, len(cutoff) - 1)]
        grid = atom.rgd
        orbital = np.empty_like(u)
        orbital[1:] = u[1:] / grid.r_g[1:]
        orbital[0] = orbital[1]
        pseudo = grid.pseudize(orbital, grid.ceil(radius), ell, 4)[0]
        found[f"{n}{'spdf'[ell]}{f:g}"] = f * form_factor(grid, orbital, pseudo, data.shape_function["rc"])
    return found


def main(out: str) -> None:
    """Write ``out``: element, name of the set (empty for core shells), shell and form factor (float32) of each row."""
    import gpaw
    from gpaw.setup_data import SetupData

    rows: list[tuple[str, str, str, Any]] = []
    files = [file for folder in gpaw.setup_paths for file in glob(os.path.join(str(folder), "*.PBE.gz"))]
    for file in sorted(files):
        name = os.path.basename(file)[: -len(".PBE.gz")]
        symbol, _, which = name.partition(".")
        data = SetupData(symbol, "PBE", which or "paw")
        rows += [(symbol, name, *shell) for shell in shells_of_set(data).items()]
        if not which:
            rows += [(symbol, "", *shell) for shell in shells_of_core(symbol, data).items()]
    symbols, sets, names, values = zip(*rows)  # noqa: B905
    with open(out, "wb") as f:
        np.savez_compressed(
            f,
            wavenumbers=WAVENUMBERS,
            element=np.array(symbols),
            set=np.array(sets),
            shell=np.array(names),
            form_factor=np.array(values, dtype=np.float32),
        )


if __name__ == "__main__":
    main(sys.argv[1])
