"""What ``ecd predict`` answers: the model that fits what was given, a density or a structure alone."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ecdlib.base.errors import EcdError
from ecdlib.density.core import ChargeDensity
from ecdlib.density.doubts import doubts
from ecdlib.density.io import read_density
from ecdlib.density.valence import recognize
from ecdlib.learn.domain import DEFAULT_MODEL
from ecdlib.learn.intervals import NORMAL
from ecdlib.learn.model_file import load_model
from ecdlib.learn.predict import conversion_lines, load_predictors, predict

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from ecdlib.learn.any_crystal import Inputs
    from ecdlib.learn.crystal_model import CrystalModel

#: Let what is given choose the model.
AUTO = "auto"
#: What an error about a structure names, until its file is known.
NO_DENSITY = "structure"


@dataclass(frozen=True)
class Answer:
    """Predictions for one crystal."""

    #: one a property: ``property``, ``value``, ``low`` and ``high`` (95 %), ``std``, ``unit``, ``model``, ``warnings``,
    #: ``conversion``, ``conversion_std`` (see :func:`ecdlib.learn.predict.predict`)
    records: list[dict[str, Any]]
    notes: list[str]  #: which model and why, what was done about the valence


def read_crystal(source: Any) -> ChargeDensity | Structure:
    """A density if a file holds one, else the structure that it holds.

    Args:
        source: see :func:`ecdlib.density.io.read_density` and :func:`ecdlib.data.structures.read_structure`; objects
            are taken as they are. A name of a bundled density is the density, that of another labelled crystal its
            structure.

    Raises:
        EcdError: neither can be read.

    Example:
        >>> import ecdlib as ecd
        >>> ecd.read("LiH_225")
        ChargeDensity(LiH_225: LiH, 28x28x28, 16.22 Å³, 2.000 electrons)
    """
    from ecdlib.data.structures import is_crystal_file, read_structure

    if isinstance(source, ChargeDensity):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return read_structure(source)
    path = Path(source)
    if is_crystal_file(path.name) and not (os.path.isfile(path) and _holds_grid(path)):
        return read_structure(path)
    if not os.path.exists(path) and re.fullmatch(r"[A-Za-z0-9().]+_\d+|mp-\d+", str(source)):
        from ecdlib.density.store import load_densities

        if not any(str(source) in load_densities(which) for which in ("cubic-all", "general-all")):
            return read_structure(source)
    return read_density(source)


def _holds_grid(path: Path) -> bool:
    """Whether a file named like a POSCAR goes on with a grid, as a CHGCAR does: three whole numbers in a line alone."""
    if path.suffix.lower() in (".gz", ".cif"):
        return False
    with open(path, "rb") as f:
        lines = f.read(200_000).decode(errors="replace").splitlines()
    return any(
        not before.strip() and len(line.split()) == 3 and all(word.isdigit() for word in line.split())
        for before, line in pairwise(lines[7:])
    )


@lru_cache(maxsize=2)
def structure_model(inputs: Inputs = "structure") -> CrystalModel:
    """The shipped model of structures."""
    from ecdlib.learn.crystal_model import MODELS

    return load_model(MODELS[inputs], "crystal")


_predictors = lru_cache(maxsize=4)(load_predictors)


@lru_cache(maxsize=4)
def _own_model(file: str) -> CrystalModel | None:
    """The model of structures that a file holds; None if it holds one of densities."""
    found = load_model(file) if file.endswith(".npz") else None
    return found if getattr(found, "meta", {}).get("kind") == "crystal" else None


def answer(
    crystal: ChargeDensity | Structure,
    model: str | os.PathLike[str] = AUTO,
    calibration: str | os.PathLike[str] | None = None,
    potential: bool = False,
) -> Answer:
    """Properties of one crystal.

    A structure is answered by the model of structures. So is a density, but for what the model of self-consistent
    densities knows of cubic crystals: the total energy is its own, and the bulk modulus is shared (see
    :func:`density_share`).

    Args:
        model: by default what is given decides; else a model of densities (see
            :func:`ecdlib.learn.predict.load_predictors`), or a file of ``ecd train --labels``.
        calibration: see :func:`ecdlib.learn.predict.predict`.
        potential: of a structure, and of a density for all but its total energy, take the elastic tensor by a
            foundation potential, too (:func:`ecdlib.features.sevennet.potential_tensors`): seconds to minutes.

    Raises:
        EcdError: a crystal or density that the model cannot take; see also
            :meth:`ecdlib.learn.crystal_model.CrystalModel.predict`.

    Example:
        >>> import ecdlib as ecd
        >>> found = ecd.answer(ecd.load_structures()["NaCl_225"])
        >>> found.notes[0].partition(";")[0]
        'structure: model crystal'
        >>> record = found.records[0]
        >>> record["property"], record["unit"], record["low"] < record["value"] < record["high"]
        ('bulk modulus', 'GPa', True)
    """
    from ecdlib.density.superpose import SUPERPOSED, structure_of

    inputs: Inputs = "structure+potential" if potential else "structure"
    model = os.fspath(model)
    if (own_labels := _own_model(model)) and not potential:
        structure = structure_of(crystal) if isinstance(crystal, ChargeDensity) else crystal
        records = structure_records(structure, own=own_labels)
        return Answer(records, [f"structure: {_model(records)}"])
    if model != AUTO:
        if potential or not isinstance(crystal, ChargeDensity):
            remedy = "Leave --model out, or give a density and no potential."
            raise EcdError(NO_DENSITY, f"cannot be answered by {model}, a model of densities", remedy)
        records = [_with_interval(r, model) for r in predict(crystal, _predictors(model), calibration)]
        return Answer(records, _conversion(records))
    if not isinstance(crystal, ChargeDensity):
        records = structure_records(crystal, inputs)
        return Answer(records, [f"structure: {_model(records)}"])
    if (crystal.convention or "").startswith(SUPERPOSED):
        records = [{**r, "file": crystal.name} for r in structure_records(structure_of(crystal), inputs)]
        return Answer(records, [f"superposed atoms say no more than the structure: {_model(records)}"])
    odd, dataset = doubts(crystal), crystal.symmetry(1e-2)
    energy: list[dict[str, Any]] = []
    modulus: list[dict[str, Any]] = []
    if dataset is not None and dataset.number >= 195:
        own = [_with_interval(r, DEFAULT_MODEL) for r in predict(crystal, _predictors(DEFAULT_MODEL), calibration)]
        energy, modulus = ([r for r in own if r["property"] == name] for name in ("total energy", "bulk modulus"))
        share = 100 * density_share(inputs)[0]
        what = f"cubic density: {DEFAULT_MODEL} gives the total energy and counts {share:.0f} % in the bulk modulus; "
        what += "the rest, from its structure, by "
    else:
        if crystal.valence is not None:
            recognize(crystal)  # a valence that is stated and cannot be is refused all the same
        what = "density that is not cubic, answered from its structure (few such densities were there to learn from): "
    found = structure_records(structure_of(crystal), inputs, skip=[r["property"] for r in energy])
    rest = [{**r, "file": crystal.name, "warnings": [*odd, *r["warnings"]]} for r in found]
    if modulus:
        rest = [_shared(r, modulus[0], inputs) if r["property"] == "bulk modulus" else r for r in rest]
    return Answer([*energy, *rest], [what + _model(found), *_conversion(energy or rest)])


@lru_cache(maxsize=2)
def density_share(inputs: Inputs) -> tuple[float, float]:
    """How much the density counts in the bulk modulus of a cubic crystal, and how wide the interval is then.

    The share is the one with the smallest mean error over the 892 crystals that the model of densities knows, each
    predicted by models of densities and of structures that have not seen it; the width, in those of the intervals from
    the structure alone, is the smallest that holds 95 % of them.
    """
    from ecdlib.models.stacked import COVERAGE

    by_density, by_structure = _left_out(inputs)
    truth = by_density["truth"]
    value, low, high = (by_structure[end] for end in ("value", "low", "high"))
    shares = np.linspace(0, 1, 21)
    means = [s * by_density["value"] + (1 - s) * value for s in shares]
    best = int(np.argmin([(mean - truth).abs().mean() for mean in means]))
    miss = truth - means[best]
    width = np.maximum(np.where(miss < 0, value - low, high - value), 1e-9)
    return float(shares[best]), float(np.quantile(miss.abs() / width, COVERAGE))


@lru_cache(maxsize=2)
def _left_out(inputs: Inputs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Bulk moduli of cubic crystals by models of densities (value, truth) and of structures (value, low, high), none of
    which has seen the crystal."""
    from ecdlib.learn.any_crystal import ENDS

    result = next(p.model for p in _predictors(DEFAULT_MODEL) if p.target == "bulk_modulus").result  # type: ignore[attr-defined]
    t, model = result.column("bulk_modulus"), structure_model(inputs)
    density = pd.DataFrame({"value": result.crossed[:, t], "truth": result.truth[:, t]}, result.names)
    rows = model.arrays["bulk_modulus/rows"]
    structure = pd.DataFrame(model.arrays["bulk_modulus/out of fold"], model.arrays["names"][rows], ENDS).astype(float)
    both = density.index.intersection(structure.index)
    return density.loc[both], structure.loc[both]


def _shared(structure: dict[str, Any], density: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """The bulk modulus of a cubic crystal from its structure and its density."""
    share, width = density_share(inputs)
    known = _left_out(inputs)[0]["value"]
    by_density = float(known.get(structure["seen"], density["value"]))
    value = share * by_density + (1 - share) * structure["value"]
    more = NORMAL * share * density["conversion_std"]
    below, above = (float(np.hypot(width * abs(structure[end] - structure["value"]), more)) for end in ("low", "high"))
    low, high = max(value - below, 0.0), value + above
    kept = {key: density[key] for key in ("conversion", "conversion_std", "warnings")}
    warnings = list(dict.fromkeys([*density["warnings"], *structure["warnings"]]))
    std, model = (high - low) / (2 * NORMAL), f"{structure['model']} and {density['model']}"
    return {
        **structure,
        **kept,
        "value": value,
        "low": low,
        "high": high,
        "std": std,
        "model": model,
        "warnings": warnings,
    }


def _conversion(records: Sequence[dict[str, Any]]) -> list[str]:
    return [line.partition(": ")[2] for line in conversion_lines(records)]


def _model(records: Sequence[dict[str, Any]]) -> str:
    """Name of the model of structures, and whether it knows the crystal."""
    name = next((r["seen"] for r in records if r["seen"]), "")
    seen = f"; {name} is one of its training crystals: each value is by a model that has not seen it" if name else ""
    return f"model {records[0]['model']}{seen}"


def _with_interval(record: dict[str, Any], model: str) -> dict[str, Any]:
    low, high = (record["value"] + s * NORMAL * record["std"] for s in (-1, 1))
    if record["property"] == "bulk modulus":
        low = max(low, 0.0)
    return record | {"low": low, "high": high, "model": model, "seen": ""}


def structure_records(
    structure: Structure, inputs: Inputs = "structure", skip: Sequence[str] = (), own: CrystalModel | None = None
) -> list[dict[str, Any]]:
    """Records of :class:`Answer` for a structure, by a shipped model of structures.

    A training crystal (same formula, space group and volume) gets the predictions of models that have not seen it.
    Elastic constants of a crystal that is not cubic are answered with a potential only, in the IEEE frame: the features
    of its structure do not change when it turns.

    Args:
        inputs: of the model.
        skip: properties, in words, that are left out.
        own: a model of own labels instead.
    """
    from ecdlib.data.structures import structure_warnings
    from ecdlib.learn.crystal_model import MODELS, ORIENTED, space_group

    model = own or structure_model(inputs)
    warnings = structure_warnings(structure)
    symbols = {site.specie.Z: site.specie.symbol for site in structure}
    if unseen := [symbols[z] for z in sorted(set(symbols) - model.elements)]:
        warnings.append(f"no training crystal holds {', '.join(unseen)}")
    name = model.seen(structure)
    found = model.out_of_fold(name) if name else None
    if found is None:
        found = model.predict([structure], progress=inputs != "structure").iloc[0].unstack()[["value", "low", "high"]]
    oriented = inputs == "structure+potential" or space_group(structure) >= 195
    records = []
    for target, row in found.iterrows():
        words = str(target).replace("_", " ")
        if words in skip or (target in ORIENTED and not oriented) or not np.isfinite(row["value"]):
            continue
        value, low, high = (float(row[end]) for end in ("value", "low", "high"))
        if str(target).startswith("is_"):  # a probability is an uncertainty
            low = high = float("nan")
        records.append(
            {
                "file": structure.composition.reduced_formula,
                "property": words,
                "value": value,
                "std": (high - low) / (2 * NORMAL),
                "low": low,
                "high": high,
                "unit": model.unit(str(target)),
                "model": own.source if own else MODELS[inputs],
                "conversion": "",
                "conversion_std": 0.0,
                "warnings": list(warnings),
                "seen": name or "",
            }
        )
    return records


def interval(record: dict[str, Any]) -> str:
    """The 95 % interval of a record in words."""
    low, high = record["low"], record["high"]
    return f"{low:.4g} to {high:.4g}" if low == low else ""


def table(answers: Sequence[Answer]) -> pd.DataFrame:
    """All records as a table; warnings as text."""
    frame = pd.DataFrame([record for each in answers for record in each.records])
    return frame.assign(warnings=frame["warnings"].map("; ".join)).drop(columns="seen")


def predictions(
    crystal: Any,
    model: str | os.PathLike[str] = AUTO,
    calibration: str | os.PathLike[str] | None = None,
    potential: bool = False,
) -> pd.DataFrame:
    """Properties of one crystal, one a row.

    Args:
        crystal: what :func:`read_crystal` takes: a density, a structure (pymatgen or ASE), or a file of either.
        model, calibration, potential: see :func:`answer`; ``potential=True`` is ``--with sevennet`` of
            ``ecd predict``.

    Returns:
        Columns ``file``, ``property``, ``value``, ``std``, ``low`` and ``high`` (95 %), ``unit``, ``model``,
        ``conversion`` (what was done about the valence) and ``conversion_std``, ``warnings``.

    Raises:
        EcdError: see :func:`read_crystal` and :func:`answer`.

    Example:
        >>> import ecdlib as ecd
        >>> from pymatgen.core import Lattice, Structure
        >>> rocksalt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.9), ["Ca", "O"], [[0, 0, 0], [0.5, 0, 0]])
        >>> ecd.predict(rocksalt).set_index("property").loc["bulk modulus", "unit"]
        'GPa'
    """
    return table([answer(read_crystal(crystal), model, calibration, potential)])


def named(done: Answer, file: str) -> Answer:
    """The same under the name of a file."""
    return replace(done, records=[{**record, "file": file} for record in done.records])
