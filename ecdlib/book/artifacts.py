"""Artifacts: every figure, table and quoted number of the papers, what we get for it, and the verdict.

The list is ``book/artifacts.csv``. A run writes one JSON payload for each artifact that it covers; the scoreboard is
made from the list and these payloads.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.resources import ROOT

Verdict = Literal["reproduced", "partly", "differs", "not possible here"]
#: What the scoreboard says of artifacts without a payload.
NOT_BUILT, NOT_RUN = "not built yet", "not run yet"

#: Colour of each verdict where it is shown; grey for the others.
COLOURS = {"reproduced": "#1a7f37", "partly": "#9a6700", "differs": "#b42318"}
GREY = "#57606a"

PAPERS = {
    "lean_cnn": "Lean CNN",
    "latentmatfusion": "LatentMatFusion",
    "cgcnn_elasticity": "CGCNN elasticity",
    "beyond": "Beyond the papers",
}


#: What a verdict is called where the book's own aims are judged.
REACHED = {"reproduced": "reached", "partly": "partly reached", "differs": "not reached"}


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
    tolerance: float | None  #: relative; 0 for exact counts; None where no number is compared
    note: str

    @property
    def numbers(self) -> list[float] | None:
        """The reported numbers, or None if this artifact is no number."""
        try:
            return [float(part) for part in self.reported.split(";")]
        except ValueError:
            return None


def show(ours: object) -> str:
    """Our numbers as tables show them: whole ones in full, others with four digits; words as they are."""
    if isinstance(ours, list):
        return "; ".join(f"{v:.0f}" if float(v).is_integer() else f"{v:.4g}" for v in ours)
    return "" if ours is None else str(ours)


def verdict_words(paper: str, verdict: str) -> str:
    """A verdict as pages show it: an aim of this book is reached or not, a paper's artifact reproduced or not."""
    return REACHED.get(verdict, verdict) if paper == "beyond" else verdict


def explain(payload: Mapping[str, Any]) -> str:
    """Why the verdict is not better: the reason given, and the checks that failed."""
    failed = [name for name, held in payload["checks"].items() if not held]
    return payload["reason"] + (f" Does not hold: {'; '.join(failed)}." if failed else "")


@lru_cache(maxsize=1)
def load_artifacts() -> dict[str, Artifact]:
    """All artifacts by id, in the papers' order."""
    with open(ROOT / "book" / "artifacts.csv", newline="", encoding="utf-8") as f:
        rows: list[dict[str, Any]] = list(csv.DictReader(f))
    for row in rows:
        row["tolerance"] = float(row["tolerance"]) if row["tolerance"] else None
    return {row["id"]: Artifact(**row) for row in rows}


def judge(artifact: Artifact, ours: Sequence[float] | str, checks: Mapping[str, bool]) -> Verdict:
    """Verdict by rule: the share of what holds, of the reported numbers and of the checks.

    A number holds within the relative tolerance, or within half a unit of the last printed decimal.

    ``reproduced`` if all hold, ``differs`` if none does, ``partly`` in between.

    Raises:
        EcdError: nothing to judge by, numbers that are not finite, or not as many as the paper reports.
    """
    held = list(checks.values())
    if not isinstance(ours, str):
        if not all(math.isfinite(value) for value in ours):
            raise EcdError(artifact.id, f"our numbers are not finite: {ours}", "Find out why before recording them.")
        if artifact.numbers is not None and artifact.tolerance is not None:
            if len(ours) != len(artifact.numbers):
                raise EcdError(artifact.id, f"{len(ours)} numbers for {len(artifact.numbers)} reported", "Record all.")
            for a, text in zip(ours, artifact.reported.split(";"), strict=True):
                printed = Decimal(text.strip())
                rounding = 0.5 * 10 ** int(printed.as_tuple().exponent) if "." in text else 0.0
                held.append(abs(a - float(printed)) <= max(artifact.tolerance * abs(float(printed)), rounding) + 1e-12)
    if not held:
        raise EcdError(artifact.id, "nothing to judge by", "Give numbers with a tolerance, or checks.")
    return "reproduced" if all(held) else "partly" if any(held) else "differs"


def write_payload(
    folder: Path,
    artifact_id: str,
    ours: Sequence[float] | str,
    *,
    checks: Mapping[str, bool] | None = None,
    reason: str = "",
    limit: Verdict | None = None,
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """Judge one artifact and write its payload to ``folder/<id>.json``.

    Args:
        ours: our numbers in the order of the reported ones, or words (for pictures and claims).
        checks: named facts, found by code, that must hold.
        reason: why the verdict is not better; required unless it is ``reproduced`` or a named check failed.
        limit: the best verdict that this data allows (``"partly"`` for a picture of other crystals), or
            ``"not possible here"``.
        made_by: see :func:`provenance`.

    Raises:
        EcdError: an id that is not in the list, or no reason for a verdict that needs one.
    """
    artifacts = load_artifacts()
    if artifact_id not in artifacts:
        raise EcdError(artifact_id, "is not in book/artifacts.csv", "Add it there first.")
    checks = {name: bool(value) for name, value in (checks or {}).items()}
    ours = ours if isinstance(ours, str) else [float(value) for value in ours]
    if limit == "not possible here":
        verdict: Verdict = limit
    else:
        verdict = judge(artifacts[artifact_id], ours, checks)
        order: list[Verdict] = ["differs", "partly", "reproduced"]
        if limit is not None:
            verdict = min(verdict, limit, key=order.index)
    if verdict != "reproduced" and not reason and all(checks.values()):
        raise EcdError(artifact_id, f"verdict '{verdict}' without a reason", "Say why.")
    payload = {
        "id": artifact_id,
        "ours": ours,
        "checks": checks,
        "verdict": verdict,
        "reason": reason,
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
            raise EcdError(path, "is a result for no listed artifact", "Remove it, or add it to book/artifacts.csv.")
        found[payload["id"]] = payload
    return found


def scoreboard(folders: Sequence[Path], covered: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per artifact of the papers: what it is, reported, ours, tolerance, verdict, reason, provenance.

    Args:
        folders: where the payloads lie.
        covered: artifact id -> notebook, for all that existing notebooks record.
    """
    payloads = read_payloads(folders)
    rows = []
    for artifact in load_artifacts().values():
        payload = payloads.get(artifact.id)
        row = asdict(artifact) | {"ours": None, "checks": {}, "reason": "", "provenance": None}
        if payload is not None:
            row |= payload
        else:
            row["verdict"] = NOT_RUN if artifact.id in covered else NOT_BUILT
        rows.append(row)
    return rows
