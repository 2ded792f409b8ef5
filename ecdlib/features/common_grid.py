"""Densities on a grid that all crystals have in common (LatentMatFusion paper, 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pandas as pd
import scipy.fft

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.progress import tqdm
from ecdlib.density.cell import resample, to_conventional
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_densities, load_selection

Route = Literal["periodic", "padded"]
PUBLISHED_EDGE = 128  #: edge of the paper's grid


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
    return in_corner(padded_block(density, edge), edge)


def in_corner(block: Floats, edge: int) -> Floats:
    """A block in the corner of a grid of zeros ``(edge, edge, edge)`` that cells begin at."""
    return np.pad(block, [(0, edge - n) for n in block.shape])


def padded_shape(shape: Sequence[int], edge: int) -> list[int]:
    """Voxels that a density of so many voxels fills of the padded grid along each axis."""
    return [min(edge, max(2, round(n * edge / PUBLISHED_EDGE))) for n in shape]


def padded_block(density: ChargeDensity, edge: int) -> Floats:
    """The part of :func:`padded_grid` that the density fills."""
    return resample(density.values, padded_shape(density.shape, edge))


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
        grids = np.empty((len(bundled_names()), edge, edge, edge), dtype=np.float32)
        for row, grid in _of_each(lambda density: on_grid(density, edge, route)):
            grids[row] = grid
        return {"grids": grids}

    return cached(f"grids-{route}-{edge}", make)["grids"]


def bundled_blocks(edge: int) -> list[Floats]:
    """What these densities fill of padded grids, float32, in the order of the names; computed once, too."""

    def make() -> Arrays:
        blocks = dict(_of_each(lambda density: padded_block(density, edge).astype(np.float32)))
        return {"values": np.concatenate([blocks[row].ravel() for row in sorted(blocks)])}

    shapes = bundled_shapes(edge)
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(cached(f"blocks-{edge}", make)["values"], ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def bundled_shapes(edge: int) -> list[list[int]]:
    """The shapes of these blocks, without reading the densities."""
    grids = pd.concat([load_densities(which).table["grid"] for which in ("cubic", "general")])
    return [padded_shape(grid, edge) for grid in grids.loc[bundled_names()]]


def _of_each(function: Callable[[ChargeDensity], Floats]) -> Iterator[tuple[int, Floats]]:
    """What a function gives for each bundled density, with its place among the names; in the fastest order to read."""
    stores = load_densities("cubic"), load_densities("general")
    row = {name: i for i, name in enumerate(bundled_names())}
    bar = tqdm((store[name] for store in stores for name in store.fastest), desc="Common grid", total=len(row))
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda density: (row[density.name], function(density)), bar)
