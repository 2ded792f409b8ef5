"""Densities on a common grid, trained autoencoders, and the latent database (LatentMatFusion paper, 2 and 4)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.fft
from pymatgen.core import Element
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.errors import DAMAGED, EcdError, atomic_write
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import bundled_in, data_file
from ecdlib.data.tables import load_crystals
from ecdlib.density.cell import conventional_cell, conventional_grid, resample, to_conventional
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_densities, load_selection

if TYPE_CHECKING:
    from ecdlib.book.parameters import AutoencoderParameters
    from ecdlib.models.autoencoder import ChargeDensityAutoencoder

Route = Literal["periodic", "padded"]
PUBLISHED_EDGE = 128  #: edge of the paper's grid
POOLINGS = {8: 4, 16: 3, 32: 2}  #: halvings of the grid for each number of latent channels
#: The autoencoder that the latent database and the shipped models use.
DEFAULT_AUTOENCODER = "periodic-16"


def common_cell(density: ChargeDensity, edge: int | None) -> ChargeDensity:
    """The conventional cell on ``(edge, edge, edge)`` voxels, at the origin of the space group's standard setting.

    ``edge=None`` keeps the input's resolution.

    Plane waves that the grid can hold are kept exactly, the others left out; electrons are conserved. Another cell of
    the same crystal (primitive, conventional, supercell) gives the same, up to the choice among axes and origins that
    the space group leaves open.

    Raises:
        EcdError: no crystal symmetry found.
    """
    cell = to_conventional(density, grid=None if edge is None else (edge, edge, edge))
    shift = np.asarray(density.symmetry(1e-2).origin_shift)  # conventional coordinates of the old origin
    if np.abs(shift - shift.round()).max() < 1e-6:
        return cell
    k = [np.fft.fftfreq(n, 1 / n) for n in cell.shape[:2]] + [np.fft.rfftfreq(cell.shape[2], 1 / cell.shape[2])]
    phase = shift[0] * k[0][:, None, None] + shift[1] * k[1][None, :, None] + shift[2] * k[2][None, None, :]
    values = scipy.fft.irfftn(scipy.fft.rfftn(cell.values) * np.exp(-2j * np.pi * phase), s=cell.shape)
    return cell.step("moved to the standard origin", values=values, positions=(cell.positions + shift) % 1)


def padded_grid(density: ChargeDensity, edge: int) -> Floats:
    """The paper's picture: the voxels as they come, in one corner of a grid of zeros ``(edge, edge, edge)``.

    With ``edge=128`` nothing is changed; with a smaller edge the density is resampled to as many voxels fewer, so that
    the picture is the same at a lower resolution. A density of more voxels than the grid is resampled to fit, as in
    the authors' public code. The shape of the cell is lost, its size is not; a periodic field is cut.
    """
    shape = padded_shape(density, edge)
    return np.pad(resample(density.values, shape), [(0, edge - n) for n in shape])


def padded_shape(density: ChargeDensity, edge: int) -> list[int]:
    """Voxels that a density fills of the padded grid along each axis."""
    return [min(edge, max(2, round(n * edge / PUBLISHED_EDGE))) for n in density.shape]


def on_grid(density: ChargeDensity, edge: int, route: Route) -> Floats:
    """Density on the common grid, ``(edge, edge, edge)``, e/Å³: :func:`common_cell` or :func:`padded_grid`."""
    return common_cell(density, edge).values if route == "periodic" else padded_grid(density, edge)


def bundled_names() -> list[str]:
    """Names of the bundled densities that the latents are made of: the selection ``densities-988``."""
    return load_selection("densities-988")


def bundled_grids(edge: int, route: Route) -> Floats:
    """These densities on the common grid, ``(988, edge, edge, edge)`` float32, in the order of the names.

    Computed once for each edge, data and code (``_build/cache``), then read.
    """

    def make() -> Arrays:
        stores = load_densities("cubic"), load_densities("general")
        bar = tqdm((d for store in stores for d in store), desc="Common grid", total=sum(len(s.table) for s in stores))
        return {"grids": np.stack([on_grid(density, edge, route).astype(np.float32) for density in bar])}

    return cached(f"grids-{route}-{edge}", make)["grids"]


@dataclass(frozen=True)
class Autoencoder:
    """A trained autoencoder: what ``ecd train-autoencoder`` wrote."""

    weights: dict[str, Floats]
    losses: Floats  #: training loss of each epoch, (e/Å³)²
    validation: Floats  #: validation loss of each epoch
    meta: dict[str, Any]  #: parameters, seconds, provenance
    source: str = ""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], source: str) -> Autoencoder:
        """From what :attr:`arrays` gave; other entries are left alone."""
        weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
        return cls(weights, arrays["losses"], arrays["validation"], json.loads(str(arrays["meta"])), source)

    @property
    def arrays(self) -> dict[str, Any]:
        """All of it as arrays, to be written."""
        rest = {"losses": self.losses, "validation": self.validation, "meta": np.array(json.dumps(self.meta))}
        return {f"weights/{k}": v for k, v in self.weights.items()} | rest

    @cached_property
    def parameters(self) -> AutoencoderParameters:
        """What it was trained with."""
        from ecdlib.book.parameters import AutoencoderParameters

        return AutoencoderParameters(**self.meta["parameters"])

    @cached_property
    def module(self) -> ChargeDensityAutoencoder:
        """The network with its weights.

        Raises:
            EcdError: weights that do not fit.
        """
        import torch

        module = build_autoencoder(self.parameters)
        try:
            module.load_state_dict({k: torch.from_numpy(v) for k, v in self.weights.items()})
        except RuntimeError as error:
            raise EcdError(self.source, "its weights do not fit the network", "Train it again.") from error
        return module.eval()

    def encode(self, grids: Floats) -> Floats:
        """``(n, edge, edge, edge)`` densities on the common grid to ``(n, channels, m, m, m)`` latents, float32."""
        return self._apply(self.module.encode, np.asarray(grids)[:, None])

    def decode(self, latents: Floats) -> Floats:
        """Latents to ``(n, edge, edge, edge)`` densities, e/Å³."""
        return self._apply(self.module.decode, latents)[:, 0]

    def _apply(self, function: Any, values: Floats) -> Floats:
        import torch

        with torch.no_grad():
            parts = np.array_split(values, max(1, len(values) // 16))
            done = [function(torch.from_numpy(np.ascontiguousarray(p, dtype=np.float32))).numpy() for p in parts]
        result: Floats = np.concatenate(done)
        return result

    def reconstruct(self, density: ChargeDensity) -> tuple[ChargeDensity, ChargeDensity]:
        """A density in the cell that the route uses, at its full resolution, and what comes back through the latent.

        On the periodic route this is the conventional cell; on the padded one the cell as it is, cut out of the grid.
        """
        p = self.parameters
        grid = self.decode(self.encode(on_grid(density, p.edge, p.route)[None]))[0]
        cell = density
        if p.route == "periodic":
            cell = common_cell(density, None)
        else:
            grid = grid[tuple(slice(n) for n in padded_shape(density, p.edge))]
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
    """Train on the bundled densities with the published split, and write the result.

    An interrupted run is resumed, a finished one read.

    The loss is the mean squared error over the voxels of unscaled densities, each batch in one of 12 orientations.

    Args:
        out: file to write (``.npz``).
        name: of the notebook or command, for the provenance.

    Raises:
        EcdError: see :func:`ecdlib.models.torch_regressor.fit`; a file of other parameters in the way.
    """
    import torch

    from ecdlib.models.autoencoder import orientation
    from ecdlib.models.torch_regressor import TrainingSettings, fit

    if out.is_file():
        if (found := load_autoencoder(out)).meta["parameters"] != p.model_dump():
            remedy = "Remove it, or choose another name with -o."
            raise EcdError(out, "holds an autoencoder of other parameters", remedy)
        return found
    made_by = provenance(name, p.model_dump(), 0)
    grids, split = bundled_grids(p.edge, p.route), original_split()
    chosen = np.ones(len(split), dtype=bool)
    if p.crystals:
        chosen[np.random.default_rng(p.seed).permutation(len(split))[p.crystals :]] = False
    train, validation = (
        torch.from_numpy(grids[chosen & (split == part)][:, None]).contiguous(memory_format=torch.channels_last_3d)
        for part in ("train", "val")
    )
    settings = TrainingSettings(
        epochs=p.epochs,
        batch_size=p.batch_size,
        learning_rate=p.learning_rate,
        first_cycle=p.epochs,  # one fall of the learning rate to zero
        cycle_growth=1,
        seed=p.seed,
        patience=p.patience,
        checkpoint_every=2,
    )
    torch.manual_seed(p.seed)
    module = build_autoencoder(p)
    begun = time.perf_counter()

    def turn(x: Any, generator: Any) -> Any:
        return orientation(x, int(torch.randint(12, (), generator=generator)))

    history = fit(
        module,
        train,
        None,
        settings,
        validation=(validation, None),
        augment=turn,
        device=p.device,
        checkpoint=out.with_suffix(".checkpoint"),
        progress=progress,
    )
    made_by["seconds"] = round(time.perf_counter() - begun, 1)
    meta = {"parameters": p.model_dump(), "crystals": {"train": len(train), "val": len(validation)}}
    meta["provenance"] = made_by
    weights = {k: v.cpu().numpy() for k, v in module.state_dict().items()}
    trained = Autoencoder(weights, np.array(history.train), np.array(history.validation), meta, str(out))
    with atomic_write(out) as temporary:
        np.savez_compressed(temporary, **trained.arrays)
    return trained


def original_split() -> Any:
    """``(988,)`` of ``"train"``, ``"val"``, ``"test"``: the published split, for the bundled densities."""
    return load_crystals().loc[bundled_names(), "original_split"].to_numpy()


def load_autoencoder(source: str | os.PathLike[str] = DEFAULT_AUTOENCODER) -> Autoencoder:
    """A trained autoencoder: the name of one that ships with the project, or a file of ``ecd train-autoencoder``.

    Raises:
        EcdError: missing or damaged file, no such name.
    """
    path, known = Path(source), shipped_autoencoders()
    if not path.is_file():
        if str(source) not in known:
            remedy = f"Give a file of `ecd train-autoencoder`, or one of: {', '.join(known)}."
            raise EcdError(source, "no such autoencoder", remedy)
        path = data_file(f"autoencoders/{source}.npz")
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            return Autoencoder.from_arrays(dict(z), str(path))
    except DAMAGED as error:
        raise EcdError(path, "is no readable autoencoder", "Make it with `ecd train-autoencoder`.") from error


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


@dataclass(frozen=True)
class LatentDatabase:
    """Latents of many densities with their crystals, and the autoencoder that decodes them: one small file.

    Example:
        >>> from ecdlib.learn.latents import load_latents
        >>> load_latents().decode("Fe3SnC_221").formula
        'Fe3SnC'
    """

    table: pd.DataFrame  #: formula, n_atoms, volume (Å³) and electrons of the conventional cell; indexed by name
    latents: Floats  #: ``(n, channels, m, m, m)``, kept as float16
    cells: Floats  #: ``(n, 3, 3)``, Å
    shapes: Any  #: ``(n, 3)``, voxels that a decoded density is given on
    positions: Sequence[Floats]  #: fractional coordinates
    numbers: list[Any]  #: atomic numbers
    convention: str  #: valence convention of the densities
    autoencoder: Autoencoder

    def row(self, name: str) -> int:
        """Number of a crystal.

        Raises:
            EcdError: no crystal of that name.
        """
        if name not in self.table.index:
            raise EcdError(name, "is not in the latent database", "Its names are those of `ecd data`.")
        return int(self.table.index.get_indexer(pd.Index([name]))[0])

    def decode(self, name: str, exact_electrons: bool = True) -> ChargeDensity:
        """The density that a latent stands for, on the conventional cell at its full number of voxels.

        Args:
            exact_electrons: scale it so that it holds the electrons it should; the network alone comes near.
        """
        i = self.row(name)
        values = resample(self.autoencoder.decode(self.latents[i : i + 1].astype(np.float32))[0], self.shapes[i])
        species = tuple(Element.from_Z(int(z)).symbol for z in self.numbers[i])
        decoded = ChargeDensity(
            values, self.cells[i], species, self.positions[i], name, self.convention or None, ("decoded from a latent",)
        )
        if not exact_electrons:
            return decoded
        factor = self.table["electrons"].iloc[i] / decoded.n_electrons
        return decoded.step(f"scaled by {factor:.5f} to its number of electrons", values=decoded.values * factor)

    @cached_property
    def _standardized(self) -> tuple[Floats, Floats, Floats]:
        values = pooled(self.latents.astype(np.float32))
        mean, scale = values.mean(0), values.std(0) + 1e-6
        return (values - mean) / scale, mean, scale

    @cached_property
    def spacing(self) -> Floats:
        """``(n,)``: distance of each crystal to its nearest neighbour in the database (see :meth:`nearest`), sorted."""
        points = self._standardized[0]
        nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)[0][:, 1]
        return np.sort(nearest)

    def nearest(self, latent: Floats, k: int = 5) -> pd.Series:
        """Names of the ``k`` crystals with the most similar latents, and their distances.

        The distance is Euclidean, between pooled latents (see :func:`pooled`), each in units of its deviation over
        the database.
        """
        points, mean, scale = self._standardized
        distance = np.linalg.norm(points - (pooled(latent[None]) - mean) / scale, axis=1)
        order = np.argsort(distance)[:k]
        return pd.Series(distance[order], index=self.table.index[order], name="distance")


def write_latents(path: str | os.PathLike[str], densities: Iterable[ChargeDensity], autoencoder: Autoencoder) -> None:
    """Encode densities into a latent database, atomically.

    Raises:
        EcdError: an autoencoder of the padded route (its latents know no cell), no densities, mixed conventions.
    """
    p = autoencoder.parameters
    if p.route != "periodic":
        raise EcdError(autoencoder.source, "a database needs the periodic route", "Train with -p route=periodic.")
    names, formulas, grids, cells, shapes, electrons = [], [], [], [], [], []
    positions: list[Floats] = []
    numbers: list[Any] = []
    conventions = set()
    for density in densities:
        if density.name in names:
            raise EcdError(density.name, "two densities of this name", "Give each file a name of its own.")
        cell = common_cell(density, p.edge)
        names.append(density.name)
        formulas.append(density.formula)
        grids.append(cell.values.astype(np.float32))
        cells.append(cell.lattice)
        shapes.append(conventional_grid(density, conventional_cell(density)[1]))
        electrons.append(cell.n_electrons)
        positions.append(cell.positions)
        numbers.append(cell.numbers)
        conventions.add(density.convention or "")
    if not names or len(conventions) > 1:
        problem = "no densities to encode" if not names else "densities of several valence conventions"
        raise EcdError(path, problem, "Give densities of one convention.")
    with atomic_write(path) as temporary, open(temporary, "wb") as f:
        np.savez_compressed(
            f,
            names=np.array(names),
            formulas=np.array(formulas),
            latents=autoencoder.encode(np.stack(grids)).astype(np.float16),
            cells=np.array(cells, dtype=np.float32),
            shapes=np.array(shapes, dtype=np.int16),
            electrons=np.array(electrons),
            offset=np.cumsum([0, *map(len, numbers)]),
            positions=np.concatenate(positions).astype(np.float32),
            numbers=np.concatenate(numbers).astype(np.uint8),
            convention=np.array(conventions.pop()),
            **autoencoder.arrays,
        )


def load_latents(path: str | os.PathLike[str] | None = None) -> LatentDatabase:
    """Read a latent database; by default that of the bundled densities.

    Raises:
        EcdError: missing or damaged file.
    """
    path = data_file("latents.npz") if path is None else Path(path)
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            a = dict(z)
        trained = Autoencoder.from_arrays(a, str(path))
        offset = a["offset"]
        cells = a["cells"].astype(np.float64)
        table = pd.DataFrame(
            {
                "formula": a["formulas"],
                "n_atoms": np.diff(offset),
                "volume": np.abs(np.linalg.det(cells)),
                "electrons": a["electrons"],
            },
            index=pd.Index(a["names"], name="name"),
        )
        positions = [x.astype(np.float64) for x in np.split(a["positions"], offset[1:-1])]
        numbers = np.split(a["numbers"], offset[1:-1])
        shapes, convention = a["shapes"], str(a["convention"])
        return LatentDatabase(table, a["latents"], cells, shapes, positions, numbers, convention, trained)
    except DAMAGED as error:
        raise EcdError(path, "is no readable latent database", "Make it with `ecd encode`.") from error
