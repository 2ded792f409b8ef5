"""Valence conventions: which shells a code's potentials count as valence, and the way from one convention to another.

Densities of two codes, or of two sets of potentials, differ twice. They hold different closed shells; and inside the
cutoff radii each replaces the true density by a smooth one of the same charge. Smoothed by a Gaussian, densities of
one valence nearly agree; and a closed shell is then a form factor, a function of the wave number alone, times the
structure's phases. The form factors follow from the radial functions of GPAW's data sets
(``data/make/gpaw_shells.py`` makes the file).
"""

from __future__ import annotations

import gzip
import itertools
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.fft
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from ecdlib.base.elements import NUMBERS
from ecdlib.base.errors import DAMAGED, EcdError, atomic_write, check_input
from ecdlib.base.resources import data_file, read_once
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity, Floats

#: Standard deviation, Å, of the Gaussian that smooths a converted density.
SMOOTHING = 0.3
#: Wavenumber, 1/Å, up to which form factors are known. The smoothing leaves 1e-5 of what is there.
WAVES = 16.0
#: Width, Å, of the function that a calibration adds to a form factor.
CALIBRATION_WIDTH = 0.25
POTCAR_LIMIT = 20_000_000  #: characters of a POTCAR that are read: 50 elements have fewer
#: Of two valences that a count fits, the nearer is taken if the other is this many times as far from free atoms.
NEXT = 1.5
#: ``"gpaw"``: the valence of GPAW's standard sets, that of the bundled densities; ``"chemical"``: ns and (n-1)d for
#: groups 1 to 12, ns and np beyond (Na 1, Fe 8, Zn 12, In 3, Pb 4). Where GPAW ships no set, as of its neighbours:
#: lanthanides 11 and chemically 3 (Eu and Yb 10 and 2), their 4f shell is core; of actinides 5f is valence in both.
Target = Literal["gpaw", "chemical"]


_NO_SET = "atom"


@read_once
def _form_factors() -> tuple[dict[tuple[str, str], dict[str, Floats]], Floats]:
    """Form factors by (element, set) and shell, and wavenumbers.

    The set ``""`` has core shells of the standard set; :data:`_NO_SET` stands for it where GPAW ships none.
    """
    with np.load(data_file("valence/form_factors.npz"), allow_pickle=False) as z:
        found: dict[tuple[str, str], dict[str, Floats]] = {}
        for element, name, shell, values in zip(z["element"], z["set"], z["shell"], z["form_factor"], strict=True):
            found.setdefault((str(element), str(name)), {})[str(shell)] = values.astype(np.float64)
        return found, z["wavenumbers"]


def _standard(element: str) -> dict[str, Floats]:
    factors = _form_factors()[0]
    found = factors.get((element, element)) or factors.get((element, _NO_SET))
    if found is None:
        raise EcdError(element, "no valence shells are known for it", "Known: H to Pu.")
    return found


def _electrons(shells: Mapping[str, Floats] | tuple[str, ...]) -> int:
    return round(sum(float(shell[2:]) for shell in shells))


def _is_chemical(element: str, shell: str) -> bool:
    """Whether a shell is open or outermost: ns, (n-1)d and 5f of groups 1 to 12, ns and np beyond."""
    from pymatgen.core import Element

    atom, n, kind = Element(element), int(shell[0]), shell[1]
    if atom.group > 12:
        return n == atom.row and kind in "sp"
    return (n, kind) in ((atom.row, "s"), (atom.row - 1, "d"), (5, "f"))


def shells(element: str, electrons: int) -> tuple[str, ...]:
    """Valence shells of an element with this many valence electrons.

    The chemical valence first, then whole closed shells, those with the largest n first, of one n the largest l.

    Raises:
        EcdError: no whole number of shells holds that many electrons, or an element without known shells.

    Example:
        >>> shells("Na", 9), shells("Ga", 13)
        (('3s1', '2p6', '2s2'), ('4s2', '4p1', '3d10'))
    """
    everything = ladder(element)
    if electrons not in everything:
        possible = ", ".join(map(str, everything))
        raise EcdError(
            f"{element}={electrons}", "no set of whole shells holds that many electrons", f"Possible: {possible}."
        )
    return everything[electrons]


@read_once
def ladder(element: str) -> dict[int, tuple[str, ...]]:
    """All valences that an element can have, and the shells of each.

    Raises:
        EcdError: an element without known shells.
    """
    own = _standard(element)
    chosen = tuple(shell for shell in own if _is_chemical(element, shell))
    core = _form_factors()[0].get((element, ""), {})
    closed = sorted((s for s in (*own, *core) if s not in chosen), key=lambda s: (s[0], "spdf".index(s[1])))[::-1]
    steps = [(*chosen, *closed[:i]) for i in range(len(closed) + 1)]
    return {_electrons(step): step for step in steps}


def target_electrons(element: str, target: Target) -> int:
    """Valence electrons of an element in a convention (see :data:`Target`)."""
    own = _standard(element)
    return _electrons(own) if target == "gpaw" else next(iter(ladder(element)))


@read_once
def known_sets() -> pd.DataFrame:
    """Published sets of potentials: family, element, set, electrons (valence), shells."""
    table = pd.read_csv(data_file("valence/sets.csv"))
    own = [
        {"family": "gpaw-0.9.20000", "element": element, "set": name, "electrons": _electrons(found)}
        for (element, name), found in _form_factors()[0].items()
        if name not in ("", _NO_SET)
    ]
    table = pd.concat([pd.DataFrame(own), table], ignore_index=True)
    return table.assign(
        shells=[" ".join(shells(e, n)) for e, n in zip(table["element"], table["electrons"], strict=True)]
    )


@dataclass(frozen=True)
class Valence:
    """Which valence a density has."""

    electrons: dict[str, int]  #: of each element
    gpaw: bool  #: made with GPAW's data sets, whose radial functions are known
    how: str  #: where that is known from
    potentials: Mapping[str, str] | None = None  #: titles of VASP's, where known; None for other codes

    def __str__(self) -> str:
        return ", ".join(f"{element} {n}" for element, n in self.electrons.items())


def is_standard(valence: Valence) -> bool:
    """Whether a density is of GPAW's standard sets, as the bundled ones are, so that nothing need be converted."""
    return valence.gpaw and all(n == target_electrons(e, "gpaw") for e, n in valence.electrons.items())


def _count(density: ChargeDensity, electrons: Mapping[str, int]) -> int:
    return sum(electrons[s] for s in density.species)


def _fits(density: ChargeDensity, electrons: Mapping[str, int]) -> bool:
    return abs(density.n_electrons - _count(density, electrons)) <= 0.05 + 1e-4 * density.n_electrons


def recognize(density: ChargeDensity) -> Valence:
    """Valence of a density: from its convention if it is one of ours, from what is stated for it, or from its count.

    Raises:
        EcdError: a count that fits no known sets or several combinations of them, an all-electron density, a stated
            valence that does not fit, or an element without known shells.

    Example:
        >>> from ecdlib.density.store import load_density
        >>> str(recognize(load_density("NaCl_225")))
        'Na 7, Cl 7'
    """
    elements = list(dict.fromkeys(density.species))
    if not elements:
        raise EcdError(density.name, "has no atoms, so its valence cannot be known", "Give a file with atoms.")
    for element in elements:
        try:
            _standard(element)
        except EcdError as error:
            raise EcdError(density.name, f"no valence shells are known for {element}", error.remedy) from error
    convention = density.convention or ""
    if convention == "all-electron":
        raise _all_electron(density, "is an all-electron density")
    if "smoothed" in convention:
        raise EcdError(density.name, f"has already been converted ({convention})", "Convert the original.")
    if convention.startswith("gpaw-"):
        fits = _counted(density, elements, ("gpaw-",), standard="alternative" not in convention)
        found = fits[0] if len(fits) == 1 else _nearest(density, fits, gpaw=True)[0]
        if density.valence is not None and any(density.valence.get(e) != n for e, n in found.items()):
            what = (
                f"uses GPAW's sets ({', '.join(f'{e}={n}' for e, n in found.items())}), but another valence is stated"
            )
            raise EcdError(density.name, what, "Leave --valence out.")
        return Valence(found, True, "its convention")
    potentials = {} if density.potentials is None and convention.startswith("vasp-pbe") else density.potentials
    if density.valence is not None:
        return _stated(density, elements, dict(density.valence), potentials)
    if convention.startswith("vasp-pbe") and set(elements) <= set(vasp_pbe().index):  # predicted
        rows = vasp_pbe().loc[elements]
        electrons, titles = (dict(zip(elements, rows[key].tolist(), strict=True)) for key in ("electrons", "title"))
        return Valence(electrons, False, "its convention", titles)
    families = ("vasp-", "gpaw-") if potentials is not None else ("",)
    fits = _counted(density, elements, families)
    if len(fits) == 1:
        return Valence(fits[0], False, "its number of electrons", potentials)
    return Valence(*_nearest(density, fits), potentials)


def _all_electron(density: ChargeDensity, what: str) -> EcdError:
    what += ": no grid resolves its cores, so they cannot be removed"
    return EcdError(density.name, what, "Give the valence density (CHGCAR) of the same calculation.")


def _counted(
    density: ChargeDensity, elements: list[str], families: tuple[str, ...], standard: bool = False
) -> list[dict[str, int]]:
    """The combinations of known sets that the number of electrons fits, at least one.

    Args:
        families: beginnings of the names of those that may be. Where they have none of an element, whole shells.
        standard: GPAW's standard sets alone.
    """
    table = known_sets()
    table = table[table["family"].str.startswith(families)]
    choices = [sorted(set(table["electrons"][table["element"] == e])) or list(ladder(e)) for e in elements]
    if standard:
        choices = [[target_electrons(e, "gpaw")] for e in elements]
    combinations = (dict(zip(elements, numbers, strict=True)) for numbers in itertools.product(*choices))
    fits = [v for v in combinations if _fits(density, v)]
    count = f"holds {density.n_electrons:.4g} electrons"
    everything = abs(density.n_electrons - sum(density.numbers)) < 0.01 * sum(density.numbers)
    ways = " or ".join(",".join(f"{e}={n}" for e, n in fit.items()) for fit in fits)
    if everything and fits and "vasp-" not in families and not standard and max(density.numbers) > 2:
        what = f"{count}, all that {density.formula} has: an all-electron density, or the valence {ways}"
        raise EcdError(density.name, what, f"If it is not an all-electron density: --valence {ways}.")
    if fits:
        return fits
    if everything:
        raise _all_electron(density, f"{count}, all that {density.formula} has: an all-electron density")
    lists = ", ".join(f"{e} {' or '.join(map(str, c))}" for e, c in zip(elements, choices, strict=True))
    remedy = "Is it a spin, partial or difference density, or a charged cell? If none of these: --valence "
    what = f"{count}, which fits no known valence ({lists})"
    raise EcdError(density.name, what, remedy + ",".join(f"{e}=N" for e in elements) + ".")


def _nearest(
    density: ChargeDensity, fits: list[dict[str, int]], gpaw: bool = False
) -> tuple[dict[str, int], bool, str]:
    """Of several valences, the one with which the converted density is nearest to superposed free atoms.

    A shell added or removed by mistake stands out: wrong valences are several times further away.

    Returns:
        Valence electrons, ``gpaw`` and how they are known, for a :class:`Valence`.

    Raises:
        EcdError: the next one is less than :data:`NEXT` times as far away.
    """
    distance = superposed_distances(density, fits, gpaw)
    (first, best), (second, other) = sorted(enumerate(distance), key=lambda item: item[1])[:2]
    written = [",".join(f"{e}={n}" for e, n in fit.items()) for fit in fits]
    if other < NEXT * best:
        what = f"holds {density.n_electrons:.4g} electrons, which fits several valences equally well"
        remedy = f"Say which: --valence {' or '.join(written)} (or put the POTCAR beside the file)."
        raise EcdError(density.name, what, remedy)
    how = f"its number of electrons and its shape: {100 * best:.3g} % from free atoms"
    return fits[first], gpaw, f"{how}, {written[second]} would be {100 * other:.3g} %"


def superposed_distances(
    density: ChargeDensity, valences: list[dict[str, int]], gpaw: bool = False, smoothing: float = 0.3
) -> list[float]:
    """How far a density is from superposed free atoms if its valence is this or that.

    It is converted to our convention and smoothed; the distance is the rms of the difference over that of the atoms'
    density, both without their means (see :func:`apart`).

    Args:
        valences: by element.
        gpaw: see :func:`change_of_form_factor`.
        smoothing: standard deviation of the Gaussian, Å.
    """
    waves, wavenumbers = _Waves(density), _form_factors()[1]
    length = np.minimum(np.sqrt(waves.squared), wavenumbers[-1])
    phases = {e: waves.phases(e) for e in dict.fromkeys(density.species)}
    atoms = sum((atomic_form_factor(e, "gpaw")(length) * phase for e, phase in phases.items()), np.zeros(()))
    weight = np.where(waves.modes[2] > 0, 2.0, 1.0) * waves.gaussian(smoothing) ** 2  # of a pair one is there
    weight[0, 0, 0] = 0.0
    for axis, n in enumerate(density.shape):
        if n % 2 == 0:  # waves at the edge of the grid
            weight.swapaxes(0, axis)[n // 2] = 0.0
    changes: dict[tuple[str, int], Any] = {}
    spectrum, distances = waves.spectrum(), []
    for valence in valences:
        converted = spectrum.copy()
        for e, n in valence.items():
            if (e, n) not in changes:
                change = change_of_form_factor(e, n, "gpaw", gpaw)
                changes[e, n] = CubicSpline(wavenumbers, change)(length) * phases[e]
            converted += changes[e, n]
        missed = (np.abs(converted - atoms) ** 2 * weight).sum() / (np.abs(atoms) ** 2 * weight).sum()
        distances.append(float(np.sqrt(missed)))
    return distances


def parse_valence(text: str) -> dict[str, int]:
    """Valence electrons of elements from ``"Na=1,Cl=7"``.

    Raises:
        EcdError: other text, or a number that no whole shells of the element have.
    """
    found: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        element, equals, number = part.partition("=")
        if not (equals and re.fullmatch(r"[0-9]{1,3}", number) and element in NUMBERS):
            raise EcdError(f"valence {part}", "is not element=electrons", "For example: Na=1,Cl=7")
        shells(element, int(number))
        if found.setdefault(element, int(number)) != int(number):
            raise EcdError(f"valence {text}", f"gives {element} twice", "All atoms of an element share one valence.")
    return found


def read_potcar(folder: Path, species: tuple[str, ...]) -> dict[str, tuple[str, int]] | None:
    """Title and valence electrons of each element from the POTCAR or POTCAR.spec in a folder.

    Returns:
        None if there is none for these species, or it cannot be read: the count of electrons may suffice.

    Raises:
        EcdError: two potentials for one element.
    """
    found: list[tuple[str, int]] = []
    for name, opener in (("POTCAR", open), ("POTCAR.gz", gzip.open), ("POTCAR.spec", open)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            with opener(path, "rt", errors="replace") as f:
                text = f.read(POTCAR_LIMIT)
        except (OSError, EOFError, zlib.error):
            return None
        if name == "POTCAR.spec":
            table = known_sets()
            numbers = table[table["family"] == "vasp-pbe"].set_index("set")["electrons"]
            found = [(f"PAW_PBE {s}", int(numbers[s])) for s in text.split() if s in numbers]
        else:
            titles = re.findall(r"^[ \t]*TITEL[ \t]*=[ \t]*(\S+[ \t]+[A-Z][^\n]*)$", text, re.MULTILINE)
            counts = re.findall(r"ZVAL[ \t]*=[ \t]*(\d{1,3}(?:\.\d*)?)(?=\s)", text)
            if len(titles) != len(counts):
                return None
            found = [(" ".join(t.split()), round(float(n))) for t, n in zip(titles, counts, strict=True)]
        break
    potcar: dict[str, tuple[str, int]] = {}
    for title, electrons in found:
        element = (re.match("[A-Z][a-z]?", title.split()[1]) or [""])[0]
        other = potcar.setdefault(element, (title, electrons))
        if other != (title, electrons) and element in species:
            what = f"has two potentials for {element}: {other[0]} and {title}"
            raise EcdError(
                path, what, "All atoms of an element must share one: repeat the calculation with one of them."
            )
    return {e: potcar[e] for e in dict.fromkeys(species)} if species and set(species) <= set(potcar) else None


@read_once
def vasp_pbe() -> pd.DataFrame:
    """VASP's PBE potentials whose two numbers are known, by element (``data/make/vasp_pbe.py`` makes the table).

    Columns: title (of the POTCAR), electrons (valence), a (e·Å²), b (e·Å⁴), shells_apart and left_out_apart (%, how
    far the densities of the element's crystals are apart by whole shells, and with numbers from other crystals), and
    the crystals that the numbers are fitted to.
    """
    return pd.read_csv(data_file("valence/vasp_pbe.csv"), index_col="element")


def vasp_numbers(valence: Valence) -> dict[str, tuple[float, float]]:
    """The two numbers of :func:`calibrate` for those of a density's potentials that :func:`vasp_pbe` has.

    Without a title, a potential is taken for the table's if it has as many valence electrons. Dates of titles may
    differ. None for densities of other codes.
    """
    if valence.potentials is None:
        return {}
    table, found = vasp_pbe().to_dict("index"), {}
    for element, electrons in valence.electrons.items():
        row, title = table.get(element), valence.potentials.get(element)
        same_set = row is not None and (title is None or title.split()[:2] == row["title"].split()[:2])
        if row is not None and same_set and electrons == row["electrons"]:
            found[element] = (float(row["a"]), float(row["b"]))
    return found


def describe_numbers(valence: Valence, calibration: Mapping[str, tuple[float, float]] | None = None) -> str:
    """In words, what is known of the radial functions of a density's potentials (``calibration`` of its elements)."""
    if valence.gpaw:
        return "radial functions of GPAW's sets"
    numbers = vasp_numbers(valence) if calibration is None else calibration
    ours = vasp_numbers(valence) if numbers else {}
    known = [e for e in valence.electrons if e in numbers]
    table = [e for e in known if numbers[e] == ours.get(e)]
    parts = [
        f"calibrated: {', '.join(e for e in known if e not in table)}" if len(known) > len(table) else "",
        f"with the numbers of VASP's PBE potentials: {', '.join(table)}" if table else "",
        f"by whole shells: {', '.join(_named(valence, e) for e in valence.electrons if e not in known)}"
        if len(known) < len(valence.electrons)
        else "",
    ]
    return "; ".join(filter(None, parts))


def _named(valence: Valence, element: str) -> str:
    """An element, or the name of its potential where it is known and another."""
    title = (valence.potentials or {}).get(element, "").split()
    return title[1] if len(title) > 1 else element


def _stated(
    density: ChargeDensity, elements: list[str], stated: dict[str, int], potentials: Mapping[str, str] | None
) -> Valence:
    missing = [e for e in elements if e not in stated]
    if missing:
        remedy = f"Add it: --valence {','.join(f'{e}={stated.get(e, chr(78))}' for e in elements)}."
        raise EcdError(density.name, f"no valence is given for {', '.join(missing)}", remedy)
    for element in elements:
        try:
            shells(element, stated[element])
        except EcdError as error:
            raise EcdError(density.name, f"valence {error.source}: {error.problem}", error.remedy) from error
    chosen = {e: stated[e] for e in elements}
    if not _fits(density, chosen):
        stands = ", ".join(f"{e}={n}" for e, n in chosen.items())
        what = f"holds {density.n_electrons:.4g} electrons, not {_count(density, chosen)}, as {stands} would be"
        remedy = "Correct --valence, or where it is stated: a POTCAR beside the file, a cube's header."
        raise EcdError(density.name, what, remedy)
    return Valence(chosen, False, "its POTCAR, header or --valence", potentials)


def change_of_form_factor(element: str, electrons: int, target: Target, gpaw: bool) -> Floats:
    """What an atom's form factor gains on the way to a convention, electrons at the wavenumbers of the data file.

    Args:
        electrons: valence electrons of the element now.
        gpaw: whether the density is of GPAW's data set with so many electrons: its own radial functions are then
            taken, else those of the standard set, for whole shells.

    Raises:
        EcdError: see :func:`shells`.
    """
    factors, wavenumbers = _form_factors()
    standard = _standard(element)
    every = {**factors.get((element, ""), {}), **standard}
    wanted = shells(element, target_electrons(element, target))
    own = {shell: every[shell] for shell in shells(element, electrons)}
    if gpaw:
        sets = (f for (e, name), f in factors.items() if e == element and name)
        own = next((f for f in sets if _electrons(f) == electrons), own)
    zero = np.zeros_like(wavenumbers)
    return sum((every[s] for s in wanted), zero) - sum(own.values(), zero)


@read_once
def atomic_form_factor(element: str, target: Target) -> CubicSpline:
    """Form factor of a neutral free atom: its valence electrons in a convention as a function of G (1/Å).

    It is that of the PAW density (pseudo orbitals and compensation charges), isotropic, up to :data:`WAVES`.

    Raises:
        EcdError: an element without known shells.

    Example:
        >>> round(float(atomic_form_factor("Na", "chemical")(0)), 3)
        1.0
    """
    factors, wavenumbers = _form_factors()
    every = {**factors.get((element, ""), {}), **_standard(element)}
    return CubicSpline(wavenumbers, sum(every[s] for s in shells(element, target_electrons(element, target))))


class _Waves:
    """Plane waves of a density's grid, on the half spectrum ``(nx, ny, nz//2 + 1)``."""

    def __init__(self, density: ChargeDensity):
        self.density = density
        self.modes = [np.fft.fftfreq(n, 1 / n) for n in density.shape[:2]] + [np.arange(density.shape[2] // 2 + 1.0)]
        inverse = np.linalg.inv(density.lattice)
        metric = 4 * np.pi**2 * inverse.T @ inverse  # |G|² = m metric m
        m = np.ix_(*self.modes)
        self.squared: Floats = np.maximum(sum(metric[i, j] * m[i] * m[j] for i in range(3) for j in range(3)), 0)

    def spectrum(self) -> NDArray[np.complexfloating[Any]]:
        """Fourier coefficients, electrons per cell."""
        values = self.density.values.astype(np.float64)
        return scipy.fft.rfftn(values, workers=1) * (self.density.volume / values.size)

    def phases(self, element: str) -> NDArray[np.complexfloating[Any]]:
        """Sum over the atoms of an element of exp(-i G R); 0 where the grid has no wave of opposite sign."""
        total = np.zeros(self.squared.shape, dtype=complex)
        for position in self.density.positions[[s == element for s in self.density.species]]:
            a, b, c = (np.exp(-2j * np.pi * axis * x) for axis, x in zip(self.modes, position, strict=True))
            total += a[:, None, None] * b[:, None] * c
        for axis, n in enumerate(self.density.shape):
            if n % 2 == 0:
                total.swapaxes(0, axis)[n // 2] = 0
        return total

    def gaussian(self, width: float) -> Floats:
        """exp(-G² width²/2), the transform of a Gaussian of that standard deviation (Å)."""
        factor: Floats = np.exp(-np.minimum(self.squared * width**2 / 2, 700))
        return factor

    def correction(self) -> list[Floats]:
        """What the two numbers of a calibration multiply."""
        damping = self.gaussian(CALIBRATION_WIDTH)
        return [self.squared * damping, self.squared**2 * damping]


def to_convention(
    density: ChargeDensity,
    target: Target = "gpaw",
    valence: Valence | None = None,
    *,
    smoothing: float = SMOOTHING,
    calibration: Mapping[str, tuple[float, float]] | None = None,
) -> ChargeDensity:
    """The density in another valence convention, smoothed.

    Each atom's form factor is changed by :func:`change_of_form_factor`, then all is multiplied by
    exp(-G² smoothing²/2).

    Args:
        target: the convention.
        valence: that of the density; recognized if None.
        smoothing: standard deviation of the Gaussian, Å.
        calibration: by element, two numbers that :func:`calibrate` found; None for those of :func:`vasp_numbers`, an
            empty one for none.

    Returns:
        The density on its own grid. ``history`` says what was added and removed. Electrons are those of the target,
        as precisely as those of the input are its own.

    Raises:
        EcdError: see :func:`recognize`.

    Example:
        >>> from ecdlib.density.store import load_densities
        >>> round(to_convention(load_densities("pairs")["NaCl_225"]).n_electrons, 3)
        14.0
    """
    valence = valence or recognize(density)
    calibration = vasp_numbers(valence) if calibration is None else calibration
    waves = _Waves(density)
    spectrum, wavenumbers, steps = waves.spectrum(), _form_factors()[1], []
    for element, electrons in valence.electrons.items():
        gained = target_electrons(element, target) - electrons
        if gained:
            steps.append(f"{element} {electrons} to {electrons + gained}")
        change = change_of_form_factor(element, electrons, target, valence.gpaw)
        numbers = calibration.get(element, (0.0, 0.0))
        if change.any() or any(numbers):
            factor = CubicSpline(wavenumbers, change)(np.minimum(np.sqrt(waves.squared), wavenumbers[-1]))
            factor = factor + sum(x * basis for x, basis in zip(numbers, waves.correction(), strict=True))
            spectrum += factor * waves.phases(element)
    if smoothing:
        spectrum *= waves.gaussian(smoothing)
        for axis, n in enumerate(density.shape):
            if n % 2 == 0:  # a wave at the edge of the grid stands for two, whose lengths differ in a skewed cell
                spectrum.swapaxes(0, axis)[n // 2] = 0
    name = f"{target}, smoothed {smoothing:g} Å"
    return density.step(
        f"converted to {name}: {', '.join(steps) or 'valence as it is'} (known from {valence.how}); "
        f"{describe_numbers(valence, calibration)}",
        values=scipy.fft.irfftn(spectrum * (density.values.size / density.volume), s=density.shape, workers=1),
        convention=name,
        valence=None,
        potentials=None,
    )


def to_ours(
    density: ChargeDensity,
    valence: Valence | None = None,
    calibration: Mapping[str, tuple[float, float]] | None = None,
) -> ChargeDensity:
    """The density in the convention of the bundled ones, not smoothed: itself if it has that already.

    Args:
        valence, calibration: see :func:`to_convention`.

    Raises:
        EcdError: see :func:`recognize`.
    """
    valence = valence or recognize(density)
    if is_standard(valence):
        return density
    return to_convention(density, "gpaw", valence, smoothing=0, calibration=calibration)


def apart(values: Floats, reference: Floats) -> float:
    """How far two densities on one grid are apart: rms difference over that of the reference, both without means."""
    return float((values - reference).std() / reference.std())


@dataclass(frozen=True)
class NormalEquations:
    """Least-squares problem for the two numbers of each element in one compound (see :func:`calibrate`).

    All are divided by the reference's sum of squares, so that compounds count alike.
    """

    elements: tuple[str, ...]
    matrix: Floats  #: ``(2 elements, 2 elements)``
    right: Floats  #: ``(2 elements,)``
    missing: float  #: sum of squares of what is to be fitted

    def apart(self, numbers: Mapping[str, tuple[float, float]]) -> float:
        """How far the two densities are apart with these numbers, 0 where there are none (see :func:`apart`)."""
        x = np.array([numbers.get(e, (0.0, 0.0)) for e in self.elements]).ravel()
        return float(np.sqrt(max(0.0, self.missing - 2 * x @ self.right + x @ self.matrix @ x)))


def normal_equations(
    density: ChargeDensity,
    reference: ChargeDensity,
    elements: Sequence[str],
    valence: Valence | None = None,
    known: Mapping[str, tuple[float, float]] | None = None,
) -> NormalEquations:
    """What one compound says about the two numbers of each element (arguments as in :func:`calibrate`)."""
    same = np.allclose(density.lattice, reference.lattice, atol=1e-3) and density.species == reference.species
    if not same or np.abs((d := np.asarray(density.positions) - reference.positions) - d.round()).max() > 1e-3:
        what = f"is not the same cell with the same atoms in the same order as {reference.name}"
        raise EcdError(density.name, what, f"Compute it from: ecd convert {reference.name} POSCAR")
    if absent := [e for e in elements if e not in density.species]:
        raise EcdError(density.name, f"holds no {', '.join(absent)}", "Give a compound of the element.")
    converted = to_convention(density, valence=valence, calibration=known or {}).values
    missing = to_convention(reference).values - resample(converted, reference.shape)
    waves = _Waves(reference)
    smooth = waves.gaussian(SMOOTHING)
    weights = np.sqrt(np.broadcast_to(np.where(waves.modes[2] > 0, 2.0, 1.0), smooth.shape)).ravel()[1:]  # not G = 0
    residual = scipy.fft.rfftn(missing, workers=1).ravel()[1:] * (reference.volume / missing.size)
    columns = [(basis * smooth * waves.phases(e)).ravel()[1:] for e in elements for basis in waves.correction()]
    rows = np.stack([c * weights for c in columns], axis=1)
    right = residual * weights
    own = waves.spectrum().ravel()[1:] * weights * smooth.ravel()[1:]
    scale = np.vdot(own, own).real
    return NormalEquations(
        tuple(elements),
        (rows.conj().T @ rows).real / scale,
        (rows.conj().T @ right).real / scale,
        float(np.vdot(right, right).real / scale),
    )


def solve(equations: Sequence[NormalEquations]) -> dict[str, tuple[float, float]]:
    """Two numbers for each element that some compounds hold, fitted to all of them at once."""
    elements = sorted({e for one in equations for e in one.elements})
    matrix, right = np.zeros((2 * len(elements),) * 2), np.zeros(2 * len(elements))
    for one in equations:
        at = np.array([2 * elements.index(e) + i for e in one.elements for i in range(2)])
        matrix[np.ix_(at, at)] += one.matrix
        right[at] += one.right
    scale = np.sqrt(np.diag(matrix))
    numbers = np.linalg.lstsq(matrix / np.outer(scale, scale), right / scale, rcond=1e-9)[0] / scale
    return {e: (float(a), float(b)) for e, (a, b) in zip(elements, numbers.reshape(-1, 2), strict=True)}


def calibrate(
    density: ChargeDensity,
    reference: ChargeDensity,
    elements: Sequence[str],
    valence: Valence | None = None,
    known: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, tuple[float, float]]:
    """Two numbers for each element's set of potentials, from one compound computed with them and with our recipe.

    They are the least-squares a (e·Å²) and b (e·Å⁴) of (a G² + b G⁴) exp(-G² w²/2), w = :data:`CALIBRATION_WIDTH`,
    added to the form factor of each atom of the element. They change no electron count, and carry over to other
    compounds.

    Args:
        density: with the sets to be calibrated; another grid than that of the reference will do.
        reference: the same cell in the convention ``"gpaw"``, not smoothed.
        elements: those that are calibrated, all at once.
        valence: of ``density``; recognized if None.
        known: numbers of other elements of the compound.

    Raises:
        EcdError: not the same cell and atoms, or an element that is not in it.
    """
    return solve([normal_equations(density, reference, elements, valence, known)])


def write_calibration(path: str | os.PathLike[str], numbers: Mapping[str, tuple[int, float, float, str]]) -> None:
    """Write a calibration as CSV: element, valence electrons, a (e·Å²), b (e·Å⁴), compound that gave them.

    Raises:
        EcdError: a folder that cannot be written.
    """
    table = pd.DataFrame([(e, *row) for e, row in numbers.items()], columns=_CALIBRATION)
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)


_CALIBRATION = ["element", "electrons", "a", "b", "compound"]


def read_calibration(path: str | os.PathLike[str], valence: Valence) -> dict[str, tuple[float, float]]:
    """The numbers for the elements of a density, from what :func:`write_calibration` wrote.

    Raises:
        EcdError: no such table, or numbers for a set of another valence.
    """
    path = check_input(path)
    try:
        table = pd.read_csv(path).set_index("element")
        rows = {str(e): (int(r["electrons"]), float(r["a"]), float(r["b"])) for e, r in table.iterrows()}
        if not np.isfinite([row[1:] for row in rows.values()]).all():
            raise ValueError("not finite")
    except DAMAGED as error:
        raise EcdError(path, "is not a calibration file", "Make one with `ecd calibrate`.") from error
    for element, electrons in valence.electrons.items():
        if element in rows and rows[element][0] != electrons:
            what = f"calibrates {element} with {rows[element][0]} valence electrons, but the density has {electrons}"
            raise EcdError(path, what, "Calibrate the potentials that the density was computed with.")
    return {e: rows[e][1:] for e in valence.electrons if e in rows}
