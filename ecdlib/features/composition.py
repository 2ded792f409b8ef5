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


def magpie_features(formulas: Sequence[str]) -> Floats:
    """The 132 MAGPIE features of matminer: statistics over the elements' properties; ``(n, 132)``."""
    from pymatgen.core import Composition

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pymatgen, on elements without some property
        rows = {f: _magpie().featurize(Composition(f)) for f in dict.fromkeys(formulas)}  # type: ignore[attr-defined]
    return np.array([rows[f] for f in formulas], dtype=np.float64)


def magpie(crystals: pd.DataFrame) -> Floats:
    """MAGPIE features of labelled crystals, ``(n, 132)``; computed once (``_build/cache``)."""
    formulas = list(crystals["formula"])
    return cached("magpie", lambda: {"features": magpie_features(formulas)}, formulas)["features"]
