"""Gradient-boosted trees on latents and composition (LatentMatFusion paper, section 5 and Fig 6)."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from ecdlib.base.workers import Bounded
from ecdlib.density.core import Floats

#: What LightGBM takes where nothing was tuned, and what the search does not touch.
FIXED = {
    "objective": "regression",
    "num_threads": 1,
    "deterministic": True,
    "force_col_wise": True,
    "bagging_freq": 1,
    "verbosity": -1,
    "max_bin": 63,  # three times faster than 255, with hundreds of features for a thousand crystals
    "feature_pre_filter": False,
}
DEFAULTS = {
    "learning_rate": 0.06,
    "num_leaves": 15,
    "max_depth": 16,  # deeper than 15 leaves can be
    "min_child_samples": 10,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.8,
    "lambda_l1": 1e-3,
    "lambda_l2": 1.0,
}
ROUNDS, PATIENCE = 1000, 40


class FusionScaler:
    """Standardized latents, reduced to principal components, beside standardized other features.

    Args:
        n_latent: how many of the first columns are latents.
        n_components: principal components kept of them, at most.
    """

    def __init__(self, n_latent: int, n_components: int = 512):
        self.n_latent, self.n_components = n_latent, n_components

    def fit(self, X: Floats) -> Self:
        """Fit on ``(n, features)``."""
        scaler = StandardScaler().fit(X)
        self.mean, self.scale = scaler.mean_, scaler.scale_
        if self.n_latent:
            latents = self._standardized(X)[:, : self.n_latent]
            pca = _principal_components(latents, min(self.n_components, *latents.shape))
            self.components, self.centre = pca.components_, pca.mean_
        return self

    @property
    def state(self) -> dict[str, Floats]:
        """What :meth:`from_state` needs to make it again."""
        found = {"mean": self.mean, "scale": self.scale}
        if self.n_latent:
            found |= {"components": self.components.astype(np.float32), "centre": self.centre}
        return found

    @classmethod
    def from_state(cls, state: dict[str, Floats]) -> Self:
        """A fitted one."""
        made = cls(state["components"].shape[1] if "components" in state else 0)
        for key, value in state.items():
            setattr(made, key, value)
        return made

    def _standardized(self, X: Floats) -> Floats:
        standardized: Floats = (X - self.mean) / self.scale
        return standardized

    def transform(self, X: Floats) -> Floats:
        """``(n, components + other features)``."""
        X = self._standardized(X)
        if not self.n_latent:
            return X
        reduced = (X[:, : self.n_latent] - self.centre) @ self.components.T
        return np.hstack([reduced, X[:, self.n_latent :]])

    def spread(self, X: Floats) -> tuple[Floats, Floats]:
        """Squared distance of the standardized latents of each row from the mean of what was fitted, ``(n,)``.

        Returns:
            The distances, and the part of each that the components hold: their sums are the variance and what is kept
            of it, and of other rows than the fitted ones this is the share that the components predict.
        """
        latents = self._standardized(X)[:, : self.n_latent] - self.centre
        return (latents**2).sum(1), ((latents @ self.components.T) ** 2).sum(1)


_FOUND: dict[tuple[str, int], PCA] = {}  # the last few: models of several labels are fitted on the same rows


def _principal_components(values: Floats, n: int) -> PCA:
    """Fitted to ``(samples, features)``; found once for the same values."""
    key = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(), n
    if key not in _FOUND:
        while len(_FOUND) >= 12:
            _FOUND.pop(next(iter(_FOUND)))
        _FOUND[key] = PCA(n, svd_solver="full").fit(values)
    return _FOUND[key]


class FusionLightGBM(RegressorMixin, BaseEstimator):
    """LightGBM on :class:`FusionScaler`, its hyperparameters found by Bayesian optimization within the training data.

    A fifth of the training data is set aside for the search (Optuna, root mean square error, early stopping); the
    final model is fitted on all training data with the best hyperparameters and number of trees.

    Args:
        n_latent: how many of the first columns of ``X`` are latents.
        n_components: principal components kept of them.
        trials: of the search; 0 takes fixed hyperparameters.
        scaler: already fitted, for the protocol of the paper; by default one is fitted on the training data.
    """

    def __init__(
        self,
        n_latent: int = 0,
        n_components: int = 512,
        trials: int = 20,
        seed: int = 0,
        scaler: FusionScaler | None = None,
    ):
        self.n_latent = n_latent
        self.n_components = n_components
        self.trials = trials
        self.seed = seed
        self.scaler = scaler

    def fit(self, X: Floats, y: Floats) -> Self:
        """Fit on ``X (n, features)`` and ``y (n,)``."""
        import lightgbm

        inner, held = train_test_split(np.arange(len(X)), test_size=0.2, random_state=self.seed)
        scaler = self.scaler or FusionScaler(self.n_latent, self.n_components).fit(X[inner])
        a, b = scaler.transform(X[inner]), scaler.transform(X[held])
        train = lightgbm.Dataset(a, y[inner], params=FIXED, free_raw_data=False)

        def grow(parameters: dict[str, Any]) -> tuple[float, int]:
            """Validation error and number of trees."""
            booster = lightgbm.train(
                FIXED | parameters | {"metric": "rmse", "seed": self.seed},
                train,
                ROUNDS,
                [lightgbm.Dataset(b, y[held], reference=train, free_raw_data=False)],
                callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
            )
            return booster.best_score["valid_0"]["rmse"], booster.best_iteration

        self.parameters_: dict[str, Any]
        self.parameters_, (_, self.rounds_) = self._search(grow) if self.trials else (DEFAULTS, grow(DEFAULTS))
        self.scaler_ = self.scaler or FusionScaler(self.n_latent, self.n_components).fit(X)
        data = lightgbm.Dataset(self.scaler_.transform(X), y, params=FIXED)
        self.booster_ = lightgbm.train(FIXED | self.parameters_ | {"seed": self.seed}, data, self.rounds_)
        return self

    def _search(self, grow: Any) -> tuple[dict[str, Any], tuple[float, int]]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        found: dict[int, tuple[float, int]] = {}

        def objective(trial: Any) -> float:
            found[trial.number] = grow(
                {
                    "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.2, log=True),
                    "num_leaves": trial.suggest_int("num_leaves", 4, 31, log=True),
                    "max_depth": trial.suggest_int("max_depth", 2, 16, log=True),
                    "min_child_samples": trial.suggest_int("min_child_samples", 3, 40, log=True),
                    "feature_fraction": trial.suggest_float("feature_fraction", 0.05, 0.6, log=True),
                    "bagging_fraction": trial.suggest_float("bagging_fraction", 0.5, 1.0),
                    "lambda_l1": trial.suggest_float("lambda_l1", 1e-4, 10, log=True),
                    "lambda_l2": trial.suggest_float("lambda_l2", 1e-4, 100, log=True),
                }
            )
            return found[trial.number][0]

        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self.seed))
        study.enqueue_trial(DEFAULTS)
        study.optimize(objective, n_trials=self.trials)
        return dict(study.best_params), found[study.best_trial.number]

    def predict(self, X: Floats) -> NDArray[np.float64]:
        """``(n,)`` predictions."""
        predicted: NDArray[np.float64] = np.asarray(self.booster_.predict(self.scaler_.transform(X), num_threads=1))
        return predicted


def load_trees(text: str, features: int, trusted: bool) -> Any:
    """The booster that a text of LightGBM holds.

    LightGBM ends its process on some damaged texts, and takes others with which it loops or reads beyond its input. So
    one that is not trusted is loaded and written again in a process of its own, and the trees are checked.

    Args:
        features: that the booster must take.

    Raises:
        ValueError: a text that holds no sound trees for so many features.
    """
    import lightgbm

    attempt = Bounded(60, 2 * 2**30, ["lightgbm", __name__])
    try:
        if not trusted:
            text = attempt(_written_again, text)
            _check_trees(text, features)
        booster = lightgbm.Booster(model_str=text)
    except (ChildProcessError, TimeoutError, lightgbm.basic.LightGBMError) as error:
        raise ValueError("no sound trees") from error
    finally:
        attempt.end()
    if booster.num_feature() != features:
        raise ValueError(f"trees for {booster.num_feature()} features, not {features}")
    return booster


def _written_again(text: str) -> str:
    """The text as LightGBM itself writes it; its messages go nowhere."""
    import lightgbm

    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    return str(lightgbm.Booster(model_str=text).model_to_string())


def _check_trees(text: str, features: int) -> None:
    """Each inner node but the first, and each leaf, has one parent before it; each split is of a number of the input.

    Raises:
        ValueError: other trees.
    """
    for block in text.split("\nTree=")[1:]:
        line = dict(row.partition("=")[::2] for row in block.partition("\n\n")[0].splitlines())
        names = ("left_child", "right_child", "split_feature", "decision_type")
        left, right, feature, kind = ([int(word) for word in line.get(name, "").split()] for name in names)
        inner = int(line["num_leaves"]) - 1
        sound = sorted(left + right) == [*range(-inner - 1, 0), *range(1, inner)] or inner == 0
        sound &= all(child < 0 or child > node for side in (left, right) for node, child in enumerate(side))
        sound &= set(feature) <= set(range(features)) and not any(bits & 1 for bits in kind)  # 1: of a category
        if not sound or line["is_linear"] != "0":
            raise ValueError("no sound trees")
