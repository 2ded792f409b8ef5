"""Autoencoders of densities on the common grid: training, and what a trained one does (LatentMatFusion paper, 2)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np

from ecdlib.base.archive import write_archive
from ecdlib.base.cached import Arrays, cached
from ecdlib.base.errors import EcdError
from ecdlib.base.pieces import in_pieces
from ecdlib.base.progress import tqdm
from ecdlib.base.resources import bundled_in
from ecdlib.base.settings import BeforeValidator, Field, Parameters, Subset
from ecdlib.data.tables import load_crystals
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.features.common_grid import (
    Route,
    bundled_blocks,
    bundled_grids,
    bundled_names,
    bundled_shapes,
    common_cell,
    in_corner,
    on_grid,
    padded_shape,
)
from ecdlib.learn.model_file import load_model

if TYPE_CHECKING:
    from ecdlib.models.autoencoder import ChargeDensityAutoencoder

KIND = "autoencoder"
POOLINGS = {8: 4, 16: 3, 32: 2}  #: halvings of the grid for each number of latent channels
#: The autoencoder that the latent database and the shipped models use.
DEFAULT_AUTOENCODER = "periodic-16"
Channels = Annotated[Literal[8, 16, 32], BeforeValidator(int)]  # the command line gives text


class AutoencoderParameters(Parameters):
    """The autoencoder: training, reconstruction, latent sizes."""

    full: ClassVar[dict[str, Any]] = {"edge": 128, "epochs": 60, "batch_size": 4}
    tiny: ClassVar[dict[str, Any]] = {"edge": 16, "epochs": 1, "crystals": 60}

    route: Route = Field(
        "periodic",
        description="how densities come to one grid; periodic: conventional cell, resampled, circular padding; "
        "padded: as published, voxels in a corner of a grid of zeros, zero padding",
    )
    channels: Channels = Field(16, description="of the latent, which has this edge where the grid has 128")
    edge: int = Field(32, ge=16, le=128, multiple_of=16, description="voxels along each axis of the common grid")
    batch_norm: bool = Field(True, description="batch normalization after each block")
    dropout: float = Field(0.05, ge=0, lt=1, description="probability, after each block")
    epochs: int = Field(2, ge=1, le=100_000, description="passes over the training crystals, unless stopped early")
    batch_size: int = Field(16, ge=2, description="crystals in a step")
    learning_rate: float = Field(1e-3, gt=0, description="initial, of Adam")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the convolutions in training")
    annealing: bool = Field(True, description="let the rate fall along a cosine; False: constant, until it stops")
    turned: Literal["batch", "crystal"] = Field(
        "batch", description="what is turned into one of 12 orientations in each step: a batch, or each of its crystals"
    )
    patience: int = Field(10, ge=0, description="epochs without a better validation loss before it stops; 0: never")
    crystals: Subset = Field(0, ge=0, description="random subset of the bundled crystals; 0: all")

    @property
    def latent_edge(self) -> int:
        """Of the latent, in its own voxels."""
        return int(self.edge // 2 ** POOLINGS[self.channels])


@dataclass(frozen=True)
class Autoencoder:
    """A trained autoencoder: what ``ecd train-autoencoder`` wrote."""

    arrays: Mapping[str, Any]  #: ``weights/NAME``, ``losses``, ``validation``
    meta: dict[str, Any]  #: kind, parameters, crystals, provenance
    source: str = ""

    @classmethod
    def from_file(cls, arrays: Mapping[str, Any], meta: dict[str, Any], source: str) -> Self:
        """From what a file holds; other arrays in it are left alone.

        Raises:
            KeyError: a damaged file.
        """
        own = {k: v for k, v in arrays.items() if k.startswith("weights/")}
        own |= {k: arrays[k] for k in ("losses", "validation")}
        meta["parameters"], meta["provenance"]
        return cls(own, meta, source)

    @property
    def weights(self) -> dict[str, Floats]:
        """Of the network."""
        return {k.removeprefix("weights/"): v for k, v in self.arrays.items() if k.startswith("weights/")}

    @property
    def losses(self) -> Floats:
        """Training loss of each epoch, (e/Å³)²."""
        losses: Floats = self.arrays["losses"]
        return losses

    @property
    def validation(self) -> Floats:
        """Validation loss of each epoch, (e/Å³)²."""
        losses: Floats = self.arrays["validation"]
        return losses

    @cached_property
    def digest(self) -> str:
        """Digest of the weights, from which a model recognizes the autoencoder that it was trained with."""
        digest = hashlib.sha256()
        for name, values in sorted(self.weights.items()):
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def parameters(self) -> AutoencoderParameters:
        """What it was trained with."""
        return AutoencoderParameters(**self.meta["parameters"])

    @cached_property
    def module(self) -> ChargeDensityAutoencoder:
        """The network with its weights.

        Raises:
            EcdError: weights that do not fit.
        """
        import torch

        from ecdlib.models.torch_regressor import pick_device

        module = build_autoencoder(self.parameters)
        try:
            module.load_state_dict({k: torch.from_numpy(v) for k, v in self.weights.items()})
        except RuntimeError as error:
            raise EcdError(self.source, "its weights do not fit the network", "Train it again.") from error
        return module.eval().to(pick_device())

    def encode(self, grids: Floats) -> Floats:
        """``(n, edge, edge, edge)`` densities on the common grid to ``(n, channels, m, m, m)`` latents, float32."""
        return self._apply(self.module.encode, np.asarray(grids)[:, None])

    def decode(self, latents: Floats) -> Floats:
        """Latents to ``(n, edge, edge, edge)`` densities, e/Å³."""
        return self._apply(self.module.decode, latents)[:, 0]

    def _apply(self, function: Any, values: Floats) -> Floats:
        import torch

        where = next(self.module.parameters()).device
        with torch.no_grad():
            size = max(1, min(16, 2**22 // self.parameters.edge**3))  # as many as the memory easily holds
            parts = np.array_split(values, -(-len(values) // size) or 1)
            tensors = (torch.from_numpy(np.ascontiguousarray(p, dtype=np.float32)) for p in parts)
            done = [function(x.to(where)).cpu().numpy() for x in tensors]
        result: Floats = np.concatenate(done)
        return result

    def reconstruct(self, density: ChargeDensity) -> tuple[ChargeDensity, ChargeDensity]:
        """A density in the cell that the route uses, at its full resolution, and what comes back through the latent.

        On the periodic route this is the conventional cell; on the padded one the cell as it is, cut out of the grid.
        """
        p = self.parameters
        return self.in_cell(density, self.decode(self.encode(on_grid(density, p.edge, p.route)[None]))[0])

    def in_cell(self, density: ChargeDensity, grid: Floats) -> tuple[ChargeDensity, ChargeDensity]:
        """The same from what the network returns for it, ``(edge, edge, edge)``: many are decoded faster at once."""
        p, cell = self.parameters, density
        if p.route == "periodic":
            cell = common_cell(density, None)
        else:
            grid = grid[tuple(slice(n) for n in padded_shape(density.shape, p.edge))]
        return cell, cell.step("through the latent", values=resample(grid, cell.shape))

    def latent(self, density: ChargeDensity) -> Floats:
        """Latent of one density, ``(channels, m, m, m)``."""
        result: Floats = self.encode(on_grid(density, self.parameters.edge, self.parameters.route)[None])[0]
        return result


def build_autoencoder(p: AutoencoderParameters) -> ChargeDensityAutoencoder:
    """Untrained network."""
    from ecdlib.models.autoencoder import ChargeDensityAutoencoder

    padding: Literal["circular", "zeros"] = "circular" if p.route == "periodic" else "zeros"
    return ChargeDensityAutoencoder(POOLINGS[p.channels], p.channels, padding, p.batch_norm, p.dropout)


def train_autoencoder(
    p: AutoencoderParameters, out: Path, *, name: str = "ecd train-autoencoder", progress: bool = True
) -> Autoencoder:
    """Train on the bundled densities with the published split, and write the result; resumes between epochs.

    The loss is the mean squared error over the voxels of unscaled densities; each batch, or each of its crystals, is in
    one of 12 orientations, drawn anew in each epoch. On the padded route a few zeros stand for what lies far from
    the crystal (see :class:`ecdlib.features.padded_blocks.PaddedBlocks`), and batches are of crystals of like size.

    Args:
        out: file to write (``.npz``).
        name: of the notebook or command, for the provenance.

    Raises:
        EcdError: see :func:`ecdlib.models.torch_regressor.fit` and :func:`ecdlib.base.pieces.in_pieces`; a file of
            other parameters.
    """
    import torch

    from ecdlib.models.autoencoder import OnPartOfGrid, orientation
    from ecdlib.models.torch_regressor import TrainingSettings, fit

    if out.is_file():
        found: Autoencoder = load_model(out, KIND)
        p.confirm(found.meta["parameters"], out)
        return found
    split = original_split()
    chosen = np.ones(len(split), dtype=bool)
    if p.crystals:
        chosen[np.random.default_rng(p.seed).permutation(len(split))[p.crystals :]] = False
    train, validation = _parts(p, [chosen & (split == part) for part in ("train", "val")])
    settings = TrainingSettings(
        epochs=p.epochs,
        batch_size=p.batch_size,
        learning_rate=p.learning_rate,
        precision=p.precision,
        annealing=p.annealing,
        first_cycle=p.epochs,  # one fall of the learning rate to zero
        cycle_growth=1,
        seed=p.seed,
        patience=p.patience,
        checkpoint_every=2,
    )

    def turn(x: Any, generator: Any) -> Any:
        if p.turned == "batch":
            return orientation(x, int(torch.randint(12, (), generator=generator)))
        numbers = torch.randint(12, (len(x),), generator=generator).tolist()
        return torch.stack([orientation(one, number) for one, number in zip(x, numbers, strict=True)])

    def trained(checkpoint: Path) -> dict[str, Any]:
        torch.manual_seed(p.seed)
        module = build_autoencoder(p)
        history = fit(
            OnPartOfGrid(module, p.edge),
            train,
            None,
            settings,
            validation=(validation, None),
            augment=turn,
            device=p.device,
            checkpoint=checkpoint,
            progress=progress,
        )
        arrays = {f"weights/{k}": v.cpu().numpy() for k, v in module.state_dict().items()}
        return arrays | {"losses": np.array(history.train), "validation": np.array(history.validation)}

    if progress:
        print(f"{len(train)} training and {len(validation)} validation crystals, {p.edge} voxels an edge", flush=True)
    with in_pieces(out, name, p.model_dump()) as pieces:
        arrays = pieces.made("network", trained, pieces.checkpoint("network"))
        meta = {"kind": KIND, "parameters": p.model_dump(), "provenance": pieces.provenance()}
        meta["crystals"] = {"train": len(train), "val": len(validation)}
        write_archive(out, arrays, meta)
    written: Autoencoder = load_model(out, KIND)
    return written


def _parts(p: AutoencoderParameters, parts: Sequence[Any]) -> list[Any]:
    """The bundled densities of each part (a mask of them) as the network takes them."""
    import torch

    from ecdlib.features.padded_blocks import PaddedBlocks

    if p.route == "periodic":
        grids = bundled_grids(p.edge, p.route)
        tensors = (torch.from_numpy(grids[part][:, None]) for part in parts)
        return [each.contiguous(memory_format=torch.channels_last_3d) for each in tensors]
    blocks = bundled_blocks(p.edge)
    chosen = (sorted((blocks[i] for i in np.flatnonzero(part)), key=lambda block: max(block.shape)) for part in parts)
    return [PaddedBlocks.of(each, p.edge, p.edge // p.latent_edge) for each in chosen]


def training_share(p: AutoencoderParameters) -> float:
    """What share of the voxels of the grids is calculated in training."""
    from ecdlib.features.padded_blocks import PaddedBlocks

    if p.route == "periodic":
        return 1.0
    return PaddedBlocks.empty(bundled_shapes(p.edge), p.edge, p.edge // p.latent_edge).share


def original_split() -> Any:
    """``(988,)`` of ``"train"``, ``"val"``, ``"test"``: the published split, for the bundled densities."""
    return load_crystals().loc[bundled_names(), "original_split"].to_numpy()


def bundled_latents(trained: Autoencoder) -> Floats:
    """Latents of the bundled densities, ``(988, channels, m, m, m)``, in the order of their names.

    Computed once for each autoencoder (``_build/cache``), then read.
    """

    def make() -> Arrays:
        p = trained.parameters
        if p.route == "periodic" or p.edge <= 64:
            return {"latents": trained.encode(bundled_grids(p.edge, p.route))}
        blocks = tqdm(bundled_blocks(p.edge), desc="Latents")  # all grids at once are gigabytes
        return {"latents": np.concatenate([trained.encode(in_corner(block, p.edge)[None]) for block in blocks])}

    return cached("latents", make, trained.digest)["latents"]


def shipped_autoencoders() -> list[str]:
    """Names of the autoencoders that ship with the project."""
    return bundled_in("autoencoders")


def pooled(latents: Floats) -> Floats:
    """Mean, standard deviation and maximum of each channel over positions, ``(n, 3 channels)``.

    Hardly depends on the origin of the cell: an autoencoder with circular padding commutes with shifts of a whole
    latent voxel.
    """
    flat = latents.reshape(*latents.shape[:2], -1)
    return np.hstack([flat.mean(2), flat.std(2), flat.max(2)])
