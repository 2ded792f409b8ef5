"""The training loop: deterministic, resumable with the same result, honest normalization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold, cross_val_predict
from torch import nn

from ecdlib.base.errors import EcdError
from ecdlib.learn.evaluation import scores
from ecdlib.learn.protocol import cross_validate
from ecdlib.models.lean_cnn import LeanCNN
from ecdlib.models.octahedral_cnn import OctahedralCNN
from ecdlib.models.torch_regressor import TorchRegressor, TrainingSettings, fit, pick_device

QUICK = TrainingSettings(epochs=8, batch_size=4, first_cycle=3, checkpoint_every=3)


def network() -> nn.Module:
    return OctahedralCNN("A", dropout=0.1, size=11)


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(12, 56, generator=generator)  # distinct values of a grid of 11
    return X, X.mean(1, keepdim=True) * 10


class Interrupted(Exception):
    pass


class Interrupting(nn.Module):
    """A network that fails at one forward pass, as if the machine had been switched off."""

    def __init__(self, after: int):
        super().__init__()
        self.network, self.left = network(), after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return self.network(x)


def test_a_resumed_training_gives_what_an_uninterrupted_one_gives(
    data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = Interrupting(10**6)
    start = {k: v.clone() for k, v in whole.state_dict().items()}
    losses = fit(whole, *data, QUICK, device="cpu", progress=False)
    checkpoint = tmp_path / "checkpoint.pt"
    broken = Interrupting(3 * 4 + 2)  # in the fifth epoch, after the checkpoint of the third
    broken.load_state_dict(start)
    with pytest.raises(Interrupted):
        fit(broken, *data, QUICK, device="cpu", checkpoint=checkpoint, progress=False)
    assert checkpoint.is_file()
    resumed = Interrupting(10**6)
    assert fit(resumed, *data, QUICK, device="cpu", checkpoint=checkpoint, progress=False) == losses
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(
    data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Interrupted):
        fit(Interrupting(15), *data, QUICK, device="cpu", checkpoint=checkpoint, progress=False)
    with pytest.raises(EcdError, match="another model, other data or other settings"):
        fit(network(), *data, replace(QUICK, epochs=9), device="cpu", checkpoint=checkpoint, progress=False)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(EcdError, match="not a readable checkpoint"):
        fit(network(), *data, QUICK, device="cpu", checkpoint=checkpoint, progress=False)


def test_the_estimator_is_deterministic_and_learns(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    X, y = data[0].numpy(), data[1].numpy()[:, 0]
    settings = replace(QUICK, epochs=60, first_cycle=60)
    first, second = (
        TorchRegressor(lambda: OctahedralCNN("A", size=11), settings, "cpu", progress=False).fit(X, y) for _ in "ab"
    )
    assert np.array_equal(first.predict(X), second.predict(X))
    assert first.losses_[-1] < 0.5 * first.losses_[0]
    assert first.predict(X).shape == y.shape


def test_predictions_scale_with_the_unit_of_the_target(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    X, y = data[0].numpy(), data[1].numpy()[:, 0]
    make = lambda: TorchRegressor(network, QUICK, "cpu", progress=False)  # noqa: E731
    gpa, mpa = make().fit(X, y).predict(X), make().fit(X, 1000 * y + 5).predict(X)
    assert np.allclose(1000 * gpa + 5, mpa, rtol=1e-5)


def test_two_targets_and_the_common_cross_validation(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    X, y = data[0].numpy(), data[1].numpy()
    both = TorchRegressor(lambda: OctahedralCNN("C", size=11), QUICK, "cpu", progress=False).fit(X, np.hstack([y, -y]))
    assert both.predict(X).shape == (12, 2)
    make = lambda: TorchRegressor(network, QUICK, "cpu", progress=False)  # noqa: E731
    rows = cross_validate(make, X, y[:, 0], folds=3, progress=False)
    expected = cross_val_predict(make(), X, y[:, 0], cv=KFold(3, shuffle=True, random_state=0))
    assert np.allclose(rows["prediction"], expected)
    assert set(scores(rows["truth"], rows["prediction"])) == {"MAE", "RMSE", "R2", "NMAE"}


def test_what_cannot_be_trained_is_said_in_one_line(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(EcdError, match="not finite"):
        fit(network(), data[0], data[1] * float("nan"), QUICK, device="cpu", progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(EcdError, match="CUDA"):
            pick_device("cuda")


def test_whitening_shows_the_optimizer_what_the_mean_hides() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, detail = torch.rand(20, 1, generator=generator), torch.rand(20, 1, generator=generator)
    X = (mean + 0.02 * detail * torch.cos(torch.arange(20) / 3.0)).numpy()  # as in autocorrelations, the mean dominates
    y = detail[:, 0].numpy()
    losses = []
    for precondition in (False, True):
        settings = replace(QUICK, epochs=60, first_cycle=60, precondition=precondition)
        model = TorchRegressor(lambda: OctahedralCNN("A", size=7), settings, "cpu", progress=False)
        losses.append(model.fit(X, y).losses_[-1])
    assert losses[1] < 0.3 * losses[0]


@pytest.mark.parametrize("make", [network, lambda: LeanCNN("A", size=11)])
def test_lower_precision_trains_too(data: tuple[torch.Tensor, torch.Tensor], make: Callable[[], nn.Module]) -> None:
    losses = fit(make(), *data, replace(QUICK, precision="bfloat16"), device="cpu", progress=False).train
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_trained_network_predicts_its_training_samples_as_its_loss_says(precision: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, detail = torch.rand(20, 1, generator=generator), torch.rand(20, 1, generator=generator)
    X = (mean + 0.02 * detail * torch.cos(torch.arange(35) / 3.0)).numpy()  # as in autocorrelations, the mean dominates
    y = detail[:, 0].numpy().astype(float)
    settings = replace(QUICK, epochs=40, first_cycle=40, precision=precision)
    model = TorchRegressor(lambda: LeanCNN("A", size=9), settings, "cpu", progress=False).fit(X, y)
    missed = ((model.predict(X) - y) ** 2).mean() / y.var()
    assert model.losses_[-1] < 0.1
    assert missed < 2 * model.losses_[-1] + 1e-3


def test_training_on_prepared_inputs_is_the_same_training() -> None:
    torch.manual_seed(0)
    X, y = torch.rand(24, 56), torch.randn(24, 1)
    models = [LeanCNN("A", size=11) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model.precondition(X)
    first = fit(models[0], X, y, QUICK, device="cpu", progress=False).train
    second = fit(models[1], models[1].prepare(X, torch.float32), y, QUICK, device="cpu", progress=False).train
    assert second == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("scaling", ["standard", "unit interval", "none"])
def test_scaled_targets_come_back_in_their_unit(scaling: Any) -> None:
    X = np.random.default_rng(0).normal(size=(60, 3))
    y = 200 + 50 * X[:, 0]
    settings = replace(
        QUICK, epochs=300, batch_size=30, first_cycle=300, learning_rate=0.05 if scaling != "none" else 5
    )
    model = TorchRegressor(lambda: nn.Linear(3, 1), settings, "cpu", progress=False, scaling=scaling).fit(X, y)
    np.testing.assert_allclose(model.predict(X), y, atol=1)


def test_a_constant_rate_moves_to_the_end() -> None:
    """With the last epoch's rate near zero, weights hardly move; with a constant one they do."""
    X = np.random.default_rng(0).normal(size=(60, 3))
    y = X @ [1.0, 2.0, 3.0] + np.random.default_rng(1).normal(size=60)
    moved = []
    for annealing in (True, False):
        weights = []
        for epochs in (99, 100):
            settings = replace(
                QUICK, epochs=epochs, batch_size=20, first_cycle=100, cycle_growth=1, annealing=annealing
            )
            model = TorchRegressor(lambda: nn.Linear(3, 1), settings, "cpu", progress=False).fit(X, y)
            weights.append(model.state["weight"])
        moved.append(np.abs(weights[1] - weights[0]).max())
    assert moved[0] < 0.1 * moved[1]


def test_a_checkpoint_of_other_data_is_not_taken(data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Interrupted):
        fit(Interrupting(15), *data, QUICK, device="cpu", checkpoint=checkpoint, progress=False)
    for X, y in ((data[0] + 1, data[1]), (data[0], -data[1])):
        with pytest.raises(EcdError, match="another model, other data or other settings"):
            fit(Interrupting(100), X, y, QUICK, device="cpu", checkpoint=checkpoint, progress=False)
