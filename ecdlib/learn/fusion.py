"""Latents joined with composition: what goes in, how it is evaluated, and the trained models (LatentMatFusion, 5-7)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecdlib.base.archive import write_archive
from ecdlib.base.cached import Arrays, cached
from ecdlib.base.errors import DAMAGED, EcdError
from ecdlib.base.pieces import in_pieces
from ecdlib.base.progress import tqdm
from ecdlib.base.resources import data_folder
from ecdlib.base.settings import Field, Parameters
from ecdlib.data.properties import labelled
from ecdlib.data.tables import load_crystals
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_densities
from ecdlib.density.valence import Valence, target_electrons, to_ours
from ecdlib.features.collection import bundled_features, statistics
from ecdlib.features.common_grid import bundled_names
from ecdlib.features.composition import magpie, magpie_features
from ecdlib.learn.autoencoder import DEFAULT_AUTOENCODER, Autoencoder, bundled_latents, pooled
from ecdlib.learn.conversion_cost import Calibration
from ecdlib.learn.model_file import load_model
from ecdlib.learn.portability import ROUTES, calibrating_compounds, conversion, pair_names
from ecdlib.learn.protocol import Fit, fold_numbers, folds_of, joined, run_fits
from ecdlib.learn.result import TEST, TRAIN, Result, finished, load_result
from ecdlib.models.fusion_lightgbm import FusionLightGBM, FusionScaler, load_trees

#: Kinds of what is written: a result, and what predicts.
KIND, MODEL_KIND = "fusion", "fusion model"
if TYPE_CHECKING:
    Target = str
else:
    Target = Literal[("all", *labelled("fusion"))]


class FusionParameters(Parameters):
    """Latents joined with composition: Table 1, parity, what counts, and what the protocol does."""

    full: ClassVar[dict[str, Any]] = {"model": "lightgbm", "inputs": "latent+magpie", "trials": 50}
    tiny: ClassVar[dict[str, Any]] = {"epochs": 1}

    model: Literal["lightgbm", "attention"] = Field("lightgbm", description="gradient-boosted trees, or the network")
    inputs: Literal[
        "magpie", "latent", "latent+magpie", "pooled", "pooled+magpie", "correlations", "correlations+magpie"
    ] = Field(
        "magpie",
        description="magpie: composition; latent: all values of the autoencoder's latent; pooled: their mean, "
        "deviation and maximum over positions; correlations: 2-point and 1-point statistics of the density",
    )
    autoencoder: str = Field(DEFAULT_AUTOENCODER, description="that makes the latents: a shipped one, or a file")
    crystals: Literal["densities", "all"] = Field(
        "densities", description="the crystals with a density here, or all labelled ones (inputs=magpie)"
    )
    target: Target = Field("bulk_modulus", description="what is learned")
    protocol: Literal["leak-free", "drop-outliers", "fit-on-all", "as-published"] = Field(
        "leak-free",
        description="drop-outliers: of the target, before splitting; fit-on-all: scaling and principal components "
        "fitted on all rows; as-published: both",
    )
    cross_validate: bool = Field(True, description="five-fold cross-validation beside the published split")
    components: int = Field(512, ge=1, description="principal components of the latents, for the trees")
    trials: int = Field(0, ge=0, description="of the search for hyperparameters in each fit; 0: fixed ones")
    scaling: Literal["standard", "unit interval"] = Field(
        "standard",
        description="of the network's targets in training: unit deviation, or the unit interval as published",
    )
    branch_layers: int = Field(1, ge=1, le=3, description="dense layers of the network's composition branch")
    epochs: int = Field(60, ge=1, description="at most, of the network")


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
    latents = bundled_latents(load_model(p.autoencoder, "autoencoder"))
    return pooled(latents) if kind == "pooled" else latents.reshape(len(latents), -1)


def inputs(p: FusionParameters) -> tuple[pd.DataFrame, Floats, int]:
    """Labelled crystals, features ``(n, features)``, and how many of the first features are from the density."""
    crystals = load_crystals()
    if p.crystals == "densities":
        crystals = crystals.loc[bundled_names()]
    elif p.inputs != "magpie":
        remedy = "Use crystals=densities, or inputs=magpie."
        raise EcdError(f"inputs={p.inputs}", "only the bundled crystals have a density", remedy)
    if p.model == "attention" and p.inputs.startswith(("pooled", "correlations")):
        remedy = "Use inputs=latent, latent+magpie or magpie, or model=lightgbm."
        raise EcdError(f"model=attention inputs={p.inputs}", "the network takes whole latents", remedy)
    composition = magpie(crystals) if p.inputs.endswith("magpie") else np.zeros((len(crystals), 0))
    density = density_features(p) if p.crystals == "densities" else np.zeros((len(crystals), 0))
    return crystals, np.hstack([density, composition]), density.shape[1]


def n_reduced(p: FusionParameters, n_density: int) -> int:
    """How many of the first features LightGBM sees as principal components: whole latents and correlations."""
    return n_density if p.model == "lightgbm" and p.inputs.startswith(("latent", "correlations")) else 0


def make_model(
    p: FusionParameters, n_density: int, scaler: FusionScaler | None = None, checkpoint: Path | None = None
) -> Any:
    """Unfitted estimator for features of which the first ``n_density`` are from the density."""
    if p.model == "lightgbm":
        return FusionLightGBM(n_reduced(p, n_density), p.components, p.trials, p.seed, scaler)
    from ecdlib.models.fusion_network import FusionNetwork

    latents: dict[str, Any] = {}
    if n_density:
        trained = load_model(p.autoencoder, "autoencoder").parameters
        latents["channels"], latents["edge"] = trained.channels, trained.latent_edge
        latents["padding"] = "circular" if trained.route == "periodic" else "zeros"
    file = None if checkpoint is None else str(checkpoint)
    return FusionNetwork(
        **latents,
        epochs=p.epochs,
        seed=p.seed,
        device=p.device,
        scaler=scaler,
        checkpoint=file,
        trials=p.trials,
        scaling=p.scaling,
        branch_layers=p.branch_layers,
    )


def run_fusion(p: FusionParameters, out: Path, *, name: str = "ecd train-fusion", progress: bool = True) -> Result:
    """Evaluate a model on the published split and, if asked for, in five-fold cross-validation; resumes between fits.

    ``protocol="leak-free"`` fits everything on training data. ``"drop-outliers"`` removes outliers of the target
    (1.5 interquartile ranges) before the split, ``"fit-on-all"`` fits scaling and principal components on all rows,
    ``"as-published"`` does both.

    Returns:
        ``fitted`` holds predictions for the published test crystals, by models that saw the published training and
        validation crystals; ``crossed`` those of the cross-validation. ``meta["notes"]``: what the search or the
        training of each fit ended with, and the share of the latents' variance that principal components keep.

    Raises:
        EcdError: inputs without a density; see also :func:`ecdlib.base.pieces.in_pieces` and
            :func:`ecdlib.learn.result.finished`.
    """
    if found := finished(out, KIND, p):
        return found
    crystals, X, n_density = inputs(p)
    targets = [p.target] if p.target != "all" else labelled("fusion")
    truth = crystals[targets].to_numpy(dtype=float)
    test, fold = (crystals["original_split"] == "test").to_numpy(), fold_numbers(len(crystals), 5, p.seed)
    fitted, crossed = np.full(truth.shape, np.nan), np.full(truth.shape, np.nan)
    with in_pieces(out, name, p.model_dump()) as pieces:
        for t, target in enumerate(targets):
            known, scaler = _kept(truth[:, t], p), None
            if p.protocol in ("fit-on-all", "as-published"):
                scaler = FusionScaler(n_reduced(p, n_density), p.components).fit(X)
            split = Fit(f"{target}-split", known & ~test, known & test)
            folds = folds_of(fold, f"{target}-fold", known) if p.cross_validate else []

            def fit(f: Fit, t: int = t, scaler: FusionScaler | None = scaler) -> dict[str, Any]:
                model = make_model(p, n_density, scaler, pieces.checkpoint(f.name)).fit(X[f.train], truth[f.train, t])
                predicted = np.full(len(X), np.nan)
                predicted[f.test] = model.predict(X[f.test])
                return {"predicted": predicted, "note": np.array(json.dumps(_note(model, X[f.train], X[f.test])))}

            run_fits(pieces, [split, *folds], fit, progress)
            fitted[:, t], crossed[:, t] = joined(pieces, [split]), joined(pieces, folds)
        Result(
            names=np.array(list(crystals.index)),
            truth=truth,
            role=np.where(test, TEST, TRAIN).astype(np.int8)[None],
            fitted=fitted[None],
            crossed=crossed,
            fold=fold,
            meta={
                "kind": KIND,
                "targets": targets,
                "parameters": p.model_dump(),
                "notes": {name: json.loads(str(pieces.load(name)["note"])) for name in pieces.names},
                "provenance": pieces.provenance(),
            },
        ).write(out)
    return load_result(out, KIND)


def _kept(values: Floats, p: FusionParameters) -> NDArray[np.bool_]:
    """Crystals with a label that the protocol does not drop."""
    known = np.isfinite(values)
    if p.protocol in ("drop-outliers", "as-published"):
        low, high = np.nanpercentile(values, [25, 75])
        known &= np.abs(values - (low + high) / 2) <= 2 * (high - low)
    return known


def _note(model: Any, train: Floats, test: Floats) -> dict[str, Any]:
    """What the search or the training of one fit ended with, and what principal components keep of the variance."""
    ended = {"epochs": len(model.regressor_.losses_)} if hasattr(model, "regressor_") else {"rounds": model.rounds_}
    found = dict(model.parameters_)
    if isinstance(model, FusionLightGBM) and model.n_latent:
        for part, rows in (("train", train), ("test", test)):
            spread, held = model.scaler_.spread(rows)
            found[f"kept_{part}"] = held.sum() / spread.sum()
    return ended | {k: round(float(v), 5) for k, v in found.items()}


def train_final(
    p: FusionParameters, evaluated: Result, out: Path, *, name: str = "ecd train-fusion", progress: bool = True
) -> FusionModel:
    """Train on all crystals and write what predicts; resumes between properties.

    With it go the out-of-fold predictions that tell its uncertainty, and its predictions from both densities of each
    pair, which tell what the conversion of a density costs.

    Args:
        p: the parameters of ``evaluated``.
        evaluated: its five-fold cross-validation.
        out: file to write (``.npz``).
    """
    if out.is_file():
        found: FusionModel = load_model(out, MODEL_KIND)
        p.confirm(found.meta["parameters"], out)
        return found
    crystals, X, n_density = inputs(p)
    scaler = FusionScaler(n_reduced(p, n_density), p.components).fit(X)

    def fitted(t: int, target: str, checkpoint: Path) -> dict[str, Any]:
        y = crystals[target].to_numpy(dtype=float)
        known = np.isfinite(y)
        model = make_model(p, n_density, scaler, checkpoint).fit(X[known], y[known])
        if p.model == "lightgbm":
            arrays = {"trees": np.frombuffer(model.booster_.model_to_string().encode(), dtype=np.uint8)}
        else:
            regressor = model.regressor_
            arrays = {k: v.cpu().numpy() for k, v in regressor.module_.state_dict().items()}
            arrays["target"] = np.array([regressor.mean_[0], regressor.scale_[0]])
            arrays["setting"] = np.array(json.dumps(model.parameters_))
        return arrays | {"out-of-fold": np.stack([evaluated.truth[:, t], evaluated.crossed[:, t]], 1)[known]}

    with in_pieces(out, name, p.model_dump()) as pieces:
        state: dict[str, Any] = {}
        for t, target in enumerate(evaluated.targets):
            arrays = pieces.made(target, fitted, t, target, pieces.checkpoint(target))
            state |= {f"{target}/{k}": v for k, v in arrays.items()}
        state |= {f"scaler/{k}": v for k, v in scaler.state.items()}
        used = autoencoder_used(p)
        meta = {
            "kind": MODEL_KIND,
            "targets": evaluated.targets,
            "parameters": p.model_dump(),
            "density_features": n_density,
            "features": X.shape[1],
            "autoencoder": None if used is None else used.digest,
            "provenance": pieces.provenance(),
        }
        state["names"] = np.array(list(crystals.index))
        moved = FusionModel(state, meta, str(out)).of_pairs(pair_features(p, progress))
        write_archive(out, state | {f"pairs/{route}": values for route, values in moved.items()}, meta)
    written: FusionModel = load_model(out, MODEL_KIND)
    return written


def autoencoder_used(p: FusionParameters) -> Autoencoder | None:
    """The autoencoder that makes the latents; None for inputs without latents."""
    return load_model(p.autoencoder, "autoencoder") if p.inputs.startswith(("latent", "pooled")) else None


def features_of(density: ChargeDensity, inputs: str, autoencoder: Autoencoder | None) -> Floats:
    """``(features,)`` of one density (see :class:`FusionParameters`)."""
    kind, parts = inputs.removesuffix("+magpie"), []
    if autoencoder is not None:
        latent = autoencoder.latent(density)[None]
        parts.append((pooled(latent) if kind == "pooled" else latent).ravel())
    if kind == "correlations":
        parts += statistics(density).values()
    if inputs.endswith("magpie"):
        parts.append(magpie_features([density.formula])[0])
    return np.hstack(parts)


def pair_features(p: FusionParameters, progress: bool = True) -> dict[str, Floats]:
    """Features of the pairs, ``(pairs, features)``: ``"own"`` of the standard density, and those of the other one by
    route (:data:`ecdlib.learn.portability.ROUTES`, without smoothing); NaN where a route is not for a pair.

    Computed once and cached, in minutes.
    """
    used = autoencoder_used(p)

    def make() -> Arrays:
        own, other = load_densities("cubic"), load_densities("pairs")
        rows: dict[str, list[Floats]] = {route: [] for route in ("own", *ROUTES)}
        for name in tqdm(other.names, desc="Pairs", unit="pair", disable=not progress):
            as_own = Valence({e: target_electrons(e, "gpaw") for e in own[name].species}, True, "")
            found = {"own": to_ours(own[name]), "as computed": to_ours(other[name], as_own)}
            for route in ROUTES[1:]:
                if name in pair_names(route):
                    found[route] = to_ours(other[name], *conversion(other[name], route))
            for key, values in rows.items():
                values.append(features_of(found[key], p.inputs, used) if key in found else values[0] * np.nan)
        return {key: np.stack(values) for key, values in rows.items()}

    return cached("fusion-pairs", make, p.inputs, used and used.digest)


@dataclass(frozen=True)
class FusionModel:
    """A trained model for several properties: what :func:`train_final` wrote."""

    arrays: Mapping[str, Any]
    meta: dict[str, Any]
    source: str = ""
    portable: ClassVar[bool] = True  #: takes densities of any valence convention

    @classmethod
    def from_file(cls, arrays: Mapping[str, Any], meta: dict[str, Any], source: str) -> Self:
        """From what a file holds.

        Raises:
            KeyError: a damaged file.
        """
        arrays["names"], arrays["scaler/mean"], meta["parameters"], meta["targets"], meta["autoencoder"]
        return cls(arrays, meta, source)

    @cached_property
    def trained_on(self) -> tuple[str, ...]:
        """Names of its training crystals."""
        return tuple(self.arrays["names"].tolist())

    @property
    def features_key(self) -> str:
        """Models of one key share their features."""
        return self.source

    @property
    def targets(self) -> list[str]:
        """Properties that it predicts."""
        return list(self.meta["targets"])

    @cached_property
    def parameters(self) -> FusionParameters:
        """What it was trained with."""
        return FusionParameters(**self.meta["parameters"])

    @cached_property
    def scaler(self) -> FusionScaler:
        """The fitted scaling."""
        return FusionScaler.from_state(self._part("scaler"))

    @cached_property
    def autoencoder(self) -> Autoencoder | None:
        """Where its latents come from.

        Raises:
            EcdError: another autoencoder of the same name.
        """
        used = autoencoder_used(self.parameters)
        if used is not None and used.digest != self.meta["autoencoder"]:
            problem = f"was trained with another autoencoder named {self.parameters.autoencoder}"
            raise EcdError(self.source, problem, "Train it again with `ecd train-fusion --final`.")
        return used

    @cached_property
    def models(self) -> dict[str, Any]:
        """The fitted booster or network of each property.

        Raises:
            EcdError: a damaged file.
        """
        try:
            return {target: self._model(target) for target in self.targets}
        except DAMAGED as error:
            remedy = "Train it again with `ecd train-fusion --final`."
            raise EcdError(self.source, "is not a readable model", remedy) from error

    def _part(self, prefix: str) -> dict[str, Any]:
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.arrays.items() if k.startswith(f"{prefix}/")}

    def _model(self, target: str) -> Any:
        part = self._part(target)
        if "trees" in part:
            trusted = Path(self.source).is_relative_to(data_folder())
            features = self.scaler.transform(self.scaler.mean[None]).shape[1]
            return load_trees(part["trees"].tobytes().decode(), features, trusted)
        import torch

        setting = {"setting": json.loads(str(part["setting"]))} if "setting" in part else {}
        network = make_model(self.parameters, self.meta["density_features"]).network(self.meta["features"], **setting)
        weights = {k: torch.from_numpy(v) for k, v in part.items() if k not in ("target", "out-of-fold", "setting")}
        network.load_state_dict(weights)
        return network.eval()

    def features(
        self,
        density: ChargeDensity,
        valence: Valence | None = None,
        calibration: Calibration | None = None,
    ) -> Floats:
        """``(1, features)`` of one density; one of another valence is converted first, without smoothing.

        Args:
            valence, calibration: see :func:`ecdlib.density.valence.to_convention`.

        Raises:
            EcdError: a valence that is not known.
        """
        converted = to_ours(density, valence, calibration)
        return features_of(converted, self.parameters.inputs, self.autoencoder)[None]

    def values(self, features: Floats, target: str) -> Floats:
        """``(n,)`` predictions for ``(n, features)``."""
        model = self.models[target]
        if f"{target}/trees" in self.arrays:
            values: Floats = model.predict(self.scaler.transform(features), num_threads=1)
            return values
        import torch

        from ecdlib.models.fusion_network import FusionNetwork

        mean, scale = self.arrays[f"{target}/target"]
        with torch.no_grad():
            X = torch.from_numpy(FusionNetwork.scaled(self.scaler, features).astype(np.float32))
            return model(X)[:, 0].numpy().astype(float) * scale + mean

    def predict(self, features: Floats, target: str) -> tuple[float, float]:
        """Value and standard deviation: root mean square of the out-of-fold errors where predictions were similar."""
        value = float(self.values(features, target)[0])
        truth, predicted = self.arrays[f"{target}/out-of-fold"].T
        similar = np.argsort(np.abs(predicted - value))[:100]
        return value, float(np.sqrt(((predicted - truth)[similar] ** 2).mean()))

    def of_pairs(self, features: Mapping[str, Floats]) -> dict[str, Floats]:
        """Predictions ``(pairs, properties)`` for what :func:`pair_features` gives."""
        found = {}
        for route, X in features.items():
            known = np.isfinite(X).all(1)
            found[route] = np.full((len(X), len(self.targets)), np.nan)
            found[route][known] = np.stack([self.values(X[known], t) for t in self.targets], 1)
        return found

    def pairs(self, target: str) -> pd.DataFrame:
        """Its predictions for the pairs: one row each, columns ``own`` (from the standard density) and one per route.

        Raises:
            EcdError: no such predictions are stored.
        """
        stored, t = self._part("pairs"), self.targets.index(target)
        if not stored:
            what = "holds no predictions for the pairs, so what a conversion costs is not known"
            raise EcdError(self.source, what, "Train it with `ecd train-fusion --final`.")
        return pd.DataFrame({r: values[:, t] for r, values in stored.items()}, index=load_densities("pairs").names)

    def movement(self, target: str, relative: bool = False) -> pd.DataFrame:
        """How far a change of the valence convention moves predictions: one row for each pair, one column a route.

        Compounds that a calibration is fitted to have none in the column ``"calibrated"``.

        Args:
            relative: to the prediction from the standard density.

        Raises:
            EcdError: see :meth:`pairs`.
        """
        table = self.pairs(target)
        moved = table[list(ROUTES)].sub(table["own"], axis=0)
        moved.loc[calibrating_compounds(), "calibrated"] = np.nan
        return moved.div(table["own"], axis=0) if relative else moved
