"""Elastic moduli from crystal structures: data, folds, the ensemble and its uncertainty (CGCNN elasticity, 3)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

from ecdlib.base.archive import write_archive
from ecdlib.base.errors import EcdError
from ecdlib.base.pieces import in_pieces
from ecdlib.base.settings import Field, Parameters, Subset
from ecdlib.base.workers import available_cores, in_processes
from ecdlib.data.properties import PROPERTIES, labelled
from ecdlib.data.tables import crystal_system, load_crystals, load_matbench_elasticity, load_structures
from ecdlib.density.core import Floats
from ecdlib.learn.evaluation import scores
from ecdlib.learn.model_file import load_model
from ecdlib.learn.result import TEST, TRAIN, VALIDATION, Result, finished, load_result

if TYPE_CHECKING:  # torch is imported by the functions that train or predict
    from pymatgen.core import Structure

    from ecdlib.features.graphs import CrystalGraphs
    from ecdlib.models.cgcnn import CGCNN
    from ecdlib.models.cgcnn_regressor import CGCNNRegressor

#: Kinds of what is written: a result, and what predicts.
KIND, MODEL_KIND = "elasticity", "elasticity model"
if TYPE_CHECKING:
    Target = str
else:
    Target = Literal[("all", *labelled("fusion"))]


class CgcnnParameters(Parameters):
    """Crystal graph network: official folds, ensemble, uncertainty."""

    full: ClassVar[dict[str, Any]] = {"epochs": 100, "members": 4, "folds": "all"}
    tiny: ClassVar[dict[str, Any]] = {"epochs": 1, "sample": 150}

    model: Literal["cgcnn", "random-forest", "xgboost", "svr", "gradient-boosting", "decision-tree"] = Field(
        "cgcnn", description="the crystal graph network, or one of five models on six features"
    )
    crystals: Literal["matbench", "matbench-official", "fusion"] = Field(
        "matbench",
        description="matbench: its entries that have a structure here, official folds; matbench-official: all of "
        "them, from the network; fusion: the 6,059 crystals of LatentMatFusion, published split",
    )
    target: Target = Field("all", description="what is learned; all: one network with several outputs")
    folds: Literal["first", "all"] = Field("first", description="folds that are trained and tested")
    members: int = Field(1, ge=1, le=100, description="networks of the ensemble in each fold")
    ties: bool = Field(True, description="keep the last shell of neighbours whole; False: cut it at twelve")
    distinct: bool = Field(True, description="one atom of each kind by symmetry, if ties is true; False: all atoms")
    epochs: int = Field(6, ge=1, le=100_000, description="passes over the training crystals")
    batch_size: int = Field(64, ge=2, description="crystals in a step")
    learning_rate: float = Field(3e-3, gt=0, description="initial, of Adam; the paper takes 1e-3")
    layers: int = Field(2, ge=1, le=5, description="dense layers after the mean; the paper has three, read literally")
    annealing: bool = Field(True, description="let the rate fall along a cosine; False: constant, as published")
    held_out: float = Field(0.1, ge=0, lt=1, description="share of the training crystals that choose the epoch")
    sample: Subset = Field(0, ge=0, description="random subset of the crystals; 0: all")


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

    remedy = "Put matbench_log_kvrh.json.gz into a folder and set MATMINER_DATA to it, or leave it out."
    try:
        frame = load_dataset("matbench_log_kvrh")
        names = [f"mb-log-kvrh-{i:05d}" for i in range(1, len(frame) + 1)]
        found = pd.Series(frame["log10(K_VRH)"].to_numpy(dtype=float), index=names)
    except Exception as error:  # matminer lets through whatever the network raises
        raise EcdError("Matbench's data set", f"could not be loaded ({error})", remedy) from error
    labels = load_matbench_elasticity().set_index("mbid_K")["log10_K_VRH"]
    if len(found) != len(labels) or not np.allclose(found, labels[names], atol=1e-6):
        raise EcdError("Matbench's data set", "differs from the table of folds in crystals or labels", remedy)
    return dict(zip(names, frame["structure"], strict=True))


@dataclass(frozen=True)
class Problem:
    """What is learned: crystals, labels ``(n, targets)`` in their units, and the fold that tests each crystal."""

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
    targets = labelled("fusion" if p.crystals == "fusion" else "matbench")
    if p.target != "all":
        if p.target not in targets:
            raise EcdError(
                f"target={p.target}", f"is not a target on crystals={p.crystals}", f"Choose {targets} or all."
            )
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
    logs = np.array([PROPERTIES[t].logarithmic for t in targets])
    return np.where(logs, np.log10(np.where(logs, values, 1)), values)


def from_learned(values: Floats, targets: Sequence[str]) -> Floats:
    """The reverse of :func:`to_learned`."""
    logs = np.array([PROPERTIES[t].logarithmic for t in targets])
    return np.where(logs, 10 ** np.where(logs, values, 0), values)


def make_network(p: CgcnnParameters, seed: int, checkpoint: Path) -> CGCNNRegressor:
    """Unfitted network of one member of the ensemble."""
    from ecdlib.models.cgcnn_regressor import CGCNNRegressor

    return CGCNNRegressor(
        p.epochs,
        p.batch_size,
        p.learning_rate,
        p.held_out,
        seed=seed,
        device=p.device,
        checkpoint=str(checkpoint),
        annealing=p.annealing,
        layers=p.layers,
    )


def run_elasticity(p: CgcnnParameters, out: Path, *, name: str = "ecd train-cgcnn", progress: bool = True) -> Result:
    """Train on each fold's training crystals, predict the others, write all predictions; resumes between fits.

    A tenth of the training crystals (``p.held_out``) is set aside in each fit: the network keeps the weights of the
    epoch that is best on them, as the paper does; another member of the ensemble sets others aside.

    Returns:
        ``role`` and ``fitted`` are those of the first member in each fold, ``crossed`` the mean of the members
        (of logarithms) on test crystals, ``more["spread"]`` their standard deviation, of what is learned.
        ``meta["errors"]``: mean absolute errors of what is learned on test crystals, by ``"fold-member"``.

    Raises:
        EcdError: a target that these crystals do not have; see also :func:`ecdlib.base.pieces.in_pieces` and
            :func:`ecdlib.learn.result.finished`.
    """
    if found := finished(out, KIND, p):
        return found
    problem = load_problem(p)
    learned = to_learned(problem.truth, problem.targets)
    folds, members = range(len(problem.tested)), range(p.members if p.model == "cgcnn" else 1)
    fits = [(k, member) for member in members for k in folds]
    with in_pieces(out, name, p.model_dump()) as pieces:
        todo = [(k, member) for k, member in fits if f"{k}-{member}" not in pieces]
        X = _inputs(p, problem) if todo else None
        calls = [(p, X, learned, problem.tested[k], m, pieces.checkpoint(f"{k}-{m}")) for k, m in todo]
        for i, (predicted, seconds) in in_processes(_fit_and_predict, calls, _workers(p)):
            k, member = todo[i]
            pieces.save(f"{k}-{member}", {"learned": predicted}, seconds)
            if progress:
                error = np.nanmean(np.abs(predicted - learned)[problem.tested[k]], axis=0)
                print(f"fold {k}, member {member}: {error.round(4)}, {seconds:.0f} s", flush=True)
        each = {(k, member): pieces.load(f"{k}-{member}")["learned"] for k, member in fits}
        crossed, spread = np.full(learned.shape, np.nan), np.full(learned.shape, np.nan)
        for k, tested in enumerate(problem.tested):
            ensemble = np.stack([each[k, member] for member in members])[:, tested]
            crossed[tested] = ensemble.mean(0)
            spread[tested] = ensemble.std(0, ddof=1) if len(members) > 1 else np.nan
        errors = {
            f"{k}-{m}": np.nanmean(np.abs(values - learned)[problem.tested[k]], axis=0).tolist()
            for (k, m), values in each.items()
        }
        Result(
            names=np.array(problem.names),
            truth=problem.truth.astype(np.float32),
            role=np.stack([_roles(p, tested) for tested in problem.tested]),
            fitted=np.stack([from_learned(each[k, 0].astype(float), problem.targets) for k in folds]),
            crossed=from_learned(crossed, problem.targets),
            fold=np.where(problem.tested.any(0), problem.tested.argmax(0), -1).astype(np.int8),
            meta={
                "kind": KIND,
                "targets": problem.targets,
                "parameters": p.model_dump(),
                "errors": errors,
                "provenance": pieces.provenance(),
            },
            more={"spread": spread},
        ).write(out)
    return load_result(out, KIND)


def split_scores(result: Result, target: str, role: int = TEST, learned: bool = False) -> dict[str, float]:
    """Errors (:func:`ecdlib.learn.evaluation.scores`) by the model of each split, averaged over the splits.

    Args:
        role: of the crystals in each split.
        learned: of what is learned, logarithms where these are learned.
    """
    t, rows = result.column(target), []
    for k in range(len(result.role)):
        chosen = (result.role[k] == role) & np.isfinite(result.truth[:, t])
        pair = result.truth[chosen, t], result.fitted[k, chosen, t]
        rows.append(scores(*(to_learned(v[:, None], [target])[:, 0] if learned else v for v in pair)))
    return {str(k): float(v) for k, v in pd.DataFrame(rows).mean().items()}


def _roles(p: CgcnnParameters, tested: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Which crystals train the first member, choose its epoch, and test."""
    from ecdlib.models.torch_regressor import set_aside

    role = np.where(tested, TEST, TRAIN).astype(np.int8)
    train = np.flatnonzero(~tested)
    role[train[set_aside(len(train), p.held_out, p.seed)[0].numpy()]] = VALIDATION
    return role


def _workers(p: CgcnnParameters) -> int:
    """On a CPU one process per core; a GPU is not shared."""
    from ecdlib.models.torch_regressor import pick_device

    return available_cores() if pick_device(p.device).type == "cpu" else 1


def _inputs(p: CgcnnParameters, problem: Problem) -> Any:
    """What the model takes: graphs, or six numbers a crystal."""
    from ecdlib.features.graphs import cached_graphs, crystal_graphs
    from ecdlib.models.six_features import six_features

    if p.model != "cgcnn":
        return six_features(problem.structures, problem.spacegroups)
    if p.ties and p.distinct:
        return cached_graphs(problem.structures)
    return crystal_graphs(problem.structures, p.ties, p.distinct)


def _fit_and_predict(
    p: CgcnnParameters, X: Any, learned: Floats, tested: NDArray[np.bool_], member: int, checkpoint: Path
) -> tuple[NDArray[np.float32], float]:
    """One fit: predictions ``(n, targets)`` of all crystals as they are learned, seconds."""
    import torch

    from ecdlib.models.six_features import SIX_FEATURE_MODELS

    begun = time.perf_counter()
    if p.model == "cgcnn":
        train = np.flatnonzero(~tested)
        network = make_network(p, p.seed + member, checkpoint)
        network.fit(X[torch.from_numpy(train)], learned[train])
        predicted = network.predict(X).reshape(learned.shape)
    else:
        fitted, predicted = _roles(p, tested) == TRAIN, np.empty(learned.shape)
        for t in range(learned.shape[1]):
            known = fitted & np.isfinite(learned[:, t])
            predicted[:, t] = SIX_FEATURE_MODELS[p.model](p.seed).fit(X[known], learned[known, t]).predict(X)
    return predicted.astype(np.float32), time.perf_counter() - begun


def fit_error_model(error: Floats, spread: Floats) -> Floats:
    """(a, b) of the standard deviation σ² = a² + (b s)² that errors have where the members differ by s.

    Maximum likelihood for errors that are normally distributed, all in the unit of what is learned.

    >>> rng = np.random.default_rng(0)
    >>> s = rng.uniform(0.01, 0.1, 20_000)
    >>> [round(float(v), 2) for v in fit_error_model(rng.normal(0, np.hypot(0.05, 1.5 * s)), s)]
    [0.05, 1.51]
    """

    def loss(logs: Floats) -> float:
        variance = np.exp(logs[0]) + np.exp(logs[1]) * spread**2
        return float((np.log(variance) + error**2 / variance).mean())

    start = np.log([np.mean(error**2) / 2, np.mean(error**2) / np.mean(spread**2) / 2])
    a, b = np.exp(minimize(loss, start, method="Nelder-Mead").x / 2)
    return np.array([a, b])


def _deviations(result: Result) -> tuple[Floats, Floats]:
    """Errors of the ensemble and spreads of its members, both of what is learned; NaN where there is none."""
    spread = result.more["spread"]
    if not np.isfinite(spread).any():
        raise EcdError("uncertainty", "a single network has none", "Use members=2 or more.")
    return to_learned(result.crossed, result.targets) - to_learned(result.truth, result.targets), spread


def expected_errors(result: Result) -> Floats:
    """``(n, targets)`` standard deviations of what is learned, each fold calibrated on the other folds.

    Raises:
        EcdError: a single network, or a single fold.
    """
    error, spread = _deviations(result)
    if len(result.role) < 2:
        raise EcdError("uncertainty", "a single fold cannot be calibrated on others", "Use folds=all.")
    std = np.full(error.shape, np.nan)
    for k in range(len(result.role)):
        own = result.role[k] == TEST
        for t in range(error.shape[1]):
            rest = np.isfinite(error[:, t]) & ~own
            a, b = fit_error_model(error[rest, t], spread[rest, t])
            std[own, t] = np.hypot(a, b * spread[own, t])
    return std


def error_correlation(result: Result, first: str = "bulk_modulus", second: str = "shear_modulus") -> float:
    """Correlation of the errors of two targets, in units of their standard deviations (see :func:`expected_errors`)."""
    error, _ = _deviations(result)
    columns = [result.targets.index(t) for t in (first, second)]
    a, b = (error / expected_errors(result))[:, columns].T
    known = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[known], b[known])[0, 1])


def train_ensemble(
    p: CgcnnParameters, evaluated: Result, out: Path, *, name: str = "ecd train-cgcnn"
) -> ElasticityModel:
    """Train the members on all crystals and write what predicts, with the calibration of its uncertainty.

    Args:
        p: the parameters of ``evaluated``.
        evaluated: its cross-validation, with at least two members and folds.
        out: file to write (``.npz``).

    Raises:
        EcdError: an evaluation that cannot calibrate the uncertainty; see also :func:`run_elasticity`.
    """
    if out.is_file():
        found: ElasticityModel = load_model(out, MODEL_KIND)
        p.confirm(found.meta["parameters"], out)
        return found
    from ecdlib.models.cgcnn import atom_vectors

    error, spread = _deviations(evaluated)
    known, correlation = np.isfinite(error), error_correlation(evaluated)
    problem = load_problem(p)
    with in_pieces(out, name, p.model_dump()) as pieces:
        todo = [member for member in range(p.members) if str(member) not in pieces]
        X, learned = _inputs(p, problem), to_learned(problem.truth, problem.targets)
        calls = [(p, X, learned, member, pieces.checkpoint(str(member))) for member in todo]
        for i, (weights, seconds) in in_processes(_fit_member, calls, _workers(p)):
            pieces.save(str(todo[i]), weights, seconds)
        arrays = {f"{m}/{k}": v for m in range(p.members) for k, v in pieces.load(str(m)).items()}
        arrays["calibration"] = np.stack([fit_error_model(error[v, t], spread[v, t]) for t, v in enumerate(known.T)])
        arrays["correlation"] = np.array(correlation)
        arrays["vectors"] = atom_vectors()
        trained_on = zip(problem.structures, problem.spacegroups, strict=True)
        arrays["trained_on"] = np.array(sorted({f"{s.composition.reduced_formula}_{n}" for s, n in trained_on}))
        meta = {
            "kind": MODEL_KIND,
            "targets": problem.targets,
            "parameters": p.model_dump(),
            "elements": sorted({int(z) for structure in problem.structures for z in structure.atomic_numbers}),
            "provenance": pieces.provenance(),
        }
        write_archive(out, arrays, meta)
    model: ElasticityModel = load_model(out, MODEL_KIND)
    return model


def _fit_member(
    p: CgcnnParameters, X: CrystalGraphs, learned: Floats, member: int, checkpoint: Path
) -> tuple[dict[str, Any], float]:
    """Weights and scale of one member, trained on all crystals; seconds."""
    begun = time.perf_counter()
    network = make_network(p, p.seed + member, checkpoint).fit(X, learned).regressor_
    weights = {k: v.cpu().numpy() for k, v in network.module_.state_dict().items()}
    return weights | {"scale": np.stack([network.mean_, network.scale_])}, time.perf_counter() - begun


@dataclass(frozen=True)
class ElasticityModel:
    """A trained ensemble: what :func:`train_ensemble` wrote."""

    arrays: Mapping[str, Any]
    meta: dict[str, Any]
    source: str = ""

    @classmethod
    def from_file(cls, arrays: Mapping[str, Any], meta: dict[str, Any], source: str) -> Self:
        """From what a file holds.

        Raises:
            KeyError, ValueError: a damaged file.
        """
        if not np.isfinite(arrays["calibration"]).all() or len(arrays["trained_on"]) == 0:
            raise ValueError("calibration")
        meta["targets"], meta["parameters"]["members"]
        return cls(arrays, meta, source)

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
        import torch

        from ecdlib.models.cgcnn import CGCNN

        members = []
        for member in range(self.meta["parameters"]["members"]):
            prefix = f"{member}/"
            own = {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}
            weights = {k: torch.from_numpy(v) for k, v in own.items() if k != "scale"}
            layers = self.meta["parameters"].get("layers", 2)
            network = CGCNN(len(self.targets), layers=layers, vectors=self.arrays["vectors"])
            network.load_state_dict(weights)
            members.append(network.eval())
        return members

    def prepare(self, structure: Structure, symmetry: Any) -> CrystalGraphs:
        """What it predicts one crystal from.

        Raises:
            EcdError: elements beyond fermium; see also :func:`ecdlib.features.graphs.crystal_graph`.
        """
        from ecdlib.features.graphs import crystal_graph
        from ecdlib.models.cgcnn import N_ELEMENTS

        if max(structure.atomic_numbers) > N_ELEMENTS:
            raise EcdError(structure.formula, "holds an element beyond fermium", "The network does not know it.")
        return crystal_graph(structure, found=symmetry)

    def moduli(self, prepared: Sequence[CrystalGraphs]) -> tuple[Floats, Floats]:
        """K and G (GPa) and the standard deviations of their logarithms to base 10, ``(n, 2)`` each."""
        from ecdlib.features.graphs import join

        logs, stds = self.predict(join(prepared))
        order = [self.targets.index(t) for t in ("bulk_modulus", "shear_modulus")]
        return 10 ** logs[:, order], stds[:, order]

    def predict(self, graphs: CrystalGraphs, batch: int = 256) -> tuple[Floats, Floats]:
        """Logarithms to base 10 of K and G (GPa) and their calibrated standard deviations, ``(n, 2)`` each."""
        import torch

        each = np.zeros((len(self.networks), len(graphs), len(self.targets)))
        for part in torch.arange(len(graphs)).split(batch):
            chosen = graphs[part]
            for member, network in enumerate(self.networks):
                mean, scale = self.arrays[f"{member}/scale"]
                with torch.no_grad():
                    each[member, part.numpy()] = network(chosen).numpy() * scale + mean
        a, b = self.arrays["calibration"].T
        return each.mean(0), np.hypot(a, b * each.std(0, ddof=1))
