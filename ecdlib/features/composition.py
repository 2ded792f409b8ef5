"""Features of a composition: MAGPIE (L. Ward and others, npj Comput. Mater. 2, 16028 (2016)).

They are those of matminer (``ElementProperty.from_preset("magpie", impute_nan=True)``), from its table of elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ecdlib.base.cached import cached
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file, read_once
from ecdlib.density.core import Floats

STATISTICS = ("minimum", "maximum", "range", "mean", "avg_dev", "mode")


@read_once
def element_properties() -> pd.DataFrame:
    """The 22 properties of elements H to Pu behind the MAGPIE features, missing ones imputed; index: Z.

    Example:
        >>> element_properties().loc[14, ["MendeleevNumber", "CovalentRadius"]].tolist()
        [78.0, 111.0]
    """
    return pd.read_csv(data_file("composition/magpie.csv"), index_col="Z", float_precision="round_trip")


def magpie_features(formulas: Sequence[str]) -> Floats:
    """The 132 MAGPIE features: statistics over the elements' properties (:func:`magpie_labels`); ``(n, 132)``.

    Mean and mean absolute deviation weigh each element by its share of the atoms; the mode is the smallest value among
    the elements of the largest share.

    Raises:
        EcdError: an element beyond Pu.

    Example:
        >>> magpie_features(["NaCl"])[0, :6].tolist()
        [11.0, 17.0, 6.0, 14.0, 3.0, 11.0]
    """
    distinct = list(dict.fromkeys(formulas))
    found = {formula: _of_formula(formula) for formula in distinct}
    return np.array([found[formula] for formula in formulas])


def _of_formula(formula: str) -> Floats:
    from pymatgen.core import Composition

    amounts = {element.Z: amount for element, amount in Composition(formula).items()}
    table = element_properties()
    if beyond := [z for z in amounts if z not in table.index]:
        raise EcdError(formula, f"holds an element beyond Pu (Z = {beyond[0]})", "Take a crystal of lighter elements.")
    x, weight = table.to_numpy()[np.array(list(amounts)) - 1], np.array(list(amounts.values()))[:, None]
    share = weight / weight.sum()
    low, high, mean = x.min(0), x.max(0), (share * x).sum(0)
    mode = x[np.isclose(weight[:, 0], weight.max())].min(0)
    return np.stack([low, high, high - low, mean, (share * np.abs(x - mean)).sum(0), mode], axis=1).ravel()


def magpie_labels() -> list[str]:
    """Matminer's names of the 132 features."""
    return [f"MagpieData {statistic} {name}" for name in element_properties() for statistic in STATISTICS]


def magpie(crystals: pd.DataFrame) -> Floats:
    """MAGPIE features of labelled crystals, ``(n, 132)``; computed once (``_build/cache``)."""
    formulas = list(crystals["formula"])
    return cached("magpie", lambda: {"features": magpie_features(formulas)}, formulas)["features"]
