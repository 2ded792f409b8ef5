"""Studies that chapters on cubic crystals show: each takes minutes, so its table ships with its provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecdlib.base.pieces import in_pieces
from ecdlib.base.progress import tqdm
from ecdlib.data.tables import load_cubic_targets
from ecdlib.density.cell import compare_conversions
from ecdlib.density.core import Floats
from ecdlib.density.store import load_densities
from ecdlib.features.autocorrelation import QUANTILES
from ecdlib.learn.lean import TrainingParameters, build, inputs
from ecdlib.learn.lean_claims import EVERY, SIZE, TARGETS, coarse
from ecdlib.learn.protocol import cross_validate, fold_numbers
from ecdlib.learn.table import write_table
from ecdlib.models.density_gpr import DensityGPR
from ecdlib.models.forest import magpie_forest

SCRIPT = "data/make/lean_studies.py"
#: Of the learning curve: sizes of the training part, divisions for each model, epochs with all training crystals.
SIZES, REPEATS, EPOCHS = 5, 4, 100
#: Groups that the elements are dealt into; crystals with one of a group are left out together.
GROUPS = 10


def run_conversion(out: Path) -> None:
    """Each bundled density brought to the conventional cell by the exact and by the trilinear route.

    Writes ``out``, a CSV of what :func:`ecdlib.density.cell.compare_conversions` gives, and its provenance.
    """
    with in_pieces(out, SCRIPT, {}) as pieces:
        table = pd.DataFrame(pieces.made("all", _conversions))
        write_table(out, table, {"provenance": pieces.provenance()}, digits=None)


def _conversions() -> dict[str, Any]:
    stores = [load_densities(which) for which in ("cubic", "general")]
    every = tqdm((d for s in stores for d in s), desc="Converting", total=sum(len(s.names) for s in stores))
    table = pd.DataFrame(map(compare_conversions, every))
    columns = {str(name): column.to_numpy() for name, column in table.items()}
    return columns | {"name": columns["name"].astype(str)}


def _parameters(**values: Any) -> TrainingParameters:
    return TrainingParameters.checked({"device": "cpu"} | values, source=SCRIPT)


def run_channels(out: Path) -> None:
    """What each channel of a portable density contributes: ten-fold cross-validation of a Gaussian process on one.

    The folds are those of the models on both channels and on raw densities, whose predictions ship as results.

    Writes ``out``, a CSV of name, property, truth and the prediction from each channel, and its provenance.
    """
    labels = load_cubic_targets()
    names = list(labels.index)
    with in_pieces(out, SCRIPT, {"folds": 10}) as pieces:
        both = inputs(_parameters(model="density-gpr", convention="portable"), names)
        X = dict(zip(("smoothed", "chemical valence"), np.split(both, 2, axis=1), strict=True))
        tables = []
        for target in TARGETS:
            y = labels[target].to_numpy()
            found = {"name": names, "property": target, "truth": y}
            for label, features in X.items():
                make = partial(DensityGPR, log_target=target == TARGETS[0])
                found[label] = pieces.made(f"{label.split()[0]}-{target}", _out_of_fold, make, features, y)["values"]
            tables.append(pd.DataFrame(found))
        write_table(out, pd.concat(tables), {"provenance": pieces.provenance()})


def _out_of_fold(make: Callable[[], Any], X: Floats, y: Floats) -> dict[str, Any]:
    return {"values": cross_validate(make, X, y, progress=False)["prediction"].to_numpy()}


def run_learning_curve(out: Path) -> None:
    """Errors of models trained on parts of the training crystals.

    The Gaussian process on the density is trained on both targets, with :data:`REPEATS` random test tenths. The
    octahedral Model A is trained on the bulk modulus, on a grid of 17 points of 0.6 Å, with the same number of steps
    for every size; it has the same test tenths, and another seed for each.

    Writes ``out``, a CSV of model, property, repeat, crystals (that train) and MAE, and its provenance.
    """
    labels = load_cubic_targets()
    names = list(labels.index)
    settings = {"sizes": SIZES, "repeats": REPEATS, "epochs": EPOCHS, "size": SIZE, "voxel": 0.2 * EVERY}
    with in_pieces(out, SCRIPT, settings) as pieces:
        X = {"density-gpr": inputs(_parameters(model="density-gpr"), names)}
        X["octahedral-a"] = coarse(X["density-gpr"][:, : -len(QUANTILES)])
        rows = []
        runs = [*product(["density-gpr"], TARGETS), ("octahedral-a", TARGETS[0])]
        for (model, target), repeat in product(runs, range(REPEATS)):
            y = labels[target].to_numpy()
            test = fold_numbers(len(y), 10, repeat) == 0
            order = np.random.default_rng(repeat).permutation(np.flatnonzero(~test))
            for size in np.geomspace(100, len(order), SIZES).astype(int):
                epochs = round(EPOCHS * len(order) / size)
                given = {"model": model, "target": target, "seed": repeat}
                if model == "octahedral-a":
                    given |= {"epochs": epochs, "first_cycle": epochs, "size": SIZE, "voxel": 0.2 * EVERY}
                piece = f"{model}-{target}-{repeat}-{size}"
                errors = pieces.made(piece, _errors_of_part, given, X[model], y, order[:size], test)["values"]
                rows.append((model, target, repeat, size, float(errors.mean())))
        table = pd.DataFrame(rows, columns=["model", "property", "repeat", "crystals", "MAE"])
        write_table(out, table, {"provenance": pieces.provenance()})


def _errors_of_part(given: Mapping[str, Any], X: Floats, y: Floats, part: Any, test: Any) -> dict[str, Any]:
    model = build(_parameters(**given), progress=False).fit(X[part], y[part])
    return {"values": np.abs(model.predict(X[test]) - y[test])}


def run_unseen_elements(out: Path) -> None:
    """Errors for crystals with an element that the model has not seen, on the density and on the composition.

    The elements are dealt into :data:`GROUPS` groups, and all crystals with one of a group are left out together; of a
    crystal that is left out several times the errors are averaged.

    Writes ``out``, a CSV of name, property and the mean absolute error of each model; and beside it the provenance and
    the largest share of crystals that was left out at once.
    """
    from pymatgen.core import Composition

    labels = load_cubic_targets()
    names = list(labels.index)
    formulas = [name.rpartition("_")[0] for name in names]
    elements = [{str(e) for e in Composition(f)} for f in formulas]
    groups = np.array_split(np.random.default_rng(0).permutation(sorted(set().union(*elements))), GROUPS)
    left_out = np.array([[not e.isdisjoint(group) for e in elements] for group in groups])
    with in_pieces(out, SCRIPT, {"groups": GROUPS}) as pieces:
        density = inputs(_parameters(model="density-gpr"), names)
        tables = []
        for target in TARGETS:
            y = labels[target].to_numpy()
            gaussian = partial(DensityGPR, log_target=target == TARGETS[0])
            forest = partial(magpie_forest, 100, 0)
            found = {
                "name": names,
                "property": target,
                "density": pieces.made(f"density-{target}", _errors_without, gaussian, density, y, left_out)["values"],
                "composition": pieces.made(
                    f"composition-{target}", _errors_without, forest, np.array(formulas), y, left_out
                )["values"],
            }
            tables.append(pd.DataFrame(found))
        note = {"largest share": float(left_out.mean(axis=1).max()), "provenance": pieces.provenance()}
        write_table(out, pd.concat(tables), note)


def _errors_without(make: Callable[[], Any], X: Any, y: Floats, left_out: Any) -> dict[str, Any]:
    errors = np.full(left_out.shape, np.nan)
    for row, new in zip(errors, left_out, strict=True):
        row[new] = np.abs(make().fit(X[~new], y[~new]).predict(X[new]) - y[new])
    return {"values": np.nanmean(errors, axis=0)}
