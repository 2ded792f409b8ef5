"""What the conversion of a density's valence costs: how far it moves predictions for the pairs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ecdlib.base.resources import data_file
from ecdlib.data.properties import PROPERTIES
from ecdlib.density.io import read_density
from ecdlib.density.store import DensityStore, load_density
from ecdlib.density.valence import Valence, is_standard
from ecdlib.learn.known_models import facts
from ecdlib.learn.portability import (
    ROUTES,
    Route,
    calibrating_compounds,
    has_d_electrons,
    pair_has_d_electrons,
    pair_names,
)
from ecdlib.learn.result import Result
from ecdlib.learn.vasp import vasp_crystals, vasp_density

if TYPE_CHECKING:
    from ecdlib.learn.model_file import DensityModel

#: Two numbers for each element (see :func:`ecdlib.density.valence.calibrate`).
Calibration = Mapping[str, tuple[float, float]]


def movement(result: Result, target: str, relative: bool = False) -> pd.DataFrame:
    """How far a change of the valence convention moves predictions: one row for each pair, one column a route.

    Compounds that a calibration is fitted to have none in the column ``"calibrated"``.

    Args:
        relative: to the prediction from the standard density.

    Returns:
        No columns if the result holds no predictions for the pairs.
    """
    t = result.column(target)
    own = pd.Series(result.unseen[:, t], index=result.names)
    routes = [r for r in ROUTES if f"pairs/{r}" in result.more]
    moved = {r: pd.Series(result.more[f"pairs/{r}"][:, t], index=pair_names(r)) for r in routes}
    table = pd.DataFrame({r: values - own.reindex(values.index) for r, values in moved.items()})
    if "calibrated" in table:
        table.loc[calibrating_compounds(), "calibrated"] = np.nan
    return table.div(own.reindex(table.index), axis=0) if relative else table


def conversion_std(
    model: DensityModel, target: str, value: float, valence: Valence, calibration: Calibration | None = None
) -> float:
    """Standard deviation that the conversion of a density adds to a prediction.

    It is a root mean square of movements, of crystals with d electrons or without as the density has them, relative to
    the prediction for positive properties: for VASP's potentials between VASP's and our densities of the same crystals
    (with numbers from other crystals if those of all elements are known), else of the pairs. For other codes'
    potentials comes what VASP's and our densities of two crystals differ by: two are few, it is a lower bound.

    Args:
        value: the prediction of ``target``.
        valence: of the density that it was made from.

    Raises:
        EcdError: a model that was trained without the pairs.
    """
    if is_standard(valence):
        return 0.0
    costs = [cost(model, target, part) for part in _parts(valence, set(calibration or {}))]
    return float(np.linalg.norm(costs)) * (abs(value) if PROPERTIES[target].positive else 1.0)


#: Which densities tell what a part of a conversion costs: of crystals of VASP, of two codes, or the pairs; whether with
#: d electrons; and the route (see :data:`ecdlib.learn.portability.ROUTES`).
Part = tuple[Literal["VASP", "codes", "pairs"], bool, Route]
#: All that a conversion may consist of.
PARTS: tuple[Part, ...] = (
    *(("VASP", rough, route) for rough in (False, True) for route in ("shells", "calibrated")),
    ("codes", False, "shells"),
    *(("pairs", rough, route) for rough in (False, True) for route in ROUTES[1:]),
)


def _parts(valence: Valence, calibrated: set[str]) -> list[Part]:
    """What the conversion of a valence consists of, with numbers for some elements."""

    def route(elements: set[str]) -> Route:
        return "calibrated" if elements <= calibrated else "shells"

    every = set(valence.electrons)
    with_d = {e for e, n in valence.electrons.items() if has_d_electrons({e: n})}
    if valence.potentials is not None:
        return [("VASP", bool(with_d), route(every))]
    if valence.gpaw:
        return [("pairs", bool(with_d), "radial functions")]
    kinds = ((True, with_d), (False, every - with_d))
    return [("codes", False, "shells"), *(("pairs", rough, route(some)) for rough, some in kinds if some)]


def cost(model: DensityModel, target: str, part: Part, known: bool = True) -> float:
    """Root mean square movement of predictions, relative to them for positive properties.

    Args:
        known: take it from :mod:`ecdlib.learn.known_models`, if the model is one of those.

    Raises:
        EcdError: a model that was trained without the pairs.
    """
    if known and (costs := facts(model.source).get("costs")):
        return float(costs[target][" ".join(map(str, part))])
    what, rough, route = part
    if what == "VASP":
        return _of_vasp(model, target, rough, route == "calibrated")
    if what == "codes":
        return _between_codes(model, target)
    moved = model.movement(target, relative=PROPERTIES[target].positive)
    return _rms(moved.loc[moved.index.map(lambda name: pair_has_d_electrons(str(name))) == rough, route])


#: How many crystals with d electrons, or without, say what a conversion of VASP's densities costs.
VASP_SAMPLE = 10
_OF_VASP: dict[tuple[Hashable, bool, bool], list[tuple[Any, Any]]] = {}  # features of their densities


def _of_vasp(model: DensityModel, target: str, rough: bool, calibrated: bool) -> float:
    """Root mean square movement between VASP's and our densities of crystals that calibrated nothing."""
    key = (model.features_key, rough, calibrated)
    if key not in _OF_VASP:
        table = vasp_crystals()
        names = table.index[table["held_out"] & (table["kind"].isin(["d", "magnetic"]) == rough)]
        sample = names[:: max(1, len(names) // VASP_SAMPLE)][:VASP_SAMPLE]
        numbers: Calibration | None = None if calibrated else {}
        _OF_VASP[key] = [
            (model.features(vasp_density(n), calibration=numbers), model.features(load_density(n))) for n in sample
        ]
    return _rms_apart(model, target, _OF_VASP[key])


_TWO_CODES: dict[Hashable, list[tuple[Any, Any]]] = {}  # features of the densities below, by their key


def _between_codes(model: DensityModel, target: str) -> float:
    """Root mean square movement of predictions between VASP's and our densities of NaCl and of Li, by whole shells."""
    if model.features_key not in _TWO_CODES:
        ours = DensityStore(data_file("vasp/gpaw.h5"))
        files = {name: read_density(data_file(f"vasp/CHGCAR.{name}.gz")) for name in ours.names}
        _TWO_CODES[model.features_key] = [
            (model.features(files[n], calibration={}), model.features(ours[n])) for n in ours.names
        ]
    return _rms_apart(model, target, _TWO_CODES[model.features_key])


def _rms_apart(model: DensityModel, target: str, features: list[tuple[Any, Any]]) -> float:
    """Root mean square difference of predictions, relative to the second for positive properties."""
    values = np.array([[model.predict(x, target)[0] for x in both] for both in features])
    moved = values[:, 0] - values[:, 1]
    return _rms(pd.Series(moved / values[:, 1] if PROPERTIES[target].positive else moved))


def _rms(values: pd.Series) -> float:
    return float(np.sqrt((values**2).mean()))
