"""Models, one file each; :data:`MODELS` names those that can be trained and compared.

Imports are made by the model that needs them: a prediction with one that needs no torch does not load it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from typing import Any

from ecdlib.data.properties import PROPERTIES

Settings = Any  # of the task that trains the model (ecdlib.learn.lean.TrainingParameters)


@dataclass(frozen=True)
class Model:
    """How to build a model, and what it takes."""

    build: Callable[[Settings], Any]  #: returns an unfitted estimator
    #: blocks of features (:data:`ecdlib.features.collection.FEATURES`); or ``"density"``, the conventional cell on a
    #: common grid; or ``"composition"``, formulas
    inputs: tuple[str, ...]
    description: str
    targets: int = 1
    cubic: bool = False  #: whether it is for cubic crystals alone


def _network(module: str, name: str, *arguments: Any, density: bool = False) -> Callable[[Settings], Any]:
    def build(p: Settings) -> Any:
        from ecdlib.models.torch_regressor import TorchRegressor, TrainingSettings

        network = getattr(import_module(f"ecdlib.models.{module}"), name)
        settings = {f.name: getattr(p, f.name) for f in fields(TrainingSettings) if hasattr(p, f.name)}
        size = p.grid if density else p.size
        channels = {} if density else {"in_channels": p.channels}
        make_module = partial(network, *arguments, dropout=p.dropout, size=size, **channels)
        return TorchRegressor(make_module, TrainingSettings(**settings), p.device)

    return build


def _octahedral(architecture: str) -> Callable[[Settings], Any]:
    return _network("octahedral_cnn", "OctahedralCNN", architecture)


def _pca_gpr(p: Settings) -> Any:
    from ecdlib.models.pca_gpr import pca_gpr

    return pca_gpr(seed=p.seed)


def _density_gpr(p: Settings) -> Any:
    from ecdlib.models.density_gpr import DensityGPR

    return DensityGPR(log_target=PROPERTIES[p.target].logarithmic, channels=p.channels)


def _magpie_forest(p: Settings) -> Any:
    from ecdlib.models.forest import magpie_forest

    return magpie_forest(seed=p.seed)


_CORRELATION, _STATISTICS = ("autocorrelation",), ("autocorrelation", "quantiles")
_DENSITY, _COMPOSITION = ("density",), ("composition",)

#: Models by name; adding one is a line here.
MODELS: dict[str, Model] = {
    "lean-a": Model(_network("lean_cnn", "LeanCNN", "A"), _CORRELATION, "Model A"),
    "lean-b": Model(_network("lean_cnn", "LeanCNN", "B"), _CORRELATION, "Model B"),
    "lean-c": Model(_network("lean_cnn", "LeanCNN", "C"), _CORRELATION, "Model C", 2),
    "octahedral-a": Model(_octahedral("A"), _CORRELATION, "octahedral Model A", cubic=True),
    "octahedral-b": Model(_octahedral("B"), _CORRELATION, "octahedral Model B", cubic=True),
    "octahedral-c": Model(_octahedral("C"), _CORRELATION, "octahedral Model C", 2, cubic=True),
    "octahedral-larger-c": Model(_octahedral("larger C"), _CORRELATION, "octahedral larger Model C", 2, cubic=True),
    "lean-a-density": Model(_network("lean_cnn", "LeanCNN", "A", density=True), _DENSITY, "Model A on the density"),
    "zhao": Model(_network("literature_cnn", "Zhao", density=True), _DENSITY, "network after Zhao et al."),
    "mirzaee": Model(_network("literature_cnn", "Mirzaee", density=True), _DENSITY, "network after Mirzaee et al."),
    "pca-gpr": Model(_pca_gpr, _CORRELATION, "principal components + Gaussian process"),
    "density-gpr": Model(_density_gpr, _STATISTICS, "Gaussian process on 2-point and 1-point statistics"),
    "magpie-forest": Model(_magpie_forest, _COMPOSITION, "random forest on MAGPIE features"),
}
