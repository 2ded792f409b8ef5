"""A Gaussian process and gradient-boosted trees on blocks of features, stacked, with intervals that hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ecdlib.density.core import Floats

#: Principal components of a block, each divided by the fourth root of its variance (between equal weights and none);
#: blocks that are not named here are standardized.
COMPONENTS = {
    "invariants gpaw": 25,
    "invariants chemical": 25,
    "bonds": 60,
    "composition": 40,
    "atomic": 60,
}
#: Blocks left on their own scale, and blocks of which each feature has a length scale of its own.
UNSCALED, SEPARATE = ("elements",), ("tensor", "frame")
#: Features are cut off here: one that hardly varies in the training part may be anything.
LIMIT = 6.0
BOOSTING = {
    "objective": "regression",
    "num_iterations": 600,
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_child_samples": 10,
    "feature_fraction": 0.1,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "max_bin": 63,
    "num_threads": 1,
    "deterministic": True,
    "force_col_wise": True,
    "verbosity": -1,
}
#: Coverage of the intervals.
COVERAGE = 0.95


class BlockScaler:
    """Blocks of features side by side, each standardized or reduced to principal components."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)

    def fit(self, blocks: Mapping[str, Floats]) -> Self:
        """Fit to blocks ``(n, k)``."""
        self.parts: dict[str, tuple[Floats, Floats]] = {}
        groups: list[int] = []
        for name in self.names:
            x = np.asarray(blocks[name], dtype=np.float64)
            centre, spread = x.mean(0), x.std(0)
            spread[spread < 1e-6] = np.inf  # a feature that says nothing
            if name in UNSCALED:
                spread = np.ones_like(spread)
            matrix = np.diag(1 / spread)
            if name in COMPONENTS:
                values, vectors = np.linalg.eigh(((x - centre) / spread).T @ ((x - centre) / spread) / len(x))
                keep = np.argsort(values)[::-1][: COMPONENTS[name]]
                keep = keep[values[keep] > 1e-9 * values.max()]
                matrix = matrix @ (vectors[:, keep] / (values[keep] * values.max()) ** 0.25)
            self.parts[name] = centre, matrix
            first = groups[-1] + 1 if groups else 0
            groups += list(range(first, first + matrix.shape[1])) if name in SEPARATE else [first] * matrix.shape[1]
        self.groups = np.array(groups)
        return self

    @property
    def state(self) -> dict[str, Any]:
        """What was fitted, as arrays; :meth:`from_state` takes it."""
        parts = {f"{name}/{k}": v for name, pair in self.parts.items() for k, v in zip("cm", pair, strict=True)}
        return {"names": np.array(self.names), "groups": self.groups, **parts}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The scaler that gave this :attr:`state`."""
        self = cls([str(name) for name in state["names"]])
        self.groups = state["groups"]
        self.parts = {name: (state[f"{name}/c"], state[f"{name}/m"]) for name in self.names}
        return self

    def columns(self, names: Sequence[str]) -> NDArray[np.intp]:
        """Where the columns of some blocks stand among all."""
        ends = np.cumsum([0, *(self.parts[name][1].shape[1] for name in self.names)])
        where = {name: np.arange(a, b) for name, a, b in zip(self.names, ends, ends[1:], strict=False)}
        return np.concatenate([where[name] for name in names])

    def part(self, names: Sequence[str]) -> Self:
        """The same scaling of some of the blocks."""
        found = type(self)(names)
        found.parts = {name: self.parts[name] for name in names}
        found.groups = np.unique(self.groups[self.columns(names)], return_inverse=True)[1]
        return found

    def transform(self, blocks: Mapping[str, Floats]) -> Floats:
        """``(n, features)``."""
        columns = []
        for name in self.names:
            centre, matrix = self.parts[name]
            x = (np.asarray(blocks[name], dtype=np.float64) - centre) @ matrix
            columns.append(x if name in UNSCALED else np.clip(x, -LIMIT, LIMIT))
        return np.hstack(columns)


class StackedModel:
    """One property from blocks of features.

    Both models learn from the same blocks. Inner folds give the weight of the trees in the sum
    and the factor of the process's standard deviation that makes intervals hold :data:`COVERAGE` of the crystals.

    Args:
        blocks: names of the blocks.
        separate: each feature has a length scale of its own, not only those of the blocks :data:`SEPARATE`.
        power: of the error that the weight makes small: 1, absolute, or 2, squared.
        seed: of the trees.
        settings: of the process, see :class:`ecdlib.models.group_gpr.GroupGPR`.

    Attributes:
        left_out: prediction ``(n,)`` of each training sample by models that have not seen its fold.
        process_left_out: by the process alone.
        spread: standard deviation ``(n,)`` of the process there.
        weight: of the trees.
        factor: half of the interval, in standard deviations.
    """

    def __init__(self, blocks: Sequence[str], separate: bool = False, power: int = 1, seed: int = 0, **settings: Any):
        self.blocks, self.separate, self.power = list(blocks), separate, power
        self.seed, self.settings = seed, settings

    def fit(
        self,
        blocks: Mapping[str, Floats],
        y: Floats,
        fold: NDArray[np.integer[Any]],
        scaler: BlockScaler | None = None,
    ) -> Self:
        """Fit to blocks ``(n, k)`` and ``y (n,)``, with the number of each sample's inner fold ``(n,)``.

        Args:
            scaler: fitted already, if models of several properties share one.
        """
        from ecdlib.models.group_gpr import GroupGPR  # brings scikit-learn, which a prediction does not need

        self.scaler = scaler or BlockScaler(self.blocks).fit(blocks)
        X = self.scaler.transform(blocks)
        self.process = GroupGPR(None if self.separate else self.scaler.groups, **self.settings).fit(X, y)
        self.process_left_out, self.spread = self.process.cross_predict(fold)
        columns = self._columns(blocks)
        trees = np.empty(len(y))
        for number in np.unique(fold):
            test = fold == number
            trees[test] = self._boost(columns[~test], y[~test]).predict(columns[test])
        self.booster = self._boost(columns, y)
        weights = np.linspace(0, 1, 21)
        sums = [(1 - w) * self.process_left_out + w * trees for w in weights]
        best = int(np.argmin([(np.abs(y - total) ** self.power).mean() for total in sums]))
        self.weight, self.left_out = float(weights[best]), sums[best]
        self.factor = float(np.quantile(np.abs(y - self.left_out) / self.spread, COVERAGE))
        return self

    def _columns(self, blocks: Mapping[str, Floats]) -> NDArray[np.float32]:
        return np.column_stack([blocks[name] for name in self.blocks]).astype(np.float32)

    def _boost(self, X: NDArray[np.float32], y: Floats) -> Any:
        import lightgbm  # brings scikit-learn and half a second

        return lightgbm.train(BOOSTING | {"seed": self.seed}, lightgbm.Dataset(X, y, free_raw_data=False))

    def predict(self, blocks: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """Predictions ``(n,)`` and standard deviations ``(n,)`` of the process."""
        mean, spread = self.process.predict(self.scaler.transform(blocks), return_std=True)
        trees = np.asarray(self.booster.predict(self._columns(blocks)))
        return (1 - self.weight) * mean + self.weight * trees, spread
