"""What an autoencoder leaves of densities, crystal by crystal (LatentMatFusion paper, 4)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecdlib.base.progress import tqdm
from ecdlib.base.provenance import provenance
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_density
from ecdlib.features.common_grid import bundled_names, on_grid, padded_shape
from ecdlib.learn.autoencoder import Autoencoder, bundled_latents, original_split
from ecdlib.learn.model_file import load_model
from ecdlib.learn.table import write_table
from ecdlib.models.fusion_lightgbm import FusionScaler

NEAR = 1.0  #: Å, around a nucleus
AT_ONCE = 16  #: densities that are held on grids
POINTS = 32  #: along each axis of the grid on which the electrons near nuclei are counted


def near_nuclei(*densities: ChargeDensity) -> list[Floats]:
    """Electrons within :data:`NEAR` of each nucleus ``(n_atoms,)``, of densities of the same cell and atoms."""
    cell = densities[0]
    fields = [resample(density.values, (POINTS,) * 3) for density in densities]
    metric = cell.lattice @ cell.lattice.T
    inside = []
    for position in np.array(cell.positions):
        x = np.ix_(*((np.arange(POINTS) / POINTS - position[:, None] + 0.5) % 1 - 0.5))
        squared = sum(metric[i, j] * x[i] * x[j] for i in range(3) for j in range(3))
        inside.append(squared < NEAR**2)
    voxel = cell.volume / POINTS**3
    return [np.array([field[near].sum() for near in inside]) * voxel for field in fields]


def lost_atoms(before: ChargeDensity, after: ChargeDensity) -> NDArray[np.bool_]:
    """Which atoms come back with less than half of the electrons near their nuclei, ``(n_atoms,)``."""
    electrons, left = near_nuclei(before, after)
    lost: NDArray[np.bool_] = left < 0.5 * electrons
    return lost


def reconstruction_errors(
    trained: Autoencoder, densities: Sequence[ChargeDensity], grids: Iterable[Floats]
) -> pd.DataFrame:
    """Errors of densities that have gone through the latent.

    Args:
        grids: the densities on the autoencoder's grid, ``(edge, edge, edge)`` each.

    Returns:
        Rows by crystal. Over the network's grid: ``grid_mse`` ((e/Å³)²), ``grid_mae`` (e/Å³); over the own cell at its
        full resolution: ``mse``, ``mae``, ``relative`` (mae in percent of the mean density), ``bare`` (the same of the
        grid alone, without a network), ``electrons`` (percent that are missing or too many); ``mean`` density (e/Å³),
        ``metals`` (metallic elements only), ``atoms`` and ``lost`` (of them, see :func:`lost_atoms`).
    """
    from pymatgen.core import Element

    p, rows, left = trained.parameters, [], iter(grids)
    for start in range(0, len(densities), AT_ONCE):
        some = densities[start : start + AT_ONCE]
        given = np.stack(list(itertools.islice(left, len(some))))
        back_on_grid = trained.decode(trained.encode(given))
        for density, grid, decoded in zip(some, given, back_on_grid, strict=True):
            cell, back = trained.in_cell(density, decoded)
            mean = cell.n_electrons / cell.volume
            shape = padded_shape(cell.shape, p.edge) if p.route == "padded" else [p.edge] * 3
            bare = resample(resample(cell.values, shape), cell.shape)
            error = back.values - cell.values
            rows.append(
                {
                    "crystal": density.name,
                    "grid_mse": float(((decoded - grid) ** 2).mean()),
                    "grid_mae": float(np.abs(decoded - grid).mean()),
                    "mse": (error**2).mean(),
                    "mae": np.abs(error).mean(),
                    "relative": 100 * np.abs(error).mean() / mean,
                    "bare": 100 * np.abs(bare - cell.values).mean() / mean,
                    "electrons": 100 * (back.n_electrons / cell.n_electrons - 1),
                    "mean": mean,
                    "metals": all(Element(e).is_metal for e in set(cell.species)),
                    "atoms": len(cell.species),
                    "lost": int(lost_atoms(cell, back).sum()),
                }
            )
    return pd.DataFrame(rows).set_index("crystal")


def run_reconstruction(out: Path, name: str, components: int = 512) -> None:
    """Write the errors of a shipped autoencoder for the test crystals of the published split, and their provenance.

    With them go the variance of each one's latent, ``spread``, and what principal components of the others' hold of
    it, ``held`` (see :meth:`ecdlib.models.fusion_lightgbm.FusionScaler.spread`).
    """
    begun, trained = time.perf_counter(), load_model(name, "autoencoder")
    p, names, unseen = trained.parameters, np.array(bundled_names()), original_split() == "test"
    densities = [load_density(crystal) for crystal in names[unseen]]
    grids = (on_grid(density, p.edge, p.route) for density in tqdm(densities, desc="Reconstruction"))
    table = reconstruction_errors(trained, densities, grids)
    latents = bundled_latents(trained).reshape(len(names), -1).astype(float)
    scaler = FusionScaler(latents.shape[1], components).fit(latents[~unseen])
    table["spread"], table["held"] = scaler.spread(latents[unseen])
    made = provenance("data/make/reconstruction.py", {"autoencoder": name}, time.perf_counter() - begun)
    write_table(out, table.reset_index(), {"provenance": made})
