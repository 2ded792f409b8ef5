"""What follows from two moduli: sound velocities, Poisson ratio, Pugh ratio, Young's modulus, Debye temperature.

All of it holds for an isotropic solid, such as a polycrystal without texture, with the bulk modulus K (also B), the
shear modulus G and the mass density ρ. The equations are Eqs 1-5 of Y. Liu and others, Acta Phys. Sin. 74, 120702
(2025), https://doi.org/10.7498/aps.74.20250127; the last goes back to O. L. Anderson, J. Phys. Chem. Solids 24, 909
(1963).

Eq 5 is printed with ħ. Its tables hold what comes out with Planck's constant h, as it must be: with n = N/V atoms per
volume, (6 π² n)^(1/3) is the largest wave number of Debye's model, and ħ v_s (6 π² n)^(1/3) = h v_s (3 n / 4 π)^(1/3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pymatgen.core import Composition, Element
from scipy import constants

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file

Floats = NDArray[np.float64]
PaperTable = Literal["a1", "a2"]

#: Columns of :func:`elastic_quantities`.
QUANTITIES = ("v_l", "v_t", "v_s", "poisson_ratio", "pugh_ratio", "youngs_modulus", "debye_temperature")


def _numbers(name: str, values: ArrayLike, zero: bool = False) -> Floats:
    """As an array, all finite and positive; ``zero``: or zero."""
    try:
        x = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise EcdError(name, f"is not made of numbers ({error})", "Give numbers, or an array of them.") from error
    wrong = ~(np.isfinite(x) & ((x >= 0) if zero else (x > 0)))
    if wrong.any():
        problem = f"{wrong.sum()} of {x.size} values are {'negative' if zero else 'not positive'} or not finite"
        raise EcdError(name, problem, "Correct them, or leave these crystals out.")
    return x


def _inputs(**given: ArrayLike) -> list[Floats]:
    """Positive numbers that fit together."""
    arrays = [_numbers(name, values) for name, values in given.items()]
    try:
        np.broadcast_shapes(*(x.shape for x in arrays))
    except ValueError as error:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in zip(given, arrays, strict=True))
        raise EcdError("moduli", f"the shapes do not fit together: {shapes}", "Give one value for each.") from error
    return arrays


def sound_velocities(K: ArrayLike, G: ArrayLike, density: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Longitudinal, transverse and mean velocity of sound (v_l, v_t, v_s), m/s.

    v_l = √((K + 4G/3)/ρ), v_t = √(G/ρ), v_s = [(1/v_l³ + 2/v_t³)/3]^(-1/3); Eqs 1-3. There are two transverse waves
    for one longitudinal one, and they are slower, so v_s lies close to v_t.

    Args:
        K: bulk modulus, GPa, (...).
        G: shear modulus, GPa, (...).
        density: mass density, g/cm³, (...).

    Raises:
        EcdError: values that are not positive and finite, or shapes that do not fit together.

    >>> [round(float(v), 1) for v in sound_velocities(K=5 / 3, G=1.0, density=1.0)]
    [1732.1, 1000.0, 1110.2]
    """
    K, G, density = _inputs(K=K, G=G, density=density)
    v_l = np.sqrt(1e6 * (K + 4 * G / 3) / density)  # GPa / (g/cm³) = 10⁶ m²/s²
    v_t = np.sqrt(1e6 * G / density)
    return v_l, v_t, ((v_l**-3 + 2 * v_t**-3) / 3) ** (-1 / 3)


def poisson_ratio(K: ArrayLike, G: ArrayLike) -> Floats:
    """ν = (3K - 2G)/(6K + 2G), between -1 and 1/2. The same as Eq 4, (x² - 2)/(2x² - 2) with x = v_l/v_t.

    Args:
        K: bulk modulus, GPa, (...).
        G: shear modulus, GPa, (...).

    Raises:
        EcdError: see :func:`sound_velocities`.

    >>> float(poisson_ratio(K=5.0, G=3.0)), float(poisson_ratio(K=2.0, G=3.0))
    (0.25, 0.0)
    """
    K, G = _inputs(K=K, G=G)
    return (3 * K - 2 * G) / (6 * K + 2 * G)


def pugh_ratio(K: ArrayLike, G: ArrayLike) -> Floats:
    """K/G, high for ductile metals. Others call G/K by the same name.

    It says the same as the Poisson ratio: K/G = 2 (1 + ν)/(3 (1 - 2ν)). Source: S. F. Pugh, Phil. Mag. 45, 823 (1954).

    Args:
        K: bulk modulus, GPa, (...).
        G: shear modulus, GPa, (...).

    Raises:
        EcdError: see :func:`sound_velocities`.

    >>> float(pugh_ratio(K=140.0, G=80.0))
    1.75
    """
    K, G = _inputs(K=K, G=G)
    return K / G


def youngs_modulus(K: ArrayLike, G: ArrayLike) -> Floats:
    """E = 9KG/(3K + G), GPa.

    Args:
        K: bulk modulus, GPa, (...).
        G: shear modulus, GPa, (...).

    Raises:
        EcdError: see :func:`sound_velocities`.

    >>> float(youngs_modulus(K=5.0, G=3.0))
    7.5
    """
    K, G = _inputs(K=K, G=G)
    return 9 * K * G / (3 * K + G)


def debye_temperature(v_s: ArrayLike, n_atoms: ArrayLike, volume: ArrayLike) -> Floats:
    """Θ = (h v_s/k_B) (3N/(4πV))^(1/3), K; with h, see the module.

    Args:
        v_s: mean velocity of sound, m/s, (...).
        n_atoms: atoms N in the cell, all of them, (...).
        volume: of that cell, Å³, (...).

    Raises:
        EcdError: see :func:`sound_velocities`.

    >>> round(float(debye_temperature(v_s=1000.0, n_atoms=1, volume=10.0)), 2)
    138.19
    """
    v_s, n_atoms, volume = _inputs(v_s=v_s, n_atoms=n_atoms, volume=volume)
    return constants.h * v_s / constants.k * np.cbrt(3e30 * n_atoms / (4 * np.pi * volume))


def elastic_quantities(
    K: ArrayLike,
    G: ArrayLike,
    density: ArrayLike,
    n_atoms: ArrayLike,
    volume: ArrayLike,
    log10_K_std: ArrayLike | None = None,
    log10_G_std: ArrayLike | None = None,
    correlation: float = 0.0,
) -> pd.DataFrame:
    """All quantities of this module, and where errors are given, how far they carry.

    Errors of log10 K and log10 G are taken as small: for a quantity q with a = ∂q/∂ln K σ(log10 K) and
    b = ∂q/∂ln G σ(log10 G), σ(q)² = (ln 10)² (a² + b² + 2 r a b) with their correlation r. If both moduli come out too
    high together (r > 0), the ratios are better than without, velocities, Young's modulus, Debye temperature worse.

    Args:
        K: bulk modulus, GPa.
        G: shear modulus, GPa.
        density: mass density, g/cm³.
        n_atoms: atoms in the cell.
        volume: of the cell, Å³.
        log10_K_std: standard deviation of log10(K/GPa).
        log10_G_std: standard deviation of log10(G/GPa); give both or neither.
        correlation: of the two errors, -1 to 1.

    Returns:
        One row for each crystal, with the index of ``K`` if it has one: ``v_l``, ``v_t``, ``v_s`` (m/s),
        ``poisson_ratio``, ``pugh_ratio`` (K/G), ``youngs_modulus`` (GPa), ``debye_temperature`` (K); with errors also
        ``v_l_std`` to ``debye_temperature_std``, in the same units.

    Raises:
        EcdError: values that are not positive and finite (standard deviations may be zero), only one of the two
            deviations, lengths that do not fit together, or tables of which the crystals do not agree.

    >>> elastic_quantities([50.0, 50.0], [30.0, 30.0], 5.0, [2, 4], [100.0, 200.0]).round(2).iloc[1].to_dict()
    ... # doctest: +NORMALIZE_WHITESPACE
    {'v_l': 4242.64, 'v_t': 2449.49, 'v_s': 2719.4, 'poisson_ratio': 0.25, 'pugh_ratio': 1.67, 'youngs_modulus': 75.0,
     'debye_temperature': 219.77}
    """
    given = {"K": K, "G": G, "density": density, "n_atoms": n_atoms, "volume": volume}
    stds = {name: s for name, s in (("log10_K_std", log10_K_std), ("log10_G_std", log10_G_std)) if s is not None}
    if len(stds) == 1:
        raise EcdError("".join(stds), "is given alone", "Give the standard deviations of both moduli, or neither.")
    tables = [x.index for x in (given | stds).values() if isinstance(x, pd.Series)]
    if any(not index.equals(tables[0]) for index in tables):
        raise EcdError(
            "moduli", "are tables of different crystals, or in a different order", "Give them the same index."
        )
    if not abs(correlation) <= 1:
        raise EcdError(f"correlation {correlation}", "is not within -1 and 1", "Give that of the errors.")
    arrays = _inputs(**given)
    errors = [_numbers(name, values, zero=True) for name, values in stds.items()]
    try:
        *arrays, s_K, s_G = np.broadcast_arrays(*arrays, *(errors or (0.0, 0.0)))
    except ValueError as error:
        raise EcdError("log10_K_std", "differs in length from the moduli", "Give one for each crystal.") from error
    k, g, rho, n, v, s_K, s_G = (np.atleast_1d(np.asarray(x, dtype=float)) for x in (*arrays, s_K, s_G))
    if k.ndim != 1:
        raise EcdError("moduli", f"have the shape {k.shape}", "Give one row of values, one for each crystal.")
    v_l, v_t, v_s = sound_velocities(k, g, rho)
    values = {
        "v_l": v_l,
        "v_t": v_t,
        "v_s": v_s,
        "poisson_ratio": poisson_ratio(k, g),
        "pugh_ratio": pugh_ratio(k, g),
        "youngs_modulus": youngs_modulus(k, g),
        "debye_temperature": debye_temperature(v_s, n, v),
    }
    if errors:
        slope_l = k / (2 * (k + 4 * g / 3))  # ∂ln v_l/∂ln K; with respect to ln G it is what is missing to 1/2
        slope_s = slope_l * v_l**-3 / (v_l**-3 + 2 * v_t**-3)
        slope_nu = 18 * k * g / (6 * k + 2 * g) ** 2
        slope_E = g / (3 * k + g)
        slopes = {
            "v_l": (v_l * slope_l, v_l * (0.5 - slope_l)),
            "v_t": (0 * v_t, v_t / 2),
            "v_s": (v_s * slope_s, v_s * (0.5 - slope_s)),
            "poisson_ratio": (slope_nu, -slope_nu),
            "pugh_ratio": (k / g, -k / g),
            "youngs_modulus": (values["youngs_modulus"] * slope_E, values["youngs_modulus"] * (1 - slope_E)),
        }
        theta = values["debye_temperature"]
        slopes["debye_temperature"] = (theta * slope_s, theta * (0.5 - slope_s))
        for q, (a, b) in slopes.items():
            variance = (a * s_K) ** 2 + (b * s_G) ** 2 + 2 * correlation * (a * s_K) * (b * s_G)
            values[f"{q}_std"] = np.log(10) * np.sqrt(np.maximum(variance, 0))
    return pd.DataFrame(values, index=tables[0] if tables and len(tables[0]) == len(k) else None)


def load_paper_table(which: PaperTable, text: bool = False) -> pd.DataFrame:
    """Table A1 or A2 of the paper as printed: names, order and values of its columns, errors included.

    N atoms in the primitive cell, density rho (g/cm³), volume V of the cell (Å³), its mass M (u), B and G (GPa),
    velocities v_l, v_t, v_s (m/s), Poisson ratio nu, Debye temperature theta_D (K).

    Args:
        which: ``"a1"``, crystals of the Materials Project, or ``"a2"``, crystals of GNoME.
        text: leave the numbers as text, with the decimals of the print.

    Raises:
        EcdError: no such table; see also :func:`ecdlib.base.resources.data_file`.

    >>> load_paper_table("a2").columns[5:7].tolist(), load_paper_table("a1").columns[6:8].tolist()
    (['G', 'B'], ['B', 'G'])
    """
    if which not in get_args(PaperTable):
        raise EcdError(which, "no such table", f"Choose one of: {', '.join(get_args(PaperTable))}.")
    return pd.read_csv(data_file(f"paper_tables/cgcnn_{which}.csv"), dtype=str if text else None)


def cell_mass(formula: str, n_atoms: float) -> float:
    """Mass of ``n_atoms`` atoms in the proportions of a formula, u, with the atomic masses of pymatgen.

    Raises:
        EcdError: not a formula, or no atoms.

    >>> round(cell_mass("SnS", 2), 3), round(cell_mass("LiB", 4), 3)
    (150.775, 35.504)
    """
    atoms = _numbers("n_atoms", n_atoms)
    try:
        composition = Composition(formula)
        mass, size = float(composition.weight), float(composition.num_atoms)
    except (ValueError, TypeError, AttributeError) as error:
        raise EcdError(formula, "is not a chemical formula", "Write it like Sc2ZnS4.") from error
    if not size > 0:
        raise EcdError(formula, "holds no atoms", "Write it like Sc2ZnS4.")
    return mass / size * float(atoms)


def mass_swaps(formula: str, n_atoms: float, mass: float, tolerance: float = 1e-3) -> Iterator[tuple[str, str]]:
    """Exchanges of one element of a formula for another that give the cell this mass.

    Args:
        mass: of the cell with its ``n_atoms`` atoms, u.
        tolerance: u.

    Yields:
        The element of the formula and the one that would have to replace it.

    Raises:
        EcdError: see :func:`cell_mass`.

    >>> list(mass_swaps("Sc2ZnSe4", 14, 567.162))
    [('Se', 'S')]
    """
    off = mass - cell_mass(formula, n_atoms)
    fractions = Composition(formula).fractional_composition.get_el_amt_dict()
    others = [e for e in Element if e.symbol not in (*fractions, "D", "T")]
    for old, fraction in fractions.items():
        for new in others:
            heavier = fraction * n_atoms * float(new.atomic_mass - Element(old).atomic_mass)
            if abs(heavier - off) <= tolerance:
                yield old, new.symbol
