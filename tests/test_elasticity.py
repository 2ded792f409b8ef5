"""Moduli from graphs: folds, roles, ensembles, uncertainty, the official data set, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from monty.json import MontyEncoder
from monty.serialization import dumpfn
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from typer.testing import CliRunner

from ecdlib.base.errors import EcdError
from ecdlib.cli import app
from ecdlib.data.tables import load_crystals, load_matbench_elasticity, load_structures
from ecdlib.features.graphs import crystal_graphs
from ecdlib.learn import elasticity
from ecdlib.learn.elasticity import (
    CgcnnParameters,
    expected_errors,
    fit_error_model,
    from_learned,
    load_problem,
    matbench_crystals,
    run_elasticity,
    split_scores,
    to_learned,
    train_ensemble,
)
from ecdlib.learn.model_file import load_model
from ecdlib.learn.result import TEST, TRAIN, VALIDATION, Result, load_result
from ecdlib.models.cgcnn_regressor import CGCNNRegressor
from ecdlib.models.six_features import six_features

TINY = {"epochs": 1, "sample": 60, "folds": "all", "members": 2}


@pytest.fixture(scope="module")
def small(tiny_ensemble: Path) -> tuple[CgcnnParameters, Result, Path]:
    """A tiny ensemble, evaluated and trained."""
    assert sorted(path.name for path in tiny_ensemble.iterdir()) == ["model.npz", "r.npz"]
    return CgcnnParameters(**TINY), load_result(tiny_ensemble / "r.npz"), tiny_ensemble


def test_official_folds_and_published_predictions() -> None:
    table, whole = matbench_crystals(), load_matbench_elasticity()
    assert len(table) == 6732
    assert table.index.is_unique
    assert set(table["fold"]) == set(range(5))
    all_errors = (whole["cgcnn2019_log10_K"] - whole["log10_K_VRH"]).abs().mean()
    assert round(all_errors, 4) == 0.0712, "the leader board's number"
    assert round((whole["cgcnn2019_log10_G"] - whole["log10_G_VRH"]).abs().mean(), 4) == 0.0895
    structures = load_structures()
    assert all(structures[n].composition.reduced_formula == f for n, f in table["formula"].items())


def test_every_crystal_tests_once_and_never_trains_the_model_that_tests_it(small) -> None:
    _, result, _ = small
    assert ((result.role == TEST).sum(0) == 1).all()
    assert {TRAIN, VALIDATION, TEST} == set(np.unique(result.role))
    assert np.isfinite(result.crossed).all()
    assert np.isfinite(result.fitted).all()
    assert (result.role[result.fold, np.arange(60)] == TEST).all()
    held = (result.role == VALIDATION).sum(1) / (result.role != TEST).sum(1)
    assert np.allclose(held, 0.1, atol=0.02)
    split = load_problem(CgcnnParameters(crystals="fusion"))
    assert split.tested.sum() == (load_crystals()["original_split"] == "test").sum() == 606


def test_learned_values_come_back() -> None:
    crystals = load_crystals()
    targets = ["bulk_modulus", "cohesive_energy", "debye_temperature"]
    values = crystals[targets].to_numpy(dtype=float)
    back = from_learned(to_learned(values, targets), targets)
    assert np.allclose(back, values, equal_nan=True)
    assert (to_learned(values, targets)[:, 1] == values[:, 1])[np.isfinite(values[:, 1])].all()


def test_an_interrupted_run_goes_on(small, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, result, _ = small
    calls, fit = [], elasticity._fit_and_predict

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(elasticity, "_fit_and_predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_elasticity(p, tmp_path / "r.npz", progress=False)
    assert not (tmp_path / "r.npz").exists()
    with pytest.raises(EcdError, match="interrupted run with other parameters"):
        run_elasticity(p.model_copy(update={"epochs": 2}), tmp_path / "r.npz", progress=False)
    again = run_elasticity(p, tmp_path / "r.npz", progress=False)
    assert len(calls) == 4 + 7, "three of ten fits were kept"
    assert np.allclose(again.crossed, result.crossed, rtol=1e-5)
    with pytest.raises(EcdError, match="was made with other parameters"):
        run_elasticity(p.model_copy(update={"epochs": 2}), tmp_path / "r.npz", progress=False)


def test_the_trained_ensemble_predicts(small) -> None:
    _, result, folder = small
    model = load_model(folder / "model.npz")
    structures = load_structures()
    chosen = [structures[name] for name in result.names[:7]]
    logs, stds = model.predict(crystal_graphs(chosen))
    one, _ = model.predict(crystal_graphs(chosen[3:4]))
    assert logs.shape == stds.shape == (7, 2)
    assert np.allclose(one[0], logs[3], atol=1e-5)
    assert (stds > 0).all()
    assert (stds >= model.arrays["calibration"][:, 0] - 1e-12).all()
    assert model.elements == {z for name in result.names for z in structures[str(name)].atomic_numbers}


def test_shipped_ensemble_knows_rocksalt_and_diamond() -> None:
    model = load_model("cgcnn")
    structures = load_structures()
    names = ["NaCl_225", "MgO_225", "TiC_225"]
    logs, stds = model.predict(crystal_graphs([structures[n] for n in names]))
    truth = np.log10(load_crystals().loc[names, ["bulk_modulus", "shear_modulus"]].to_numpy())
    assert (np.abs(logs - truth) < 3.5 * stds).all()
    assert (np.diff(logs[:, 0]) > 0).all(), "softer to harder"


def test_shipped_results_beat_what_is_published_on_the_same_crystals() -> None:
    result, table = load_result("elasticity/cgcnn"), matbench_crystals()
    assert list(result.names) == list(table.index)
    for t in ("bulk_modulus", "shear_modulus"):
        published = np.abs(np.log10(table[f"published_{t}"] / table[t])).mean()
        truth, predicted = result.pair(t)
        assert np.abs(np.log10(predicted / truth)).mean() < published
    std = expected_errors(result)
    error = to_learned(result.crossed, result.targets) - to_learned(result.truth, result.targets)
    assert 0.60 < (np.abs(error) < std).mean() < 0.85
    assert np.corrcoef(np.abs(error[:, 0]), std[:, 0])[0, 1] > 0.2, "unsure where it errs"


def test_calibration_finds_what_was_put_in() -> None:
    rng = np.random.default_rng(3)
    s = rng.uniform(0.01, 0.1, 30_000)
    assert np.allclose(fit_error_model(rng.normal(0, np.hypot(0.04, 2 * s)), s), [0.04, 2], rtol=0.1)


def test_the_network_keeps_scikit_learn_s_contract() -> None:
    """On structures, as scikit-learn deals them into folds, and on their graphs."""
    crystals = load_crystals()[:12]
    structures, y = [load_structures()[name] for name in crystals.index], np.log10(crystals["bulk_modulus"].to_numpy())
    model = CGCNNRegressor(epochs=1, seed=2, device="cpu")
    assert clone(model).get_params() == model.get_params()
    scores = cross_val_score(model, structures, y, cv=2)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    predicted = model.fit(structures, y).predict(structures)
    graphs = crystal_graphs(structures)
    np.testing.assert_array_equal(clone(model).fit(graphs, y).predict(graphs), predicted)


def test_the_layers_after_the_mean_are_those_asked_for() -> None:
    structures = list(load_structures().values())[:8]
    model = CGCNNRegressor(epochs=1, batch_size=4, device="cpu", layers=3).fit(structures, np.arange(8.0))
    assert [layer.out_features for layer in model.regressor_.module_.hidden] == [128, 128, 128]


def test_six_features() -> None:
    structures = load_structures()
    features = six_features([structures["NaCl_225"]], [225])[0]
    assert np.allclose(features[:4], [14, (22.98977 + 35.453) / 2, (0.93 + 3.16) / 2, 225], atol=0.01)
    assert abs(features[4] - 2.10) < 0.1
    assert abs(features[5] - structures["NaCl_225"].volume / len(structures["NaCl_225"])) < 1e-9


@pytest.mark.parametrize("model", ["random-forest", "xgboost", "svr", "gradient-boosting", "decision-tree"])
def test_models_on_six_features(model: str, tmp_path) -> None:
    p = CgcnnParameters(model=model, sample=80, target="bulk_modulus")
    result = run_elasticity(p, tmp_path / "r.npz", progress=False)
    assert result.fitted.shape == (1, 80, 1)
    train, test = (split_scores(result, "bulk_modulus", role)["MAE"] for role in (TRAIN, TEST))
    assert train < test
    assert result.meta["provenance"]["versions"]["xgboost"]


def official(folder: Path, rows: pd.DataFrame, shift: float = 0.0) -> None:
    """Matbench's data set in the form in which it is published; rock salt where there is no structure here."""
    structures = load_structures()
    data = [
        [structures[s] if isinstance(s, str) else structures["NaCl_225"], float(y) + shift]
        for s, y in zip(rows["structure"], rows["log10_K_VRH"], strict=True)
    ]
    raw = {"index": list(range(len(data))), "columns": ["structure", "log10(K_VRH)"], "data": data}
    dumpfn(json.loads(json.dumps(raw, cls=MontyEncoder)), str(folder / "matbench_log_kvrh.json.gz"))


def test_the_official_data_set_from_a_local_copy(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_matbench_elasticity()[:70]
    monkeypatch.setattr(elasticity, "load_matbench_elasticity", lambda: rows)
    official(tmp_path, rows)
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path))
    problem = load_problem(CgcnnParameters(crystals="matbench-official", folds="all"))
    table = load_matbench_elasticity().set_index("mbid_K")
    assert problem.names == [f"mb-log-kvrh-{i:05d}" for i in range(1, 71)]
    assert np.allclose(np.log10(problem.truth[:, 0]), table.loc[problem.names, "log10_K_VRH"])
    assert (problem.tested[2] == (table.loc[problem.names, "fold_K"] == 2)).all()
    result = run_elasticity(
        CgcnnParameters(crystals="matbench-official", epochs=1, held_out=0), tmp_path / "r.npz", progress=False
    )
    assert len(result.names) == 70
    for other in ({"rows": rows, "shift": 0.1}, {"rows": rows[:60]}):
        official(tmp_path, **other)
        with pytest.raises(EcdError, match="differs from the table of folds"):
            load_problem(CgcnnParameters(crystals="matbench-official"))


def test_no_copy_and_no_network(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path))

    def nothing(*_args: object, **_more: object) -> pd.DataFrame:
        raise OSError("no route to host")

    monkeypatch.setattr("matminer.datasets.load_dataset", nothing)
    with pytest.raises(EcdError, match=r"could not be loaded \(no route to host\)\. Put matbench_log_kvrh"):
        load_problem(CgcnnParameters(crystals="matbench-official"))


def test_a_model_of_many_members(small, tmp_path) -> None:
    """Member 1 is not member 11."""
    p, _, folder = small
    with np.load(folder / "model.npz") as z:
        arrays = {k: z[k] for k in z.files}
    for member in range(2, 12):
        arrays |= {k.replace("0/", f"{member}/", 1): v for k, v in arrays.items() if k.startswith("0/")}
    meta = json.loads(str(arrays["meta"]))
    meta["parameters"]["members"] = 12
    np.savez(tmp_path / "many.npz", **{**arrays, "meta": np.array(json.dumps(meta))})
    model = load_model(tmp_path / "many.npz")
    assert len(model.networks) == 12
    assert p.members == 2


def test_what_cannot_be_calibrated_is_said(small, tmp_path) -> None:
    p, result, folder = small
    one = replace(result, more={"spread": np.full_like(result.truth, np.nan)})
    for evaluated in (one, replace(result, role=result.role[:1])):
        with pytest.raises(EcdError, match=r"members=2|folds=all"):
            train_ensemble(p, evaluated, tmp_path / "m.npz")
    assert not (tmp_path / "m.npz").exists()
    with np.load(folder / "model.npz") as z:
        arrays = {k: z[k] for k in z.files}
    np.savez(tmp_path / "nan.npz", **{**arrays, "calibration": np.full((2, 2), np.nan)})
    with pytest.raises(EcdError, match="is not a readable model"):
        load_model(tmp_path / "nan.npz")


def test_what_does_not_fit_is_refused_in_words(tmp_path) -> None:
    with pytest.raises(EcdError, match="is not a target on crystals=matbench"):
        load_problem(CgcnnParameters(target="debye_temperature"))
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"nothing")
    for load in (load_result, load_model):
        with pytest.raises(EcdError, match=r"bad\.npz: is not a readable"):
            load(bad)
    with pytest.raises(EcdError, match="is a model of kind 'fusion model', not 'elasticity model'"):
        load_model("fusion-lightgbm", "elasticity model")
    done = CliRunner().invoke(app, ["train-cgcnn", "-o", str(tmp_path / "r.npz"), "--final", str(tmp_path / "m.npz")])
    assert isinstance(done.exception, EcdError)
    assert "needs an ensemble" in str(done.exception)
    assert not (tmp_path / "r.npz").exists()
