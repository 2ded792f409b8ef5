"""Random forest on composition features: the paper's last comparison (Lean CNN paper, section 4)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from ecdlib.density import Floats


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


def magpie_forest(trees: int = 300, seed: int = 0) -> Pipeline:
    """Unfitted scikit-learn pipeline from formulas: MAGPIE features, random forest."""
    forest = RandomForestRegressor(trees, n_jobs=-1, random_state=seed)
    return Pipeline([("magpie", FunctionTransformer(magpie_features)), ("forest", forest)])
