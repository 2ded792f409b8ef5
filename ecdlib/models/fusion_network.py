"""The attention network as an estimator on features that are latents first, then composition (LatentMatFusion, 6)."""

from __future__ import annotations

from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from ecdlib.density.core import Floats
from ecdlib.models.attention_cnn import AttentionCNN
from ecdlib.models.autoencoder import Padding
from ecdlib.models.fusion_lightgbm import FusionScaler
from ecdlib.models.torch_regressor import TorchRegressor, TrainingSettings


class FusionNetwork(RegressorMixin, BaseEstimator):
    """Attention network on standardized features (see :class:`ecdlib.models.attention_cnn.AttentionCNN`).

    Standardized features are cut off at ``LIMIT``: one that hardly varies among the training crystals is huge for a
    crystal where it differs, and a network, unlike trees, goes wherever it is led.

    Args:
        channels, edge: of the latents, which are the first ``channels * edge**3`` features; ``channels=0``: none.
        padding: as in the autoencoder that made the latents.
        epochs: at most; training stops early by 15 % of the training crystals, which are set aside.
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
    ):
        self.channels = channels
        self.edge = edge
        self.padding = padding
        self.epochs = epochs
        self.seed = seed
        self.device = device
        self.scaler = scaler
        self.checkpoint = checkpoint

    def fit(self, X: Floats, y: Floats) -> Self:
        """Fit on ``X (n, features)`` and ``y (n,)``."""
        self.scaler_ = self.scaler or FusionScaler(0).fit(X)
        settings = TrainingSettings(
            epochs=self.epochs,
            batch_size=32,
            learning_rate=2e-3,
            first_cycle=self.epochs,
            cycle_growth=1,
            held_out=0.15,
            patience=30,
            seed=self.seed,
        )
        self.regressor_ = TorchRegressor(
            lambda: self.network(X.shape[1]), settings, self.device, checkpoint=self.checkpoint, progress=False
        )
        self.regressor_.fit(self.scaled(self.scaler_, X), y)
        return self

    @classmethod
    def scaled(cls, scaler: FusionScaler, X: Floats) -> Floats:
        """Standardized features, cut off."""
        return np.clip(scaler.transform(X), -cls.LIMIT, cls.LIMIT)

    def network(self, n_features: int) -> AttentionCNN:
        """Untrained network for that many features."""
        n_other = n_features - self.channels * self.edge**3
        return AttentionCNN(self.channels, self.edge, n_other, padding=self.padding)

    def predict(self, X: Floats) -> Floats:
        """``(n,)`` predictions."""
        predicted: Floats = self.regressor_.predict(self.scaled(self.scaler_, X))
        return predicted
