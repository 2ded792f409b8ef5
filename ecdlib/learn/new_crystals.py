"""Crystals that no list holds, with bulk moduli and densities of our own: the models asked about what they are for.

Labelled crystals are those that somebody found worth a calculation. Prototypes filled with elements drawn at random
are not (``data/make/new_crystals.py``), and no formula of theirs is in any list of the book, so that the shipped models
have not seen them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Structure
from tqdm import tqdm

from ecdlib.base.provenance import provenance
from ecdlib.base.resources import data_file
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_densities
from ecdlib.density.superpose import structure_of
from ecdlib.features.composition import magpie_features
from ecdlib.features.crystal import crystal_features
from ecdlib.features.deformation import state_features
from ecdlib.features.potential import tensor_features
from ecdlib.features.sevennet import potential_tensors
from ecdlib.learn.answer import answer
from ecdlib.learn.any_crystal import ENDS, INNER_FOLDS, STRUCTURE, crystal_table, load_targets
from ecdlib.learn.crystal_model import HalfPrecision, fit_property, standard
from ecdlib.learn.domain import DEFAULT_MODEL
from ecdlib.learn.held_out import as_chgcar
from ecdlib.learn.inputs import INPUTS, TARGETS, fit_and_predict, hill_moduli, study_blocks, study_names, study_truth
from ecdlib.learn.intervals import membership
from ecdlib.learn.protocol import Fit, fold_numbers
from ecdlib.learn.table import write_table

#: Sets of inputs that the same model is asked with, as in the chapter on what the calculation adds.
STUDIED = tuple(INPUTS)[:15]
#: What ``ecd predict`` is given: a file, the same with the potential, a CHGCAR without POTCAR, and that one for the
#: model of densities alone.
GIVEN = ("structure", "structure+potential", "density", DEFAULT_MODEL)


def load_new_crystals() -> pd.DataFrame:
    """Labels, indexed by name (``formula_spacegroup``).

    Columns: formula, prototype; a (Å, of the cubic cell), bulk_modulus (GPa), derivative of it by the pressure,
    basis_pressure (GPa, of the finite basis), rms (meV, of the fitted energies), cutoff (eV), seconds. Their densities
    are ``load_densities("new")``.

    Example:
        >>> bool((load_new_crystals()["bulk_modulus"] > 0).all())
        True
    """
    table = pd.read_csv(data_file("new_crystals.csv"))
    return table[table["name"].notna()].set_index("name").drop(columns="problem")


def run_new_crystals(out: Path) -> None:
    """Ask the shipped models, and one model with one set of inputs after another, for the bulk moduli.

    Writes ``out``, a CSV of name, given (:data:`GIVEN`, or a set of inputs of :data:`STUDIED` after ``"study: "``, or
    ``"potential alone"``), value, low, high and truth, GPa; and beside it ``<stem>.json`` with the provenance.

    Raises:
        EcdError: the extra ``potential`` is not installed.
    """
    begun = time.time()
    labels, densities = load_new_crystals(), load_densities("new")
    names = list(labels.index)
    rows = [_answered(densities[name], given) for given in GIVEN for name in names]
    table = pd.DataFrame(rows, columns=["name", "given", *ENDS])
    for given, values in _studied([densities[name] for name in names]).items():
        table = pd.concat([table, pd.DataFrame({"name": names, "given": given, "value": values})])
    table["truth"] = labels["bulk_modulus"].loc[table["name"]].to_numpy()
    write_table(out, table, {"provenance": provenance("data/make/splits.py", {}, time.time() - begun)})


def _answered(density: ChargeDensity, given: str) -> tuple[Any, ...]:
    """Name, what was given, value, low and high of the bulk modulus, as ``ecd predict`` answers."""
    asked: Any = structure_of(density)
    if not given.startswith("structure"):
        asked = as_chgcar(density)
    chosen = {"model": DEFAULT_MODEL} if given == DEFAULT_MODEL else {"potential": given.endswith("potential")}
    found = answer(asked, **chosen).records
    record = next(r for r in found if r["property"] == "bulk modulus")
    return density.name, given, *(record[end] for end in ENDS)


def run_among_themselves(out: Path) -> None:
    """What labels of crystals that nobody has made are worth: most of the new ones train, too, the others are asked.

    Models, inputs (:data:`STUDIED` without the potential) and the other training crystals are those of
    :func:`run_new_crystals`; the labels of other new crystals are added, in ten folds drawn at random (seed 0). So it
    is with the shipped model of structures (``"any crystal"``), in its five inner folds, which all its training
    crystals take part in. Writes ``out``, a CSV of name, given, value, low, high and truth, GPa; and beside it
    ``<stem>.json`` with the provenance and, as ``labelled``, the mean error of that model for labelled crystals without
    and with the new ones, and the standard error of the difference.
    """
    begun = time.time()
    labels, densities = load_new_crystals(), load_densities("new")
    names = list(labels.index)
    blocks, truth, new = _known_and_new([densities[name] for name in names])
    known = truth[new, 0] = labels["bulk_modulus"].to_numpy()
    fold = fold_numbers(len(names), 10, 0)
    given = [inputs for inputs in STUDIED if "potential" not in inputs]
    tables = []
    for inputs in tqdm(given, "Inputs"):
        value = np.full(len(names), np.nan)
        for k in range(10):
            asked = new.copy()
            asked[new] = fold == k
            value[fold == k] = _predicted(blocks, inputs, truth, Fit("new", ~asked, asked))
        tables.append(pd.DataFrame({"name": names, "given": inputs, "value": value}))
    answers, labelled = _any_crystal({name: structure_of(densities[name]) for name in names}, known)
    table = pd.concat([*tables, pd.DataFrame(answers, names, ENDS).rename_axis("name").reset_index()])
    table = table.fillna({"given": "any crystal"}).assign(truth=labels["bulk_modulus"].loc[table["name"]].to_numpy())
    note = {"labelled": labelled, "provenance": provenance("data/make/splits.py", {}, time.time() - begun)}
    write_table(out, table, note)


def _any_crystal(structures: dict[str, Structure], values: Floats) -> tuple[Floats, dict[str, float]]:
    """The model of any crystal, trained with further crystals: what it says of each of them, left out, ``(n, 3)``; and
    its errors for labelled crystals without and with them."""
    table, labels = crystal_table(), load_targets()[["bulk_modulus"]]
    more = crystal_features(map(standard, structures.values()))
    row = pd.Index(table["name"]).get_indexer(labels.index)
    found = []
    for further in (0, len(structures)):
        blocks = {b: np.concatenate([table[b][row], more[b][:further]]) for b in STRUCTURE}
        new = pd.DataFrame({"bulk_modulus": values[:further]}, list(structures)[:further])
        every = pd.concat([labels, new])
        member = membership([int(name.split("_")[1]) for name in every.index], blocks["elements"])
        parts = [n for n in (int(labels["bulk_modulus"].notna().sum()), further) if n]
        fold = np.concatenate([fold_numbers(n, INNER_FOLDS, 0) for n in parts])
        scaler = HalfPrecision(STRUCTURE).fit(blocks)
        made = fit_property("bulk_modulus", "structure", every, blocks, scaler, member, {}, fold=fold)
        found.append(made["out of fold"].astype(float))
    truth = labels["bulk_modulus"].dropna().to_numpy()
    before, after = (np.abs(answers[: len(truth), 0] - truth) for answers in found)
    error = float((after - before).std(ddof=1) / np.sqrt(len(truth)))
    return found[1][len(truth) :], {"without": before.mean(), "with": after.mean(), "standard_error": error}


def _studied(densities: list[ChargeDensity]) -> dict[str, Floats]:
    """GPa by set of inputs ``(n,)``, by models that were trained on all bundled cubic densities."""
    tensors = potential_tensors([structure_of(density) for density in densities], [d.name for d in densities])
    potential = tensor_features(tensors)
    blocks, truth, new = _known_and_new(densities, potential)
    fit = Fit("new", ~new, new)
    found = {f"study: {inputs}": _predicted(blocks, inputs, truth, fit) for inputs in STUDIED}
    found["potential alone"] = hill_moduli(potential)[:, 0]
    found["mean"] = np.full(len(densities), truth[~new, 0].mean())
    return found


def _known_and_new(
    densities: list[ChargeDensity], potential: Floats | None = None
) -> tuple[dict[str, Floats], Floats, NDArray[np.bool_]]:
    """All bundled cubic densities and new ones behind them: blocks of features, labels of the known, and which are new.

    Args:
        potential: block of the new crystals; left out if None.
    """
    known = study_names("cubic-all")
    blocks, truth = study_blocks("cubic-all", known), study_truth(known)
    states = [state_features(density) for density in densities]
    mine = {state: np.stack([s[state] for s in states]) for state in states[0]} | {
        "composition": magpie_features([density.formula for density in densities]),
        "volume": np.log([[d.volume / len(d.species)] for d in densities]),
    }
    if potential is not None:
        mine["potential"] = potential
    every = {block: np.vstack([blocks[block], mine[block]]) for block in mine}
    labels = np.vstack([truth, np.full((len(densities), len(TARGETS)), np.nan)])
    labels[:, TARGETS.index("total_energy")] = np.nan  # not asked for
    return every, labels, np.arange(len(labels)) >= len(known)


def _predicted(blocks: dict[str, Floats], inputs: str, labels: Floats, fit: Fit) -> Floats:
    """Bulk moduli of the crystals that a fit tests, GPa."""
    return fit_and_predict(blocks, INPUTS[inputs], labels, fit, subset=250, steps=15, seed=0)[fit.test, 0]
