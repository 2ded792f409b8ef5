"""VASP's potentials and ours: how well the two numbers of each potential carry over to other crystals.

For each of some bundled crystals there is VASP's density as ChargE3Net predicts it (``data/make/vasp_pbe.py``). The
crystals that were in the network's training calibrate the potentials; those held out from it do not, and test network
and numbers at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.resources import data_file, read_once
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity
from ecdlib.density.store import DensityStore, load_density
from ecdlib.density.valence import (
    NormalEquations,
    normal_equations,
    recognize,
    solve,
    target_electrons,
    vasp_numbers,
    vasp_pbe,
)
from ecdlib.learn.portability import has_d_electrons

if TYPE_CHECKING:
    from ecdlib.learn.predict import Predictor

#: Elements whose crystals are computed with spin.
MAGNETIC = ("Cr", "Mn", "Fe", "Co", "Ni")
Kind = Literal["s", "p", "d", "magnetic"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@read_once
def vasp_crystals() -> pd.DataFrame:
    """Crystals with a density in VASP's convention, by name.

    Columns: held_out (from the network's training and from the fit), shells_apart and left_out_apart (%, how far VASP's
    and our densities are apart by whole shells, and with numbers from other crystals), kind (see :func:`kind`),
    other_valence (whether VASP's potential of some element has another valence than ours).
    """
    from pymatgen.core import Composition

    table = pd.read_csv(data_file("valence/vasp_crystals.csv"), index_col="name")
    valence = {str(e): int(n) for e, n in vasp_pbe()["electrons"].items()}
    electrons = [{e: valence[e] for e in Composition(str(name).split("_")[0]).as_dict()} for name in table.index]
    return table.assign(
        kind=list(map(kind, electrons)),
        other_valence=[any(n != target_electrons(e, "gpaw") for e, n in one.items()) for one in electrons],
    )


def kind(electrons: Mapping[str, int]) -> Kind:
    """Class of a crystal with these valences: with a magnetic element, else with d electrons, else with p, else s."""
    from pymatgen.core import Element

    if set(electrons) & set(MAGNETIC):
        return "magnetic"
    if has_d_electrons(electrons):
        return "d"
    return "p" if any(Element(e).group > 12 for e in electrons) else "s"


def vasp_density(name: str) -> ChargeDensity:
    """VASP's density of a bundled crystal as ChargE3Net predicts it, on the grid of ours."""
    found = DensityStore(data_file("valence/vasp_pbe.h5"))[name]
    table = vasp_pbe().loc[list(dict.fromkeys(found.species))]
    return replace(
        found,
        values=resample(found.values, load_density(name).shape),
        valence={str(e): int(n) for e, n in table["electrons"].items()},
        potentials={str(e): str(t) for e, t in table["title"].items()},
    )


_PARTS = ("elements", "matrix", "right", "missing")


def equations(names: tuple[str, ...]) -> dict[str, NormalEquations]:
    """What each crystal says about the numbers of its elements; computed once and cached."""

    def make() -> Arrays:
        found: Arrays = {}
        for name in names:
            density = vasp_density(name)
            one = normal_equations(density, load_density(name), list(dict.fromkeys(density.species)))
            found |= {
                f"{name}/matrix": one.matrix,
                f"{name}/right": one.right,
                f"{name}/missing": np.array(one.missing),
            }
            found[f"{name}/elements"] = np.array(one.elements)
        return found

    z = cached("vasp-equations", make, names)
    every = {n: [z[f"{n}/{key}"] for key in _PARTS] for n in names}
    return {n: NormalEquations(tuple(map(str, e)), m, r, float(x)) for n, (e, m, r, x) in every.items()}


def numbers_without(name: str) -> dict[str, tuple[float, float]]:
    """The numbers for a crystal's elements, fitted to other crystals; elements that no other has are left out."""
    table = vasp_crystals()
    if table.loc[name, "held_out"]:
        return vasp_numbers(recognize(vasp_density(name)))
    every = equations(tuple(table.index[~table["held_out"]]))
    found = solve([every[n] for n in table.index[~table["held_out"]] if n != name])
    return {e: found[e] for e in every[name].elements if e in found}


def vasp_movement(predictors: Sequence[Predictor], names: Sequence[str]) -> pd.DataFrame:
    """Predictions for crystals from VASP's densities and from ours.

    Args:
        predictors: of one model or several.

    Returns:
        Columns crystal, property, ``own`` (from our density), ``shells`` (from VASP's, by whole shells), ``calibrated``
        (with numbers that are fitted to other crystals, see :func:`numbers_without`).
    """
    rows = []
    for name in names:
        own, theirs = load_density(name), vasp_density(name)
        valence, numbers, known = recognize(theirs), numbers_without(name), dict[Hashable, list[Any]]()
        for p in predictors:
            model, key = p.model, p.model.features_key
            if key not in known:
                known[key] = [model.features(own)] + [model.features(theirs, valence, n) for n in ({}, numbers)]
            values = [p.predict(x)[0] for x in known[key]]
            if set(numbers) < set(valence.electrons):
                values[2] = np.nan
            rows.append((name, p.target, *values))
    return pd.DataFrame(rows, columns=["crystal", "property", "own", "shells", "calibrated"])


@read_once
def shipped_movement() -> pd.DataFrame:
    """What :func:`vasp_movement` finds for all of :func:`vasp_crystals`, made by ``data/make/vasp_movement.py``.

    Returns:
        Its columns, and ``model``: the name of a shipped one.
    """
    return pd.read_csv(data_file("valence/vasp_movement.csv"))
