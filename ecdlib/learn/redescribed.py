"""The same crystal, described otherwise: rotated pictures and supercells through fusion models (LatentMatFusion, 7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecdlib.base.pieces import in_pieces
from ecdlib.data.properties import labelled
from ecdlib.density.cell import supercell
from ecdlib.density.core import Floats
from ecdlib.density.store import load_density
from ecdlib.features.common_grid import padded_grid
from ecdlib.learn.autoencoder import Autoencoder
from ecdlib.learn.fusion import FusionParameters, inputs, make_model
from ecdlib.learn.model_file import load_model
from ecdlib.learn.table import write_table

#: Degrees; a whole quarter turn is a renaming of axes.
ANGLES = tuple(range(0, 91, 15))
AXES = ("first", "second", "third")
#: Crystals of Fig S7, which train no model here, and the supercells that they are compared in.
PAIR = ("AlCu3_225", "CaMg2_194")
CELLS = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 2, 2))
CRYSTALS = 40
MODELS = ("lightgbm", "attention")
INPUTS = ("latent", "latent+magpie")


def rotated_pictures(picture: Floats, axis: int, angles: Sequence[float] = ANGLES) -> Floats | None:
    """The block of voxels that a density fills of the padded grid, rotated in a frame that grows with it.

    Voxels are interpolated linearly; the block is put back into the corner.

    Args:
        picture: ``(edge, edge, edge)``, see :func:`ecdlib.features.common_grid.padded_grid`.
        axis: about which it is rotated.

    Returns:
        ``(angles, edge, edge, edge)``; None if a rotated block does not fit.
    """
    from scipy.ndimage import rotate

    edge = len(picture)
    ends = [np.flatnonzero(np.abs(picture).sum(other)).max() + 1 for other in ((1, 2), (0, 2), (0, 1))]
    block, plane = picture[tuple(map(slice, ends))], tuple(a for a in range(3) if a != axis)
    turned = [rotate(block, angle, axes=plane, reshape=True, order=1) for angle in angles]
    if max(max(each.shape) for each in turned) > edge:
        return None
    return np.stack([np.pad(each, [(0, edge - n) for n in each.shape]) for each in turned])


def run_redescribed(rotations: Path, supercells: Path) -> None:
    """Predictions of all properties by both regressors, with and without MAGPIE, from padded latents; resumable.

    Trees with fixed hyperparameters and the attention network (40 epochs) learn from the published train and
    validation crystals without those of Fig S7. Writes two CSV files with the columns model, inputs, property, crystal
    and predicted, each with ``<stem>.json`` beside it: ``rotations`` also has axis, angle and ``kept``, the share of
    the voxels' sum that is left after the rotation, for 40 of the published test crystals drawn with seed 0 as far as
    their rotated blocks fit; ``supercells`` has cell.
    """
    settings = {"angles": ANGLES, "cells": CELLS, "crystals": CRYSTALS, "epochs": 40}
    with in_pieces(rotations, "data/make/redescribed.py", settings) as pieces:
        padded: Autoencoder = load_model("padded-16", "autoencoder")
        crystals, *_ = inputs(FusionParameters.checked({}))
        unseen = (crystals["original_split"] == "test").to_numpy()
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(unseen))[:CRYSTALS]
        turned, latents = _rotated([str(name) for name in crystals.index[chosen]], padded)
        cells = [(name, cell) for name in PAIR for cell in CELLS]
        repeated = np.stack([padded.latent(supercell(load_density(name), cell)).ravel() for name, cell in cells])
        tables: dict[Path, list[pd.DataFrame]] = {rotations: [], supercells: []}
        cases = {
            rotations: (turned, latents),
            supercells: (
                pd.DataFrame({"crystal": [n for n, _ in cells], "cell": ["×".join(map(str, c)) for _, c in cells]}),
                repeated,
            ),
        }
        rows = {out: crystals.index.get_indexer(pd.Index(table["crystal"])) for out, (table, _) in cases.items()}
        for model in MODELS:
            for given in INPUTS:
                p = FusionParameters.checked(
                    {"model": model, "inputs": given, "autoencoder": "padded-16", "epochs": 40, "device": "cpu"}
                )
                _, X, n_density = inputs(p)
                composition = X[:, n_density:]  # no columns without MAGPIE
                train = ~unseen & ~crystals.index.isin(PAIR)
                for target in labelled("fusion"):
                    y = crystals[target].to_numpy(dtype=float)
                    known = train & np.isfinite(y)
                    asked = {out.stem: np.hstack([Z, composition[rows[out]]]) for out, (_, Z) in cases.items()}
                    piece = f"{model}-{given}-{target}"
                    values = pieces.made(piece, _predictions, make_model(p, n_density), X[known], y[known], asked)
                    for out, (table, _) in cases.items():
                        row = {"model": model, "inputs": given, "property": target}
                        tables[out].append(table.assign(**row, predicted=values[out.stem]))
        for out, parts in tables.items():
            write_table(out, pd.concat(parts), {"provenance": pieces.provenance()})


def _predictions(model: Any, X: Floats, y: Floats, asked: dict[str, Floats]) -> dict[str, Floats]:
    fitted = model.fit(X, y)
    return {name: fitted.predict(features) for name, features in asked.items()}


def _rotated(names: Sequence[str], padded: Autoencoder) -> tuple[pd.DataFrame, Floats]:
    """Crystal, axis, angle and share kept of each rotated picture, and its latent."""
    rows, latents = [], []
    for name in names:
        picture = padded_grid(load_density(name), padded.parameters.edge)
        pictures = {axis: rotated_pictures(picture, a) for a, axis in enumerate(AXES)}
        fitting = {axis: each for axis, each in pictures.items() if each is not None}
        for axis, each in fitting.items() if len(fitting) == len(AXES) else ():
            kept = each.sum((1, 2, 3)) / picture.sum()
            rows += [{"crystal": name, "axis": axis, "angle": a, "kept": k} for a, k in zip(ANGLES, kept, strict=True)]
            latents.append(padded.encode(each).reshape(len(ANGLES), -1))
    return pd.DataFrame(rows), np.concatenate(latents)
