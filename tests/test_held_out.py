"""Splits: nobody is asked about a crystal that was seen, and the final test is what it says."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from ecdlib.base.resources import data_file
from ecdlib.data.tables import load_crystals, load_cubic_targets
from ecdlib.density.store import load_densities, load_density, load_selection
from ecdlib.density.valence import recognize
from ecdlib.learn.any_crystal import SEEDS, divided, load_pydemi, with_network
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


def test_the_cubic_crystals_are_each_asked_once_in_each_partition_and_with_our_own_energies() -> None:
    labels, folds = divided("cubic-892")
    own = load_cubic_targets()
    assert len(folds) == 10 * SEEDS
    for partition in (folds[:10], folds[10:20]):
        assert sorted(np.concatenate([test for _, test in partition])) == sorted(own.index)
    assert all(not set(train) & set(test) and len(train) + len(test) == len(own) for train, test in folds)
    np.testing.assert_array_equal(labels["total_energy"], own["total_energy"].loc[labels.index])


def test_what_a_graph_network_counts_in_a_fold_is_decided_by_the_other_folds() -> None:
    folds = pd.read_csv(data_file("results/matbench_folds.csv.xz"))
    mixed = with_network(folds)
    assert (mixed.groupby(["property", "inputs", "fold"])["weight"].nunique() == 1).all()
    assert mixed["weight"].between(0, 1).all()
    shifted = folds.assign(value=folds["value"] + 3.0 * (folds["fold"] == 2))  # useless predictions in one fold ...
    again = with_network(shifted)
    same = again["weight"].to_numpy() == mixed["weight"].to_numpy()
    inside = (mixed["fold"] == 2).to_numpy()
    assert same[inside].all()  # ... change nothing there, and the weights of all others
    assert not same[~inside].any()


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
