"""How much of a fused model's predictions is due to the density: SHAP values (LatentMatFusion paper, Figs 8 and 9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecdlib.base.pieces import in_pieces
from ecdlib.data.properties import labelled
from ecdlib.density.core import Floats
from ecdlib.learn.fusion import FusionParameters, inputs, make_model
from ecdlib.learn.table import write_table

MODELS = ("lightgbm", "attention")
#: Training crystals that stand for "no input known", and gradients for each explained crystal.
BACKGROUND, GRADIENTS = 60, 100


def run_shares(out: Path) -> None:
    """Shares of latents and composition in the SHAP values of both regressors, for crystals that they have not seen.

    Both are trained on the published training and validation crystals and explain the published test crystals. SHAP
    values are exact for the trees and estimated from gradients for the network.

    Writes ``out``, a CSV of property, model, crystals (explained), share (of the density, 0 to 1), error (the mean
    absolute one for these crystals, in the property's unit), and its provenance; resumable.
    """
    settings = {"background": BACKGROUND, "gradients": GRADIENTS}
    with in_pieces(out, "data/make/shares.py", settings) as pieces:
        rows = []
        for model in MODELS:
            p = FusionParameters.checked({"model": model, "inputs": "latent+magpie", "device": "cpu"})
            crystals, X, n_density = inputs(p)
            test = (crystals["original_split"] == "test").to_numpy()
            for target in labelled("fusion")[:5]:
                y = crystals[target].to_numpy(dtype=float)
                known, asked = np.isfinite(y) & ~test, np.isfinite(y) & test
                given = p, n_density, (X[known], y[known]), (X[asked], y[asked])
                share, error = pieces.made(f"{model}-{target}", _share_and_error, *given)["found"]
                rows.append((target, model, int(asked.sum()), share, error))
        table = pd.DataFrame(rows, columns=["property", "model", "crystals", "share", "error"])
        write_table(out, table, {"provenance": pieces.provenance()})


def _share_and_error(
    p: FusionParameters, n_density: int, known: tuple[Floats, Floats], asked: tuple[Floats, Floats]
) -> dict[str, Any]:
    fitted = make_model(p, n_density).fit(*known)
    explain = _of_trees if p.model == "lightgbm" else _of_network
    values = np.abs(explain(fitted, known[0], asked[0])).mean(axis=0)
    n = len(values) - (known[0].shape[1] - n_density)  # the composition is last, and not reduced
    error = np.abs(fitted.predict(asked[0]) - asked[1]).mean()
    return {"found": [values[:n].sum() / values.sum(), error]}


def _of_trees(model: Any, _: Floats, asked: Floats) -> Floats:
    import shap

    return np.asarray(shap.TreeExplainer(model.booster_).shap_values(model.scaler_.transform(asked)))


def _of_network(model: Any, known: Floats, asked: Floats) -> Floats:
    import shap
    import torch

    def scaled(X: Floats) -> Any:
        return torch.from_numpy(model.scaled(model.scaler_, X).astype(np.float32))

    chosen = np.random.default_rng(0).choice(len(known), BACKGROUND, replace=False)
    explainer = shap.GradientExplainer(model.regressor_.module_.eval(), scaled(known[chosen]))
    return np.asarray(explainer.shap_values(scaled(asked), nsamples=GRADIENTS, rseed=0)).reshape(len(asked), -1)
