"""The crystal graph network as an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pymatgen.core import Structure
from sklearn.base import BaseEstimator, RegressorMixin

from ecdlib.density.core import Floats
from ecdlib.features.graphs import CrystalGraphs, crystal_graphs
from ecdlib.models.cgcnn import CGCNN
from ecdlib.models.torch_regressor import TorchRegressor, TrainingSettings


class CGCNNRegressor(RegressorMixin, BaseEstimator):
    """:class:`ecdlib.models.cgcnn.CGCNN` on crystals.

    Args:
        epochs: passes over the training crystals.
        batch_size: crystals in a step.
        learning_rate: initial, of Adam.
        held_out: share of the training crystals that choose the epoch.
        checkpoint: file that an interrupted training resumes from.
        annealing: one cosine from the initial learning rate to zero; False: the rate stays as it is.
        layers: dense layers after the mean over atoms.
    """

    def __init__(
        self,
        epochs: int = 100,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        held_out: float = 0.1,
        seed: int = 0,
        device: str = "auto",
        checkpoint: str | None = None,
        annealing: bool = True,
        layers: int = 2,
    ):
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.held_out = held_out
        self.seed = seed
        self.device = device
        self.checkpoint = checkpoint
        self.annealing = annealing
        self.layers = layers

    def fit(self, X: CrystalGraphs | Sequence[Structure], y: Floats) -> Self:
        """Fit on n crystals, structures or their graphs, and ``y (n,)`` or ``(n, targets)``, NaN where unknown."""
        targets = y.shape[1] if y.ndim > 1 else 1
        settings = TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            first_cycle=self.epochs,
            cycle_growth=1,
            annealing=self.annealing,
            precondition=False,
            seed=self.seed,
            held_out=self.held_out,
        )
        self.regressor_ = TorchRegressor(
            lambda: CGCNN(targets, layers=self.layers),
            settings,
            self.device,
            checkpoint=self.checkpoint,
            progress=False,
        )
        self.regressor_.fit(_graphs(X), y)
        return self

    def predict(self, X: CrystalGraphs | Sequence[Structure]) -> Floats:
        """``(n,)``, or ``(n, targets)`` for several."""
        return self.regressor_.predict(_graphs(X))


def _graphs(X: CrystalGraphs | Sequence[Structure]) -> CrystalGraphs:
    return X if isinstance(X, CrystalGraphs) else crystal_graphs(X)
