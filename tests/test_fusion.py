"""Fusion models: what is fitted where, what a latent's position may change, and what ships."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from ecdlib.base.errors import EcdError
from ecdlib.base.workers import Bounded
from ecdlib.cli import app
from ecdlib.data.properties import UNITS, labelled
from ecdlib.data.tables import load_crystals
from ecdlib.density.store import load_density
from ecdlib.features.common_grid import bundled_names
from ecdlib.learn import fusion
from ecdlib.learn.fusion import FusionParameters, inputs, run_fusion, train_final
from ecdlib.learn.model_file import load_model
from ecdlib.learn.portability import ROUTES
from ecdlib.learn.predict import load_predictors, predict
from ecdlib.learn.result import TEST, Result, load_result, shipped_results
from ecdlib.models.attention_cnn import AttentionCNN
from ecdlib.models.fusion_lightgbm import FusionLightGBM, FusionScaler, load_trees
from ecdlib.models.fusion_network import DEFAULTS, FusionNetwork, drawn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 30))
Y = X[:, 0] * 3 + np.abs(X[:, 25]) + 0.01 * RNG.normal(size=120)


def test_scaling_survives_its_state_and_keeps_what_is_no_latent() -> None:
    scaler = FusionScaler(20, 8).fit(X)
    reduced = scaler.transform(X)
    assert reduced.shape == (120, 18)
    np.testing.assert_allclose(reduced[:, 8:], (X[:, 20:] - X[:, 20:].mean(0)) / X[:, 20:].std(0))
    again = FusionScaler.from_state(scaler.state)
    np.testing.assert_allclose(again.transform(X), reduced, atol=1e-4)


def test_all_components_keep_all_distances() -> None:
    scaler = FusionScaler(20, 20).fit(X)
    reduced = scaler.transform(X)[:, :20]
    standardized = (X[:, :20] - X[:, :20].mean(0)) / X[:, :20].std(0)
    np.testing.assert_allclose(
        np.linalg.norm(reduced[0] - reduced[1:], axis=1), np.linalg.norm(standardized[0] - standardized[1:], axis=1)
    )
    np.testing.assert_allclose(*scaler.spread(X))


def test_components_keep_the_variance_that_they_say() -> None:
    scaler = FusionScaler(20, 8).fit(X[:80])
    standardized = StandardScaler().fit(X[:80, :20])
    pca = PCA(8).fit(standardized.transform(X[:80, :20]))
    whole, held = scaler.spread(X[:80])
    assert held.sum() / whole.sum() == pytest.approx(pca.explained_variance_ratio_.sum())
    unseen = standardized.transform(X[80:, :20])
    left = unseen - pca.inverse_transform(pca.transform(unseen))
    whole, held = scaler.spread(X[80:])
    np.testing.assert_allclose(whole - held, (left**2).sum(1))


@pytest.mark.parametrize("trials", [0, 10])
def test_trees_learn_and_repeat_themselves(trials: int) -> None:
    models = [FusionLightGBM(20, 20, trials=trials, seed=1).fit(X[:100], Y[:100]) for _ in range(2)]
    a, b = (model.predict(X[100:]) for model in models)
    np.testing.assert_array_equal(a, b)
    assert np.corrcoef(a, Y[100:])[0, 1] > 0.5


#: Texts of trees that LightGBM itself takes, or that end its process.
CRAFTED = {
    "a feature beyond the input": (r"split_feature=\d+", "split_feature=99999999"),
    "a feature just beyond the input": (r"split_feature=\d+", f"split_feature={X.shape[1]}"),
    "a negative feature": (r"split_feature=\d+", "split_feature=-7"),
    "more features than the model has": (r"max_feature_idx=\d+", "max_feature_idx=99999999"),
    "fewer features than the model has": (r"max_feature_idx=\d+", "max_feature_idx=0"),
    "features of a carriage return": ("num_cat=", "num_cat=0\rsplit_feature=99999999\rnum_cat="),
    "leaves without number": (r"num_leaves=\d+", "num_leaves=2000000000"),
    "a circle of children": (r"left_child=-?\d+", "left_child=0"),
    "no trees": ("(?s).*", ""),
}


def trees_text() -> str:
    """Trees on all columns of X, as LightGBM writes them."""
    fitted = FusionLightGBM(0, trials=0).fit(X[:60], Y[:60])
    return str(fitted.booster_.model_to_string())


@pytest.mark.parametrize("crafted", CRAFTED)
def test_crafted_trees_are_refused(crafted: str) -> None:
    """Some of them end the process, or answer with what lies beside the input in memory."""
    text = trees_text()
    assert load_trees(text, X.shape[1], trusted=False).num_feature() == X.shape[1]
    old, new = CRAFTED[crafted]
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    with pytest.raises(ValueError, match=r"trees"):
        load_trees(changed, X.shape[1], trusted=False)


def test_trees_of_which_bytes_are_lost_or_changed_are_refused_or_predict() -> None:
    """What is accepted must not end the process that predicts with it."""
    text = trees_text()
    rng, refused = np.random.default_rng(0), 0
    rows = rng.normal(size=(200, X.shape[1])) * 10.0 ** rng.integers(-3, 4, (200, 1))
    predict = Bounded(60, 2 * 2**30, ["lightgbm", "ecdlib.models.fusion_lightgbm"])
    try:
        for _ in range(40):
            content = bytearray(text.encode())
            for at in rng.integers(0, len(content) // 2, rng.integers(1, 4)):
                content[at] = rng.integers(32, 127)
            damaged = content.decode() if rng.random() < 0.8 else content[: rng.integers(len(content))].decode()
            try:
                load_trees(damaged, X.shape[1], trusted=False)
            except ValueError:
                refused += 1
            else:
                assert predict(_predict_with_trees, damaged, rows).shape == (200,)
    finally:
        predict.end()
    assert 5 < refused < 40


def _predict_with_trees(text: str, rows: np.ndarray) -> np.ndarray:
    return np.asarray(load_trees(text, X.shape[1], trusted=True).predict(rows, num_threads=1))


@pytest.mark.parametrize("model", [FusionLightGBM(20, 8, trials=0), FusionNetwork(epochs=2, device="cpu", seed=3)])
def test_estimators_keep_scikit_learn_s_contract(model: FusionLightGBM | FusionNetwork) -> None:
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model.fit(X, Y)), "scaler_"), "a clone is not fitted"
    np.testing.assert_array_equal(clone(model).fit(X, Y).predict(X), model.predict(X))
    assert cross_val_score(model, X, Y, cv=3).shape == (3,)
    assert clone(model).set_params(seed=4).seed == 4


def test_a_random_search_takes_the_best_on_what_was_set_aside() -> None:
    search, alone = (FusionNetwork(epochs=6, device="cpu", seed=3, trials=n).fit(X, Y) for n in (4, 0))
    assert min(search.regressor_.validation_) <= min(alone.regressor_.validation_)  # the first try is the default
    settings = [drawn(np.random.default_rng(seed)) for seed in range(40)]
    assert {s["head_layers"] for s in settings} == {1, 2, 3}
    assert all(s.keys() == DEFAULTS.keys() for s in settings)


@pytest.mark.parametrize(("channels", "n_other"), [(4, 0), (0, 7), (4, 7)])
def test_the_network_takes_either_input_or_both(channels: int, n_other: int) -> None:
    model = AttentionCNN(channels, 4, n_other).eval()
    assert model(torch.randn(3, channels * 64 + n_other)).shape == (3, 1)


def test_with_circular_padding_the_network_does_not_know_the_origin() -> None:
    torch.manual_seed(0)
    latents, other = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 7)
    moved = latents.roll((1, 2, 3), (2, 3, 4))
    flat = [torch.cat([v.flatten(1), other], 1) for v in (latents, moved)]
    for padding, same in (("circular", True), ("zeros", False)):
        model = AttentionCNN(4, 4, 7, padding=padding).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            a, b = (model(x) for x in flat)
        assert torch.allclose(a, b, atol=1e-6) == same


def small(monkeypatch: pytest.MonkeyPatch, n: int = 150) -> None:
    """Fewer crystals and features."""
    everything = inputs(FusionParameters())
    chosen = np.random.default_rng(0).permutation(len(everything[0]))[:n]
    crystals, features = everything[0].iloc[chosen], everything[1][chosen][:, ::6]
    monkeypatch.setattr(fusion, "inputs", lambda p: (crystals, features, 0))
    monkeypatch.setattr(fusion, "pair_features", lambda p, progress: {"own": features[:99], "shells": features[1:100]})


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    p = FusionParameters()
    whole = run_fusion(p, tmp_path / "whole.npz", progress=False)
    assert np.isfinite(whole.crossed).all()
    assert (np.isfinite(whole.fitted[0, :, 0]) == whole.tested()).all()
    fits = 0
    make = fusion.make_model

    def break_off(*arguments: object) -> object:
        nonlocal fits
        fits += 1
        if fits == 4:
            raise KeyboardInterrupt
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fusion, "make_model", break_off)
    with pytest.raises(KeyboardInterrupt):
        run_fusion(p, tmp_path / "broken.npz", progress=False)
    assert not (tmp_path / "broken.npz").exists()
    again = run_fusion(p, tmp_path / "broken.npz", progress=False)
    np.testing.assert_array_equal(again.crossed, whole.crossed)
    assert fits == 4 + 3, "what was done is not done again"
    with pytest.raises(EcdError, match="was made with other parameters"):
        run_fusion(FusionParameters(seed=1), tmp_path / "whole.npz", progress=False)


def test_protocols_drop_and_leak_what_their_names_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    counts, scalers = {}, {}
    make = fusion.make_model
    for protocol in ("leak-free", "drop-outliers", "fit-on-all"):
        seen: list[FusionScaler | None] = []
        monkeypatch.setattr(fusion, "make_model", lambda p, n, s, c, seen=seen: (seen.append(s), make(p, n, s, c))[1])
        p = FusionParameters(protocol=protocol, cross_validate=False)
        result = run_fusion(p, tmp_path / f"{protocol}.npz", progress=False)
        counts[protocol] = len(result.pair("bulk_modulus", "fitted")[0])
        scalers[protocol] = seen
    crystals = fusion.inputs(FusionParameters())[0]
    K, test = crystals["bulk_modulus"], crystals["original_split"] == "test"
    low, high = K.quantile([0.25, 0.75])
    kept = K.between(low - 1.5 * (high - low), high + 1.5 * (high - low))
    assert not kept.all(), "there are outliers to drop"
    assert counts["leak-free"] == test.sum()
    assert counts["drop-outliers"] == (test & kept).sum()
    assert scalers["leak-free"] == [None]
    assert scalers["fit-on-all"][0] is not None


@pytest.mark.parametrize("given", [{}, {"trials": 3, "scaling": "unit interval", "branch_layers": 2}])
def test_a_trained_model_comes_back_from_its_file(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = FusionParameters(model="attention", epochs=2, cross_validate=True, **given)
    small(monkeypatch)
    _, features, _ = fusion.inputs(p)
    result = run_fusion(p, tmp_path / "r.npz", progress=False)
    made: list[FusionNetwork] = []
    with monkeypatch.context() as patch:
        make = fusion.make_model
        patch.setattr(fusion, "make_model", lambda *a: made.append(make(*a)) or made[-1])
        train_final(p, result, tmp_path / "m.npz", progress=False)
    model = load_model(tmp_path / "m.npz")
    for i in (0, 7):
        value, std = model.predict(features[i : i + 1], "bulk_modulus")
        assert value == pytest.approx(float(made[0].predict(features[i : i + 1])[0]), rel=1e-4)
        assert std > 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["m.npz", "r.npz"]
    pairs = model.pairs("bulk_modulus")
    np.testing.assert_allclose(pairs["own"], made[0].predict(features[:99]), rtol=1e-4)
    np.testing.assert_allclose(pairs["shells"], made[0].predict(features[1:100]), rtol=1e-4)
    with pytest.raises(EcdError, match="was made with other parameters"):
        train_final(p.model_copy(update={"seed": 1}), result, tmp_path / "m.npz")


def test_the_cost_of_a_conversion_is_that_of_the_model_itself() -> None:
    model = load_model("fusion-lightgbm")
    moved = model.movement("bulk_modulus", relative=True)
    assert list(moved.columns) == list(ROUTES)
    assert moved["as computed"].abs().mean() > 3 * moved["radial functions"].abs().mean()
    other = load_model("fusion-attention").movement("bulk_modulus", relative=True)
    assert not np.allclose(moved["shells"], other["shells"])
    without = {k: v for k, v in model.arrays.items() if not k.startswith("pairs/")}
    with pytest.raises(EcdError, match="what a conversion costs is not known"):
        fusion.FusionModel(without, model.meta, "mine.npz").movement("bulk_modulus")


def test_a_model_notices_another_autoencoder_of_the_same_name() -> None:
    model = load_model("fusion-lightgbm")
    other = fusion.FusionModel(model.arrays, model.meta | {"autoencoder": "0" * 16}, "mine.npz")
    with pytest.raises(EcdError, match="trained with another autoencoder named periodic-16"):
        other.features(load_density("NaCl_225"))


def test_densities_are_asked_for_where_there_are_none() -> None:
    with pytest.raises(EcdError, match="only the bundled crystals"):
        inputs(FusionParameters(inputs="latent+magpie", crystals="all"))


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.npz").write_bytes(b"no result")
    with pytest.raises(EcdError, match="not a readable result"):
        load_result(tmp_path / "r.npz")
    with pytest.raises(EcdError, match="is a result of kind 'elasticity', not 'fusion'"):
        load_result("elasticity/decision-tree", "fusion")


RESULTS = shipped_results("fusion")


@pytest.mark.parametrize("name", RESULTS)
def test_shipped_results_are_whole(name: str) -> None:
    r: Result = RESULTS[name]
    labels = load_crystals().loc[r.names]
    test = (labels["original_split"] == "test").to_numpy()
    np.testing.assert_array_equal(r.truth, labels[r.targets].to_numpy(dtype=float))
    kept = r.meta["parameters"]["protocol"] in ("leak-free", "fit-on-all")
    known = np.isfinite(r.truth)
    np.testing.assert_array_equal(r.role[0] == TEST, test)
    assert not np.isfinite(r.fitted[0, ~test]).any(), "only test crystals are tested"
    if kept:
        assert np.isfinite(r.fitted[0, test][known[test]]).all()
        if r.meta["parameters"]["cross_validate"]:
            assert (np.isfinite(r.crossed) == known).all()
    assert len(np.unique(r.fold)) == 5
    assert np.bincount(r.fold).min() >= len(r.names) // 5
    if r.meta["parameters"]["crystals"] == "densities":
        assert list(r.names) == bundled_names()
    assert "uncommitted" not in r.meta["provenance"]["commit"]


@pytest.mark.parametrize("model", ["fusion-lightgbm", "fusion-attention"])
def test_shipped_models_predict_bundled_crystals_and_say_how_sure_they_are(model: str) -> None:
    predictors = load_predictors(model)
    labels = load_crystals()
    for name in ("Fe3SnC_221", "CaMg2_194"):
        records = predict(load_density(name), predictors)
        assert [r["property"].replace(" ", "_") for r in records] == labelled("fusion")
        assert all(not r["warnings"] for r in records), "a training crystal"
        for r in records:
            label = labels.loc[name, r["property"].replace(" ", "_")]
            if np.isfinite(label):
                assert abs(r["value"] - label) < 4 * r["std"]
            assert r["unit"] == UNITS[r["property"].replace(" ", "_")]


def test_a_density_of_another_valence_is_converted() -> None:
    done = CliRunner().invoke(app, ["predict", "data/vasp/CHGCAR.NaCl.gz", "--model", "fusion-lightgbm"])
    assert done.exit_code == 0
    assert "another valence convention" not in done.output
    assert "Na 1 to 7 electrons" in done.output
    assert "debye temperature" in done.output


def test_what_does_not_fit_together_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for arguments, words in (
        (["-p", "model=attention", "-p", "inputs=pooled"], "the network takes whole latents"),
        (["--final", str(tmp_path / "model")], "needs a cross-validation"),
        (["-p", "cross_validate=false", "--final", str(tmp_path / "m.npz")], "needs a cross-validation"),
    ):
        done = CliRunner().invoke(app, ["train-fusion", "-o", str(tmp_path / "r.npz"), *arguments])
        assert isinstance(done.exception, EcdError)
        assert words in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_ones_own_predicts_from_its_file() -> None:
    from ecdlib.base.resources import data_file

    named = predict(load_density("NaCl_225"), load_predictors("fusion-lightgbm"))
    by_path = predict(load_density("NaCl_225"), load_predictors(str(data_file("models/fusion-lightgbm.npz"))))
    assert [r["value"] for r in named] == [r["value"] for r in by_path]
