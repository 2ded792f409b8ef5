"""The attention network as an estimator on features that are latents first, then composition (LatentMatFusion, 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from ecdlib.density.core import Floats
from ecdlib.models.attention_cnn import AttentionCNN
from ecdlib.models.autoencoder import Padding
from ecdlib.models.fusion_lightgbm import FusionScaler
from ecdlib.models.torch_regressor import Scaling, TorchRegressor, TrainingSettings

#: What the network takes where nothing was searched for; the first try of a search.
DEFAULTS = {
    "learning_rate": 2e-3,
    "weight_decay": 0.0,
    "dropout": 0.2,
    "width": 32,
    "head_layers": 2,
    "head_width": 64,
}


def drawn(generator: np.random.Generator) -> dict[str, Any]:
    """One setting of a random search: head, regularization and rate, which the paper searches over, and the width."""
    return {
        "learning_rate": float(np.exp(generator.uniform(*np.log([5e-4, 5e-3])))),
        "weight_decay": float(np.exp(generator.uniform(*np.log([1e-6, 1e-3])))),
        "dropout": float(generator.uniform(0.0, 0.4)),
        "width": int(generator.choice([16, 32, 48])),
        "head_layers": int(generator.integers(1, 4)),
        "head_width": int(generator.choice([32, 64, 128])),
    }


class FusionNetwork(RegressorMixin, BaseEstimator):
    """Attention network on standardized features (see :class:`ecdlib.models.attention_cnn.AttentionCNN`).

    Standardized features are cut off at ``LIMIT``: one that hardly varies among the training crystals is huge for a
    crystal where it differs, and a network, unlike trees, goes wherever it is led.

    Args:
        channels, edge: of the latents, which are the first ``channels * edge**3`` features; ``channels=0``: none.
        padding: as in the autoencoder that made the latents.
        epochs: at most; training stops early by 15 % of the training crystals, which are set aside.
        trials: of a random search, judged by the crystals set aside; 0 takes :data:`DEFAULTS`.
        scaling: of the targets (:class:`ecdlib.models.torch_regressor.TorchRegressor`).
        branch_layers: dense layers that the composition passes.
        scaler: already fitted, for the protocol of the paper; by default one is fitted on the training data.
        checkpoint: file that an interrupted training resumes from.
    """

    LIMIT = 5.0

    def __init__(
        self,
        channels: int = 0,
        edge: int = 1,
        padding: Padding = "circular",
        epochs: int = 60,
        seed: int = 0,
        device: str = "auto",
        scaler: FusionScaler | None = None,
        checkpoint: str | None = None,
        trials: int = 0,
        scaling: Scaling = "standard",
        branch_layers: int = 1,
    ):
        self.channels = channels
        self.edge = edge
        self.padding = padding
        self.epochs = epochs
        self.seed = seed
        self.device = device
        self.scaler = scaler
        self.checkpoint = checkpoint
        self.trials = trials
        self.scaling = scaling
        self.branch_layers = branch_layers

    def fit(self, X: Floats, y: Floats) -> Self:
        """Fit on ``X (n, features)`` and ``y (n,)``."""
        self.scaler_ = self.scaler or FusionScaler(0).fit(X)
        inputs, generator = self.scaled(self.scaler_, X), np.random.default_rng(self.seed)
        tries = [DEFAULTS, *(drawn(generator) for _ in range(self.trials - 1))]
        fitted = [(setting, self._fitted(setting, inputs, y, number)) for number, setting in enumerate(tries)]
        self.parameters_, self.regressor_ = min(fitted, key=lambda each: min(each[1].validation_))
        return self

    def _fitted(self, setting: Mapping[str, Any], inputs: Floats, y: Floats, number: int) -> TorchRegressor:
        settings = TrainingSettings(
            epochs=self.epochs,
            batch_size=32,
            learning_rate=setting["learning_rate"],
            weight_decay=setting["weight_decay"],
            first_cycle=self.epochs,
            cycle_growth=1,
            held_out=0.15,
            patience=30,
            seed=self.seed,
        )
        file = self.checkpoint and f"{self.checkpoint}{number or ''}"
        regressor = TorchRegressor(
            lambda: self.network(inputs.shape[1], setting),
            settings,
            self.device,
            checkpoint=file,
            progress=False,
            scaling=self.scaling,
        )
        return regressor.fit(inputs, y)

    @classmethod
    def scaled(cls, scaler: FusionScaler, X: Floats) -> Floats:
        """Standardized features, cut off."""
        return np.clip(scaler.transform(X), -cls.LIMIT, cls.LIMIT)

    def network(self, n_features: int, setting: Mapping[str, Any] = DEFAULTS) -> AttentionCNN:
        """Untrained network for that many features."""
        n_other = n_features - self.channels * self.edge**3
        return AttentionCNN(
            self.channels,
            self.edge,
            n_other,
            padding=self.padding,
            branch_layers=self.branch_layers,
            **{name: setting[name] for name in ("width", "dropout", "head_layers", "head_width")},
        )

    def predict(self, X: Floats) -> Floats:
        """``(n,)`` predictions."""
        predicted: Floats = self.regressor_.predict(self.scaled(self.scaler_, X))
        return predicted
