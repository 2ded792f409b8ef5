"""What the conversion of a density's valence costs: how far it moves predictions for the pairs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ecdlib.base.resources import data_file
from ecdlib.data.properties import PROPERTIES
from ecdlib.density.io import read_density
from ecdlib.density.store import DensityStore
from ecdlib.density.valence import Valence, is_standard
from ecdlib.learn.portability import (
    ROUTES,
    calibrating_compounds,
    has_d_electrons,
    pair_has_d_electrons,
    pair_names,
)
from ecdlib.learn.result import Result

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

    It is the root mean square of the movements of the pairs, those with d electrons and those without as the density
    has them, and for other codes' potentials that between VASP's and our densities of two crystals; relative to the
    prediction for positive properties. Two crystals are few: for other codes it is a lower bound.

    Args:
        value: the prediction of ``target``.
        valence: of the density that it was made from.

    Raises:
        EcdError: a model that was trained without the pairs.
    """
    if is_standard(valence):
        return 0.0
    positive = PROPERTIES[target].positive
    moved, scale = model.movement(target, relative=positive), abs(value) if positive else 1.0
    rough = moved.index.map(lambda name: pair_has_d_electrons(str(name)))
    with_d = {e for e, n in valence.electrons.items() if has_d_electrons({e: n})}
    if valence.gpaw:
        return _rms(moved.loc[rough == bool(with_d), "radial functions"]) * scale
    known = set(calibration or {})
    parts = [_between_codes(model, target)]
    for kind, elements in ((True, with_d), (False, set(valence.electrons) - with_d)):
        if elements:
            parts.append(_rms(moved.loc[rough == kind, "calibrated" if elements <= known else "shells"]))
    return float(np.linalg.norm(parts)) * scale


_TWO_CODES: dict[Hashable, list[tuple[Any, Any]]] = {}  # features of the densities below, by their key


def _between_codes(model: DensityModel, target: str) -> float:
    """Root mean square movement of predictions between VASP's and our densities of NaCl and of Li, at one geometry."""
    if model.features_key not in _TWO_CODES:
        ours = DensityStore(data_file("vasp/gpaw.h5"))
        files = {name: read_density(data_file(f"vasp/CHGCAR.{name}.gz")) for name in ours.names}
        _TWO_CODES[model.features_key] = [(model.features(files[n]), model.features(ours[n])) for n in ours.names]
    values = np.array([[model.predict(x, target)[0] for x in both] for both in _TWO_CODES[model.features_key]])
    moved = values[:, 0] - values[:, 1]
    return _rms(pd.Series(moved / values[:, 1] if PROPERTIES[target].positive else moved))


def _rms(values: pd.Series) -> float:
    return float(np.sqrt((values**2).mean()))
