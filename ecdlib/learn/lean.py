"""The Lean CNN paper's task: one crystal's energy or bulk modulus from its density, by the paper's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from ecdlib.base.errors import EcdError
from ecdlib.base.pieces import in_pieces
from ecdlib.base.settings import Field, Parameters, Size, Subset
from ecdlib.data.properties import labelled
from ecdlib.data.tables import load_cubic_targets
from ecdlib.density.cell import resample, to_conventional
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_densities
from ecdlib.density.valence import Valence, recognize
from ecdlib.features.collection import FEATURES, Blocks, FeatureSettings, bundled_features, statistics
from ecdlib.learn.conversion_cost import Calibration, movement
from ecdlib.learn.domain import DEFAULT_MODEL
from ecdlib.learn.evaluation import nmae
from ecdlib.learn.portability import ROUTES, Route, pair_features, pair_names
from ecdlib.learn.protocol import Fit, fold_numbers, folds_of, joined, run_fits
from ecdlib.learn.result import TEST, TRAIN, Result, finished, load_result
from ecdlib.models import MODELS

#: Properties that Models C learn at once.
BOTH = ["bulk_modulus", "total_energy"]
if TYPE_CHECKING:
    ModelName = str
    Target = str
else:
    ModelName = Literal[tuple(MODELS)]
    Target = Literal[(*labelled("cubic"), "both")]


class TrainingParameters(Parameters):
    """Training, and why the input is whitened."""

    full: ClassVar[dict[str, Any]] = {"epochs": 650, "first_cycle": 50}
    tiny: ClassVar[dict[str, Any]] = {"epochs": 2, "crystals": 60, "size": 19, "voxel": 0.5}

    model: ModelName = Field("octahedral-a", description="what is trained")
    target: Target = Field("bulk_modulus", description="what it learns; both at once for Models C")
    protocol: Literal["split", "9-fold", "10-fold"] = Field(
        "split",
        description="split: nine tenths train, one tests; 9-fold: and cross-validation within the nine tenths; "
        "10-fold: and over all crystals",
    )
    epochs: int = Field(20, ge=1, le=100_000, description="passes over the training crystals; the paper takes 650")
    batch_size: int = Field(50, ge=1, description="crystals in a step")
    learning_rate: float = Field(5e-3, gt=0, description="initial, of Adam")
    first_cycle: int = Field(20, ge=1, description="epochs until the first warm restart")
    cycle_growth: int = Field(3, ge=1, description="each cycle is that much longer than the one before")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability")
    precondition: bool = Field(True, description="whiten the input of the first layer, for networks that can")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the convolutions")
    size: Size = Field(51, ge=3, le=201, description="odd number of voxels along each axis of the standard grid")
    voxel: float = Field(0.2, gt=0, le=2, description="voxel width in Å")
    grid: int = Field(24, ge=8, le=128, description="edge of the common grid for models that read the density itself")
    convention: Literal["computed", "portable"] = Field(
        "computed",
        description="the density as computed, or what every code gives: smoothed in one convention and, as a second "
        "channel, its chemical valence",
    )
    augment: bool = Field(False, description="train also on the pairs' densities of the other valence, converted")
    crystals: Subset = Field(0, ge=0, description="random subset of the cubic crystals; 0: all")

    @property
    def channels(self) -> int:
        """Densities that each crystal is seen in."""
        return 2 if self.convention == "portable" else 1

    @property
    def targets(self) -> list[str]:
        """Properties that are learned."""
        return BOTH if self.target == "both" else [self.target]

    @property
    def takes_features(self) -> bool:
        """Whether the model takes features of the density, not the density itself or a formula."""
        return set(MODELS[self.model].inputs) <= set(FEATURES)

    @property
    def file_name(self) -> str:
        """Name of the result's file: model, target, seed, and epochs for networks."""
        epochs = f"--{self.epochs}" if hasattr(build(self), "settings") else ""
        kind = "-portable" * (self.convention == "portable") + "-augmented" * self.augment
        return f"{self.model}{kind}--{self.target}{epochs}--seed{self.seed}.npz"


def run_lean(p: TrainingParameters, out: Path, *, name: str = "ecd train", progress: bool = True) -> Result:
    """Train and predict by the paper's protocol, and write the result; resumes between fits and within them.

    The crystals are dealt into ten parts (shuffled, seeded); the first is the test set. Everything that is fitted is
    fitted on the training part.

    Args:
        p: ``protocol`` chooses what is done besides the split into nine tenths and one.
        out: file to write (``.npz``); if it is a result of the same parameters, it is returned.
        name: of the notebook or command, for the provenance.

    Returns:
        Of kind ``"lean"``; ``more`` holds ``validated (n, t)``: 9-fold cross-validation within the nine tenths;
        ``losses``: training loss of each epoch of the model trained on nine tenths; and ``pairs/ROUTE (pairs, t)``:
        predictions from the pairs' other densities, by models that have not seen the crystal where there is a 10-fold
        cross-validation.

    Raises:
        EcdError: a model and target that do not fit, or a file made with other parameters or sources at the same place.
    """
    _check(p)
    if done := finished(out, "lean", p):
        return done
    labels = crystals_of(p)
    names, truth = list(labels.index), labels[p.targets].to_numpy(dtype=float)
    fold = fold_numbers(len(names), 10, p.seed)
    split = Fit("fitted", fold != 0, np.ones(len(names), dtype=bool))
    inner = folds_of(fold, "validated", among=fold != 0) if p.protocol != "split" else []
    outer = folds_of(fold, "crossed")[1:] if p.protocol == "10-fold" else []
    with in_pieces(out, name, p.model_dump()) as pieces:
        X, others = inputs(p, names), pair_inputs(p)
        rows = {r: pd.Index(names).get_indexer(pd.Index(np.array(pair_names(r)))) for r in others}

        def fit(f: Fit) -> dict[str, Any]:
            learned, values = X[f.train], truth[f.train]
            if p.augment:
                seen = f.train[rows["shells"]]
                learned = np.concatenate([learned, others["shells"][seen]])
                values = np.concatenate([values, truth[rows["shells"][seen]]])
            model = build(p, pieces.path(f.name).with_suffix(".checkpoint"), progress)
            model.fit(learned, values if len(p.targets) > 1 else values[:, 0])

            def predicted(X: Any, shown: Any) -> Floats:
                found = np.full((len(shown), len(p.targets)), np.nan)
                if shown.any():
                    found[shown] = np.asarray(model.predict(X[shown])).reshape(-1, len(p.targets))
                return found

            found = {"predicted": predicted(X, f.test), "losses": np.array(getattr(model, "losses_", []), np.float32)}
            if f not in inner:
                found |= {f"pairs/{r}": predicted(others[r], f.test[rows[r]]) for r in others}
            if f is split and p.takes_features:
                found |= {f"state/{k}": v for k, v in _in_single_precision(getattr(model, "state", {})).items()}
            return found

        run_fits(pieces, [split, *inner, *outer], fit, f"{p.model}, {p.target}" if progress else False)
        first = pieces.load("fitted")
        nowhere = np.full(truth.shape, np.nan)
        more = {"validated": joined(pieces, inner) if inner else nowhere, "losses": first["losses"]}
        more |= {f"pairs/{r}": joined(pieces, [split, *outer], f"pairs/{r}") for r in others}
        result = Result(
            names=np.array(names),
            truth=truth,
            role=np.where(fold == 0, TEST, TRAIN).astype(np.int8)[None],
            fitted=first["predicted"][None],
            crossed=joined(pieces, [split, *outer]) if outer else nowhere,
            fold=fold,
            more=more,
            state={k.removeprefix("state/"): v for k, v in first.items() if k.startswith("state/")},
            meta={
                "kind": "lean",
                "targets": p.targets,
                "parameters": p.model_dump(),
                "seconds_per_fit": pieces.seconds("fitted"),
                "provenance": pieces.provenance(),
            },
        )
        result.write(out)
    return load_result(out, "lean")


def crystals_of(p: TrainingParameters) -> pd.DataFrame:
    """Labels of the crystals that take part (see :func:`ecdlib.data.tables.load_cubic_targets`)."""
    labels = load_cubic_targets()
    return labels.sample(min(p.crystals, len(labels)), random_state=p.seed).sort_index() if p.crystals else labels


def _check(p: TrainingParameters) -> None:
    if len(p.targets) != MODELS[p.model].targets:
        remedy = "Use target=both with Models C, one target with the others."
        raise EcdError(f"model={p.model} target={p.target}", "do not fit together", remedy)
    if p.augment and (p.convention != "portable" or p.crystals):
        remedy = "Use convention=portable and crystals=0, or augment=false."
        raise EcdError("augment=true", "needs converted densities of the pairs", remedy)
    if p.convention == "portable" and not p.takes_features:
        remedy = "Use a model on correlations, such as density-gpr or octahedral-a."
        raise EcdError(f"convention=portable model={p.model}", "do not fit together", remedy)


def _in_single_precision(state: dict[str, Any]) -> dict[str, Any]:
    """Matrices of a state in single precision, numbers and vectors as they are."""
    arrays = {k: np.asarray(v) for k, v in state.items()}
    return {k: v.astype(np.float32) if v.ndim > 1 and v.dtype == np.float64 else v for k, v in arrays.items()}


def build(p: TrainingParameters, checkpoint: Path | None = None, progress: bool = True) -> Any:
    """Unfitted estimator with these settings."""
    model = MODELS[p.model].build(p)
    if hasattr(model, "checkpoint"):
        model.set_params(checkpoint=None if checkpoint is None else str(checkpoint), progress=progress)
    return model


def channel_settings(p: TrainingParameters) -> list[FeatureSettings]:
    """How the density becomes features in each channel."""
    conventions: tuple[Any, ...] = ("gpaw", "chemical") if p.convention == "portable" else ("computed",)
    return [FeatureSettings(size=p.size, voxel=p.voxel, convention=c) for c in conventions]


def stack_channels(model: str, channels: list[Blocks]) -> Floats:
    """What a model takes, from the features of each channel: ``(n, features)``, blocks and channels side by side.

    Of a model that takes one block, several channels are ``(n, channels, features)``.
    """
    rows = [np.hstack([blocks[name] for name in MODELS[model].inputs]) for blocks in channels]
    if len(rows) > 1 and len(MODELS[model].inputs) == 1:
        return np.stack(rows, axis=1)
    return np.hstack(rows)


def inputs(p: TrainingParameters, names: list[str]) -> Any:
    """What the model takes, for crystals of the cubic store: ``(n, ...)``.

    Features of all bundled crystals are computed once and cached, unless ``p.crystals`` says that few are wanted.
    """
    if p.takes_features:
        channels = []
        for s in channel_settings(p):
            features, report = bundled_features(s, names if p.crystals else None)
            rows = report.index.get_indexer(pd.Index(names))
            channels.append({block: values[rows] for block, values in features.items()})
        return stack_channels(p.model, channels)
    store = load_densities("cubic")
    if MODELS[p.model].inputs == ("composition",):
        return store.table.loc[names, "formula"].to_numpy()
    cells = (redistribute_negative_charge(to_conventional(store[name])).density for name in names)
    return np.stack([resample(cell.values, (p.grid,) * 3).astype(np.float32) for cell in cells])[:, None]


def pair_inputs(p: TrainingParameters) -> dict[Route, Floats]:
    """What the model takes for the pairs' other densities, by route; empty for models that take no features."""
    if not p.takes_features or p.crystals:
        return {}
    routes: list[Route] = [r for r in ROUTES if (r == "as computed") == (p.convention == "computed")]
    return {r: stack_channels(p.model, [pair_features(s, r) for s in channel_settings(p)]) for r in routes}


def table2_errors(result: Result, target: str) -> dict[str, float]:
    """Errors of a result as in Table 2: mean absolute ones in the target's unit, and more of the test set.

    Returns:
        ``CV`` of the 9-fold cross-validation, ``train``, ``test``, ``test RMSE``, ``test NMAE`` in percent, and
        ``10-fold``; NaN where it was not made.
    """
    t, test = result.column(target), result.tested()
    truth = result.truth[:, t]

    def mean_error(part: Floats, among: Any = slice(None)) -> float:
        return float(np.nanmean(np.abs(part[:, t] - truth)[among]))

    fitted, validated = result.fitted[0], result.more["validated"]
    return {
        "CV": mean_error(validated) if np.isfinite(validated).any() else np.nan,
        "train": mean_error(fitted, ~test),
        "test": mean_error(fitted, test),
        "test RMSE": float(np.sqrt(((fitted[:, t] - truth)[test] ** 2).mean())),
        "test NMAE": nmae(truth[test], fitted[test, t]),
        "10-fold": mean_error(result.crossed) if result.has_crossed else np.nan,
    }


def errors_over_splits(results: Sequence[Result], target: str, tested: bool = True, power: int = 1) -> Floats:
    """Absolute errors of each crystal, averaged over the splits in which it tests, or trains.

    Args:
        results: of the same crystals, each of one random split.
        tested: whether the errors of test crystals are wanted, or of those that trained.
        power: 2 for squared errors.

    Returns:
        ``(n,)``; NaN for a crystal that tests (trains) in none of them.
    """
    total, times = np.zeros(len(results[0].names)), np.zeros(len(results[0].names))
    for result in results:
        t, among = result.column(target), result.tested() == tested
        total[among] += np.abs(result.fitted[0] - result.truth)[among, t] ** power
        times[among] += 1
    return np.divide(total, times, out=np.full_like(total, np.nan), where=times > 0)


@dataclass(frozen=True)
class LeanModel:
    """The model that a result of the task holds: trained on nine tenths of the crystals."""

    result: Result
    source: str

    @classmethod
    def from_file(cls, arrays: dict[str, Any], meta: dict[str, Any], source: str) -> LeanModel:
        """From what the file holds."""
        return cls(Result.from_arrays(arrays, meta), source)

    @property
    def meta(self) -> dict[str, Any]:
        """Of the result."""
        return self.result.meta

    @property
    def targets(self) -> list[str]:
        """What it predicts: nothing if the model was not kept, as those that take no features of the density are."""
        return self.result.targets if self.result.state else []

    @cached_property
    def parameters(self) -> TrainingParameters:
        """The parameters it was trained with."""
        return TrainingParameters.checked(self.meta["parameters"], source=self.source)

    @property
    def portable(self) -> bool:
        """Whether it takes densities of any valence convention."""
        return self.parameters.convention == "portable"

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of its training crystals."""
        return tuple(self.result.names[~self.result.tested()])

    @cached_property
    def features_key(self) -> tuple[FeatureSettings, ...]:
        """How densities are turned into features for it; models of one key share their features."""
        return tuple(channel_settings(self.parameters))

    def features(
        self, density: ChargeDensity, valence: Valence | None = None, calibration: Calibration | None = None
    ) -> list[Blocks]:
        """Features of the density in each channel.

        Args:
            valence, calibration: for a portable model (see :func:`ecdlib.density.valence.to_convention`).

        Raises:
            EcdError: a crystal that is not cubic for a network with cubic kernels, or a valence that is not known.
        """
        dataset = density.symmetry(1e-2)
        number = 0 if dataset is None else int(dataset.number)
        if number < 195 and MODELS[self.parameters.model].cubic:
            remedy = f"Use --model {DEFAULT_MODEL}, which averages over the orientations; note its warnings."
            raise EcdError(density.name, f"space group {number or 'unknown'} is not cubic, but the model is", remedy)
        if self.portable and valence is None:
            valence = recognize(density)
        if not self.portable and "smoothed" in (density.convention or ""):
            what = f"has been converted ({density.convention}), but the model takes densities as computed"
            raise EcdError(density.name, what, f"Give the original, or use --model {DEFAULT_MODEL}.")
        return [statistics(density, s, valence, calibration) for s in self.features_key]

    @cached_property
    def estimator(self) -> Any:
        """The fitted estimator.

        Raises:
            EcdError: weights that do not fit it.
        """
        try:
            return build(self.parameters).restore(self.result.state)
        except (KeyError, RuntimeError, ValueError) as error:
            remedy = "Train it again with `ecd train`."
            raise EcdError(self.source, f"its weights do not fit the model {self.parameters.model}", remedy) from error

    def predict(self, features: list[Blocks], target: str) -> tuple[float, float]:
        """Value and standard deviation for one crystal.

        A Gaussian process states its own standard deviation; for a network it is the root mean square error on
        crystals that were not in its training.

        Args:
            features: see :meth:`features`.
        """
        rows = [{name: values[None] for name, values in blocks.items()} for blocks in features]
        taken = stack_channels(self.parameters.model, rows)
        if "return_std" in signature(self.estimator.predict).parameters:
            value, std = self.estimator.predict(taken, return_std=True)
            return float(value[0]), float(std[0])
        r, t = self.result, self.result.column(target)
        held_out = slice(None) if r.has_crossed else r.tested()
        std = float(np.sqrt(((r.unseen - r.truth)[held_out, t] ** 2).mean()))
        values = np.asarray(self.estimator.predict(taken)).reshape(-1)
        return float(values[t]), std

    def movement(self, target: str, relative: bool = False) -> pd.DataFrame:
        """See :func:`ecdlib.learn.conversion_cost.movement`.

        Raises:
            EcdError: it was trained without the pairs.
        """
        moved = movement(self.result, target, relative)
        if moved.empty:
            what = "was trained without the pairs, so what a conversion costs is not known"
            raise EcdError(self.source, what, "Train it on all crystals (crystals=0).")
        return moved
