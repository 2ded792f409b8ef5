"""Latents of densities: as features, and as a database of many densities (LatentMatFusion paper, 4)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Element
from sklearn.neighbors import NearestNeighbors

from ecdlib.base.archive import read_archive, write_archive
from ecdlib.base.errors import DAMAGED, EcdError
from ecdlib.base.resources import data_file
from ecdlib.density.cell import conventional_cell, conventional_grid, resample
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.superpose import SUPERPOSED, superpose
from ecdlib.density.valence import to_ours
from ecdlib.features.common_grid import common_cell
from ecdlib.features.transformers import Features, as_density, as_structure
from ecdlib.learn.autoencoder import DEFAULT_AUTOENCODER, Autoencoder, pooled
from ecdlib.learn.model_file import load_model


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
            raise EcdError(density.name, "two densities with this name", "Give each file its own name.")
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
        problem = "no densities to encode" if not names else "densities with several valence conventions"
        raise EcdError(path, problem, "Give densities of one convention.")
    arrays = {
        "names": np.array(names),
        "formulas": np.array(formulas),
        "latents": autoencoder.encode(np.stack(grids)).astype(np.float16),
        "cells": np.array(cells, dtype=np.float32),
        "shapes": np.array(shapes, dtype=np.int16),
        "electrons": np.array(electrons),
        "offset": np.cumsum([0, *map(len, numbers)]),
        "positions": np.concatenate(positions).astype(np.float32),
        "numbers": np.concatenate(numbers).astype(np.uint8),
        "convention": np.array(conventions.pop()),
    }
    write_archive(path, arrays | dict(autoencoder.arrays), autoencoder.meta)


def load_latents(path: str | os.PathLike[str] | None = None) -> LatentDatabase:
    """Read a latent database; by default that of the bundled densities.

    Raises:
        EcdError: missing or damaged file.
    """
    path = data_file("latents.npz") if path is None else Path(path)
    try:
        a, meta = read_archive(path)
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
        autoencoder = Autoencoder.from_file(a, meta, str(path))
        return LatentDatabase(
            table, a["latents"], cells, a["shapes"], positions, numbers, str(a["convention"]), autoencoder
        )
    except DAMAGED as error:
        raise EcdError(path, "is not a readable latent database", "Make it with `ecd encode`.") from error


@lru_cache(maxsize=4)
def _autoencoder(name: str) -> Autoencoder:
    found: Autoencoder = load_model(name, "autoencoder")
    return found


@dataclass(eq=False, repr=False)
class Latents(Features):
    """What an autoencoder keeps of a density (LatentMatFusion paper, 2), as features.

    The density is brought to the convention of our data, not smoothed, and to the grid of the autoencoder; of a
    structure it is that of its superposed atoms. Another cell of the same crystal gives the same. It needs the extra
    ``networks``.

    Args:
        pool: mean, standard deviation and maximum of each channel (:func:`ecdlib.learn.autoencoder.pooled`), which
            take crystals of any size alike; else all values of the latent.
        autoencoder: name of a shipped one, or a file of ``ecd train-autoencoder``.

    Example:
        >>> from ecdlib.density.store import load_density
        >>> Latents().transform([load_density("LiH_225")]).shape
        (1, 48)
        >>> Latents().get_feature_names_out()[[0, 16, 47]]
        array(['latent mean 0', 'latent std 0', 'latent max 15'], dtype=object)
    """

    pool: bool = True
    autoencoder: str = DEFAULT_AUTOENCODER

    def featurize(self, crystal: Any) -> Floats:
        """``(3 channels,)``, or ``(channels m³,)``."""
        if isinstance(crystal, (ChargeDensity, str, os.PathLike)):
            density = as_density(crystal)
        else:
            density = superpose(as_structure(crystal), "gpaw", smoothing=0)
        if not (density.convention or "").startswith(SUPERPOSED):
            density = to_ours(density)
        latent = _autoencoder(self.autoencoder).latent(density)
        return np.asarray(pooled(latent[None])[0] if self.pool else latent.ravel(), dtype=np.float64)

    def feature_labels(self) -> list[str]:
        """``latent mean 0`` is the mean of the first channel, ``latent 0 (1,2,3)`` one of its values."""
        p = _autoencoder(self.autoencoder).parameters
        if self.pool:
            return [f"latent {kind} {c}" for kind in ("mean", "std", "max") for c in range(p.channels)]
        m = p.latent_edge
        return [f"latent {c} ({x},{y},{z})" for c, x, y, z in np.ndindex(p.channels, m, m, m)]
