"""Models, one file each; :data:`MODELS` names those that can be trained and compared.

Imports are made by the model that needs them: a prediction with one that needs no torch does not load it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from ecdlib.data.properties import PROPERTIES

if TYPE_CHECKING:
    from ecdlib.learn.lean import TrainingParameters


@dataclass(frozen=True)
class Model:
    """How to build a model, and what it takes.

    ``build(parameters)`` returns an unfitted estimator. ``inputs``: ``"correlations"`` are distinct values of the
    autocorrelation, ``"statistics"`` these and the quantiles of the density, ``"density"`` the conventional cell on a
    common grid, ``"composition"`` formulas.
    """

    build: Callable[[TrainingParameters], Any]
    inputs: Literal["correlations", "statistics", "density", "composition"]
    description: str
    targets: int = 1


def _network(module: str, name: str, *arguments: Any, density: bool = False) -> Callable[[TrainingParameters], Any]:
    def build(p: TrainingParameters) -> Any:
        from ecdlib.models.torch_regressor import TorchRegressor, TrainingSettings

        network = getattr(import_module(f"ecdlib.models.{module}"), name)
        settings = {f.name: getattr(p, f.name) for f in fields(TrainingSettings) if hasattr(p, f.name)}
        size = p.grid if density else p.size
        channels = {} if density else {"in_channels": p.channels}
        make_module = partial(network, *arguments, dropout=p.dropout, size=size, **channels)
        return TorchRegressor(make_module, TrainingSettings(**settings), p.device)

    return build


def _pca_gpr(p: TrainingParameters) -> Any:
    from ecdlib.models.pca_gpr import pca_gpr

    return pca_gpr(seed=p.seed)


def _density_gpr(p: TrainingParameters) -> Any:
    from ecdlib.models.density_gpr import DensityGPR

    return DensityGPR(log_target=PROPERTIES[p.target].logarithmic, channels=p.channels)


def _magpie_forest(p: TrainingParameters) -> Any:
    from ecdlib.models.forest import magpie_forest

    return magpie_forest(seed=p.seed)


MODELS: dict[str, Model] = {
    "lean-a": Model(_network("lean_cnn", "LeanCNN", "A"), "correlations", "Model A"),
    "lean-b": Model(_network("lean_cnn", "LeanCNN", "B"), "correlations", "Model B"),
    "lean-c": Model(_network("lean_cnn", "LeanCNN", "C"), "correlations", "Model C", 2),
    "octahedral-a": Model(_network("octahedral_cnn", "OctahedralCNN", "A"), "correlations", "octahedral Model A"),
    "octahedral-b": Model(_network("octahedral_cnn", "OctahedralCNN", "B"), "correlations", "octahedral Model B"),
    "octahedral-c": Model(_network("octahedral_cnn", "OctahedralCNN", "C"), "correlations", "octahedral Model C", 2),
    "lean-a-density": Model(_network("lean_cnn", "LeanCNN", "A", density=True), "density", "Model A on the density"),
    "zhao": Model(_network("literature_cnn", "Zhao", density=True), "density", "network after Zhao et al."),
    "mirzaee": Model(_network("literature_cnn", "Mirzaee", density=True), "density", "network after Mirzaee et al."),
    "pca-gpr": Model(_pca_gpr, "correlations", "principal components + Gaussian process"),
    "density-gpr": Model(_density_gpr, "statistics", "Gaussian process on 2-point and 1-point statistics"),
    "magpie-forest": Model(_magpie_forest, "composition", "random forest on MAGPIE features"),
}
