"""One crystal in two valence conventions: the pairs, the ways from one to the other, and how far predictions move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.progress import tqdm
from ecdlib.base.resources import read_once
from ecdlib.density.core import ChargeDensity
from ecdlib.density.store import load_densities
from ecdlib.density.valence import (
    SMOOTHING,
    Valence,
    apart,
    calibrate,
    known_sets,
    recognize,
    shells,
    target_electrons,
    to_convention,
)
from ecdlib.features.collection import FEATURES, Blocks, FeatureSettings, statistics

#: Ways to take a density of a pair's other set: as it is; whole shells of the standard set added and removed, all that
#: can be done for potentials of which only the shells are known; the same with two numbers calibrated on one compound
#: of the element; or the radial functions of the set itself.
Route = Literal["as computed", "shells", "calibrated", "radial functions"]
ROUTES: tuple[Route, ...] = get_args(Route)
#: Elements with two sets that are left out of any calibration.
LEFT_OUT = ("Mn", "Ni", "Os", "Pd", "Te")


@read_once
def _other_sets() -> dict[str, int]:
    """Valence electrons in GPAW's other set, of the elements that have one."""
    table = known_sets()
    other = table[table["set"].str.contains(".", regex=False) & table["family"].str.startswith("gpaw-")]
    return dict(zip(other["element"], other["electrons"], strict=True))


@read_once
def changed_elements(name: str) -> tuple[str, ...]:
    """Elements of a pair whose potentials differ between its two densities: all of which GPAW has two sets."""
    from pymatgen.core import Composition

    return tuple(e for e in Composition(name.split("_")[0]).as_dict() if e in _other_sets())


def _shells_only(density: ChargeDensity) -> Valence:
    """As if the density were of potentials whose radial functions are not known."""
    known = recognize(density)
    return Valence(known.electrons, False, known.how)


@read_once
def _calibrators() -> dict[str, str]:
    """By element but those in :data:`LEFT_OUT`: the first pair, by the number of atoms and then by formula, in which
    the potentials of no other element change."""
    found: dict[str, str] = {}
    for name in load_densities("pairs").table.sort_values(["n_atoms", "formula"], kind="stable").index:
        changed = changed_elements(str(name))
        if len(changed) == 1 and changed[0] not in LEFT_OUT:
            found.setdefault(changed[0], str(name))
    return dict(sorted(found.items()))


def calibrating_compounds() -> list[str]:
    """Pairs that numbers are fitted to, so that they test no calibration."""
    return list(_calibrators().values())


@read_once
def calibrations() -> dict[str, tuple[str, tuple[float, float]]]:
    """For each element but those in :data:`LEFT_OUT`: the compound that calibrates it, and the two numbers found."""
    store, reference = load_densities("pairs"), load_densities("cubic")
    return {
        element: (name, calibrate(store[name], reference[name], [element], _shells_only(store[name]))[element])
        for element, name in _calibrators().items()
    }


def conversion(density: ChargeDensity, route: Route) -> tuple[Valence, Mapping[str, tuple[float, float]]]:
    """What :func:`ecdlib.density.valence.to_convention` takes for a route (not ``"as computed"``)."""
    if route == "radial functions":
        return recognize(density), {}
    numbers = {e: x for e, (_, x) in calibrations().items()} if route == "calibrated" else {}
    valence = _shells_only(density)
    changed = [e for e, n in valence.electrons.items() if n != target_electrons(e, "gpaw")]
    return valence, {e: numbers[e] for e in changed if e in numbers}


def pair_names(route: Route = "radial functions") -> list[str]:
    """Pairs that a route is for: all, but for ``"calibrated"`` those without an element that is left out."""
    names = load_densities("pairs").names
    return [n for n in names if route != "calibrated" or not set(changed_elements(n)) & set(LEFT_OUT)]


def pair_features(settings: FeatureSettings, route: Route) -> Blocks:
    """Features of the pairs' other densities, ``(pairs, features)`` in each block; computed once and cached.

    Args:
        settings: its convention is ``"computed"`` with the route ``"as computed"`` only.
        route: how the densities are converted; rows are those of :func:`pair_names`.
    """

    def make() -> Arrays:
        store, rows = load_densities("pairs"), []
        for name in tqdm(pair_names(route), desc=f"Pairs, {route}", unit="density"):
            density = store[name]
            if route == "as computed":
                rows.append(statistics(density, settings))
            else:
                rows.append(statistics(density, settings, *conversion(density, route)))
        return {block: np.stack([row[block] for row in rows]) for block in FEATURES}

    return cached("pairs", make, settings, route)


def spectra_apart(name: str, route: Route, smoothing: float = SMOOTHING) -> float:
    """How far a pair's two densities are apart, in the fluctuating part of the standard one, both smoothed.

    See :func:`ecdlib.density.valence.apart`.
    """
    other, own = load_densities("pairs")[name], to_convention(load_densities("cubic")[name], smoothing=smoothing)
    if route == "as computed":
        as_own = Valence({e: target_electrons(e, "gpaw") for e in recognize(other).electrons}, True, "")
        values = to_convention(other, valence=as_own, smoothing=smoothing).values
    else:
        valence, calibration = conversion(other, route)
        values = to_convention(other, valence=valence, smoothing=smoothing, calibration=calibration).values
    return apart(values, own.values)


def has_d_electrons(electrons: Mapping[str, int]) -> bool:
    """Whether any of these valences counts a d shell: what codes smooth most differently."""
    return any(shell[1] == "d" for element, n in electrons.items() for shell in shells(element, n))


@read_once
def pair_has_d_electrons(name: str) -> bool:
    """The same for the potentials that change between the densities of a pair."""
    return has_d_electrons({e: _other_sets()[e] for e in changed_elements(name)})
