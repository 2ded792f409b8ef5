"""Models, one file each; :data:`MODELS` names those that the notebooks offer."""

from collections.abc import Callable
from typing import Any

from ecdlib.models.pca_gpr import pca_gpr

MODELS: dict[str, Callable[..., Any]] = {
    "pca-gpr": pca_gpr,
}
