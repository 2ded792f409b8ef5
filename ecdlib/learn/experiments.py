"""Experiments: train a model by the papers' protocols and keep every prediction, with splits and provenance."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecdlib.base.errors import DAMAGED, EcdError, atomic_write
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import bundled_in, data_file
from ecdlib.book.parameters import TrainingParameters, resolve
from ecdlib.data.tables import load_cubic_targets
from ecdlib.density.cell import resample, to_conventional
from ecdlib.density.core import Floats
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_densities
from ecdlib.features.collection import QUANTILE_NAMES, FeatureSettings, bundled_features
from ecdlib.learn.evaluation import deal
from ecdlib.learn.portability import ROUTES, Route, calibrating_compounds, pair_names, pair_statistics
from ecdlib.models import MODELS

UNITS = {"bulk_modulus": "GPa", "total_energy": "eV/atom"}


@dataclass(frozen=True)
class Experiment:
    """All predictions of one experiment; arrays are ``(crystals, targets)``, NaN where there is no prediction."""

    names: NDArray[np.str_]  #: crystals
    fold: NDArray[np.int8]  #: tenth that each crystal belongs to; the first (0) is the test set
    truth: Floats
    fitted: Floats  #: by the model trained on all but the test set: train and test predictions
    validated: Floats  #: 9-fold cross-validation within the nine tenths: each by the model that has not seen its tenth
    crossed: Floats  #: 10-fold cross-validation over all crystals
    losses: Floats  #: training loss of each epoch of the model trained on nine tenths; empty for other models
    meta: dict[str, Any]  #: parameters, targets, seconds, provenance
    #: by route (:data:`portability.ROUTES`), predictions from the pairs' other densities, by models that have
    #: not seen the crystal where there is a 10-fold cross-validation; ``(pairs, targets)``
    pairs: dict[Route, Floats] = field(default_factory=dict)

    @property
    def test(self) -> NDArray[np.bool_]:
        """Mask of the test set."""
        return self.fold == 0

    def errors(self, target: str) -> dict[str, float]:
        """Mean absolute errors as in Table 2 (``CV``, ``train``, ``test``), test RMSE and NMAE, ``10-fold`` MAE."""
        t = self.meta["targets"].index(target)
        truth, error = self.truth[:, t], np.abs(self.fitted - self.truth)[:, t]
        return {
            "CV": float(np.nanmean(np.abs(self.validated - self.truth)[:, t])) if self.has_cv else np.nan,
            "train": float(error[~self.test].mean()),
            "test": float(error[self.test].mean()),
            "test RMSE": float(np.sqrt((error[self.test] ** 2).mean())),
            "test NMAE": float(error[self.test].mean() / abs(truth[self.test].mean()) * 100),
            "10-fold": float(np.abs(self.crossed - self.truth)[:, t].mean()),
        }

    @property
    def predicted(self) -> Floats:
        """Each crystal by a model that has not seen it, where there is a 10-fold cross-validation; else ``fitted``."""
        return self.fitted if np.isnan(self.crossed).all() else self.crossed

    def movement(self, target: str, relative: bool = False) -> pd.DataFrame:
        """How far a change of the valence convention moves predictions: one row for each pair, one column a route.

        Compounds that a calibration is fitted to have none in the column ``"calibrated"``.

        Args:
            relative: to the prediction from the standard density.
        """
        t = self.meta["targets"].index(target)
        own = pd.Series(self.predicted[:, t], index=self.names)
        moved = {r: pd.Series(values[:, t], index=pair_names(r)) for r, values in self.pairs.items()}
        table = pd.DataFrame({r: values - own.reindex(values.index) for r, values in moved.items()})
        if "calibrated" in table:
            table.loc[calibrating_compounds(), "calibrated"] = np.nan
        return table.div(own.reindex(table.index), axis=0) if relative else table

    @property
    def has_cv(self) -> bool:
        """Whether the 9-fold cross-validation was made."""
        return bool(np.isfinite(self.validated).any())


def slug(p: TrainingParameters) -> str:
    """Name of an experiment's file: model, target, seed, and epochs for networks."""
    trained = f"--{p.epochs}" if hasattr(build(p), "settings") else ""
    kind = "-portable" * (p.convention == "portable") + "-augmented" * p.augment
    return f"{p.model}{kind}--{p.target}{trained}--seed{p.seed}"


def settings(p: TrainingParameters) -> list[FeatureSettings]:
    """Features of each channel."""
    conventions: tuple[Any, ...] = ("gpaw", "chemical") if p.convention == "portable" else ("computed",)
    return [FeatureSettings(size=p.size, voxel=p.voxel, convention=c) for c in conventions]


def arrange(model: str, channels: list[Floats]) -> Floats:
    """What a model takes, from the ``(n, k + 12)`` statistics of each channel."""
    if MODELS[model].inputs == "statistics":
        return np.hstack(channels)
    correlations = [c[:, : -len(QUANTILE_NAMES)] for c in channels]
    return np.stack(correlations, axis=1) if len(channels) > 1 else correlations[0]


def inputs(p: TrainingParameters, names: list[str]) -> Any:
    """What the model takes, for crystals of the cubic store: ``(n, ...)``.

    Features of all bundled crystals are computed once and cached, unless ``p.crystals`` says that few are wanted.
    """
    kind = MODELS[p.model].inputs
    if kind in ("correlations", "statistics"):
        channels = []
        for s in settings(p):
            features, report = bundled_features(s, names if p.crystals else None)
            rows = report.index.get_indexer(pd.Index(names))
            channels.append(np.hstack([features[rows], report[list(QUANTILE_NAMES)].to_numpy()[rows]]))
        return arrange(p.model, channels)
    store = load_densities("cubic")
    if kind == "composition":
        return store.table.loc[names, "formula"].to_numpy()
    grids = []
    for name in names:
        cell = redistribute_negative_charge(to_conventional(store[name])).density
        grids.append(resample(cell.values, (p.grid,) * 3).astype(np.float32))
    return np.stack(grids)[:, None]


def pair_inputs(p: TrainingParameters) -> dict[Route, Floats]:
    """What the model takes for the pairs' other densities, by route; empty for models that take no correlations."""
    if MODELS[p.model].inputs not in ("correlations", "statistics") or p.crystals:
        return {}
    routes: list[Route] = [r for r in ROUTES if (r == "as computed") == (p.convention == "computed")]
    return {r: arrange(p.model, [pair_statistics(s, r) for s in settings(p)]) for r in routes}


def build(p: TrainingParameters, checkpoint: Path | None = None, progress: bool = True) -> Any:
    """Unfitted estimator with the settings of an experiment."""
    model = MODELS[p.model].build(p)
    if hasattr(model, "checkpoint"):
        model.checkpoint, model.progress = None if checkpoint is None else str(checkpoint), progress
    return model


def run_experiment(p: TrainingParameters, out: Path, *, name: str = "ecd train", progress: bool = True) -> Experiment:
    """Train and predict by the paper's protocol, and write the result.

    The crystals are dealt into ten parts (shuffled, seeded); the first is the test set. Everything that is fitted is
    fitted on the training part. After an interruption, the same call goes on where it stopped.

    Args:
        p: ``protocol`` chooses what is done besides the split into nine tenths and one.
        out: file to write (``.npz``).
        name: of the notebook or command, for the provenance.

    Raises:
        EcdError: a model and target that do not fit, or a file of other parameters or sources in the way.
    """
    targets = list(UNITS) if p.target == "both" else [p.target]
    if len(targets) != MODELS[p.model].targets:
        remedy = "Models C take target=both, the others one target."
        raise EcdError(f"model={p.model} target={p.target}", "do not fit together", remedy)
    if p.augment and (p.convention != "portable" or p.crystals):
        remedy = "Take convention=portable and crystals=0, or augment=false."
        raise EcdError("augment=true", "needs converted densities of the pairs", remedy)
    if p.convention == "portable" and MODELS[p.model].inputs not in ("correlations", "statistics"):
        remedy = "Take a model on correlations, such as density-gpr or octahedral-a."
        raise EcdError(f"convention=portable model={p.model}", "do not fit together", remedy)
    if out.is_file() and resolve("training", load_experiment(out).meta["parameters"]) != p:
        raise EcdError(out, "holds a result of other parameters", "Remove it, or choose another name with --out.")
    labels = load_cubic_targets()
    if p.crystals:
        labels = labels.sample(min(p.crystals, len(labels)), random_state=p.seed).sort_index()
    names, truth = list(labels.index), labels[targets].to_numpy(dtype=float)
    fold = deal(len(names), 10, p.seed)
    fits = [("fitted", 0)]
    fits += [("validated", k) for k in range(1, 10)] if p.protocol != "split" else []
    fits += [("crossed", k) for k in range(1, 10)] if p.protocol == "10-fold" else []

    partial = out.with_suffix(".partial.npz")
    done = _load_partial(partial, p, provenance(name, p.model_dump(), 0))
    X, others = inputs(p, names), pair_inputs(p)
    rows = {r: pd.Index(names).get_indexer(pd.Index(np.array(pair_names(r)))) for r in others}
    for number, (kind, k) in enumerate(fits, 1):
        key = f"{kind}-{k}"
        if key in done:
            continue
        train = fold != k if kind != "validated" else (fold != k) & (fold != 0)
        begun = time.perf_counter()
        checkpoint = out.with_suffix(f".{key}.checkpoint")
        if progress:
            print(f"[{number}/{len(fits)}] {p.model}, {p.target}: {kind}, {train.sum()} crystals", flush=True)
        learned, values = X[train], truth[train]
        if p.augment:
            seen = train[rows["shells"]]
            learned = np.concatenate([learned, others["shells"][seen]])
            values = np.concatenate([values, truth[rows["shells"][seen]]])
        model = build(p, checkpoint, progress).fit(learned, values if len(targets) > 1 else values[:, 0])
        predicted = np.full(truth.shape, np.nan)
        shown = np.ones(len(names), bool) if kind == "fitted" else fold == k
        predicted[shown] = np.asarray(model.predict(X[shown])).reshape(-1, len(targets))
        done[key] = predicted
        done[f"seconds-{key}"] = np.array(time.perf_counter() - begun)
        for r in others if kind != "validated" else ():
            mine = fold[rows[r]] == k if p.protocol == "10-fold" else np.ones(len(rows[r]), bool)
            moved = np.full((len(mine), len(targets)), np.nan)
            if mine.any():
                moved[mine] = np.asarray(model.predict(others[r][mine])).reshape(-1, len(targets))
            done[f"pairs/{r}-{k}"] = moved
        if kind == "fitted":
            done |= _inside(model, keep=MODELS[p.model].inputs in ("correlations", "statistics"))
        save_partial(partial, done)
    made_by = json.loads(str(done["provenance"]))
    made_by["seconds"] = round(sum(float(v) for k, v in done.items() if k.startswith("seconds-")), 1)
    meta = {
        "targets": targets,
        "parameters": p.model_dump(),
        "fits": len(fits),
        "seconds_per_fit": float(done["seconds-fitted-0"]),
        "provenance": made_by,
    }
    arrays = {k: v for k, v in done.items() if k == "losses" or k.startswith("weights/")}
    predictions = {kind: _join(done, kind, truth.shape) for kind in ("fitted", "validated", "crossed")}
    if p.protocol == "10-fold":
        predictions["crossed"][fold == 0] = predictions["fitted"][fold == 0]
    else:
        predictions["crossed"][:] = np.nan
    predictions |= {f"pairs/{r}": _join(done, f"pairs/{r}", (len(rows[r]), len(targets))) for r in others}
    small: Any = {key: value.astype(np.float32) for key, value in predictions.items()}
    with atomic_write(out) as temporary:
        np.savez_compressed(
            temporary, names=np.array(names), fold=fold, truth=truth, **small, **arrays, meta=np.array(json.dumps(meta))
        )
    partial.unlink()
    return load_experiment(out)


def _inside(model: Any, keep: bool) -> dict[str, Any]:
    """Losses of a network, and what predicts, if it is to be kept: its weights, or the state of a Gaussian process."""
    if hasattr(model, "module_"):
        weights = {f"weights/{k}": v.cpu().numpy() for k, v in model.module_.state_dict().items() if keep}
        return {"losses": np.array(model.losses_, dtype=np.float32)} | weights
    state = {k: np.asarray(v) for k, v in getattr(model, "state", {}).items()}
    return {f"weights/{k}": v.astype(np.float32) if v.ndim > 1 else v for k, v in state.items()}


def _join(done: dict[str, Any], kind: str, shape: tuple[int, ...]) -> Floats:
    joined: Floats = np.full(shape, np.nan)
    for key in (key for key in done if key.startswith(f"{kind}-")):
        joined = np.where(np.isnan(done[key]), joined, done[key])
    return joined


def save_partial(path: Path, done: dict[str, Any]) -> None:
    """Write what an unfinished run has, atomically; :func:`read_partial` reads it."""
    with atomic_write(path) as temporary:
        np.savez(temporary, **done)


def read_partial(path: Path) -> dict[str, Any]:
    """Arrays that an interrupted run has left.

    Raises:
        EcdError: a damaged file.
    """
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            return dict(z)
    except DAMAGED as error:
        raise EcdError(path, "is left from an interrupted run and damaged", "Remove it and run again.") from error


def _load_partial(path: Path, p: TrainingParameters, made_by: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted run has finished; a new one begins with its parameters and provenance."""
    label = np.array(p.model_dump_json())
    if not path.is_file():
        done = {"parameters": label, "provenance": np.array(json.dumps(made_by))}
        save_partial(path, done)
        return done
    found = read_partial(path)
    if found.get("parameters") != label:
        raise EcdError(path, "holds an interrupted run of other parameters", "Remove it, or use its parameters.")
    commit = json.loads(str(found["provenance"]))["commit"]
    if commit != made_by["commit"]:
        raise EcdError(path, f"was begun with other sources ({commit})", "Remove it, or go back to that commit.")
    return found


def load_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read what :func:`run_experiment` wrote.

    Raises:
        EcdError: missing or damaged file.
    """
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            fields = ("names", "fold", "truth", "fitted", "validated", "crossed")
            losses = z["losses"] if "losses" in z else np.array([])
            pairs = {route: z[f"pairs/{route}"] for route in ROUTES if f"pairs/{route}" in z}
            meta = json.loads(str(z["meta"]))
            return Experiment(**{f: z[f] for f in fields}, losses=losses, meta=meta, pairs=pairs)
    except DAMAGED as error:
        raise EcdError(path, "is no readable result", "Make it with `ecd train`.") from error


def load_results(folder: Literal["results", "portable"] = "results") -> dict[str, Experiment]:
    """All experiments that ship with the project, each made by ``ecd train``, by the name of their file.

    Args:
        folder: ``"results"`` on densities as computed, ``"portable"`` with convention=portable.
    """
    return {Path(name).stem: load_experiment(data_file(name)) for name in shipped_results(folder)}


def shipped_results(folder: Literal["results", "portable"] = "results") -> list[str]:
    """Names among the bundled files (see :func:`ecdlib.base.resources.data_file`) of the results that ship."""
    return [f"{folder}/{name}.npz" for name in bundled_in(folder)]
