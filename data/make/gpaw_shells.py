"""Form factors of valence shells in PAW densities, from the radial functions of GPAW's data sets.

A script of its own, as :mod:`gpaw_script`: it runs in the Python that has GPAW, takes a minute, and writes the
file that :mod:`ecdlib.density.valence` reads::

    python3 gpaw_shells.py form_factors.npz

A PAW density is a pseudo density with compensation charges. A shell of a free atom, and a closed shell in any crystal,
contributes occupation * (FT of the pseudo orbital squared + missing charge * FT of the compensation shape), a function
of G = abs(G) alone. Sets that GPAW ships are read. Shells that an element's standard set keeps in its core are taken
from GPAW's all-electron atom and made smooth as its sets are: a polynomial inside the standard set's cutoff radius,
the same compensation shape.

Elements of which GPAW ships no set (Tc, Po to Ra but Rn, lanthanides, Ac to Pu) are made wholly in that way, with the
radii of an element near them; their rows have the set ``atom``. Valence shells follow the sets of the neighbours. The
4f shell of the lanthanides, which no bond changes much, is core: of trivalent atoms, that is one 4f electron stands in
5d, except in Eu and Yb. The 5f shell of the actinides is valence.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from glob import glob
from typing import Any

import numpy as np

WAVENUMBERS = np.arange(0, 16.01, 0.1)  # 1/Å
LANTHANIDES = ["La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu"]
DIVALENT = ("Eu", "Yb")
#: Elements of which GPAW ships no set: that of which element tells how smooth to make them, and their valence shells.
WITHOUT_SET = {
    "Tc": ("Ru", "4s 4p 4d 5s"),
    "Po": ("Bi", "5d 6s 6p"),
    "At": ("Rn", "6s 6p"),
    "Fr": ("Cs", "6s 6p 7s"),
    "Ra": ("Ba", "6s 6p 7s"),
    **dict.fromkeys(LANTHANIDES, ("Hf", "5s 5p 5d 6s")),
    **dict.fromkeys(["Ac", "Th", "Pa", "U", "Np", "Pu"], ("Hf", "6s 6p 5f 6d 7s")),
}


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


def smooth_shells(symbol: str, like: str, wanted: Callable[[int, int], bool]) -> dict[str, Any]:
    """Form factors of occupied shells (n, l) of GPAW's all-electron atom, made smooth as the standard set of ``like``:
    a polynomial inside its cutoff radius, its compensation shape."""
    from gpaw.atom.all_electron import AllElectron
    from gpaw.atom.configurations import parameters
    from gpaw.setup_data import SetupData

    with contextlib.redirect_stdout(io.StringIO()):
        atom = AllElectron(symbol, "PBE", scalarrel=True)
        if symbol in WITHOUT_SET:
            atom.e_j = [1.4 * e for e in atom.e_j]  # orbitals to start from that do not fail for f elements
        atom.run()
    cutoff = parameters.get(like, {}).get("rcut", 1.0)
    shape_radius = SetupData(like, "PBE", "paw").shape_function["rc"]
    found = {}
    for n, ell, f, u in zip(atom.n_j, atom.l_j, atom.f_j, atom.u_j):  # noqa: B905
        if f == 0 or not wanted(n, ell):
            continue
        radius = cutoff if np.isscalar(cutoff) else cutoff[min(ell, len(cutoff) - 1)]
        grid = atom.rgd
        orbital = np.empty_like(u)
        orbital[1:] = u[1:] / grid.r_g[1:]
        orbital[0] = orbital[1]
        pseudo = grid.pseudize(orbital, grid.ceil(radius), ell, 4)[0]
        found[f"{n}{'spdf'[ell]}{f:g}"] = f * form_factor(grid, orbital, pseudo, shape_radius)
    return found


def shells_of_core(symbol: str, like: str, kept: set[tuple[int, int]]) -> dict[str, Any]:
    """Core shells that some other code counts as valence: one principal quantum number below the outermost, and 4f."""
    from gpaw.atom.configurations import configurations

    outer = max([n for n, _ in kept] + [n for n, *_ in configurations[symbol][1]])
    fourth = (4, 3) if outer < 7 else None  # of actinides, it lies below 5d
    return smooth_shells(symbol, like, lambda n, ell: (n, ell) not in kept and (n == outer - 1 or (n, ell) == fourth))


def make_trivalent(symbol: str) -> None:
    """Move one electron from 4f to 5d in GPAW's configuration of a lanthanide, if none is there."""
    from gpaw.atom.configurations import configurations

    number, shells = configurations[symbol]
    if not any((n, ell) == (5, 2) for n, ell, *_ in shells):
        fewer = [(n, ell, f - ((n, ell) == (4, 3)), e) for n, ell, f, e in shells]
        configurations[symbol] = number, [*fewer[:-1], (5, 2, 1, -0.14), fewer[-1]]


Row = tuple[str, str, str, Any]  # element, name of the set (empty for core shells), shell, form factor


def rows_of_set(symbol: str, which: str) -> list[Row]:
    """Shells of a data set; of a standard set (``which`` is empty) also the core shells."""
    from gpaw.setup_data import SetupData

    data = SetupData(symbol, "PBE", which or "paw")
    rows = [(symbol, f"{symbol}.{which}".rstrip("."), *shell) for shell in shells_of_set(data).items()]
    if which:
        return rows
    kept = {(n, ell) for n, ell in zip(data.n_j, data.l_j) if n > 0}  # noqa: B905
    return rows + [(symbol, "", *shell) for shell in shells_of_core(symbol, symbol, kept).items()]


def rows_of_atom(symbol: str) -> list[Row]:
    """Shells of an element without a set, as :data:`WITHOUT_SET` says, and its core shells."""
    like, names = WITHOUT_SET[symbol]
    if symbol in LANTHANIDES and symbol not in DIVALENT:
        make_trivalent(symbol)
    kept = {(int(name[0]), "spdf".index(name[1])) for name in names.split()}
    rows = [(symbol, "atom", *shell) for shell in smooth_shells(symbol, like, lambda *shell: shell in kept).items()]
    return rows + [(symbol, "", *shell) for shell in shells_of_core(symbol, like, kept).items()]


def main(out: str) -> None:
    """Write the columns of all rows to ``out``, form factors as float32."""
    import gpaw

    rows: list[Row] = []
    files = [file for folder in gpaw.setup_paths for file in glob(os.path.join(str(folder), "*.PBE.gz"))]
    for file in sorted(files):
        name = os.path.basename(file)[: -len(".PBE.gz")]
        symbol, _, which = name.partition(".")
        rows += rows_of_set(symbol, which)
    for symbol in WITHOUT_SET:
        rows += rows_of_atom(symbol)
    symbols, sets, shells, values = zip(*rows)  # noqa: B905
    with open(out, "wb") as f:
        np.savez_compressed(
            f,
            wavenumbers=WAVENUMBERS,
            element=np.array(symbols),
            set=np.array(sets),
            shell=np.array(shells),
            form_factor=np.array(values, dtype=np.float32),
        )


if __name__ == "__main__":
    main(sys.argv[1])
