"""Two claims of the Lean CNN paper that it does not test: what 3-point correlations add, and normalized targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecdlib.base.pieces import in_pieces
from ecdlib.data.tables import load_cubic_targets
from ecdlib.density.core import Floats
from ecdlib.features.autocorrelation import cubic_orbits
from ecdlib.features.collection import bundled_features
from ecdlib.features.three_point import bundled_three_point
from ecdlib.learn.protocol import Fit, fold_numbers, folds_of, joined, run_fits
from ecdlib.learn.table import write_table
from ecdlib.models.density_gpr import FLOOR
from ecdlib.models.group_gpr import GroupGPR

TARGETS = ("bulk_modulus", "total_energy")
#: Whitened principal components of the logarithms of each block.
COMPONENTS = {"quantiles": 12, "2-point": 25, "more 2-point": 65, "3-point": 40}
#: Sets of blocks, each a model of its own; the last one is the control, with as many components as the one before.
INPUTS = {
    "2-point": ("quantiles", "2-point"),
    "2- and 3-point": ("quantiles", "2-point", "3-point"),
    "more of 2-point": ("quantiles", "more 2-point"),
}
#: Of the small grid of the networks: its points are points of the standard grid.
SIZE, EVERY = 17, 3


def _reduced(values: Floats, train: Any, components: int) -> Floats:
    """Whitened principal components of the logarithms, as fitted to the training part, for all rows."""
    from sklearn.decomposition import PCA

    log = np.log(np.maximum(values, FLOOR))
    pca = PCA(components, whiten=True, svd_solver="full").fit(log[train])
    return np.asarray(pca.transform(log))


def run_three_point(out: Path) -> None:
    """Ten-fold cross-validation of the same Gaussian process with and without 3-point correlations; resumable.

    Writes ``out``, a CSV of name, fold, property, truth and a prediction of each of :data:`INPUTS`, and beside it
    ``<stem>.json`` with the provenance.
    """
    labels = load_cubic_targets()
    names, truth = list(labels.index), labels[list(TARGETS)].to_numpy(dtype=float)
    fold = fold_numbers(len(names), 10, 0)
    settings = {"subset": 400, "steps": 25, "components": COMPONENTS}
    with in_pieces(out, "data/make/lean_claims.py", settings) as pieces:
        features, report = bundled_features()
        rows = report.index.get_indexer(pd.Index(names))
        blocks: dict[str, Floats] = {
            "quantiles": features["quantiles"][rows],
            "2-point": features["autocorrelation"][rows],
            "3-point": bundled_three_point(names),
        }

        def predict(f: Fit) -> Mapping[str, Floats]:
            reduced = {
                block: _reduced(blocks[block.removeprefix("more ")], f.train, n) for block, n in COMPONENTS.items()
            }
            found = {}
            for inputs, used in INPUTS.items():
                X = np.hstack([reduced[block] for block in used])
                groups = np.repeat(np.arange(len(used)), [COMPONENTS[block] for block in used])
                found[inputs] = np.full(truth.shape, np.nan)
                for t, target in enumerate(TARGETS):
                    positive = target == "bulk_modulus"
                    y = np.log(truth[:, t]) if positive else truth[:, t]
                    model = GroupGPR(groups, subset=settings["subset"], steps=settings["steps"])  # type: ignore[arg-type]
                    value = model.fit(X[f.train], y[f.train]).predict(X[f.test])
                    found[inputs][f.test, t] = np.exp(value) if positive else value
            return found

        fits = folds_of(fold)
        run_fits(pieces, fits, predict)
        tables = [
            pd.DataFrame({"name": names, "fold": fold, "property": target, "truth": truth[:, t]}).assign(
                **{inputs: joined(pieces, fits, inputs)[:, t] for inputs in INPUTS}
            )
            for t, target in enumerate(TARGETS)
        ]
        write_table(out, pd.concat(tables), {"provenance": pieces.provenance()})


def run_normalization(out: Path) -> None:
    """The same network, Model C on both targets, with targets normalized and as they are; resumable.

    Octahedral kernels on a grid of 17 points of 0.6 Å, two seeds, and trainings of two lengths, each with one fall
    of the learning rate. Writes ``out``, a CSV of normalized, epochs, seed, name, test (whether it is a test crystal),
    property, truth and predicted, and beside it ``<stem>.json`` with the provenance.
    """
    labels = load_cubic_targets()
    names, truth = list(labels.index), labels[list(TARGETS)].to_numpy(dtype=float)
    test = fold_numbers(len(names), 10, 0) == 0
    runs = [(normalized, epochs, seed) for epochs in (10, 30) for normalized in (True, False) for seed in range(2)]
    with in_pieces(out, "data/make/lean_claims.py", {"size": SIZE, "voxel": 0.2 * EVERY, "runs": runs}) as pieces:
        features, report = bundled_features()
        X = coarse(features["autocorrelation"][report.index.get_indexer(pd.Index(names))])
        tables = []
        for normalized, epochs, seed in runs:
            scaling = "standard" if normalized else "none"
            piece = f"{'normalized' if normalized else 'as-they-are'}-{epochs}-{seed}"
            predicted = pieces.made(piece, _predictions, scaling, epochs, seed, X, truth, test)["predicted"]
            tables += [
                pd.DataFrame({"normalized": normalized, "epochs": epochs, "seed": seed, "name": names, "test": test})
                .assign(property=target, truth=truth[:, t], predicted=predicted[:, t])
                .loc[lambda table: table["test"] | (table["seed"] == 0)]
                for t, target in enumerate(TARGETS)
            ]
        write_table(out, pd.concat(tables), {"provenance": pieces.provenance()})


def _predictions(scaling: Any, epochs: int, seed: int, X: Floats, truth: Floats, test: Any) -> dict[str, Any]:
    from ecdlib.models.octahedral_cnn import OctahedralCNN
    from ecdlib.models.torch_regressor import TorchRegressor, TrainingSettings

    settings = TrainingSettings(epochs=epochs, first_cycle=epochs, cycle_growth=1, seed=seed)
    model = TorchRegressor(lambda: OctahedralCNN("C", size=SIZE), settings, "cpu", progress=False, scaling=scaling)
    return {"predicted": model.fit(X[~test], truth[~test]).predict(X)}


def coarse(values: Floats) -> Floats:
    """Distinct values of the standard grid at every third of its points, ``(n, 3276)`` to ``(n, 165)``."""
    whole, part = cubic_orbits(51), cubic_orbits(SIZE)
    _, first = np.unique(part, return_index=True)
    return values[:, whole[1::EVERY, 1::EVERY, 1::EVERY].ravel()[first]]
