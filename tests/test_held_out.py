"""Splits: nobody is asked about a crystal that was seen, and the final test is what it says."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from ecdlib.base.resources import data_file
from ecdlib.data.tables import load_crystals
from ecdlib.density.store import load_densities, load_density, load_selection
from ecdlib.density.valence import recognize
from ecdlib.learn.any_crystal import divided, load_pydemi
from ecdlib.learn.held_out import as_chgcars
from ecdlib.models.group_gpr import GroupGPR


@pytest.mark.parametrize("split", ["pydemi", "published", "5-fold"])
def test_a_split_asks_about_crystals_that_do_not_train(split) -> None:
    labels, folds = divided(split)
    assert len(folds) == (5 if split == "5-fold" else 1)
    for train, test in folds:
        assert not set(train) & set(test)
        assert set(train) | set(test) == set(labels.index)
    asked = np.concatenate([test for _, test in folds])
    assert len(set(asked)) == len(asked) == (6059 if split == "5-fold" else 606)
    if split == "published":
        assert set(load_crystals().loc[asked, "original_split"]) == {"test"}
    if split == "pydemi":
        assert set(load_pydemi().loc[asked, "split"]) == {"test"}


def test_a_chgcar_of_the_final_test_does_not_say_its_valence() -> None:
    names = ["NaCl_225", "Cu_225"]
    for name, density in zip(names, as_chgcars(names), strict=True):
        own = load_density(name)
        assert density is not None
        assert (density.valence, density.potentials) == (None, None)
        assert not (density.convention or "").startswith("gpaw")
        np.testing.assert_allclose(density.values, own.values, atol=1e-6 * own.values.max())
        assert recognize(density).electrons == recognize(own).electrons


def test_one_fold_alone_is_predicted_as_among_all() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    model = GroupGPR([0, 0, 1]).fit(X, np.sin(X[:, 0]) + 0.1 * rng.normal(size=80))
    fold = rng.integers(0, 4, 80)
    whole, alone = model.cross_predict(fold), model.cross_predict(fold, only=2)
    for one, other in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(one[fold == 2], other[fold == 2])
        assert np.isnan(other[fold != 2]).all()


def test_the_final_test_asked_about_all_held_out_crystals() -> None:
    held = pd.read_csv(data_file("results/held_out.csv"))
    names = load_selection("held-out")
    assert set(held.loc[held["given"] == "structure", "name"]) == set(names)
    cubic = [name for name in names if name in load_densities("cubic-all")]
    assert set(held.loc[held["given"] == "density", "name"]) == set(cubic)
    note = json.loads(data_file("results/held_out.json").read_text())
    assert note["valence"]["densities"] == len(cubic)
    made_from = note["provenance"]["data"]
    assert not any("models/" in file for file in made_from), "by models that were trained for this, not shipped ones"
