"""The book's final test: a tenth of the crystals with densities, which no model has seen, asked once.

They are asked as their structures alone, and the cubic ones as CHGCARs without a POTCAR, by models that are trained
like the shipped ones but without any crystal of their formulas. Beside it, how a model does on elements it has not
seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ecdlib.base.errors import EcdError
from ecdlib.base.pieces import in_pieces
from ecdlib.data.tables import load_cubic_targets, load_structures
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.io import read_density, write_chgcar
from ecdlib.density.store import load_densities, load_density, load_selection
from ecdlib.density.valence import recognize
from ecdlib.features.collection import statistics
from ecdlib.learn.any_crystal import (
    ENDS,
    LEARNABLE,
    STRUCTURE,
    blocks_for,
    crystal_table,
    load_targets,
    scaled,
    take,
    unscaled,
)
from ecdlib.learn.crystal_model import HalfPrecision, train_crystal_model
from ecdlib.learn.inputs import StudyParameters, fits_of
from ecdlib.learn.intervals import NORMAL
from ecdlib.learn.lean import TrainingParameters, build, channel_settings, inputs, stack_channels
from ecdlib.learn.model_file import load_model
from ecdlib.learn.table import write_table
from ecdlib.models.group_gpr import GroupGPR
from ecdlib.models.stacked import COVERAGE

#: What is left out together, see :func:`without_cluster`; the first says how wide intervals are.
CLUSTERS: tuple[Literal["random", "prototypes", "pairs"], ...] = ("random", "prototypes", "pairs")


def as_chgcar(density: ChargeDensity) -> ChargeDensity:
    """A density after it was written as a CHGCAR and read again, without a word on its valence.

    Raises:
        EcdError: the file gets no answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "CHGCAR"
        write_chgcar(replace(density, convention=None, valence=None, potentials=None), path)
        return read_density(path)


def as_chgcars(names: list[str]) -> Iterator[ChargeDensity | None]:
    """Bundled densities as :func:`as_chgcar` gives them; None where the file gets no answer."""
    for name in names:
        density = load_density(name)
        try:
            yield as_chgcar(density)
        except EcdError:
            yield None


def run_held_out(out: Path) -> None:
    """Train without the held-out crystals and ask about them; resumable.

    Writes ``out``, a CSV of name, given (``"structure"``, ``"density"``), property, value, low, high and truth, and
    beside it ``<stem>.json`` with the number of densities whose valence was recognized and the provenance. Energies
    from a density are GPAW's, those from a structure the Materials Project's.
    """
    names = load_selection("held-out")
    formulas = {name.split("_")[0] for name in names}
    cubic = [name for name in names if name in load_densities("cubic-all")]
    with in_pieces(out, "held-out", {}) as pieces:
        labels, rows = load_targets().reindex(names), []
        trained = out.with_name("held-out-model.npz")
        for target, values in pieces.made("structure", _from_structures, names, formulas, trained).items():
            table = pd.DataFrame(values, columns=ENDS).assign(name=names, given="structure", property=target)
            rows.append(table.assign(truth=labels[target].to_numpy()))
        for target in ("bulk_modulus", "total_energy"):
            piece = pieces.made(target, _from_densities, target, cubic, formulas)
            table = pd.DataFrame(piece["answer"], columns=ENDS).assign(name=cubic, given="density", property=target)
            rows.append(table.assign(truth=piece["truth"]))
        recognized = pieces.load("bulk_modulus")["recognized"]
        note = {"densities": len(cubic), "answered": int((recognized >= 0).sum()), "right": int((recognized > 0).sum())}
        table = pd.concat(rows)[["name", "given", "property", *ENDS, "truth"]]
        write_table(out, table, {"valence": note, "provenance": pieces.provenance()})


def _from_structures(names: Sequence[str], without: set[str], trained: Path) -> dict[str, Any]:
    """Answers of the model of any crystal, trained without some formulas into a file that is removed, by property."""
    train_crystal_model(trained, without=without, name="held-out")
    model = load_model(trained)
    found = model.predict([load_structures()[name] for name in names])
    trained.unlink()
    return {target: found[target].to_numpy() for target in model.targets}


def _from_densities(target: str, names: list[str], without: set[str]) -> dict[str, Any]:
    """Answers of the default model of densities, trained without some formulas, and what was recognized: 1 the true
    valence, 0 another, -1 no answer."""
    given = {"model": "density-gpr", "target": target, "convention": "portable"}
    p = TrainingParameters.checked(given, source="held-out")
    labels = load_cubic_targets()
    kept = [name for name in labels.index if str(name).split("_")[0] not in without]
    model = build(p, progress=False).fit(inputs(p, kept), labels.loc[kept, target].to_numpy(dtype=float))
    answer, recognized = np.full((len(names), 3), np.nan), np.full(len(names), -1)
    for i, density in enumerate(as_chgcars(names)):
        if density is None:
            continue
        try:
            valence = recognize(density)
        except EcdError:
            continue
        recognized[i] = valence.electrons == recognize(load_density(names[i])).electrons
        channels = [
            {block: values[None] for block, values in statistics(density, s, valence, None).items()}
            for s in channel_settings(p)
        ]
        value, std = (float(x[0]) for x in model.predict(stack_channels(p.model, channels), return_std=True))
        answer[i] = value, value - NORMAL * std, value + NORMAL * std
    table = load_densities("cubic-all").table.loc[names]
    known = load_targets()["bulk_modulus"].reindex(names)
    truth = table["energy"] / table["n_atoms"] if target == "total_energy" else known
    return {"answer": answer, "recognized": recognized, "truth": truth.to_numpy(dtype=float)}


def without_element(target: Literal["bulk_modulus", "shear_modulus", "formation_energy"]) -> pd.DataFrame:
    """How far a model is off for the crystals of each element if it has seen none of them.

    The Gaussian process alone, from structures. Components and length scales are those of all crystals; what is left
    out are the crystals that hold the element, from the inverse of the whole kernel matrix, block by block (see
    :meth:`ecdlib.models.group_gpr.GroupGPR.cross_predict`).

    Returns:
        A row for each element of at least ten crystals, by its atomic number: n; ``unseen`` and ``seen``, mean errors
        of what is learned (the square root of a modulus, √GPa; an energy, eV/atom) without the element's crystals and
        with five random folds of them left out; ``covered``, the share within the 95 % interval that five folds give.
    """
    _, blocks, y, model = _process(target)
    holds = np.asarray(blocks["elements"]) > 0
    fold = np.random.default_rng(0).integers(0, 5, len(y))
    seen, spread = model.cross_predict(fold)
    half = np.quantile(np.abs(y - seen) / spread, 0.95)
    rows = {}
    for element in np.flatnonzero(holds.sum(0) >= 10):
        mine = holds[:, element]
        value, width = model.cross_predict(np.where(mine, 0, -1), only=0)
        miss = np.abs(y[mine] - value[mine])
        rows[int(element) + 1] = {
            "n": int(mine.sum()),
            "unseen": miss.mean(),
            "seen": np.abs(y - seen)[mine].mean(),
            "covered": (miss <= half * width[mine]).mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def without_cluster(target: Literal["bulk_modulus", "shear_modulus", "formation_energy"]) -> pd.DataFrame:
    """Predictions for all labelled crystals whose relatives are left out together, in five folds.

    The Gaussian process alone, from structures, as in :func:`without_element`.

    Returns:
        Columns scheme (``"random"``; ``"prototypes"``, whole prototypes at a time; ``"pairs"``, all crystals that hold
        one of some pairs of elements, see :func:`ecdlib.learn.inputs.fits_of`), name, value, low, high, truth: the
        intervals hold 95 % of the crystals of random folds.
    """
    labels, _, y, model = _process(target)
    names, learned, half, rows = [str(name) for name in labels.index], LEARNABLE[target], 0.0, []
    for scheme in CLUSTERS:
        value, spread = np.full((2, len(y)), np.nan)
        p = StudyParameters.checked({"scheme": scheme, "folds": 5}, source="clusters")
        for f in fits_of(names, p):
            found = model.cross_predict(np.where(f.train, -1, 0), only=0)
            value[f.test], spread[f.test] = (x[f.test] for x in found)
        half = half or float(np.quantile(np.abs(y - value) / spread, COVERAGE))
        ends = [unscaled(value + s * half * spread, learned) for s in (0, -1, 1)]
        table = pd.DataFrame(np.transpose(ends), columns=ENDS).assign(name=names, truth=labels[target].to_numpy())
        rows.append(table.assign(scheme=scheme)[np.isfinite(value)])
    return pd.concat(rows)[["scheme", "name", *ENDS, "truth"]]


def _process(target: str) -> tuple[pd.DataFrame, dict[str, Any], Floats, GroupGPR]:
    """Labelled crystals, their features and what is learned of them, and the process fitted to all of them."""
    labels, table = load_targets(), crystal_table()
    labels = labels[np.isfinite(labels[target])]
    blocks = take({block: table[block] for block in STRUCTURE}, pd.Index(table["name"]).get_indexer(labels.index))
    X = HalfPrecision(blocks_for(target, "structure")).fit(blocks)
    y = scaled(labels[target].to_numpy(), LEARNABLE[target])
    return labels, blocks, y, GroupGPR(X.groups).fit(X.transform(blocks), y)
