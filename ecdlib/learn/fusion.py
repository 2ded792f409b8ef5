"""Latents joined with composition: what goes in, how it is evaluated, and the trained models (LatentMatFusion, 5-7)."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from ecdlib.base.errors import DAMAGED, EcdError, atomic_write
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import bundled_in, data_file, load_manifest
from ecdlib.book.parameters import FusionParameters
from ecdlib.data.properties import UNITS, labelled
from ecdlib.data.tables import load_crystals
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.valence import Valence, to_ours
from ecdlib.features.collection import bundled_features, statistics
from ecdlib.features.composition import magpie, magpie_features
from ecdlib.learn.conversion_cost import Calibration
from ecdlib.learn.evaluation import deal, scores
from ecdlib.learn.experiments import read_partial, save_partial
from ecdlib.learn.latents import POOLINGS, Autoencoder, bundled_grids, bundled_names, load_autoencoder, pooled
from ecdlib.learn.portability import ROUTES, calibrating_compounds, load_fusion_movement
from ecdlib.models.attention_cnn import AttentionCNN
from ecdlib.models.fusion_lightgbm import FusionLightGBM, FusionScaler
from ecdlib.models.torch_regressor import TorchRegressor, TrainingSettings

#: Properties that the crystals are labelled with, and their units.
PROPERTIES = {t: UNITS[t] for t in labelled("fusion")}


def density_features(p: FusionParameters) -> Floats:
    """What the model takes from the bundled densities, ``(988, features)``; none for ``inputs="magpie"``.

    Raises:
        EcdError: no such autoencoder.
    """
    kind = p.inputs.removesuffix("+magpie")
    if kind == "correlations":
        return np.hstack(list(bundled_features()[0].values()))
    if kind == "magpie":
        return np.zeros((len(bundled_names()), 0))
    trained = load_autoencoder(p.autoencoder)
    latents = trained.encode(bundled_grids(trained.parameters.edge, trained.parameters.route))
    return pooled(latents) if kind == "pooled" else latents.reshape(len(latents), -1)


def inputs(p: FusionParameters) -> tuple[pd.DataFrame, Floats, int]:
    """Labelled crystals, features ``(n, features)``, and how many of the first features are from the density."""
    crystals = load_crystals()
    if p.crystals == "densities":
        crystals = crystals.loc[bundled_names()]
    elif p.inputs != "magpie":
        remedy = "Take crystals=densities, or inputs=magpie."
        raise EcdError(f"inputs={p.inputs}", "only the bundled crystals have a density", remedy)
    if p.model == "attention" and p.inputs.startswith(("pooled", "correlations")):
        remedy = "Take inputs=latent, latent+magpie or magpie, or model=lightgbm."
        raise EcdError(f"model=attention inputs={p.inputs}", "the network takes whole latents", remedy)
    composition = magpie(crystals) if p.inputs.endswith("magpie") else np.zeros((len(crystals), 0))
    density = density_features(p) if p.crystals == "densities" else np.zeros((len(crystals), 0))
    return crystals, np.hstack([density, composition]), density.shape[1]


class FusionNetwork:
    """Attention network on standardized features (see :class:`ecdlib.models.attention_cnn.AttentionCNN`).

    Standardized features are cut off at ``LIMIT``: one that hardly varies among the training crystals is huge for a
    crystal where it differs, and a network, unlike trees, goes wherever it is led.
    """

    LIMIT = 5.0

    def __init__(self, p: FusionParameters, n_density: int, scaler: FusionScaler | None = None):
        self.p, self.n_density, self.scaler = p, n_density, scaler

    def fit(self, X: Floats, y: Floats) -> FusionNetwork:
        """Fit on ``X (n, features)`` and ``y (n,)``; early stopping on a part of them that is set aside."""
        self.scaler_ = self.scaler or FusionScaler(0).fit(X)
        settings = TrainingSettings(
            epochs=self.p.epochs,
            batch_size=32,
            learning_rate=2e-3,
            first_cycle=self.p.epochs,
            cycle_growth=1,
            held_out=0.15,
            patience=30,
            seed=self.p.seed,
        )
        self.regressor_ = TorchRegressor(lambda: self.network(X.shape[1]), settings, self.p.device, progress=False)
        self.regressor_.fit(self.scaled(self.scaler_, X), y)
        return self

    @classmethod
    def scaled(cls, scaler: FusionScaler, X: Floats) -> Floats:
        """Standardized features, cut off."""
        return np.clip(scaler.transform(X), -cls.LIMIT, cls.LIMIT)

    def network(self, n_features: int) -> AttentionCNN:
        """Untrained network for that many features."""
        if not self.n_density:
            return AttentionCNN(0, 1, n_features)
        trained = load_autoencoder(self.p.autoencoder).parameters
        edge = trained.edge // 2 ** POOLINGS[trained.channels]
        padding: Any = "circular" if trained.route == "periodic" else "zeros"
        return AttentionCNN(trained.channels, edge, n_features - self.n_density, padding=padding)

    def predict(self, X: Floats) -> Floats:
        """``(n,)`` predictions."""
        predicted: Floats = self.regressor_.predict(self.scaled(self.scaler_, X))
        return predicted


def n_reduced(p: FusionParameters, n_density: int) -> int:
    """How many of the first features LightGBM sees as principal components: whole latents and correlations."""
    return n_density if p.model == "lightgbm" and p.inputs.startswith(("latent", "correlations")) else 0


def make_model(p: FusionParameters, n_density: int, scaler: FusionScaler | None = None) -> Any:
    """Unfitted estimator."""
    if p.model == "attention":
        return FusionNetwork(p, n_density, scaler)
    return FusionLightGBM(n_reduced(p, n_density), p.components, p.trials, p.seed, scaler)


@dataclass(frozen=True)
class FusionResult:
    """All predictions of one model with one kind of inputs; NaN where there is none. Columns: the targets."""

    names: Any  #: crystals
    truth: Floats  #: ``(n, targets)``
    tested: Floats  #: predictions for the published test crystals, by models that saw the published train and val
    crossed: Floats  #: out-of-fold predictions of five-fold cross-validation
    fold: Any  #: fold of each crystal
    meta: dict[str, Any]  #: parameters, targets, seconds, notes of each fit, provenance

    def scores(self, target: str, which: str = "crossed") -> dict[str, float]:
        """``n``, ``R2``, ``MAE``, ``RMSE``, ``MAPE`` (percent, of crystals whose value is not within 1 % of zero)."""
        t = self.meta["targets"].index(target)
        truth, predicted = self.truth[:, t], getattr(self, which)[:, t]
        known = np.isfinite(truth) & np.isfinite(predicted)
        truth, predicted = truth[known], predicted[known]
        away = np.abs(truth) > 0.01 * np.abs(truth).max()
        mape = float(np.abs((predicted - truth) / np.where(away, truth, 1))[away].mean() * 100)
        return {"n": int(known.sum())} | scores(truth, predicted) | {"MAPE": mape}


def run_fusion(
    p: FusionParameters, out: Path, *, name: str = "ecd train-fusion", progress: bool = True
) -> FusionResult:
    """Evaluate a model on the published split and, if asked for, in five-fold cross-validation; write all predictions.

    ``protocol="leak-free"`` fits everything on training data. ``"drop-outliers"`` removes outliers of the target
    (1.5 interquartile ranges) before the split, ``"fit-on-all"`` fits scaling and principal components on all rows,
    ``"as-published"`` does both. After an interruption, the same call goes on where it stopped.

    Raises:
        EcdError: inputs without a density, a file of other parameters in the way.
    """
    if out.is_file():
        if (finished := load_fusion(out)).meta["parameters"] != p.model_dump():
            raise EcdError(out, "holds a result of other parameters", "Remove it, or choose another name with -o.")
        return finished
    crystals, X, n_density = inputs(p)
    targets = [p.target] if p.target != "all" else list(PROPERTIES)
    truth = crystals[targets].to_numpy(dtype=float)
    test = (crystals["original_split"] == "test").to_numpy()
    fold = deal(len(crystals), 5, p.seed)
    partial = out.with_suffix(".partial.npz")
    label = json.dumps([p.model_dump()])
    done: dict[str, Any] = {"label": label, "made_by": json.dumps(provenance(name, p.model_dump(), 0))}
    if partial.is_file():
        found = read_partial(partial)
        if str(found["label"]) != label:
            raise EcdError(partial, "holds an interrupted run of other parameters or data", "Remove it and run again.")
        done = found
    parts = [("split", test)] + ([(f"fold-{k}", fold == k) for k in range(5)] if p.cross_validate else [])
    for t, target in enumerate(targets):
        known = np.isfinite(truth[:, t])
        if p.protocol in ("drop-outliers", "as-published"):
            low, high = np.nanpercentile(truth[:, t], [25, 75])
            known &= np.abs(truth[:, t] - (low + high) / 2) <= 2 * (high - low)
        scaler = None
        if p.protocol in ("fit-on-all", "as-published"):
            scaler = FusionScaler(n_reduced(p, n_density), p.components).fit(X)
        for part, held in parts:
            key = f"{target}/{part}"
            if key in done:
                continue
            begun = time.perf_counter()
            model = make_model(p, n_density, scaler).fit(X[known & ~held], truth[known & ~held, t])
            predicted = np.full(len(X), np.nan)
            predicted[known & held] = model.predict(X[known & held])
            done[key], done[f"{key}/seconds"] = predicted, time.perf_counter() - begun
            done[f"{key}/note"] = json.dumps(_note(model))
            save_partial(partial, done)
            if progress:
                s = scores(truth[known & held, t], predicted[known & held])
                seconds = done[f"{key}/seconds"]
                print(f"{key}: R2 {s['R2']:.3f}, MAE {s['MAE']:.3g}, {seconds:.0f} s", flush=True)
    made_by = json.loads(str(done["made_by"]))
    made_by["seconds"] = round(sum(float(v) for k, v in done.items() if k.endswith("/seconds")), 1)
    notes = {k.removesuffix("/note"): json.loads(str(v)) for k, v in done.items() if k.endswith("/note")}
    meta = {"parameters": p.model_dump(), "targets": targets, "notes": notes, "provenance": made_by}
    tested = np.stack([done[f"{t}/split"] for t in targets], 1)
    crossed = np.full(truth.shape, np.nan)
    for t, target in enumerate(targets):
        for part, held in parts[1:]:
            crossed[held, t] = done[f"{target}/{part}"][held]
    with atomic_write(out) as temporary:
        np.savez_compressed(
            temporary,
            names=np.array(list(crystals.index)),
            truth=truth,
            tested=tested.astype(np.float32),
            crossed=crossed.astype(np.float32),
            fold=fold,
            meta=np.array(json.dumps(meta)),
        )
    partial.unlink()
    return load_fusion(out)


def _note(model: Any) -> dict[str, Any]:
    """What the search or the training of one fit ended with."""
    if isinstance(model, FusionNetwork):
        return {"epochs": len(model.regressor_.losses_)}
    return {"rounds": model.rounds_, **{k: round(float(v), 5) for k, v in model.parameters_.items()}}


def load_fusion(path: str | os.PathLike[str]) -> FusionResult:
    """Read what :func:`run_fusion` wrote.

    Raises:
        EcdError: missing or damaged file.
    """
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            arrays = {key: z[key] for key in ("names", "truth", "tested", "crossed", "fold")}
            return FusionResult(**arrays, meta=json.loads(str(z["meta"])))
    except DAMAGED as error:
        raise EcdError(path, "is no readable result", "Make it with `ecd train-fusion`.") from error


def shipped_fusion() -> dict[str, FusionResult]:
    """Results that ship with the project, by the name of their file."""
    return {name: load_fusion(data_file(f"fusion/{name}.npz")) for name in bundled_in("fusion")}


def train_final(p: FusionParameters, evaluated: FusionResult, out: Path, name: str = "ecd train-fusion") -> None:
    """Train on all crystals and write what predicts, with the out-of-fold predictions that tell its uncertainty.

    Args:
        p: the parameters of ``evaluated``.
        evaluated: its five-fold cross-validation.
        out: file to write (``.npz``).
    """
    begun = time.perf_counter()
    made_by = provenance(name, p.model_dump(), 0)
    crystals, X, n_density = inputs(p)
    scaler = FusionScaler(n_reduced(p, n_density), p.components).fit(X)
    arrays: dict[str, Any] = {f"scaler/{k}": v for k, v in scaler.state.items()}
    for target in evaluated.meta["targets"]:
        y = crystals[target].to_numpy(dtype=float)
        known = np.isfinite(y)
        model = make_model(p, n_density, scaler).fit(X[known], y[known])
        if p.model == "lightgbm":
            arrays[f"{target}/trees"] = np.frombuffer(model.booster_.model_to_string().encode(), dtype=np.uint8)
        else:
            regressor = model.regressor_
            arrays |= {f"{target}/{k}": v.cpu().numpy() for k, v in regressor.module_.state_dict().items()}
            arrays[f"{target}/target"] = np.array([regressor.mean_[0], regressor.scale_[0]])
        t = evaluated.meta["targets"].index(target)
        arrays[f"{target}/out-of-fold"] = np.stack([evaluated.truth[:, t], evaluated.crossed[:, t]], 1)[known]
    made_by["seconds"] = round(time.perf_counter() - begun, 1)
    meta = {"parameters": p.model_dump(), "targets": evaluated.meta["targets"], "provenance": made_by}
    meta |= {"density_features": n_density, "features": X.shape[1]}
    with atomic_write(out) as temporary:
        np.savez_compressed(temporary, **arrays, names=np.array(list(crystals.index)), meta=np.array(json.dumps(meta)))


@dataclass(frozen=True)
class FusionModel:
    """A trained model for several properties: what :func:`train_final` wrote."""

    arrays: dict[str, Any]
    names: Any  #: crystals it was trained on
    meta: dict[str, Any]
    source: str

    portable: ClassVar[bool] = True  #: it takes densities of any valence convention

    @classmethod
    def from_file(cls, arrays: dict[str, Any], meta: dict[str, Any], source: str) -> FusionModel:
        """From what the file holds."""
        return cls({k: v for k, v in arrays.items() if "/" in k}, arrays["names"], meta, source)

    @property
    def targets(self) -> list[str]:
        """What it predicts."""
        return list(self.meta["targets"])

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of its training crystals."""
        return tuple(self.names)

    @property
    def features_key(self) -> str:
        """Models of one key share their features."""
        return self.source

    def movement(self, target: str, relative: bool = False) -> pd.DataFrame:
        """See :func:`ecdlib.learn.conversion_cost.movement`."""
        table = load_fusion_movement()
        mine = table["model"] == f"fusion-{self.meta['parameters']['model']}"
        table = table[mine & (table["property"] == target)].set_index("pair")
        moved = table[list(ROUTES)].sub(table["own"], axis=0)
        moved.loc[calibrating_compounds(), "calibrated"] = np.nan
        return moved.div(table["own"], axis=0) if relative else moved

    @cached_property
    def parameters(self) -> FusionParameters:
        """What it was trained with."""
        return FusionParameters(**self.meta["parameters"])

    @cached_property
    def scaler(self) -> FusionScaler:
        """The fitted scaling."""
        return FusionScaler.from_state(self._part("scaler"))

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """Where its latents come from."""
        return load_autoencoder(self.parameters.autoencoder)

    @cached_property
    def models(self) -> dict[str, Any]:
        """The fitted model of each property."""
        return {target: self._model(target) for target in self.meta["targets"]}

    def _part(self, prefix: str) -> dict[str, Any]:
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.arrays.items() if k.startswith(f"{prefix}/")}

    def _model(self, target: str) -> Any:
        part = self._part(target)
        if "trees" in part:
            import lightgbm

            return lightgbm.Booster(model_str=part["trees"].tobytes().decode())
        import torch

        network = FusionNetwork(self.parameters, self.meta["density_features"]).network(self.meta["features"])
        weights = {k: torch.from_numpy(v) for k, v in part.items() if k not in ("target", "out-of-fold")}
        network.load_state_dict(weights)
        return network.eval()

    def features(
        self, density: ChargeDensity, valence: Valence | None = None, calibration: Calibration | None = None
    ) -> Floats:
        """``(1, features)`` of one density; one of another valence is converted first, without smoothing.

        Args:
            valence, calibration: see :func:`ecdlib.density.valence.to_ours`.

        Raises:
            EcdError: a valence that is not known.
        """
        density = to_ours(density, valence, calibration)
        kind = self.parameters.inputs.removesuffix("+magpie")
        parts = []
        if kind in ("latent", "pooled"):
            latent = self.autoencoder.latent(density)[None]
            parts.append(pooled(latent) if kind == "pooled" else latent.reshape(1, -1))
        if kind == "correlations":
            parts.append(np.hstack(list(statistics(density).values()))[None])
        if self.parameters.inputs.endswith("magpie"):
            parts.append(magpie_features([density.formula]))
        return np.hstack(parts)

    def predict(self, features: Floats, target: str) -> tuple[float, float]:
        """Value and standard deviation: root mean square of the out-of-fold errors where predictions were similar."""
        model = self.models[target]
        if f"{target}/trees" in self.arrays:
            value = float(model.predict(self.scaler.transform(features), num_threads=1)[0])
        else:
            import torch

            X = FusionNetwork.scaled(self.scaler, features)
            mean, scale = self.arrays[f"{target}/target"]
            with torch.no_grad():
                value = float(model(torch.from_numpy(X.astype(np.float32)))[0, 0]) * scale + mean
        truth, predicted = self.arrays[f"{target}/out-of-fold"].T
        similar = np.argsort(np.abs(predicted - value))[:100]
        return float(value), float(np.sqrt(((predicted - truth)[similar] ** 2).mean()))


def load_fusion_model(name: str | Path) -> FusionModel:
    """A trained model: the name of a shipped one (``"fusion-lightgbm"``), or a file of ``ecd train-fusion --final``.

    Raises:
        EcdError: no such model, damaged file, or a model made with another autoencoder of the same name.
    """
    path = name if isinstance(name, Path) else data_file(f"models/{name}.npz")
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            arrays = {k: z[k] for k in z.files if "/" in k}
            model = FusionModel(arrays, z["names"], json.loads(str(z["meta"])), str(path))
    except DAMAGED as error:
        raise EcdError(path, "is no readable model", "Make it with `ecd train-fusion --final`.") from error
    used = f"autoencoders/{model.parameters.autoencoder}.npz"
    then, now = model.meta["provenance"]["data"].get(used), load_manifest().get(used, {}).get("sha256", "")[:12]
    if model.parameters.inputs.startswith(("latent", "pooled")) and then is not None and then != now:
        raise EcdError(path, f"was trained with another {used}", "Train it again with `ecd train-fusion --final`.")
    return model
