"""The one result file: every prediction of a model on a task, with the role of each crystal and the provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecdlib.base.archive import read_archive, write_archive
from ecdlib.base.errors import DAMAGED, EcdError
from ecdlib.base.resources import bundled_in, data_file
from ecdlib.base.settings import Parameters
from ecdlib.density.core import Floats

TRAIN, VALIDATION, TEST = 0, 1, 2
_FIELDS = ("names", "truth", "role", "fold", "fitted", "crossed")
#: Parts of a result that are kept in single precision.
_PREDICTIONS = ("fitted", "validated", "crossed", "spread")


@dataclass(frozen=True)
class Result:
    """Predictions in the units of the targets; NaN where there is none.

    ``n`` crystals, ``t`` targets, ``s`` splits into training, validation and test crystals.
    """

    names: NDArray[np.str_]  #: ``(n,)`` crystals
    truth: Floats  #: ``(n, t)`` labels
    role: NDArray[np.int8]  #: ``(s, n)``: :data:`TRAIN`, :data:`VALIDATION` or :data:`TEST` in each split
    fitted: Floats  #: ``(s, n, t)`` by the model of each split, also of crystals that it was trained on
    crossed: Floats  #: ``(n, t)`` each by a model that has not seen the crystal, where a cross-validation was made
    fold: NDArray[np.int8]  #: ``(n,)`` fold of the cross-validation that tests the crystal
    meta: dict[str, Any]  #: ``kind``, ``targets``, ``parameters``, ``provenance``, and what else the task notes
    #: what only some tasks have, by name: ``validated (n, t)``, ``spread (n, t)``, ``losses``, ``pairs/ROUTE``
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)  #: of the model fitted in the first split

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], meta: dict[str, Any]) -> Result:
        """From what :meth:`write` has put into a file.

        Raises:
            KeyError, ValueError: something is missing or does not fit.
        """
        named: dict[str, dict[str, NDArray[Any]]] = {"more": {}, "state": {}}
        for key, value in arrays.items():
            group, slash, name = key.partition("/")
            if slash:
                named[group][name] = value
        fields: dict[str, Any] = {f: arrays[f] for f in _FIELDS}
        result = cls(**fields, meta=meta, more=named["more"], state=named["state"])
        shape = result.truth.shape
        if not (len(result.names) == shape[0] and result.crossed.shape == shape == result.fitted.shape[1:]):
            raise ValueError("shapes")
        return result

    @property
    def kind(self) -> str:
        """Which task it is a result of."""
        return str(self.meta["kind"])

    @property
    def targets(self) -> list[str]:
        """Names of the columns."""
        return list(self.meta["targets"])

    def column(self, target: str) -> int:
        """Number of a target's column."""
        return self.targets.index(target)

    def tested(self, split: int = 0) -> NDArray[np.bool_]:
        """``(n,)``: whether a crystal tests in a split."""
        return self.role[split] == TEST

    @property
    def has_crossed(self) -> bool:
        """Whether a cross-validation was made."""
        return bool(np.isfinite(self.crossed).any())

    @property
    def unseen(self) -> Floats:
        """``(n, t)``: each by a model that has not seen the crystal where there is one, else by the first split's."""
        return self.crossed if self.has_crossed else self.fitted[0]

    def pair(self, target: str, part: str = "crossed", chosen: Any = slice(None)) -> tuple[Floats, Floats]:
        """Labels and predictions of the crystals that have both.

        Args:
            part: ``"crossed"``, ``"fitted"`` (first split) or a name in ``more``.
            chosen: which crystals, as a mask or indices.
        """
        t = self.column(target)
        values = self.fitted[0] if part == "fitted" else self.crossed if part == "crossed" else self.more[part]
        truth, predicted = self.truth[chosen, t], values[chosen, t]
        known = np.isfinite(truth) & np.isfinite(predicted)
        return truth[known].astype(float), predicted[known].astype(float)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it, atomically; predictions in single precision."""
        arrays: dict[str, Any] = {f: getattr(self, f) for f in _FIELDS}
        arrays |= {f"more/{k}": v for k, v in self.more.items()} | {f"state/{k}": v for k, v in self.state.items()}
        for key in arrays:
            if key.split("/")[-1] in _PREDICTIONS or key.startswith("more/pairs/"):
                arrays[key] = np.asarray(arrays[key]).astype(np.float32)
        write_archive(path, arrays, self.meta)


def load_result(source: str | os.PathLike[str], kind: str | None = None) -> Result:
    """Read a result: a file, or the name of a bundled one (``"results/NAME"``).

    Args:
        kind: the task it must be of.

    Raises:
        EcdError: a missing or damaged file, or a result of another task.

    Example:
        >>> result = load_result("results/density-gpr--bulk_modulus--seed0")
        >>> result.targets, result.truth.shape
        (['bulk_modulus'], (892, 1))
    """
    path = source if os.path.isfile(source) or os.fspath(source).endswith(".npz") else data_file(f"{source}.npz")
    try:
        result = Result.from_arrays(*read_archive(path))
        if result.kind != (kind or result.kind):
            raise EcdError(
                path, f"is a result of kind '{result.kind}', not '{kind}'", "Give a result of the right kind."
            )
        return result
    except DAMAGED as error:
        raise EcdError(path, "is not a readable result", "Make it with `ecd train`.") from error


def finished(out: Path, kind: str, parameters: Parameters) -> Result | None:
    """What an earlier call with the same parameters wrote to ``out``; None if it has not been made.

    Raises:
        EcdError: a file of another task or with other parameters is already there.
    """
    if not out.is_file():
        return None
    result = load_result(out, kind)
    parameters.confirm(result.meta["parameters"], out)
    return result


def shipped_results(folder: str) -> dict[str, Result]:
    """Results that ship in a folder of the data, by the name of their file."""
    return {name: load_result(f"{folder}/{name}") for name in bundled_in(folder)}
