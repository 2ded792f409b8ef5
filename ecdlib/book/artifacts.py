"""Artifacts: every figure, table and quoted number of the papers, what we get for it, and the verdict.

The list is ``book/artifacts.csv``. A run writes one JSON payload for each artifact that it covers; the scoreboard is
made from the list and these payloads.

A verdict follows from outcomes: each printed number, check and comparison *holds*, *fails* or is *undecided*.

- A **number** holds within its tolerance. One that is an estimate comes with its standard error, and holds or fails
  only if two of them do not change that.
- A **check** is a fact found by code that can be true or false.
- A **comparison** ("A is better than B") holds beyond two standard errors of the paired difference, fails beyond two
  in the other direction.

Checks and comparisons can lower what the numbers say, never raise it. On other data, numbers are shown, not compared.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.resources import ROOT

Verdict = Literal["reproduced", "holds on other data", "mixed", "undecided", "differs", "not possible here"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Outcome = Literal["holds", "fails", "undecided", "not compared"]
#: What the scoreboard says of artifacts without a payload.
NOT_BUILT, NOT_RUN = "not built yet", "not run yet"
#: A difference counts beyond so many standard errors.
SIGMAS = 2.0

#: What each verdict means, as the scoreboard explains it.
MEANINGS: dict[Verdict, str] = {
    "reproduced": "every printed number is met within its tolerance and every check holds, on comparable data "
    "(*reached*, for an aim of this book)",
    "holds on other data": "every check holds, but the crystals, the densities or the training differ, as stated; "
    "printed numbers are shown and not compared",
    "mixed": "some of it holds and some fails; what fails is named first",
    "undecided": "nothing fails, but a difference is within two standard errors of zero",
    "differs": "the printed numbers fail, or all that can be decided does",
    "not possible here": "needs data, programs or machines that this book does not have",
}

#: Colour of each verdict where it is shown; grey for the others.
COLOURS: dict[str, str] = {
    "reproduced": "#1a7f37",
    "holds on other data": "#0b7285",
    "mixed": "#9a6700",
    "undecided": "#6639ba",
    "differs": "#b42318",
}
GREY = "#57606a"

PAPERS = {
    "lean_cnn": "Lean CNN",
    "latentmatfusion": "LatentMatFusion",
    "cgcnn_elasticity": "CGCNN elasticity",
    "beyond": "Beyond the papers",
}


@dataclass(frozen=True)
class Tolerance:
    """How far a number of ours may be from the printed one.

    In the list: ``10 %`` of the printed value, ``± 0.05`` absolute, ``25 % of 1-R2`` (for a coefficient of
    determination: of what it leaves unexplained), ``at most`` and ``at least`` (the print is a bound), ``exact``,
    and ``-`` for a number that is quoted and not compared.
    """

    kind: Literal["relative", "absolute", "unexplained", "at most", "at least", "none"]
    size: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Read one entry of the list's column.

        Raises:
            ValueError: not a tolerance.
        """
        text = text.strip()
        if text in ("at most", "at least"):
            return cls("at most" if text == "at most" else "at least")
        if text in ("-", "exact"):
            return cls("none" if text == "-" else "absolute")
        found = re.fullmatch(r"(?P<part>[\d.]+) %(?P<of> of 1-R2)?|± (?P<size>[\d.]+)", text)
        if found is None:
            raise ValueError(f"{text!r} is not a tolerance")
        if found["size"]:
            return cls("absolute", float(found["size"]))
        return cls("unexplained" if found["of"] else "relative", float(found["part"]) / 100)

    def outcome(self, printed: str, ours: float, standard_error: float = 0.0) -> Outcome:
        """Whether a number holds: within the tolerance, or within half a unit of the last printed decimal.

        Args:
            standard_error: of ours; the outcome must not change within two of them, else it is ``"undecided"``.
        """
        value = float(printed)
        if self.kind == "none":
            return "not compared"
        if self.kind in ("at most", "at least"):
            beyond = ours - value if self.kind == "at most" else value - ours
        else:
            scale = {"relative": abs(value), "unexplained": abs(1 - value)}.get(self.kind, 1.0)
            rounding = 0.5 * 10 ** int(Decimal(printed.strip()).as_tuple().exponent) if "." in printed else 0.0
            beyond = abs(ours - value) - max(self.size * scale, rounding)
        beyond -= 1e-12
        if beyond + SIGMAS * standard_error <= 0:
            return "holds"
        return "fails" if beyond - SIGMAS * standard_error > 0 else "undecided"


@dataclass(frozen=True)
class Artifact:
    """One entry of the list."""

    id: str
    paper: str  #: key of :data:`PAPERS`; "beyond" for the aims of this book, which have no paper
    kind: str  #: figure, table, number, claim, equation, system or text
    where: str
    what: str
    reported: str  #: as the paper prints it, or the aim; several numbers are separated by "; "
    unit: str
    tolerance: str  #: see :class:`Tolerance`, one for each number or one for all; empty where none is compared
    why: str  #: reason of the tolerance
    note: str

    @property
    def numbers(self) -> list[float] | None:
        """The reported numbers, or None if this artifact is not a number."""
        try:
            return [float(part) for part in self.reported.split(";")]
        except ValueError:
            return None

    @property
    def tolerances(self) -> list[Tolerance]:
        """One for each reported number; empty where none is compared.

        Raises:
            EcdError: not as many as numbers, or one that cannot be read.
        """
        if not self.tolerance:
            return []
        n = len(self.reported.split(";"))
        try:
            found = [Tolerance.parse(part) for part in self.tolerance.split(";")]
        except ValueError as error:
            raise EcdError(self.id, str(error), "See CONTRIBUTING.md, 'Add an artifact'.") from error
        if len(found) not in (1, n):
            raise EcdError(self.id, f"{len(found)} tolerances for {n} numbers", "Give one, or one for each number.")
        return found * n if len(found) == 1 else found


@dataclass(frozen=True)
class Comparison:
    """A statement of the form "A is better than B": a difference, positive where it is true, and its standard error."""

    name: str
    difference: float
    standard_error: float

    @property
    def outcome(self) -> Outcome:
        """``"holds"`` beyond two standard errors, ``"fails"`` beyond two below zero, else ``"undecided"``."""
        if self.difference > SIGMAS * self.standard_error:
            return "holds"
        return "fails" if self.difference < -SIGMAS * self.standard_error else "undecided"


def paired(name: str, better: ArrayLike, worse: ArrayLike) -> Comparison:
    """Comparison of two models on the same crystals: the mean of ``worse - better`` and its standard error.

    The standard error is that of crystals drawn at random, s/√n. How far a model's error moves when it is trained
    again is not in it: compare means over several seeds or splits where there are some.

    Args:
        better, worse: ``(n,)`` absolute (or squared) errors of the model said to be better, and of the other one.

    Raises:
        EcdError: not the same crystals, fewer than two, or errors that are not finite.
    """
    a, b = (np.asarray(v, dtype=float) for v in (better, worse))
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2 or not np.isfinite([a, b]).all():
        raise EcdError(name, f"errors of shapes {a.shape} and {b.shape}", "Give finite ones for the same crystals.")
    mean, standard_error = mean_with_error(b - a)
    return Comparison(name, mean, standard_error)


def mean_with_error(values: ArrayLike) -> tuple[float, float]:
    """Mean of independent values and its standard error, s/√n."""
    v = np.asarray(values, dtype=float)
    return float(v.mean()), float(v.std(ddof=1) / math.sqrt(len(v)))


def r2_with_error(truth: ArrayLike, prediction: ArrayLike) -> tuple[float, float]:
    """Coefficient of determination and its jackknife standard error (Efron, 1982): each crystal left out in turn."""
    y, p = (np.asarray(v, dtype=float) for v in (truth, prediction))
    n, squares = len(y), (y - p) ** 2
    total = ((y - y.mean()) ** 2).sum() - (y - y.mean()) ** 2 * n / (n - 1)  # of the others, about their own mean
    left_out = 1 - (squares.sum() - squares) / total
    r2 = 1 - squares.sum() / ((y - y.mean()) ** 2).sum()
    return float(r2), float(math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))


def show(ours: object) -> str:
    """Our numbers as tables show them: whole ones in full, others with four digits; words as they are."""
    if isinstance(ours, list):
        return "; ".join(f"{v:.0f}" if float(v).is_integer() else f"{v:.4g}" for v in ours)
    return "" if ours is None else str(ours)


def verdict_words(paper: str, verdict: str) -> str:
    """A verdict as pages show it: an aim of this book is reached, a paper's artifact reproduced."""
    return "reached" if paper == "beyond" and verdict == "reproduced" else verdict


def worded(evidence: Mapping[str, Any]) -> str:
    """A piece of evidence in words."""
    return str(evidence["what"]) + (f" ({evidence['detail']})" if evidence["detail"] else "")


def explain(payload: Mapping[str, Any]) -> str:
    """What fails, what is undecided, which data differ or are missing, and the reason given."""
    parts = [
        f"{title}: {'; '.join(found)}."
        for title, outcome in (("Fails", "fails"), ("Undecided", "undecided"))
        if (found := [worded(e) for e in payload["evidence"] if e["outcome"] == outcome])
    ]
    parts += [f"Other data: {payload['other_data']}"] if payload["other_data"] else []
    parts += [f"Not possible here: {payload['not_possible']}"] if payload["not_possible"] else []
    return " ".join([*parts, payload["reason"]]).strip()


@lru_cache(maxsize=1)
def load_artifacts() -> dict[str, Artifact]:
    """All artifacts by id, in the papers' order."""
    with open(ROOT / "book" / "artifacts.csv", newline="", encoding="utf-8") as f:
        return {row["id"]: Artifact(**row) for row in csv.DictReader(f)}


def weigh(
    artifact: Artifact,
    ours: Sequence[float] | str,
    *,
    standard_errors: Sequence[float] | None = None,
    checks: Mapping[str, bool] | None = None,
    comparisons: Iterable[Comparison] = (),
    compared: bool = True,
) -> list[dict[str, Any]]:
    """Outcome of each printed number, check and comparison: ``kind``, ``what``, ``detail``, ``outcome``.

    Comparisons also keep their ``difference`` and ``standard_error``.

    Args:
        standard_errors: of our numbers, where they are estimates (nan: none).
        compared: False where the data differ, so that numbers are only shown.

    Raises:
        EcdError: numbers that are not finite, or not as many as the paper reports.
    """
    evidence: list[dict[str, Any]] = []
    tolerances = artifact.tolerances
    if not isinstance(ours, str):
        if not all(math.isfinite(value) for value in ours):
            raise EcdError(artifact.id, f"our numbers are not finite: {ours}", "Find out why before recording them.")
        texts = artifact.reported.split(";") if artifact.numbers is not None and tolerances else []
        errors = standard_errors if standard_errors is not None else [math.nan] * len(ours)
        if texts and not len(ours) == len(texts) == len(errors):
            raise EcdError(artifact.id, f"{len(ours)} numbers for {len(texts)} reported", "Record all.")
        for text, value, error, tolerance in zip(texts, ours, errors, tolerances, strict=False):
            known = math.isfinite(error)
            outcome = tolerance.outcome(text, value, error if known else 0.0) if compared else "not compared"
            spread = f" ± {error:.2g}" if known else ""
            bound = f"{tolerance.kind} " if tolerance.kind.startswith("at ") else ""
            what = f"{show([float(value)])}{spread} against {bound}{text.strip()}"
            evidence.append({"kind": "number", "what": what, "detail": "", "outcome": outcome})
    for name, held in (checks or {}).items():
        evidence.append({"kind": "check", "what": name, "detail": "", "outcome": "holds" if held else "fails"})
    for c in comparisons:
        if not (math.isfinite(c.difference) and math.isfinite(c.standard_error) and c.standard_error >= 0):
            raise EcdError(artifact.id, f"'{c.name}' is not finite", "Find out why before recording it.")
        detail = f"difference {c.difference:.3g} ± {c.standard_error:.2g}"
        measured = {"difference": c.difference, "standard_error": c.standard_error}
        evidence.append({"kind": "comparison", "what": c.name, "detail": detail, "outcome": c.outcome} | measured)
    return evidence


def judge(evidence: Sequence[Mapping[str, Any]], *, other_data: bool = False) -> Verdict | None:
    """Verdict by rule; None where there is nothing to judge by.

    ``differs`` if all compared numbers fail, whatever else holds, or if something fails and nothing holds;
    ``mixed`` if something else fails; ``undecided`` if nothing fails and something is undecided; else ``reproduced``,
    or ``holds on other data``.
    """
    numbers = Counter(e["outcome"] for e in evidence if e["kind"] == "number" and e["outcome"] != "not compared")
    everything = Counter(e["outcome"] for e in evidence if e["outcome"] != "not compared")
    if not everything:
        return None
    if everything["fails"]:
        return "differs" if not everything["holds"] or numbers["fails"] == numbers.total() > 0 else "mixed"
    if everything["undecided"]:
        return "undecided"
    return "holds on other data" if other_data else "reproduced"


def write_payload(
    folder: Path,
    artifact_id: str,
    ours: Sequence[float] | str,
    *,
    standard_errors: Sequence[float] | None = None,
    checks: Mapping[str, bool] | None = None,
    comparisons: Iterable[Comparison] = (),
    other_data: str = "",
    not_possible: str = "",
    reason: str = "",
    finding: str = "",
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """Judge one artifact and write its payload to ``folder/<id>.json``.

    Args:
        ours: our numbers in the order of the reported ones, or words (for pictures and claims).
        standard_errors: of our numbers, where they are estimates (nan: none).
        checks: named facts, found by code, that must hold and could fail.
        comparisons: see :func:`paired`.
        other_data: what differs (crystals, densities, training), so that numbers are shown and not compared.
        not_possible: what is missing, so that the verdict is ``"not possible here"``.
        reason: what else a reader must know.
        finding: one sentence for the head of the scoreboard, where this artifact is one of its findings.
        made_by: see :func:`provenance`.

    Raises:
        EcdError: an id that is not in the list, nothing to judge by, or a number that fails without any reason given.
    """
    artifacts = load_artifacts()
    if artifact_id not in artifacts:
        raise EcdError(artifact_id, "is not in book/artifacts.csv", "Add it there first.")
    ours = ours if isinstance(ours, str) else [float(value) for value in ours]
    evidence = weigh(
        artifacts[artifact_id],
        ours,
        standard_errors=standard_errors,
        checks={name: bool(value) for name, value in (checks or {}).items()},
        comparisons=comparisons,
        compared=not (other_data or not_possible),
    )
    verdict = "not possible here" if not_possible else judge(evidence, other_data=bool(other_data))
    if verdict is None:
        raise EcdError(artifact_id, "nothing to judge by", "Give numbers with a tolerance, checks or comparisons.")
    if not (reason or other_data or not_possible) and any(
        e["kind"] == "number" and e["outcome"] in ("fails", "undecided") for e in evidence
    ):
        raise EcdError(artifact_id, f"verdict '{verdict}' without a reason", "Say why.")
    payload = {
        "id": artifact_id,
        "ours": ours,
        "evidence": evidence,
        "verdict": verdict,
        "other_data": other_data,
        "not_possible": not_possible,
        "reason": reason,
        "finding": finding,
        "provenance": dict(made_by),
    }
    with atomic_write(folder / f"{artifact_id}.json") as temporary:
        temporary.write_text(json.dumps(payload, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return payload


def read_payloads(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Payloads by artifact id; of two for one artifact the later folder's counts.

    Raises:
        EcdError: a payload that is damaged or not in the list.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (p for folder in folders for p in sorted(folder.glob("*.json"))):
        try:
            payload = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EcdError(path, "is not valid JSON", "Run its notebook again with --force.") from error
        if payload.get("id") not in load_artifacts():
            raise EcdError(path, "is not a result for a listed artifact", "Remove it, or add it to book/artifacts.csv.")
        if "evidence" in payload:  # else judged by older rules: as if it had not run
            found[payload["id"]] = payload
    return found


def scoreboard(folders: Sequence[Path], covered: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per artifact of the papers: what it is, reported, ours, evidence, verdict, reason, provenance.

    Args:
        folders: where the payloads lie.
        covered: artifact id -> notebook, for all that existing notebooks record.
    """
    payloads = read_payloads(folders)
    rows = []
    for artifact in load_artifacts().values():
        payload = payloads.get(artifact.id)
        empty = dict.fromkeys(("other_data", "not_possible", "reason", "finding"), "")
        row = asdict(artifact) | {"ours": None, "evidence": [], "provenance": None} | empty
        if payload is not None:
            row |= payload
        else:
            row["verdict"] = NOT_RUN if artifact.id in covered else NOT_BUILT
        rows.append(row)
    return rows
