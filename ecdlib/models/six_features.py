"""The five models that the CGCNN elasticity paper compares with, on six numbers for each crystal (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from pymatgen.core import Structure
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from sklearn.tree import DecisionTreeRegressor

from ecdlib.density.core import Floats

#: The paper's six features.
SIX_FEATURES = (
    "mean atomic number",
    "mean atomic mass",
    "mean electronegativity",
    "space group",
    "density",
    "volume per atom",
)


def six_features(structures: Iterable[Structure], spacegroups: Iterable[int]) -> Floats:
    """``(n, 6)``: see :data:`SIX_FEATURES`; atomic mass units, Pauling scale (0 where none), g/cm³, Å³."""
    rows = []
    for structure, spacegroup in zip(structures, spacegroups, strict=True):
        elements: list[tuple[Any, float]] = [(e, n / len(structure)) for e, n in structure.composition.items()]
        number = sum(e.Z * share for e, share in elements)
        mass = sum(float(e.atomic_mass) * share for e, share in elements)
        unknown = {"He", "Ne", "Ar"}
        electronegativity = sum((0.0 if e.symbol in unknown else e.X) * share for e, share in elements)
        volume = structure.volume / len(structure)
        rows.append([number, mass, electronegativity, spacegroup, float(structure.density), volume])
    return np.array(rows)


def _xgboost(seed: int) -> Any:
    from xgboost import XGBRegressor

    return XGBRegressor(n_estimators=400, max_depth=6, learning_rate=0.05, subsample=0.8, random_state=seed, n_jobs=1)


#: Unfitted models by name. The paper prints no hyperparameters; these are common ones.
SIX_FEATURE_MODELS: dict[str, Callable[[int], Any]] = {
    "random-forest": lambda seed: RandomForestRegressor(300, random_state=seed, n_jobs=1),
    "xgboost": _xgboost,
    "svr": lambda seed: make_pipeline(StandardScaler(), SVR(C=1.0, epsilon=0.05)),
    "gradient-boosting": lambda seed: GradientBoostingRegressor(n_estimators=300, max_depth=4, random_state=seed),
    "decision-tree": lambda seed: DecisionTreeRegressor(random_state=seed),
}
