"""Trainings at the papers' scale: in minutes, resumed, and on a machine that has torch and little else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from ecdlib.base.errors import EcdError
from ecdlib.base.unchecked import BaseModel
from ecdlib.base.unchecked import Field as Default
from ecdlib.learn.lean import TrainingParameters, run_lean
from ecdlib.learn.result import load_result
from ecdlib.models.torch_regressor import OutOfTime, stopwatch
from ecdlib.reproduce import PACK, TRAININGS, chosen, pack, reproduce

#: What a machine with a GPU may lack.
MISSING = (
    *("pymatgen", "matminer", "SimpleITK", "lightgbm", "xgboost", "typer", "pydantic", "pydantic_core", "tqdm"),
    *("spglib", "finufft", "ase", "dask", "distributed", "rich", "papermill", "nbformat", "platformdirs", "pooch"),
    *("optuna", "shap", "matplotlib", "plotly", "skimage", "monty", "yaml", "ruamel", "pyarrow", "orjson"),
)
NAME = "lean-a--bulk_modulus"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pack") / "pack.zip"
    assert pack(file, "tiny", [NAME]) == file.stat().st_size < 40e6
    return file


@pytest.mark.slow
def test_pack_runs_without_other_packages(packed: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    lines = ["import sys", f"for name in {MISSING!r}:", "    sys.modules[name] = None"]
    (blocked / "sitecustomize.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, str(packed), "--device", "cpu", "--minutes", "5", "--out", str(tmp_path / "there")],
        env=os.environ | {"PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    assert "samples/s" in done.stdout
    (file,) = (tmp_path / "there").glob("*.npz")
    there = load_result(file, "lean")
    here = run_lean(TrainingParameters.checked({"model": "lean-a", "device": "cpu"}, "tiny"), tmp_path / "here.npz")
    assert list(there.names) == list(here.names)
    assert there.meta["parameters"] == here.meta["parameters"]
    np.testing.assert_allclose(there.fitted, here.fitted, rtol=1e-4)
    made, own = there.meta["provenance"], here.meta["provenance"]
    assert made["commit"] == own["commit"]
    assert made["seconds"] > 0
    assert made["notebook"] == "ecd reproduce"
    assert {k: made["data"][k] for k in ("ecd_cubic.h5", "mp_crystals.csv")}.items() <= own["data"].items()


def test_stops_between_epochs_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    p = TrainingParameters.checked({"model": "octahedral-a", "device": "cpu"}, "tiny")
    whole = run_lean(p, tmp_path / "whole.npz", progress=False)
    with stopwatch(0) as watch, pytest.raises(OutOfTime, match="1 of 2 epochs"):
        run_lean(p, tmp_path / "cut.npz", progress=False)
    assert len(watch.epochs) == 1
    assert watch.rate > 0
    assert (tmp_path / "cut.npz.parts" / "fitted.checkpoint").is_file()
    resumed = run_lean(p, tmp_path / "cut.npz", progress=False)
    np.testing.assert_array_equal(resumed.fitted, whole.fitted)
    assert resumed.meta["seconds_per_fit"] > watch.epochs[0][1]  # with those of the first attempt

    assert not reproduce(tmp_path / "none", "tiny", minutes=0, device="cpu", only=[NAME])
    assert "no time left" in capsys.readouterr().out


def test_a_training_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = "attention"  # its autoencoder is not there
    (*_, first), (*_, second) = chosen("tiny", only=[network, NAME])
    monkeypatch.setattr("ecdlib.reproduce.TRAININGS", TRAININGS[::-1])
    with pytest.raises(EcdError, match=second):
        reproduce(tmp_path, "tiny", device="cpu", only=[network, NAME])
    said = capsys.readouterr().out
    assert f"{second}: failed: padded-16-16.npz" in said
    assert f"{first}: done" in said


def test_trainings_are_those_of_the_papers() -> None:
    every = chosen("full")
    assert len({file for *_, file in every}) == len(TRAININGS) == len(every)
    (_, a, name), *_ = every
    assert (a.model, a.size, a.epochs) == ("lean-a", 51, 650)
    assert name.startswith(NAME)
    assert {p.edge for t, p, _ in every if t.command == "train-autoencoder"} == {128}
    tiny = {file: t.operations(p) for t, p, file in chosen("tiny", only=[NAME, "padded"])}
    convolved = 64 * 125 * 10**3 + (32 * 64 + 16 * 32 + 8 * 16) * 27 * 10**3 + 8 * 10**3  # multiplications, forward
    lean, autoencoder, network = tiny.values()
    assert lean == pytest.approx(3 * 2 * convolved, rel=0.02)
    assert autoencoder > network == 0  # not counted
    assert PACK == "pack.json"


def test_settings_without_pydantic() -> None:
    class First(BaseModel):
        full: ClassVar[dict[str, int]] = {"a": 1}
        a: int = Default(2, description="kept")
        kind: ClassVar[int] = 7

    class Second(First):
        b: str = Default("x")

    assert Second(a=3).model_dump() == {"a": 3, "b": "x"}
    assert Second() == Second(a=2) != Second(a=3)
    with pytest.raises(TypeError, match="unknown parameters: c"):
        Second(c=1)
