"""Models, one file each; :data:`MODELS` names those that can be trained and compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ecdlib.models.forest import magpie_forest
from ecdlib.models.lean_cnn import LeanCNN
from ecdlib.models.literature_cnn import Mirzaee, Zhao
from ecdlib.models.octahedral_cnn import OctahedralCNN
from ecdlib.models.pca_gpr import pca_gpr
from ecdlib.training import TorchRegressor, TrainingSettings


@dataclass(frozen=True)
class Model:
    """How to build a model, and what it takes.

    ``build(settings, size, dropout)`` returns an unfitted estimator; those that are not trained by epochs use only the
    seed of the settings. ``inputs``: ``"correlations"`` are distinct values of the autocorrelation, ``"density"`` the
    conventional cell on a common grid, ``"composition"`` formulas.
    """

    build: Callable[[TrainingSettings, int, float], Any]
    inputs: Literal["correlations", "density", "composition"]
    description: str
    targets: int = 1


def _torch(network: Callable[..., Any], *arguments: Any) -> Callable[[TrainingSettings, int, float], Any]:
    def build(settings: TrainingSettings, size: int, dropout: float) -> TorchRegressor:
        return TorchRegressor(lambda: network(*arguments, dropout=dropout, size=size), settings)

    return build


MODELS: dict[str, Model] = {
    "lean-a": Model(_torch(LeanCNN, "A"), "correlations", "Model A of the paper"),
    "lean-b": Model(_torch(LeanCNN, "B"), "correlations", "Model B of the paper"),
    "lean-c": Model(_torch(LeanCNN, "C"), "correlations", "Model C of the paper, both targets at once", 2),
    "octahedral-a": Model(_torch(OctahedralCNN, "A"), "correlations", "Model A with octahedral kernels"),
    "octahedral-b": Model(_torch(OctahedralCNN, "B"), "correlations", "Model B with octahedral kernels"),
    "octahedral-c": Model(_torch(OctahedralCNN, "C"), "correlations", "Model C with octahedral kernels", 2),
    "lean-a-density": Model(_torch(LeanCNN, "A"), "density", "Model A on the density itself"),
    "zhao": Model(_torch(Zhao), "density", "3D CNN after Zhao et al., on the density"),
    "mirzaee": Model(_torch(Mirzaee), "density", "3D CNN after Mirzaee et al., on the density"),
    "pca-gpr": Model(lambda s, *_: pca_gpr(seed=s.seed), "correlations", "principal components + Gaussian process"),
    "magpie-forest": Model(lambda s, *_: magpie_forest(seed=s.seed), "composition", "random forest on MAGPIE features"),
}
