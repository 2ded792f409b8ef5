"""A second pair of eyes: numbers of the scoreboard again, with plain numpy from the shipped files alone.

Nothing of the library computes here; it is only what is compared with. What cannot be had from shipped files (features,
reconstructions, trainings and timings made by a page) is left out: ``test_how_many_rows_are_seen_twice`` counts.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecdlib.book import runs
from ecdlib.book.artifacts import load_artifacts, mean_with_error, paired, r2_with_error
from ecdlib.learn.elasticity import split_scores
from ecdlib.learn.evaluation import scores
from ecdlib.learn.lean import errors_over_splits, table2_errors
from ecdlib.learn.result import VALIDATION, load_result

DATA = Path(__file__).parents[1] / "data"
K, E = "bulk_modulus", "total_energy"
FIVE = ("bulk_modulus", "youngs_modulus", "shear_modulus", "cohesive_energy", "debye_temperature")
TRAIN, TEST = 0, 2


# Reading


@cache
def raw(name: str) -> dict[str, Any]:
    """Arrays of a shipped file, and its description."""
    with np.load(DATA / f"{name}.npz") as z:
        return {k: z[k] for k in z.files if k != "meta"} | {"meta": json.loads(str(z["meta"]))}


def lean(model: str, target: str, epochs: int | None = None, seed: int = 0, shared: bool = False) -> str:
    return f"results/{model}--{'both' if shared else target}{f'--{epochs}' if epochs else ''}--seed{seed}"


def long(model: str, target: str) -> list[str]:
    """The trainings for 650 epochs on one random split after another."""
    name = f"octahedral-{model.lower()}"
    return [lean(name, target, 650, seed, shared=model == "C") for seed in range(1 if model == "B" else 3)]


def column(name: str, target: str) -> int:
    return raw(name)["meta"]["targets"].index(target)


def off(name: str, target: str, part: str) -> np.ndarray:
    """Absolute errors; ``part`` is ``test``, ``train``, ``CV`` or ``10-fold``."""
    z, t = raw(name), column(name, target)
    test = z["role"][0] == TEST
    made = {"CV": "more/validated", "10-fold": "crossed"}.get(part)
    predicted = z[made][:, t] if made else z["fitted"][0][:, t]
    among = {"test": test, "10-fold": np.full(len(test), True)}.get(part, ~test)
    return np.abs(predicted - z["truth"][:, t])[among]


def over(files: list[str], target: str, part: str) -> np.ndarray:
    """The same of the first split of several files: of each crystal the mean over those where it tests or trains."""
    found: dict[str, list[float]] = {str(name): [] for name in raw(files[0])["names"]}
    for file in files:
        z, t = raw(file), column(file, target)
        columns = (z["names"], z["role"][0], z["truth"][:, t], z["fitted"][0][:, t])
        for name, role, truth, fitted in zip(*columns, strict=True):
            if (role == TEST) == (part == "test"):
                found[str(name)].append(abs(float(fitted) - float(truth)))
    return np.array([sum(errors) / len(errors) for errors in found.values() if errors])


def known(name: str, target: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that are there."""
    z, t = raw(name), column(name, target)
    y, p = z["truth"][:, t].astype(float), (z["crossed"] if part == "crossed" else z["fitted"][0])[:, t].astype(float)
    there = np.isfinite(y) & np.isfinite(p)
    return y[there], p[there]


def r2(y: np.ndarray, p: np.ndarray) -> float:
    return float(1 - np.sum((y - p) ** 2) / np.sum((y - np.mean(y)) ** 2))


def table(name: str) -> list[dict[str, str]]:
    with open(DATA / name, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


# Rows whose numbers are had from the files: what the page's code gives, and the same again

Pair = tuple[list[float], list[float]]
ROWS: dict[str, Callable[[], Pair]] = {}


def row(*names: str) -> Callable[[Callable[[str], Pair]], Callable[[str], Pair]]:
    def add(f: Callable[[str], Pair]) -> Callable[[str], Pair]:
        ROWS.update({name: (lambda name=name: f(name)) for name in names})
        return f

    return add


@row(*(f"lean-table2-{m}-{t}" for m in "AC" for t in ("K", "energy")), "lean-table2-B-K")
def _table2(name: str) -> Pair:
    model, target = name.split("-")[2], K if name.endswith("K") else E
    validated, files = lean(f"octahedral-{model.lower()}", target, 100, shared=model == "C"), long(model, target)
    results = [load_result(file) for file in files]
    made = [np.nanmean(errors_over_splits(results, target, tested)) for tested in (False, True)]
    again = [over(files, target, part).mean() for part in ("train", "test")]
    return [table2_errors(load_result(validated), target)["CV"], *made], [off(validated, target, "CV").mean(), *again]


def _percent(files: list[str], target: str) -> np.ndarray:
    z = raw(files[0])
    tested = np.any([raw(file)["role"][0] == TEST for file in files], axis=0)
    return 100 * over(files, target, "test") / abs(z["truth"][tested, column(files[0], target)].mean())


@row("lean-num-nmae")
def _nmae(name: str) -> Pair:
    made = []
    for t in (K, E):
        results = [load_result(file) for file in long("A", t)]
        errors = errors_over_splits(results, t)
        made.append(100 * np.nanmean(errors) / abs(results[0].truth[np.isfinite(errors), 0].mean()))
    return made, [_percent(long("A", t), t).mean() for t in (K, E)]


@row("lean-num-rf")
def _forest(name: str) -> Pair:
    files = {t: lean("magpie-forest", t) for t in (K, E)}
    return [table2_errors(load_result(f), t)["test NMAE"] for t, f in files.items()], [
        _percent([f], t).mean() for t, f in files.items()
    ]


@row("lean-num-below10", "lean-num-above30")
def _shares(name: str) -> Pair:
    values = [_percent(long("A", t), t) for t in (K, E)]
    met = [v < 10 if name.endswith("10") else v > 30 for v in values]
    return [100 * mean_with_error(m)[0] for m in met], [100 * np.count_nonzero(m) / len(m) for m in met]


FUSION = {
    "fusion-table1-cd": "attention--latent",
    "fusion-table1-magpie": "attention--magpie--all",
    "fusion-table1-lightgbm": "lightgbm--padded-128-latent-magpie--tuned",
    "fusion-table1-attcnn": "attention--padded-latent-magpie--as-published",
}


@row(*FUSION)
def _table1(name: str) -> Pair:
    file = f"fusion/{FUSION[name]}"
    result = load_result(file)
    return [scores(*result.pair(t, "fitted"))["R2"] for t in FIVE], [r2(*known(file, t, "fitted")) for t in FIVE]


@row("fusion-table1-cgcnn")
def _quoted(name: str) -> Pair:
    four, result = [FIVE[i] for i in (0, 1, 2, 4)], load_result("elasticity/cgcnn-fusion")
    again = [r2(*known("elasticity/cgcnn-fusion", t, "crossed")) for t in four]
    return [r2_with_error(*result.pair(t))[0] for t in four], again


def _folds(file: str, target: str, role: int, log: bool = False) -> dict[str, float]:
    """MAE and R² of crystals of a role, averaged over the folds."""
    z, t = raw(file), column(file, target)
    found = []
    for roles, fitted in zip(z["role"], z["fitted"], strict=True):
        y, p = z["truth"][roles == role, t].astype(float), fitted[roles == role, t].astype(float)
        y, p = (np.log10(y), np.log10(p)) if log else (y, p)
        found.append((np.abs(y - p).mean(), r2(y, p)))
    return dict(zip(("MAE", "R2"), np.mean(found, axis=0), strict=True))


@row("cgcnn-num-logmae")
def _logarithms(name: str) -> Pair:
    files = [f"elasticity/cgcnn-published--{t}" for t in ("shear_modulus", "bulk_modulus")]
    theirs = [split_scores(load_result(f), f.split("--")[1], learned=True)["MAE"] for f in files]
    return theirs, [_folds(f, f.split("--")[1], TEST, log=True)["MAE"] for f in files]


@row("cgcnn-num-train", "cgcnn-num-mae")
def _moduli(name: str) -> Pair:
    result, both = load_result("elasticity/cgcnn"), ("shear_modulus", "bulk_modulus")
    role = TRAIN if name.endswith("train") else TEST
    theirs = [split_scores(result, t, role) for t in both]
    mine = [_folds("elasticity/cgcnn", t, role) for t in both]

    def arranged(s: list[dict[str, float]]) -> list[float]:
        r, worst = [v["R2"] for v in s], max(v["MAE"] for v in s)
        return [*r, worst] if role == TRAIN else [worst, min(r)]

    return arranged(theirs), arranged(mine)


COLUMNS = {
    "fusion-stats-K": "bulk_modulus",
    "fusion-stats-E": "youngs_modulus",
    "fusion-stats-G": "shear_modulus",
    "fusion-stats-theta": "debye_temperature",
    "fusion-stats-Eform": "cohesive_energy",
}


@row(*COLUMNS)
def _statistics(name: str) -> Pair:
    from ecdlib.data.tables import load_crystals

    text = [line[COLUMNS[name]] for line in table("mp_crystals.csv")]
    v = np.sort([float(t) for t in text if t])
    deviation = math.sqrt(((v - v.mean()) ** 2).sum() / (len(v) - 1))
    middle = [np.interp(q * (len(v) - 1), np.arange(len(v)), v) for q in (0.5, 0.25, 0.75)]
    again = [v[0], v[-1], v.mean(), deviation, *middle][: len(load_artifacts()[name].numbers or [])]
    column = load_crystals()[COLUMNS[name]].dropna()
    made = [column.min(), column.max(), column.mean(), column.std(), *column.quantile([0.5, 0.25, 0.75])]
    return made[: len(again)], again


@row("fusion-num-dataset", "fusion-split", "cgcnn-num-matbench")
def _counts(name: str) -> Pair:
    from ecdlib.data.tables import load_crystals, load_matbench_elasticity

    if name == "cgcnn-num-matbench":
        return [len(load_matbench_elasticity())], [len(table("matbench_elasticity.csv"))]
    lines = table("mp_crystals.csv")
    if name == "fusion-num-dataset":
        return [len(load_crystals())], [len(lines)]
    split, share = Counter(line["original_split"] for line in lines), load_crystals()["original_split"]
    return [100 * (share == p).mean() for p in ("train", "val", "test")], [
        100 * split[p] / len(lines) for p in ("train", "val", "test")
    ]


@row("cgcnn-num-shares")
def _mped(name: str) -> Pair:
    artifacts = load_artifacts()
    counts, total = artifacts["cgcnn-num-systems"].numbers or [], (artifacts["cgcnn-num-dataset"].numbers or [])[0]
    return [100 * n / total for n in counts], (np.array(counts) / 543.59).tolist()


@row("cgcnn-tableA2")
def _a2(name: str) -> Pair:
    from ecdlib.elastic.moduli import elastic_quantities

    lines = table("paper_tables/cgcnn_a2.csv")
    h, k, good, theirs = 6.62607015e-34, 1.380649e-23, 0, 0
    for line in lines:
        B, G, rho, V, N = (float(line[c]) for c in ("B", "G", "rho", "V", "N"))
        vl, vt = math.sqrt((B + 4 / 3 * G) * 1e9 / (rho * 1e3)), math.sqrt(G * 1e9 / (rho * 1e3))
        vs = ((1 / vl**3 + 2 / vt**3) / 3) ** (-1 / 3)
        x = (vl / vt) ** 2
        theta = h / k * vs * (3 / (4 * math.pi) * N / (V * 1e-30)) ** (1 / 3)
        mine = {"v_l": vl, "v_t": vt, "v_s": vs, "nu": (x - 2) / (2 * x - 2), "theta_D": theta}
        good += all(abs(v - float(line[c])) < (6e-4 if c == "nu" else 1e-3 * v) for c, v in mine.items())
        q = elastic_quantities(np.array([B]), np.array([G]), np.array([rho]), np.array([N]), np.array([V]))
        named = {"v_l": "v_l", "v_t": "v_t", "v_s": "v_s", "nu": "poisson_ratio", "theta_D": "debye_temperature"}
        theirs += all(abs(float(np.ravel(q[named[c]])[0]) / v - 1) < 1e-9 for c, v in mine.items())
    return [theirs], [good]


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_are_those_of_the_pages(name: str) -> None:
    made, again = ROWS[name]()
    assert np.allclose(made, again, rtol=1e-4), f"{name}: the library has {made}, plain numpy {again}"
    for payload in stored(name):
        assert np.allclose(payload["ours"], again, rtol=1e-4), f"{name}: the run of {payload['provenance']['date']}"


# Paired differences: name of the row -> what is compared -> (errors of the better, errors of the worse)

PAIRS: dict[str, dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]]] = {}


def pair(name: str, said: str, first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    PAIRS.setdefault(name, {})[said] = lambda: (off(*first), off(*second))


def long_pair(name: str, said: str, target: str) -> None:
    """Model A against C, over the splits of the long trainings."""
    PAIRS.setdefault(name, {})[said] = lambda: tuple(over(long(m, target), target, "test") for m in "AC")


for t, word in ((K, "bulk modulus (GPa)"), (E, "total energy (eV/atom)")):
    files = {
        "A": lean("octahedral-a", t, 650),
        "B": lean("octahedral-b", t, 650),
        "A, CV": lean("octahedral-a", t, 100),
        "B, CV": lean("octahedral-b", t, 100),
        "C, CV": lean("octahedral-c", t, 100, shared=True),
        "forest": lean("magpie-forest", t),
    }
    key = "K" if t == K else "energy"
    for part in ("test", "train"):
        pair(
            f"lean-table2-B-{key}",
            f"A is better than B ({part} crystals)",
            (files["A"], t, part),
            (files["B"], t, part),
        )
    if t == K:
        said = "A is better than B (CV crystals)"
        pair("lean-table2-B-K", said, (files["A, CV"], t, "CV"), (files["B, CV"], t, "CV"))
    pair(
        "lean-claim-best",
        f"{word}: A is better than B (test crystals)",
        (files["A"], t, "test"),
        (files["B"], t, "test"),
    )
    for name, said in (
        (f"lean-table2-C-{key}", "A is better than C"),
        ("lean-claim-best", f"{word}: A is better than C"),
        ("lean-claim-multioutput", f"{word}: two networks beat one for both"),
    ):
        pair(name, f"{said} (CV crystals)", (files["A, CV"], t, "CV"), (files["C, CV"], t, "CV"))
        long_pair(name, f"{said} (test crystals)", t)
    said = f"{word}: A is better (10-fold crystals)"
    pair("lean-claim-forest", said, (files["A, CV"], t, "10-fold"), (files["forest"], t, "10-fold"))
    said = f"{word}: A after 650 epochs is better (test crystals)"
    pair("lean-claim-forest", said, (files["A"], t, "test"), (files["forest"], t, "test"))
for model, word in (
    ("lean-a-density", "A on the density"),
    ("zhao", "the network after Zhao et al."),
    ("mirzaee", "the network after Mirzaee et al."),
):
    said = f"A on the autocorrelation beats {word} (test crystals)"
    PAIRS.setdefault("lean-claim-hypothesis", {})[said] = lambda model=model: tuple(
        over([lean(m, K, 60, seed) for seed in range(3)], K, "test") for m in ("lean-a-27", model)
    )


def fused(name: str, said: str, first: str, second: str, target: str, part: str = "crossed") -> None:
    def errors() -> tuple[np.ndarray, np.ndarray]:
        (y, a), (z, b) = (known(f"fusion/{f}", target, part) for f in (first, second))
        assert np.array_equal(y, z)
        return np.abs(a - y), np.abs(b - y)

    PAIRS.setdefault(name, {})[f"{said}: {target}"] = errors


for t in FIVE:
    for kind, grid, word in (
        ("lightgbm", "", "LightGBM"),
        ("lightgbm", "padded-128-", "LightGBM, paper's grid"),
        ("attention", "", "the network"),
    ):
        said = f"the latent adds to MAGPIE with {word}"
        fused("fusion-claim-fusion", said, f"{kind}--{grid}latent-magpie", f"{kind}--magpie", t)
    fused("fusion-claim-hybrid", "LightGBM, five-fold", "lightgbm--latent-magpie", "lightgbm--latent", t)
    said = "network, published test crystals"
    fused("fusion-claim-hybrid", said, "attention--latent-magpie", "attention--latent", t, "fitted")
    said = "MAGPIE alone beats the latent alone, networks"
    fused("fusion-claim-magpie", said, "attention--magpie", "attention--latent", t, "fitted")
    if t != K:
        said = "as in print, LightGBM is better than the CNN, five-fold"
        fused("fusion-table1-lightgbm", said, "lightgbm--latent-magpie", "attention--latent-magpie", t)
for t in FIVE[:2]:
    said = "as in print, better than MAGPIE alone, five-fold"
    fused("fusion-table1-attcnn", said, "attention--latent-magpie", "attention--magpie", t)


def six(model: str, target: str) -> np.ndarray:
    """Errors in GPa of each crystal, by the model of the fold that tests it."""
    z, t = raw(f"elasticity/{model}"), column(f"elasticity/{model}", target)
    predicted = np.full(len(z["names"]), np.nan)
    for roles, fitted in zip(z["role"], z["fitted"], strict=True):
        predicted[roles == TEST] = fitted[roles == TEST, t]
    return np.abs(predicted - z["truth"][:, t])


for label, model in (
    ("RF", "random-forest"),
    ("XGBoost", "xgboost"),
    ("SVR", "svr"),
    ("GB", "gradient-boosting"),
    ("DT", "decision-tree"),
):
    for t, letter in ((K, "K"), ("shear_modulus", "G")):
        said = f"CGCNN is better than {label}: {letter}"
        PAIRS.setdefault("cgcnn-fig2", {})[said] = lambda model=model, t=t: (six("cgcnn", t), six(model, t))


@pytest.mark.parametrize("name", PAIRS)
def test_the_paired_differences_are_those_of_the_pages(name: str) -> None:
    for said, errors in PAIRS[name].items():
        better, worse = errors()
        d = worse.astype(float) - better.astype(float)
        mean = sum(d) / len(d)
        error = math.sqrt(sum((d - mean) ** 2) / (len(d) - 1) / len(d))
        made = paired(said, better, worse)
        assert (made.difference, made.standard_error) == pytest.approx((mean, error), rel=1e-6)
        for payload in stored(name):
            listed = {e["what"]: e for e in payload["evidence"] if e["kind"] == "comparison"}
            there = [e for what, e in listed.items() if what == said or _unit_of(what) == said]
            assert len(there) == 1, f"{name}: '{said}' is not among {list(listed)}"
            assert there[0]["difference"] == pytest.approx(mean, rel=1e-4, abs=1e-9)
            assert there[0]["standard_error"] == pytest.approx(error, rel=1e-4)


def _unit_of(what: str) -> str:
    """A fusion page names properties by their symbol; here they go by name."""
    from ecdlib.data.properties import PROPERTIES

    head, _, symbol = what.rpartition(": ")
    return next((f"{head}: {t}" for t in FIVE if PROPERTIES[t].symbol == symbol), what)


@cache
def _stored() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for notebook, values, folder, current in runs.finished_runs():
        if current and values.profile == "quick" and not runs.parameters.changed(notebook, values):
            for path in (folder / "results").glob("*.json"):
                payload = json.loads(path.read_text(encoding="utf-8"))
                found.setdefault(payload["id"], []).append(payload)
    return found


def stored(name: str) -> list[dict[str, Any]]:
    """What the current runs on this machine have recorded for a row; often nothing."""
    return _stored().get(name, [])


def test_how_many_rows_are_seen_twice() -> None:
    numeric = {a.id for a in load_artifacts().values() if a.numbers}
    assert set(ROWS) <= numeric
    assert set(PAIRS) <= set(load_artifacts())
    # rows with numbers that are left out: what a page computes, measures or counts itself
    elsewhere = numeric - set(ROWS)
    assert len(ROWS) >= 25, (
        f"of {len(numeric)} rows with numbers only {len(ROWS)} are had again; not {sorted(elsewhere)}"
    )
    assert VALIDATION not in (TRAIN, TEST)
