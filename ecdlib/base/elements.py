"""Symbols of the elements, for what must not wait for a larger package to be imported."""

from __future__ import annotations

#: In the order of the atomic numbers, from 1.
SYMBOLS = tuple(
    """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb
    Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au
    Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts
    Og
    """.split()  # noqa: SIM905
)
#: Atomic number of each symbol; deuterium and tritium are hydrogen.
NUMBERS = {symbol: z for z, symbol in enumerate(SYMBOLS, 1)} | {"D": 1, "T": 1}


def symbol(number: int) -> str:
    """Symbol of the element with this atomic number.

    Raises:
        ValueError: there is none.
    """
    if not 1 <= number <= len(SYMBOLS):
        raise ValueError(f"no element has the atomic number {number}")
    return SYMBOLS[number - 1]
