"""The Lean CNN paper's task: honest splits, complete predictions, one line for what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecdlib.base.errors import EcdError
from ecdlib.data.tables import load_cubic_targets
from ecdlib.learn import lean
from ecdlib.learn.lean import TrainingParameters, run_lean, table2_errors
from ecdlib.learn.result import load_result

SMALL = {"crystals": 60, "size": 19, "voxel": 0.5, "epochs": 2}


def parameters(**given: object) -> TrainingParameters:
    return TrainingParameters.checked(SMALL | given)


@pytest.fixture
def small_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random features: what is learned does not matter here, and nothing is computed."""
    k = 10 * 11 * 12 // 6

    def fake(p: TrainingParameters, names: list[str]) -> np.ndarray:
        return np.random.default_rng(0).random((len(names), k)).cumsum(1)

    monkeypatch.setattr(lean, "inputs", fake)


@pytest.mark.usefixtures("small_features")
def test_each_crystal_is_predicted_by_models_that_have_not_seen_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[float]] = []

    class Spy:
        """Predicts the rank of the fit, so that each prediction says which model made it."""

        def fit(self, X: np.ndarray, y: np.ndarray) -> Spy:
            self.rank = len(seen)
            seen.append(set(X[:, -1]))
            return self

        def predict(self, X: np.ndarray) -> np.ndarray:
            return np.full(len(X), float(self.rank))

    monkeypatch.setattr(lean, "build", lambda *_: Spy())
    p = parameters(model="pca-gpr", protocol="10-fold")
    result = run_lean(p, tmp_path / "r.npz", progress=False)
    last = lean.inputs(p, list(result.names))[:, -1]
    assert len(seen) == 19
    assert np.bincount(result.fold).tolist() == [6] * 10
    test, validated = result.tested(), result.more["validated"]
    for i in range(len(last)):
        assert last[i] not in seen[int(result.crossed[i, 0])]
        if not test[i]:
            assert last[i] not in seen[int(validated[i, 0])]
            assert not seen[int(validated[i, 0])] & set(last[test])
    assert np.isnan(validated[test]).all()
    assert (result.fitted == 0).all()


@pytest.mark.usefixtures("small_features")
def test_an_interrupted_run_resumes_between_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, out = parameters(protocol="9-fold"), tmp_path / "r.npz"
    whole = run_lean(p, tmp_path / "whole.npz", progress=False)
    build, built = lean.build, 0

    def counting(*arguments: object) -> object:
        nonlocal built
        built += 1
        if built == 4:
            raise KeyboardInterrupt
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lean, "build", counting)
    with pytest.raises(KeyboardInterrupt):
        run_lean(p, out, progress=False)
    assert not out.exists()
    with pytest.raises(EcdError, match="other parameters"):
        run_lean(parameters(seed=1, protocol="9-fold"), out, progress=False)
    resumed = run_lean(p, out, progress=False)
    assert built == 4 + 7
    assert np.array_equal(resumed.more["validated"], whole.more["validated"], equal_nan=True)
    assert np.array_equal(resumed.fitted, whole.fitted)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["r.npz", "whole.npz"]
    monkeypatch.setattr(lean, "build", None)
    assert np.array_equal(run_lean(p, out).fitted, whole.fitted)  # what is there is not made again
    with pytest.raises(EcdError, match=r"r\.npz: was made with other parameters"):
        run_lean(parameters(seed=1, protocol="9-fold"), out, progress=False)


@pytest.mark.usefixtures("small_features")
def test_two_targets_at_once(tmp_path: Path) -> None:
    result = run_lean(parameters(model="octahedral-c", target="both"), tmp_path / "r.npz", progress=False)
    labels = load_cubic_targets().loc[result.names]
    assert np.allclose(result.truth, labels[["bulk_modulus", "total_energy"]])
    assert set(table2_errors(result, "total_energy")) == set(table2_errors(result, "bulk_modulus"))
    assert len(result.more["losses"]) == 2
    with pytest.raises(EcdError, match="do not fit together"):
        run_lean(parameters(model="octahedral-c"), tmp_path / "s.npz", progress=False)
    with pytest.raises(EcdError, match="do not fit together"):
        run_lean(parameters(target="both"), tmp_path / "s.npz", progress=False)


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / parameters().file_name
    for content in (b"nothing", b"", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(EcdError, match="octahedral-a--bulk_modulus"):
            load_result(path)


def test_too_few_crystals_are_refused() -> None:
    with pytest.raises(EcdError, match="at least 60"):
        parameters(crystals=5)
