"""Studies that ship as tables: what they say is what the library computes."""

from __future__ import annotations

import numpy as np
import pytest

from ecdlib.data.tables import load_cubic_targets
from ecdlib.density.cell import compare_conversions
from ecdlib.density.store import load_densities, load_density
from ecdlib.learn.lean_claims import TARGETS
from ecdlib.learn.lean_studies import REPEATS, SIZES, _errors_without
from ecdlib.learn.protocol import fold_numbers
from ecdlib.learn.result import load_result
from ecdlib.learn.table import load_study


def test_conversions_cover_every_density_and_are_those_of_the_library() -> None:
    table, note = load_study("conversion")
    assert set(table["name"]) == {*load_densities("cubic").names, *load_densities("general").names}
    assert np.abs(table["electrons_fourier"] / table["electrons"] - 1).max() < 1e-9  # the exact route keeps them
    assert "uncommitted" not in note["provenance"]["commit"]
    table = table.set_index("name")
    for name in ("LiH_225", "Mg2Pd_227"):
        for key, value in compare_conversions(load_density(name)).items():
            if key not in ("name", "lost_power"):  # the lost power is rounding
                assert table.loc[name, key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


def test_channels_are_of_the_same_folds_as_the_models_beside_them() -> None:
    table, _ = load_study("channels")
    labels = load_cubic_targets()
    for target in TARGETS:
        part, beside = table[table["property"] == target], load_result(f"results/density-gpr--{target}--seed0")
        assert list(part["name"]) == list(beside.names) == list(labels.index)
        assert part["truth"].to_numpy() == pytest.approx(beside.truth[:, 0], rel=1e-4)
        assert (beside.fold == fold_numbers(len(labels), 10, 0)).all()
        for channel in ("smoothed", "chemical valence"):
            assert np.corrcoef(part[channel], part["truth"])[0, 1] > 0.9


def test_learning_curve_falls() -> None:
    table, note = load_study("learning_curve")
    runs = table.groupby(["model", "property"])
    assert note["provenance"]["parameters"]["repeats"] == REPEATS
    assert set(runs.size()) == {SIZES * REPEATS}
    for _, part in runs:
        mean = part.groupby("crystals")["MAE"].mean()
        assert mean.iloc[-1] < 0.8 * mean.iloc[0]


def test_models_that_are_asked_have_not_seen_the_element() -> None:
    class Nearest:  # of all numbers: a crystal that was trained on has no error
        def fit(self, X: np.ndarray, y: np.ndarray) -> Nearest:
            self.X, self.y = X, y
            return self

        def predict(self, X: np.ndarray) -> np.ndarray:
            return self.y[np.abs(X - self.X.T).argmin(axis=1)]

    y = np.arange(6.0)
    left_out = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=bool)
    errors = _errors_without(Nearest, y[:, None], y, left_out)
    assert errors["values"] == pytest.approx([2, 1, 1, 1, 2, 3])
    table, note = load_study("cubic_elements")
    assert 0 < note["largest share"] < 0.5
    assert (table[["density", "composition"]] >= 0).all(axis=None)
    assert sorted(table["name"].unique()) == sorted(load_cubic_targets().index)
