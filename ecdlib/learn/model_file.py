"""The one loader of trained models: what a file is, it says itself."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ecdlib.base.archive import read_archive
from ecdlib.base.errors import DAMAGED, EcdError
from ecdlib.base.lazy import lazy
from ecdlib.base.resources import bundled_in, data_file
from ecdlib.density.core import ChargeDensity
from ecdlib.density.valence import Valence
from ecdlib.learn.conversion_cost import Calibration

#: What makes a model of each kind from ``arrays, meta, source``; adding one is a line.
KINDS = {
    "lean": lazy("ecdlib.learn.lean:LeanModel.from_file"),
    "fusion model": lazy("ecdlib.learn.fusion:FusionModel.from_file"),
    "elasticity model": lazy("ecdlib.learn.elasticity:ElasticityModel.from_file"),
    "crystal": lazy("ecdlib.learn.crystal_model:CrystalModel.from_file"),
    "autoencoder": lazy("ecdlib.learn.autoencoder:Autoencoder.from_file"),
}
#: Folders of the data that hold models, the first ones first.
FOLDERS = ("models", "portable", "results", "autoencoders")


class DensityModel(Protocol):
    """A trained model that predicts from a density."""

    source: str  #: its file
    meta: dict[str, Any]
    targets: list[str]
    portable: bool  #: whether it takes densities of any valence convention
    trained_on: tuple[str, ...]  #: names of bundled crystals
    features_key: Hashable  #: models of one key share their features

    def features(
        self, density: ChargeDensity, valence: Valence | None = None, calibration: Calibration | None = None
    ) -> Any:
        """What it predicts from.

        Args:
            valence, calibration: for a portable model (see :func:`ecdlib.density.valence.to_convention`).
        """

    def predict(self, features: Any, target: str) -> tuple[float, float]:
        """Value and standard deviation for one crystal."""

    def movement(self, target: str, relative: bool = False) -> pd.DataFrame:
        """How far a change of the valence convention moves its predictions.

        See :func:`ecdlib.learn.conversion_cost.movement`.
        """


def model_files(name: str | os.PathLike[str], folders: Sequence[str] = FOLDERS) -> list[Path]:
    """Files that hold a model: a path, or all shipped ones of that name (``NAME.npz``, ``NAME--*.npz``).

    Raises:
        EcdError: no such file, or no shipped model of that name.
    """
    if Path(name).suffix == ".npz":
        return [Path(name)]
    shipped = {f"{folder}/{file}.npz": file.split("--")[0] for folder in folders for file in bundled_in(folder)}
    found = [data_file(path) for path, model in shipped.items() if model == os.fspath(name)]
    if not found:
        known = dict.fromkeys(model for path, model in shipped.items() if _is_kept(path))
        remedy = f"Give a file from `ecd train`, or one of: {', '.join(known)}."
        raise EcdError(name, "no such trained model", remedy)
    return found


def _is_kept(path: str) -> bool:
    """Whether a shipped file holds a model; of some results only the predictions were kept."""
    with np.load(data_file(path), allow_pickle=False) as z:
        return "crossed" not in z.files or any(key.startswith("state/") for key in z.files)


def load_model(path: str | os.PathLike[str], kind: str | None = None) -> Any:
    """A trained model, of the class that its kind says.

    Args:
        path: file, or name of a shipped model that is one file.
        kind: what it must be.

    Raises:
        EcdError: no such model, a damaged file, or one of another kind.

    Example:
        >>> load_model("crystal").targets[:2]
        ['bulk_modulus', 'shear_modulus']
    """
    (file,) = model_files(path)
    try:
        arrays, meta = read_archive(file)
        found = meta.get("kind", "")
        if found != (kind or found) or found not in KINDS:
            problem = f"is a model of kind '{found}', not '{kind}'" if kind else "is not a trained model"
            raise EcdError(file, problem, f"Give a model of kind: {kind or ', '.join(KINDS)}.")
        return KINDS[found](arrays, meta, str(file))
    except DAMAGED as error:
        raise EcdError(file, "is not a readable model", "Train it again.") from error
