"""Shares of the density in SHAP values: of models that have not seen the crystals."""

from __future__ import annotations

import numpy as np
import pytest

from ecdlib.data.properties import labelled
from ecdlib.learn.result import load_result
from ecdlib.learn.shares import MODELS
from ecdlib.learn.table import load_study


def test_shares_are_of_the_models_that_the_page_scores() -> None:
    table, note = load_study("shares")
    assert "uncommitted" not in note["provenance"]["commit"]
    assert len(table) == len(MODELS) * 5
    assert table["share"].between(0.01, 0.99).all()
    for (target, model), row in table.set_index(["property", "model"]).iterrows():
        assert target in labelled("fusion")
        truth, fitted = (result := load_result(f"fusion/{model}--latent-magpie")).pair(
            target, "fitted", result.tested()
        )
        assert row["crystals"] == len(truth)
        error = np.abs(fitted - truth).mean()  # another training, of a method whose trees turn on rounding
        assert row["error"] == pytest.approx(error, rel=0.25)
