"""Features of a composition: MAGPIE."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from ecdlib.base.cached import cached
from ecdlib.density.core import Floats


@lru_cache(maxsize=1)
def _magpie() -> object:
    from matminer.featurizers.composition import ElementProperty

    return ElementProperty.from_preset("magpie", impute_nan=True)


def element_properties() -> pd.DataFrame:
    """The 22 properties of elements H to Pu behind the MAGPIE features, missing ones imputed by matminer; index: Z."""
    from matminer.utils.data import MagpieData
    from pymatgen.core import Element

    names, data = _magpie().features, MagpieData(impute_nan=True)  # type: ignore[attr-defined]
    elements = [Element.from_Z(z) for z in range(1, 95)]
    rows = [[float(data.get_elemental_property(e, name)) for name in names] for e in elements]
    return pd.DataFrame(rows, index=range(1, 95), columns=names)


def magpie_features(formulas: Sequence[str]) -> Floats:
    """The 132 MAGPIE features of matminer: statistics over the elements' properties; ``(n, 132)``."""
    from pymatgen.core import Composition

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pymatgen, on elements without some property
        rows = {f: _magpie().featurize(Composition(f)) for f in dict.fromkeys(formulas)}  # type: ignore[attr-defined]
    return np.array([rows[f] for f in formulas], dtype=np.float64)


def magpie_labels() -> list[str]:
    """Matminer's names of the 132 features."""
    return list(_magpie().feature_labels())  # type: ignore[attr-defined]


def magpie(crystals: pd.DataFrame) -> Floats:
    """MAGPIE features of labelled crystals, ``(n, 132)``; computed once (``_build/cache``)."""
    formulas = list(crystals["formula"])
    return cached("magpie", lambda: {"features": magpie_features(formulas)}, formulas)["features"]
