"""The one training loop for torch models, and the scikit-learn estimator around it (Lean CNN paper, 3.2 and 4)."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from torch import Tensor, nn

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.progress import tqdm
from ecdlib.density.core import Floats
from ecdlib.features.graphs import CrystalGraphs
from ecdlib.features.padded_blocks import PaddedBlocks

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class TrainingSettings:
    """How a torch model is trained; the defaults are the paper's where it gives them."""

    epochs: int = 650
    batch_size: int = 50
    learning_rate: float = 5e-3  #: initial, of Adam
    first_cycle: int = 50  #: epochs until the first warm restart; the paper gives none
    annealing: bool = True  #: cosines with warm restarts; False: the rate stays as it is
    weight_decay: float = 0.0  #: of Adam: this share of each weight joins its gradient
    cycle_growth: int = 3  #: each cycle is that much longer than the one before; 50 + 150 + 450 make the paper's 650
    precondition: bool = True  #: whiten the input of the first layer, for networks that can
    precision: Literal["float32", "bfloat16"] = "float32"  #: of the convolutions but the first; weights stay float32
    seed: int = 0  #: of the weights, the order of the samples and the dropout
    held_out: float = 0.0  #: share of the training samples that an estimator sets aside for early stopping
    patience: int = 0  #: epochs without a better validation loss after which training stops; 0: never
    checkpoint_every: int = 10  #: epochs between checkpoints, if a file for them is given


def pick_device(device: str = "auto") -> torch.device:
    """``"auto"`` is the GPU if there is one.

    Raises:
        EcdError: CUDA asked for where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise EcdError(
            "device=cuda",
            "CUDA is not available on this machine or in this torch",
            "Use auto, or run make env TORCH=auto.",
        )
    return torch.device(device)


def _seed_epoch(seed: int, epoch: int) -> torch.Generator:
    """Each epoch has its own random numbers, so that a resumed run gives exactly what an uninterrupted one does."""
    torch.manual_seed(1_000_003 * (seed + 1) + epoch)
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + epoch)


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep the memory of freed tensors for the next step.

    glibc gives large blocks back to the system, which clears each page of them before it lends them again: a quarter to
    a third of the time of a step of an autoencoder.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            set_option(option, 2**31 - 1)


class OutOfTime(Exception):
    """The time for trainings is over; the checkpoint of the one under way is written."""


@dataclass
class Stopwatch:
    """Until when networks may train, and how fast they do."""

    stop_at: float = math.inf  #: of :func:`time.monotonic`
    epochs: list[tuple[int, float]] = field(default_factory=list)  #: samples and seconds of each

    @property
    def left(self) -> float:
        """Seconds."""
        return self.stop_at - time.monotonic()

    @property
    def rate(self) -> float:
        """Samples a second, in the median over the epochs; the first one warms up. NaN if nothing was trained."""
        rates = [n / seconds for n, seconds in self.epochs]
        return float(np.median(rates[1:] or rates or [np.nan]))


_WATCH: ContextVar[Stopwatch | None] = ContextVar("_WATCH", default=None)


@contextmanager
def stopwatch(seconds: float = math.inf) -> Iterator[Stopwatch]:
    """Time the networks that are trained in the block; after so many seconds they stop with :class:`OutOfTime`."""
    token = _WATCH.set(watch := Stopwatch(time.monotonic() + seconds))
    try:
        yield watch
    finally:
        _WATCH.reset(token)


@dataclass(frozen=True)
class Losses:
    """Mean loss of each epoch; no validation losses where there are no validation data."""

    train: list[float]
    validation: list[float]


#: What networks take: a tensor ``(n, ...)``, graphs of n crystals, or n densities on padded grids.
Inputs = Tensor | CrystalGraphs | PaddedBlocks


def fit(
    model: nn.Module,
    X: Inputs,
    y: Tensor | None,
    settings: TrainingSettings,
    *,
    validation: tuple[Inputs, Tensor | None] | None = None,
    augment: Callable[[Any, torch.Generator], Tensor] | None = None,
    device: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Losses:
    """Minimize the mean squared error with Adam and, unless told otherwise, cosine annealing with warm restarts.

    All data live on the device. With validation data, the weights of the epoch with the smallest validation loss are
    kept, and training stops early if ``settings.patience`` says so.

    With a ``checkpoint`` an interrupted run is resumed from its last checkpoint and gives
    what an uninterrupted one gives; the file is removed at the end.

    Args:
        X: ``(n, ...)`` inputs, graphs of n crystals, or n densities on padded grids.
        y: ``(n, targets)`` normalized targets, NaN where there is none; None: the input itself (an autoencoder).
        validation: the same for crystals that are not trained on.
        augment: changes a batch of inputs in each step, with random numbers from the generator.

    Raises:
        EcdError: a loss that is not finite, or a checkpoint of another model or other settings.
        OutOfTime: see :func:`stopwatch`.
    """
    where, watch = pick_device(device), _WATCH.get() or Stopwatch()
    model.to(where)
    if where.type == "cpu":
        _keep_freed_memory()
    if where.type == "cuda":  # all batches but the last are alike
        torch.backends.cudnn.benchmark = True
        model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    X, y = X.to(where), None if y is None else y.to(where)
    if validation is not None:
        validation = validation[0].to(where), None if validation[1] is None else validation[1].to(where)
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, settings.first_cycle, settings.cycle_growth
    )
    losses, checked = [], []
    best: dict[str, Tensor] = {}
    path = Path(checkpoint) if checkpoint else None
    data = _digest(X, y, *(validation or ())) if path else ""
    label = {"settings": asdict(settings), "model": repr(model), "data": data}
    if path is not None and path.is_file():
        try:
            state = torch.load(path, map_location=where, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise EcdError(path, "is not a readable checkpoint", "Remove it to start afresh.") from error
        if state["label"] != label:
            raise EcdError(path, "belongs to another model, other data or other settings", "Remove it to start afresh.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        losses, checked, best = state["losses"], state["checked"], state["best"]
    if where.type == "cuda" and augment is None:
        X = _prepared(model, X, settings)
    model.train()
    unknown = _unknown(y)
    bar = tqdm(range(len(losses), settings.epochs), initial=len(losses), total=settings.epochs, disable=not progress)
    for epoch in bar:
        if settings.patience and len(checked) - 1 - int(np.argmin(checked or [0])) >= settings.patience:
            break
        begun = time.monotonic()
        generator = _seed_epoch(settings.seed, epoch)
        order = torch.randperm(len(X), generator=generator)
        total = torch.zeros((), device=where)
        if isinstance(X, PaddedBlocks):
            batches = X.batches(order, settings.batch_size, generator)
        else:
            batches = list(order.to(where).split(settings.batch_size))
        batches = [batch for batch in batches if len(batch) > 1] or batches  # batch normalization needs two
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            with _arithmetic(where, settings):
                inputs = X[batch] if augment is None else augment(X[batch], generator)
                prediction = model(inputs)
                beyond = _penalty(model)
            residual = prediction.float() - (inputs if y is None else y[batch])
            loss = _known(residual, unknown, batch).square().mean() + beyond
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        if settings.annealing:
            schedule.step()
        losses.append(float(total) / len(X))
        if not np.isfinite(losses[-1]):
            remedy = "Lower the learning rate, or look for NaN in the data."
            raise EcdError(f"epoch {epoch}", "the loss is not finite", remedy)
        if validation is not None:
            checked.append(_loss(model, *validation, settings))
            if checked[-1] == min(checked):
                best = {key: value.clone() for key, value in model.state_dict().items()}
        bar.set_postfix({"loss": f"{losses[-1]:.3g}"} | ({"validation": f"{checked[-1]:.3g}"} if checked else {}))
        watch.epochs.append((len(X), taken := time.monotonic() - begun))
        over = watch.left < taken and epoch + 1 < settings.epochs
        if path is not None and (
            over or ((epoch + 1) % settings.checkpoint_every == 0 and epoch + 1 < settings.epochs)
        ):
            state = {"label": label, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"schedule": schedule.state_dict(), "losses": losses, "checked": checked, "best": best}
            with atomic_write(path) as temporary:
                torch.save(state, temporary)
        if over:
            raise OutOfTime(f"{epoch + 1} of {settings.epochs} epochs")
    if path is not None:
        path.unlink(missing_ok=True)
    if best:
        model.load_state_dict(best)
    model.eval()
    return Losses(losses, checked)


def _arithmetic(where: torch.device, settings: TrainingSettings) -> torch.autocast:
    """The arithmetic of the forward pass, the same in training and in prediction."""
    return torch.autocast(where.type, torch.bfloat16, enabled=settings.precision == "bfloat16")


def _prepared(model: nn.Module, X: Inputs, settings: TrainingSettings) -> Inputs:
    """What the model makes of its inputs without free parameters (its ``prepare``), once, if the GPU can hold it."""
    prepare = getattr(model, "prepare", None)
    if prepare is None or not isinstance(X, Tensor):
        return X
    precision = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    needed = len(X) * prepare(X[:1], precision).nbytes
    return prepare(X, precision) if 2.5 * needed < torch.cuda.mem_get_info()[0] else X


def _digest(*inputs: Inputs | None) -> str:
    digest = hashlib.sha256()
    for each in inputs:
        for tensor in [each] if each is None or isinstance(each, Tensor) else each.tensors():
            digest.update(b"none" if tensor is None else tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _unknown(y: Tensor | None) -> Tensor | None:
    """Where targets are NaN; None if none is."""
    return y.isnan() if y is not None and y.isnan().any() else None


def _known(error: Tensor, unknown: Tensor | None, batch: Tensor) -> Tensor:
    """Errors of what has a target."""
    return error if unknown is None else error[~unknown[batch]]


def _penalty(model: nn.Module) -> Tensor | float:
    """What a model adds to the mean squared error of the batch that it has just seen (its ``penalty``), if it does."""
    penalty = getattr(model, "penalty", None)
    return 0.0 if penalty is None else penalty()


@torch.no_grad()
def _loss(model: nn.Module, X: Inputs, y: Tensor | None, settings: TrainingSettings) -> float:
    """Mean squared error in evaluation mode."""
    model.eval()
    total, unknown, where = 0.0, _unknown(y), next(model.parameters()).device
    for batch in torch.arange(len(X), device=where).split(settings.batch_size):
        inputs = X[batch]
        with _arithmetic(where, settings):
            prediction = model(inputs)
            beyond = _penalty(model)
        error = prediction.float() - (inputs if y is None else y[batch])
        total += float(_known(error, unknown, batch).square().mean() + beyond) * len(batch)
    model.train()
    return total / len(X)


def set_aside(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the training samples that choose the epoch, and of those that are trained on; shuffled."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    n_held = round(share * n)
    return order[:n_held], order[n_held:]


@contextmanager
def _threads(module: nn.Module) -> Iterator[None]:
    """One thread for a network that says so (``one_thread``): its steps are too short to be shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if getattr(module, "one_thread", False) else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_inputs(X: Floats | CrystalGraphs) -> Inputs:
    return X if isinstance(X, CrystalGraphs) else torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))


#: How targets are scaled while a network is trained.
Scaling = Literal["standard", "unit interval", "none"]


class TorchRegressor(RegressorMixin, BaseEstimator):
    """A torch model as a scikit-learn estimator: targets scaled by what it is fitted to, predictions scaled back.

    Args:
        make_module: returns a fresh module.
        settings: of the training; its seed also fixes the fresh weights.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        scaling: of the targets: to zero mean and unit deviation, to the unit interval, or not at all.
    """

    def __init__(
        self,
        make_module: Callable[[], nn.Module],
        settings: TrainingSettings = TrainingSettings(),
        device: str = "auto",
        checkpoint: str | None = None,
        progress: bool = True,
        scaling: Scaling = "standard",
    ):
        self.make_module = make_module
        self.settings = settings
        self.device = device
        self.checkpoint = checkpoint
        self.progress = progress
        self.scaling = scaling

    def fit(self, X: Floats | CrystalGraphs, y: Floats) -> Self:
        """Train on ``X (n, channels, ...)``, or n graphs, and ``y (n,)`` or ``(n, targets)``, NaN where unknown."""
        targets = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        ones = np.ones(targets.shape[1])
        self.mean_, self.scale_ = {
            "standard": (np.nanmean(targets, 0), np.nanstd(targets, 0)),
            "unit interval": (np.nanmin(targets, 0), np.nanmax(targets, 0) - np.nanmin(targets, 0)),
            "none": (0 * ones, ones),
        }[self.scaling]
        torch.manual_seed(self.settings.seed)
        self.module_ = self.make_module()
        inputs = _as_inputs(X)
        precondition = getattr(self.module_, "precondition", None)
        if self.settings.precondition and precondition is not None:
            precondition(inputs)
        scaled = torch.from_numpy(((targets - self.mean_) / self.scale_).astype(np.float32))
        held, train = set_aside(len(inputs), self.settings.held_out, self.settings.seed)
        with _threads(self.module_):
            history = fit(
                self.module_,
                inputs[train] if len(held) else inputs,
                scaled[train] if len(held) else scaled,
                self.settings,
                validation=(inputs[held], scaled[held]) if len(held) else None,
                device=self.device,
                checkpoint=self.checkpoint,
                progress=self.progress,
            )
        self.losses_, self.validation_ = history.train, history.validation
        return self

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """What predicts, as arrays: the weights, and ``target_mean`` and ``target_scale``, ``(targets,)``."""
        weights = {k: v.cpu().numpy() for k, v in self.module_.state_dict().items()}
        return weights | {"target_mean": self.mean_, "target_scale": self.scale_}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Take over what :attr:`state` of a fitted model holds.

        Raises:
            KeyError, RuntimeError: of another network.
        """
        weights = {k: torch.from_numpy(v) for k, v in state.items() if not k.startswith("target_")}
        self.mean_, self.scale_ = state["target_mean"], state["target_scale"]
        self.module_ = self.make_module()
        self.module_.load_state_dict(weights)
        self.module_.eval()
        return self

    def predict(self, X: Floats | CrystalGraphs) -> NDArray[np.float64]:
        """Predictions in the unit of the target: ``(n,)``, or ``(n, targets)`` for several."""
        where = next(self.module_.parameters()).device
        inputs = _as_inputs(X)
        with torch.no_grad(), _arithmetic(where, self.settings):
            batches = torch.arange(len(inputs)).tensor_split(max(1, len(inputs) // 64))
            parts = [self.module_(inputs[batch].to(where)).float().cpu().numpy() for batch in batches]
        scaled: Any = np.concatenate(parts).astype(np.float64) * self.scale_ + self.mean_
        return scaled[:, 0] if scaled.shape[1] == 1 else scaled
