"""What the uncertainty of an answer consists of, and the values of the crystals that its model has learned from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ecdlib.base.errors import EcdError
from ecdlib.data.tables import load_crystals, load_cubic_targets
from ecdlib.learn.answer import density_share, structure_model, structure_records
from ecdlib.learn.any_crystal import DERIVED, Inputs, load_targets, scaled, unscaled
from ecdlib.learn.crystal_model import MODELS, CrystalModel, space_group
from ecdlib.learn.domain import DEFAULT_MODEL
from ecdlib.learn.intervals import GROUPS, NORMAL, factors_of, membership

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: Unit of a factor.
TIMES = "×"
#: The last part of each interval: what the others make.
RESULT = "95 % interval, upwards"
#: What the groups of crystals are called.
_CALLED = {"oxides": "oxides", "metals only": "crystals of metals only", "magnetic elements": "Cr, Mn, Fe, Co or Ni"}


def interval_parts(records: Sequence[dict[str, Any]], structure: Structure) -> pd.DataFrame:
    """What the 95 % intervals of an answer consist of.

    A model of structures states a standard deviation for each crystal: the scatter that no training crystal removes,
    and, in quadrature, what would be smaller if there were training crystals nearby. Calibration multiplies it by a
    factor for all crystals (1.96 if errors were normal and the deviation right) and one for each group that the crystal
    belongs to (:mod:`ecdlib.learn.intervals`). What follows from both moduli has the relative widths of their intervals
    in place of a standard deviation. Models of densities state one, which the conversion of the valence adds to.

    Args:
        records: of :class:`ecdlib.learn.answer.Answer`.
        structure: of the crystal.

    Returns:
        Columns ``property``, ``part``, ``value`` and ``unit`` (:data:`TIMES` for a factor), in the order of the
        calculation; the last part of each property is :data:`RESULT`. Properties without an interval have no parts.

    Example:
        >>> import ecdlib as ecd
        >>> rocksalt = ecd.load_structures()["NaCl_225"]
        >>> parts = interval_parts(ecd.answer(rocksalt).records, rocksalt)
        >>> parts.loc[parts["property"] == "bulk modulus", "part"].tolist()[-3:]
        ['calibration for all crystals', 'calibration for cubic crystals', '95 % interval, upwards']
    """
    rows: list[tuple[str, str, float, str]] = []
    for record in records:
        if not np.isfinite(record["high"]):
            continue
        names = record["model"].split(" and ")
        inputs = next((i for i, name in MODELS.items() if name == names[0]), None)
        if inputs is None:
            parts = _of_density(record)
        elif len(names) == 2:
            parts = _of_both(record, structure, inputs)
        else:
            parts = _of_structure(record, structure, structure_model(inputs))
        unit = record["unit"]
        parts = [*parts, (RESULT, record["high"] - record["value"], unit)] if parts else []
        rows += [(record["property"], *part) for part in parts]
    return pd.DataFrame(rows, columns=["property", "part", "value", "unit"])


def _of_density(record: dict[str, Any]) -> list[tuple[str, float, str]]:
    """Of a model of densities, which states a standard deviation."""
    unit, cost = record["unit"], record["conversion_std"]
    own = float(np.sqrt(max(record["std"] ** 2 - cost**2, 0.0)))
    parts = [("standard deviation of the model", own, unit)]
    if cost:
        parts.append(("standard deviation of the conversion, in quadrature", cost, unit))
    return [*parts, ("of a normal distribution", NORMAL, TIMES)]


def _of_both(record: dict[str, Any], structure: Structure, inputs: Inputs) -> list[tuple[str, float, str]]:
    """Of the bulk modulus that the density counts in."""
    found = structure_records(structure, inputs)
    alone = next(r for r in found if r["property"] == record["property"])
    share, width = density_share(inputs)
    parts = [*_of_structure(alone, structure, structure_model(inputs)), ("with the density's share", width, TIMES)]
    if cost := NORMAL * share * record["conversion_std"]:
        parts.append(("conversion of the valence, its share of 95 %, in quadrature", cost, record["unit"]))
    return parts


def _of_structure(record: dict[str, Any], structure: Structure, model: CrystalModel) -> list[tuple[str, float, str]]:
    """Of a model of structures."""
    target, unit = record["property"].replace(" ", "_"), record["unit"]
    value, high = record["value"], record["high"]
    if target == "refractive_index":
        return [("follows from the electronic dielectric constant: root of its interval", high - value, unit)]
    shares = np.zeros((1, 94))
    shares[0, [element.Z - 1 for element in structure.elements]] = 1
    member = membership([space_group(structure)], shares)
    logs = model.arrays[f"{target}/factors"]
    total = float(factors_of(logs, member)[0])
    factors = [("calibration for all crystals", float(np.exp(logs[-1])), TIMES)]
    factors += [
        (f"calibration for {_CALLED.get(group, f'{group} crystals')}", float(np.exp(log)), TIMES)
        for group, log, mine in zip(GROUPS, logs, member[0], strict=False)
        if mine and log
    ]
    if target in DERIVED and target not in model.learned:
        half = high - value if target == "poisson_ratio" else np.log(high / value)
        spread = float(half / total)
        return [("relative widths of the intervals of both moduli, in quadrature", spread, ""), *factors]
    learned = model.learned_as(target)
    if value <= 0 and not learned.signed:
        return []  # cut off: what was learned is not known
    at = scaled(np.array([value, high]), learned)
    spread = float(at[1] - at[0]) / total
    noise = float(np.sqrt(np.exp(model.arrays[f"{target}/theta"][-1])) * model.arrays[f"{target}/scale"][1])
    missing = float(np.sqrt(max(spread**2 - noise**2, 0.0)))

    def up(deviation: float) -> float:
        return float(unscaled(at[:1] + deviation, learned)[0]) - value

    return [
        ("scatter that no training crystal removes", up(noise), unit),
        ("for lack of training crystals nearby, in quadrature", up(missing), unit),
        ("standard deviation of the model, of both", up(spread), unit),
        *factors,
    ]


_structure_targets = lru_cache(maxsize=1)(load_targets)
_crystals = lru_cache(maxsize=1)(load_crystals)
_cubic_targets = lru_cache(maxsize=1)(load_cubic_targets)


def learned_values(record: dict[str, Any]) -> pd.Series:
    """Values of a property of the crystals that the model of a record was made with, by name.

    Those of a file that is not at hand and cannot be fetched are replaced by the bundled labels; empty if there are
    none of the property.
    """
    target = record["property"].replace(" ", "_")
    by_density = record["model"] == DEFAULT_MODEL
    try:
        table = _cubic_targets() if by_density else _structure_targets()
    except EcdError:
        table = _crystals()
    column = table[target] if target in table else pd.Series(dtype=float)
    return pd.to_numeric(column).dropna()
