"""Random forest on composition features: the paper's last comparison (Lean CNN paper, section 4)."""

from __future__ import annotations

from sklearn.ensemble import RandomForestRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from ecdlib.features.composition import magpie_features


def magpie_forest(trees: int = 300, seed: int = 0) -> Pipeline:
    """Unfitted scikit-learn pipeline from formulas: MAGPIE features, random forest."""
    forest = RandomForestRegressor(trees, n_jobs=-1, random_state=seed)
    return Pipeline([("magpie", FunctionTransformer(magpie_features)), ("forest", forest)])
