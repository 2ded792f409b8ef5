"""Elastic moduli from crystal structures: data, folds, the ensemble and its uncertainty (CGCNN elasticity, 3)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.optimize import minimize

from ecdlib.base.errors import DAMAGED, EcdError, atomic_write
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import bundled_in, data_file
from ecdlib.base.workers import available_cores, in_processes
from ecdlib.book.parameters import CgcnnParameters
from ecdlib.data.properties import PROPERTIES, UNITS, labelled
from ecdlib.data.tables import crystal_system, load_crystals, load_matbench_elasticity, load_structures
from ecdlib.density.core import Floats
from ecdlib.features.graphs import CrystalGraphs, cached_graphs, crystal_graphs
from ecdlib.learn.evaluation import scores
from ecdlib.learn.experiments import read_partial, save_partial
from ecdlib.models.cgcnn import CGCNN, atom_vectors
from ecdlib.models.six_features import SIX_FEATURE_MODELS, six_features
from ecdlib.models.torch_regressor import TorchRegressor, TrainingSettings, pick_device, set_aside

#: Targets on each set of crystals. Moduli and Debye temperatures are learned as logarithms to base 10.
TARGETS: dict[str, dict[str, str]] = {
    "matbench": {t: UNITS[t] for t in labelled("matbench")},
    "fusion": {t: UNITS[t] for t in labelled("fusion")},
}
LOGARITHMIC = {t for t, p in PROPERTIES.items() if p.logarithmic}
TRAIN, VALIDATION, TEST = 0, 1, 2


def matbench_crystals(official: bool = False) -> pd.DataFrame:
    """The 6,732 Matbench entries that have a structure here, indexed by its name (see ``load_structures``).

    With ``official=True`` all 10,987, indexed by their K ids (see :func:`official_structures`).

    Columns: formula, spacegroup, crystal_system, bulk_modulus, shear_modulus (GPa), fold (0 to 4, official), and the
    published out-of-fold predictions published_bulk_modulus, published_shear_modulus (GPa).
    """
    table = load_matbench_elasticity()
    if not official:
        table = table[table["structure"].notna()]
    return pd.DataFrame(
        {
            "formula": table["formula"].to_numpy(),
            "spacegroup": table["spacegroup"].to_numpy(),
            "crystal_system": [crystal_system(n) for n in table["spacegroup"]],
            "bulk_modulus": 10 ** table["log10_K_VRH"].to_numpy(),
            "shear_modulus": 10 ** table["log10_G_VRH"].to_numpy(),
            "fold": table["fold_K"].to_numpy(),
            "published_bulk_modulus": 10 ** table["cgcnn2019_log10_K"].to_numpy(),
            "published_shear_modulus": 10 ** table["cgcnn2019_log10_G"].to_numpy(),
        },
        index=pd.Index(table["mbid_K" if official else "structure"], name="name"),
    )


def official_structures() -> dict[str, Structure]:
    """Matbench's own structures of all 10,987 entries by their K ids, by matminer (``$MATMINER_DATA``, or fetched).

    Raises:
        EcdError: no copy here and no network, or a file whose labels are not those of the table.
    """
    from matminer.datasets import load_dataset

    remedy = "Put matbench_log_kvrh.json.gz into a folder and set MATMINER_DATA to it, or go on without."
    try:
        frame = load_dataset("matbench_log_kvrh")
        names = [f"mb-log-kvrh-{i:05d}" for i in range(1, len(frame) + 1)]
        found = pd.Series(frame["log10(K_VRH)"].to_numpy(dtype=float), index=names)
    except Exception as error:  # matminer lets through whatever the network raises
        raise EcdError("Matbench's data set", f"could not be loaded ({error})", remedy) from error
    labels = load_matbench_elasticity().set_index("mbid_K")["log10_K_VRH"]
    if len(found) != len(labels) or not np.allclose(found, labels[names], atol=1e-6):
        raise EcdError("Matbench's data set", "holds other crystals or labels than the table of folds", remedy)
    return dict(zip(names, frame["structure"], strict=True))


@dataclass(frozen=True)
class Problem:
    """What is learned: crystals, labels ``(n, targets)`` in their units, and who tests in which fold."""

    names: list[str]
    structures: list[Structure]
    truth: Floats
    tested: NDArray[np.bool_]  #: ``(folds, n)``
    spacegroups: NDArray[np.int64]
    targets: list[str]


def load_problem(p: CgcnnParameters) -> Problem:
    """Crystals, labels and folds: Matbench's five official ones, or the published split of LatentMatFusion.

    Raises:
        EcdError: a target that these crystals do not have; see also :func:`official_structures`.
    """
    structures = official_structures() if p.crystals == "matbench-official" else load_structures()
    if p.crystals.startswith("matbench"):
        table = matbench_crystals(p.crystals == "matbench-official")
        table = table[table.index.isin(list(structures))]
        tested = np.stack([(table["fold"] == k).to_numpy() for k in range(5)])
    else:
        table = load_crystals()
        tested = (table["original_split"] == "test").to_numpy()[None]
    targets = list(TARGETS[p.crystals.removesuffix("-official")])
    if p.target != "all":
        if p.target not in targets:
            raise EcdError(f"target={p.target}", f"is no target on crystals={p.crystals}", f"Take {targets} or all.")
        targets = [p.target]
    if p.sample:
        chosen = np.sort(np.random.default_rng(p.seed).permutation(len(table))[: p.sample])
        table, tested = table.iloc[chosen], tested[:, chosen]
    if p.folds == "first":
        tested = tested[:1]
    truth = table[targets].to_numpy(dtype=float)
    names = list(table.index)
    return Problem(names, [structures[n] for n in names], truth, tested, table["spacegroup"].to_numpy(), targets)


def to_learned(values: Floats, targets: Sequence[str]) -> Floats:
    """Labels as they are learned: logarithms to base 10 of moduli and Debye temperatures, energies as they are."""
    logs = np.array([t in LOGARITHMIC for t in targets])
    return np.where(logs, np.log10(np.where(logs, values, 1)), values)


def from_learned(values: Floats, targets: Sequence[str]) -> Floats:
    """The reverse of :func:`to_learned`."""
    logs = np.array([t in LOGARITHMIC for t in targets])
    return np.where(logs, 10 ** np.where(logs, values, 0), values)


def make_network(p: CgcnnParameters, n_targets: int, seed: int, checkpoint: Path) -> TorchRegressor:
    """Unfitted network of one member of the ensemble: one cosine from the initial learning rate to zero."""
    settings = TrainingSettings(
        epochs=p.epochs,
        batch_size=p.batch_size,
        learning_rate=p.learning_rate,
        first_cycle=p.epochs,
        cycle_growth=1,
        precondition=False,
        seed=seed,
        held_out=p.held_out,
    )
    return TorchRegressor(lambda: CGCNN(n_targets), settings, p.device, str(checkpoint), progress=False)


@dataclass(frozen=True)
class ElasticityResult:
    """All predictions of one model, in the targets' units; NaN where there is none."""

    names: NDArray[np.str_]
    truth: Floats  #: ``(n, targets)``
    role: NDArray[np.int8]  #: ``(folds, n)``: :data:`TRAIN`, :data:`VALIDATION` or :data:`TEST` for the first member
    fitted: Floats  #: ``(folds, n, targets)`` by the first member, also of crystals that it was trained on
    crossed: Floats  #: ``(n, targets)`` mean of the members that have not seen the crystal (of logarithms)
    spread: Floats  #: ``(n, targets)`` standard deviation of these members, of what is learned (logarithms)
    meta: dict[str, Any]  #: parameters, targets, provenance; errors on test crystals by "fold-member"

    @property
    def targets(self) -> list[str]:
        """Names of the columns."""
        return list(self.meta["targets"])

    def scores(self, target: str, role: int = TEST) -> dict[str, float]:
        """Errors: ``MAE``, ``R2`` in the unit; ``log MAE``, ``log R2`` of what is learned; averaged over folds.

        Args:
            role: of the crystals in each fold; of the first member.
        """
        t = self.targets.index(target)
        rows = []
        for k in range(len(self.role)):
            chosen = (self.role[k] == role) & np.isfinite(self.truth[:, t])
            rows.append(_errors(self.truth[chosen, t], self.fitted[k, chosen, t], target))
        return {str(k): float(v) for k, v in pd.DataFrame(rows).mean().items()}

    def ensemble_scores(self, target: str) -> dict[str, float]:
        """The same errors of the whole ensemble on test crystals, all folds together."""
        t = self.targets.index(target)
        known = np.isfinite(self.truth[:, t]) & np.isfinite(self.crossed[:, t])
        return {"n": int(known.sum())} | _errors(self.truth[known, t], self.crossed[known, t], target)


def _errors(truth: Floats, predicted: Floats, target: str) -> dict[str, float]:
    plain = scores(truth, predicted)
    learned = scores(*(to_learned(v[:, None], [target])[:, 0] for v in (truth, predicted)))
    return {k: plain[k] for k in ("MAE", "RMSE", "R2")} | {f"log {k}": learned[k] for k in ("MAE", "RMSE", "R2")}


def run_elasticity(
    p: CgcnnParameters, out: Path, *, name: str = "ecd train-cgcnn", progress: bool = True
) -> ElasticityResult:
    """Train on each fold's training crystals, predict the others, write all predictions; resumes between fits.

    A tenth of the training crystals (``p.held_out``) is set aside in each fit: the network keeps the weights of the
    epoch that is best on them, as the paper does; another member of the ensemble sets others aside.

    Raises:
        EcdError: a target that these crystals do not have, or a file of other parameters in the way.
    """
    if out.is_file():
        if (finished := load_elasticity(out)).meta["parameters"] != p.model_dump():
            raise EcdError(out, "holds a result of other parameters", "Remove it, or choose another name with -o.")
        return finished
    problem = load_problem(p)
    learned = to_learned(problem.truth, problem.targets)
    members = p.members if p.model == "cgcnn" else 1
    partial = out.with_suffix(".partial.npz")
    made_by = provenance(name, p.model_dump(), 0)
    label = json.dumps([p.model_dump(), made_by["data"], made_by["commit"]])
    done: dict[str, Any] = {"label": label, "made_by": json.dumps(made_by)}
    if partial.is_file():
        done = read_partial(partial)
        if str(done["label"]) != label:
            problem_is = "holds an interrupted run of other parameters, data or sources"
            raise EcdError(partial, problem_is, "Remove it, or use them.")
    fits = [(k, member) for member in range(members) for k in range(len(problem.tested))]
    todo = [fit for fit in fits if "{}-{}".format(*fit) not in done]
    X = _inputs(p, problem)
    calls = [(p, X, learned, problem.tested[k], k, m, out) for k, m in todo]
    for i, (predicted, seconds) in in_processes(_fit_and_predict, calls, _workers(p)):
        k, member = todo[i]
        done[f"{k}-{member}"], done[f"seconds-{k}-{member}"] = predicted, seconds
        save_partial(partial, done)
        if progress:
            error = np.nanmean(np.abs(predicted - learned)[problem.tested[k]], axis=0)
            print(f"fold {k}, member {member}: {error.round(4)}, {seconds:.0f} s", flush=True)
    role = np.stack([_roles(p, tested) for tested in problem.tested])
    made_by = json.loads(str(done["made_by"]))
    made_by["seconds"] = round(sum(float(v) for key, v in done.items() if key.startswith("seconds-")), 1)
    each_error = {
        f"{k}-{m}": np.nanmean(np.abs(done[f"{k}-{m}"] - learned)[problem.tested[k]], axis=0).tolist() for k, m in fits
    }
    crossed, spread = np.full(learned.shape, np.nan), np.full(learned.shape, np.nan)
    for k, tested in enumerate(problem.tested):
        each = np.stack([done[f"{k}-{member}"] for member in range(members)])[:, tested]
        crossed[tested] = each.mean(0)
        spread[tested] = each.std(0, ddof=1) if members > 1 else np.nan
    fitted = np.stack([from_learned(done[f"{k}-0"].astype(float), problem.targets) for k in range(len(role))])
    meta = {"parameters": p.model_dump(), "targets": problem.targets, "provenance": made_by, "errors": each_error}
    with atomic_write(out) as temporary:
        np.savez_compressed(
            temporary,
            names=np.array(problem.names),
            truth=problem.truth.astype(np.float32),
            role=role,
            fitted=fitted.astype(np.float32),
            crossed=from_learned(crossed, problem.targets).astype(np.float32),
            spread=spread.astype(np.float32),
            meta=np.array(json.dumps(meta)),
        )
    partial.unlink()
    return load_elasticity(out)


def _roles(p: CgcnnParameters, tested: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Who trains the first member, who chooses its epoch, who tests."""
    role = np.where(tested, TEST, TRAIN).astype(np.int8)
    train = np.flatnonzero(~tested)
    role[train[set_aside(len(train), p.held_out, p.seed)[0].numpy()]] = VALIDATION
    return role


def _workers(p: CgcnnParameters) -> int:
    """On a CPU one process a core; a GPU is shared by none."""
    return available_cores() if pick_device(p.device).type == "cpu" else 1


def _inputs(p: CgcnnParameters, problem: Problem) -> Any:
    """What the model takes: graphs, or six numbers a crystal."""
    if p.model != "cgcnn":
        return six_features(problem.structures, problem.spacegroups)
    if p.ties and p.distinct:
        return cached_graphs(problem.structures)
    return crystal_graphs(problem.structures, p.ties, p.distinct)


def _fit_and_predict(
    p: CgcnnParameters, X: Any, learned: Floats, tested: NDArray[np.bool_], k: int, member: int, out: Path
) -> tuple[NDArray[np.float32], float]:
    """One fit: predictions ``(n, targets)`` of all crystals as they are learned, seconds."""
    begun = time.perf_counter()
    if p.model == "cgcnn":
        train = np.flatnonzero(~tested)
        network = make_network(p, learned.shape[1], p.seed + member, out.with_suffix(f".{k}-{member}.checkpoint"))
        network.fit(X[torch.from_numpy(train)], learned[train])
        predicted = network.predict(X).reshape(learned.shape)
    else:
        fitted, predicted = _roles(p, tested) == TRAIN, np.empty(learned.shape)
        for t in range(learned.shape[1]):
            known = fitted & np.isfinite(learned[:, t])
            predicted[:, t] = SIX_FEATURE_MODELS[p.model](p.seed).fit(X[known], learned[known, t]).predict(X)
    return predicted.astype(np.float32), time.perf_counter() - begun


def load_elasticity(path: str | os.PathLike[str]) -> ElasticityResult:
    """Read what :func:`run_elasticity` wrote.

    Raises:
        EcdError: missing or damaged file.
    """
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            arrays = {key: z[key] for key in ("names", "truth", "role", "fitted", "crossed", "spread")}
            return ElasticityResult(**arrays, meta=json.loads(str(z["meta"])))
    except DAMAGED as error:
        raise EcdError(path, "is no readable result", "Make it with `ecd train-cgcnn`.") from error


def shipped_elasticity() -> dict[str, ElasticityResult]:
    """Results that ship with the project, by the name of their file."""
    return {name: load_elasticity(data_file(f"elasticity/{name}.npz")) for name in bundled_in("elasticity")}


def calibrate(error: Floats, spread: Floats) -> Floats:
    """(a, b) of the standard deviation σ² = a² + (b s)² that errors have where the members differ by s.

    Maximum likelihood for errors that are normally distributed, all in the unit of what is learned.

    >>> rng = np.random.default_rng(0)
    >>> s = rng.uniform(0.01, 0.1, 20_000)
    >>> [round(float(v), 2) for v in calibrate(rng.normal(0, np.hypot(0.05, 1.5 * s)), s)]
    [0.05, 1.51]
    """

    def loss(logs: Floats) -> float:
        variance = np.exp(logs[0]) + np.exp(logs[1]) * spread**2
        return float((np.log(variance) + error**2 / variance).mean())

    start = np.log([np.mean(error**2) / 2, np.mean(error**2) / np.mean(spread**2) / 2])
    a, b = np.exp(minimize(loss, start, method="Nelder-Mead").x / 2)
    return np.array([a, b])


def _deviations(result: ElasticityResult) -> tuple[Floats, Floats]:
    """Errors of the ensemble and spreads of its members, both of what is learned; NaN where there is none."""
    if not np.isfinite(result.spread).any():
        raise EcdError("uncertainty", "one network has none", "Take members=2 or more.")
    return to_learned(result.crossed, result.targets) - to_learned(result.truth, result.targets), result.spread


def calibrated(result: ElasticityResult) -> Floats:
    """``(n, targets)`` standard deviations of what is learned, each fold calibrated on the other folds.

    Raises:
        EcdError: a single network, or a single fold.
    """
    error, spread = _deviations(result)
    if len(result.role) < 2:
        raise EcdError("uncertainty", "one fold cannot be calibrated on others", "Take folds=all.")
    std = np.full(error.shape, np.nan)
    for k in range(len(result.role)):
        own = result.role[k] == TEST
        for t in range(error.shape[1]):
            rest = np.isfinite(error[:, t]) & ~own
            a, b = calibrate(error[rest, t], spread[rest, t])
            std[own, t] = np.hypot(a, b * spread[own, t])
    return std


def error_correlation(result: ElasticityResult, first: str = "bulk_modulus", second: str = "shear_modulus") -> float:
    """Correlation of the errors of two targets, in units of their standard deviations (see :func:`calibrated`)."""
    error, _ = _deviations(result)
    columns = [result.targets.index(t) for t in (first, second)]
    a, b = (error / calibrated(result))[:, columns].T
    known = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[known], b[known])[0, 1])


def train_ensemble(p: CgcnnParameters, evaluated: ElasticityResult, out: Path, name: str = "ecd train-cgcnn") -> None:
    """Train the members on all crystals and write what predicts, with the calibration of its uncertainty.

    Args:
        p: the parameters of ``evaluated``.
        evaluated: its cross-validation, with at least two members and folds.
        out: file to write (``.npz``).

    Raises:
        EcdError: an evaluation that cannot calibrate the uncertainty.
    """
    error, spread = _deviations(evaluated)
    correlation = error_correlation(evaluated)
    begun = time.perf_counter()
    made_by = provenance(name, p.model_dump(), 0)
    problem = load_problem(p)
    arrays: dict[str, Any] = {}
    X, learned = _inputs(p, problem), to_learned(problem.truth, problem.targets)
    calls = [(p, X, learned, member, out) for member in range(p.members)]
    for _, part in in_processes(_fit_member, calls, _workers(p)):
        arrays |= part
    known = np.isfinite(error)
    arrays["calibration"] = np.stack([calibrate(error[v, t], spread[v, t]) for t, v in enumerate(known.T)])
    arrays["correlation"] = np.array(correlation)
    arrays["vectors"] = atom_vectors()
    trained_on = zip(problem.structures, problem.spacegroups, strict=True)
    arrays["trained_on"] = np.array(sorted({f"{s.composition.reduced_formula}_{n}" for s, n in trained_on}))
    made_by["seconds"] = round(time.perf_counter() - begun, 1)
    elements = sorted({int(z) for structure in problem.structures for z in structure.atomic_numbers})
    meta = {"parameters": p.model_dump(), "targets": problem.targets, "provenance": made_by, "elements": elements}
    with atomic_write(out) as temporary:
        np.savez_compressed(temporary, **arrays, meta=np.array(json.dumps(meta)))


def _fit_member(p: CgcnnParameters, X: CrystalGraphs, learned: Floats, member: int, out: Path) -> dict[str, Any]:
    """Weights and scale of one member, trained on all crystals."""
    network = make_network(p, learned.shape[1], p.seed + member, out.with_suffix(f".{member}.checkpoint"))
    network.fit(X, learned)
    weights = {f"{member}/{k}": v.cpu().numpy() for k, v in network.module_.state_dict().items()}
    return weights | {f"{member}/scale": np.stack([network.mean_, network.scale_])}


@dataclass(frozen=True)
class ElasticityModel:
    """A trained ensemble: what :func:`train_ensemble` wrote."""

    arrays: dict[str, Any]
    meta: dict[str, Any]

    @property
    def targets(self) -> list[str]:
        """Names of what it predicts."""
        return list(self.meta["targets"])

    @cached_property
    def elements(self) -> set[int]:
        """Atomic numbers that it was trained on."""
        return set(self.meta["elements"])

    @cached_property
    def trained_on(self) -> set[str]:
        """Formula and space group of its training crystals, ``"NaCl_225"``."""
        return set(self.arrays["trained_on"].tolist())

    @property
    def correlation(self) -> float:
        """Of the errors of K and G."""
        return float(self.arrays["correlation"])

    @cached_property
    def networks(self) -> list[CGCNN]:
        """Its members."""
        members = []
        for member in range(self.meta["parameters"]["members"]):
            prefix = f"{member}/"
            own = {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}
            weights = {k: torch.from_numpy(v) for k, v in own.items() if k != "scale"}
            network = CGCNN(len(self.targets), vectors=self.arrays["vectors"])
            network.load_state_dict(weights)
            members.append(network.eval())
        return members

    @torch.no_grad()
    def predict(self, graphs: CrystalGraphs, batch: int = 256) -> tuple[Floats, Floats]:
        """Logarithms to base 10 of K and G (GPa) and their calibrated standard deviations, ``(n, 2)`` each."""
        each = np.zeros((len(self.networks), len(graphs), len(self.targets)))
        for part in torch.arange(len(graphs)).split(batch):
            chosen = graphs[part]
            for member, network in enumerate(self.networks):
                mean, scale = self.arrays[f"{member}/scale"]
                each[member, part.numpy()] = network(chosen).numpy() * scale + mean
        a, b = self.arrays["calibration"].T
        return each.mean(0), np.hypot(a, b * each.std(0, ddof=1))


def load_elasticity_model(name: str | Path = "cgcnn") -> ElasticityModel:
    """A trained ensemble: the shipped one (``"cgcnn"``), or a file of ``ecd train-cgcnn --final``.

    Raises:
        EcdError: no such model, or a damaged file.
    """
    path = name if isinstance(name, Path) else data_file(f"models/{name}.npz")
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            arrays = {k: z[k] for k in z.files if k != "meta"}
            model = ElasticityModel(arrays, json.loads(str(z["meta"])))
            if not np.isfinite(arrays["calibration"]).all() or len(arrays["trained_on"]) == 0:
                raise ValueError("calibration")
            return model
    except DAMAGED as error:
        raise EcdError(path, "is no readable model", "Make it with `ecd train-cgcnn --final`.") from error
