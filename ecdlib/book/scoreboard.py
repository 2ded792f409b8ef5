"""The scoreboard as a page of the book."""

from __future__ import annotations

import html
from collections import Counter
from typing import Any

from ecdlib.book.artifacts import (
    COLOURS,
    GREY,
    MEANINGS,
    NOT_BUILT,
    NOT_RUN,
    PAPERS,
    VERDICTS,
    explain,
    show,
    verdict_words,
)
from ecdlib.book.runs import evidence_list

#: Artifacts whose findings stand at the head of the scoreboard: what a reader in the field should know.
FINDINGS = (
    "lean-claim-forest",
    "fusion-claim-fusion",
    "cgcnn-tableA1",
    "beyond-convention-movement",
    "beyond-crystal-neighbour",
)


def scoreboard_page(rows: list[dict[str, Any]]) -> str:
    """The scoreboard as a MyST page: counts for each paper, the findings, then one table per paper with filters."""
    words = [*VERDICTS, *(w for w in (NOT_RUN, NOT_BUILT) if any(row["verdict"] == w for row in rows))]
    text = [
        "# Scoreboard",
        "",
        "What the three papers report, beside what comes out here. This page is made from the results that the "
        "notebooks write; nothing in it is typed by hand.",
        "",
        _counts(rows, words),
        "",
        "## What the field should know",
        "",
        *_findings(rows),
        "",
        "## What the verdicts mean",
        "",
        *(f"- **{verdict}**: {meaning}." for verdict, meaning in MEANINGS.items()),
        "",
        "A verdict follows from a rule, not from an author. Printed numbers are judged as numbers, each within a "
        "tolerance that was fixed before; a check can lower what they say, but not raise it. One model is better than "
        "another only beyond two standard errors of the difference on the same crystals. "
        "Every row opens: its evidence, what the print leaves open, and the run that made it.",
        "",
        _filters(words),
        "",
    ]
    for paper, title in PAPERS.items():
        own = [row for row in rows if row["paper"] == paper]
        heads = ("aim", "goal", "here", "verdict") if paper == "beyond" else ("artifact", "in print", "here", "verdict")
        text += [f"## {title}", "", "<table class='ecd-scoreboard'><thead><tr>"]
        text += ["".join(f"<th>{head}</th>" for head in heads) + "</tr></thead><tbody>"]
        text += [*(_row(row, heads) for row in own), "</tbody></table>", ""]
    return "\n".join(text)


def _word(verdict: str, said: str = "") -> str:
    """A verdict in its colour."""
    return f"<b style='color:{COLOURS.get(verdict, GREY)}'>{said or verdict}</b>"


def _counts(rows: list[dict[str, Any]], words: list[str]) -> str:
    """How many of each verdict, for each paper."""
    heads = "".join(f"<th>{_word(word)}</th>" for word in words)
    lines = [f"<table class='ecd-counts'><thead><tr><th></th>{heads}<th>all</th></tr></thead><tbody>"]
    for paper, title in PAPERS.items():
        counts = Counter(row["verdict"] for row in rows if row["paper"] == paper)
        cells = "".join(f"<td data-label='{word}'>{counts[word] or ''}</td>" for word in words)
        lines.append(f"<tr><th>{title}</th>{cells}<td data-label='all'>{counts.total()}</td></tr>")
    return "\n".join([*lines, "</tbody></table>"])


def front_findings(rows: list[dict[str, Any]]) -> str:
    """The findings for the front page, which includes this text: each with links to its chapter and its evidence."""
    return "\n".join(_findings(rows, "executed/scoreboard.html", "executed/{}.html")) + "\n"


def _findings(rows: list[dict[str, Any]], board: str = "", chapter: str = "") -> list[str]:
    """The findings, in the words and numbers of the runs.

    Args:
        board: address of the scoreboard, from the page that shows them.
        chapter: address of a chapter, with ``{}`` for its name; empty: no link to it.
    """
    by_id = {row["id"]: row for row in rows}
    made = [by_id[name] for name in FINDINGS if by_id[name]["finding"]]
    return [
        f"{number}. {row['finding']} ({_word(row['verdict'], verdict_words(row['paper'], row['verdict']))}: "
        f"<a href='{board}#{row['id']}'>{PAPERS[row['paper']]}, {html.escape(row['where'])}</a>"
        + (f"; <a href='{chapter.format(row['provenance']['notebook'])}'>chapter</a>)" if chapter else ")")
        for number, row in enumerate(made, 1)
    ] or ["No notebook has run yet."]


def _filters(words: list[str]) -> str:
    """Boxes that hide rows, by the style sheet alone."""
    boxes = "".join(
        f"<label><input type='checkbox' checked class='ecd-show-{_key(word)}'> {_word(word)}</label>" for word in words
    )
    return f"<div class='ecd-filters'><span>Show:</span>{boxes}</div>"


def _key(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _row(row: dict[str, Any], heads: tuple[str, ...]) -> str:
    """One artifact; its evidence, the print's open points and the provenance are folded up."""
    made = row["provenance"]
    state = " (older sources)" if row.get("stale") else ""
    state += " (tiny profile: means nothing)" if made and made["parameters"]["profile"] == "tiny" else ""
    unit = html.escape(row["unit"]) if isinstance(row["ours"], list) else ""
    aside = "<br><small>not compared</small>" if unit and (row["other_data"] or row["not_possible"]) else ""
    facts = []
    if row["tolerance"]:
        facts.append(f"Tolerance: {html.escape(row['tolerance'])} ({html.escape(row['why'])}).")
    if row["note"]:
        facts.append(f"In print: {html.escape(row['note'])}.")
    if made:
        data = ", ".join(f"{name} {digest}" for name, digest in made["data"].items() if name.endswith(".h5"))
        versions = ", ".join(f"{name} {v}" for name, v in made["versions"].items())
        by = f"{made['parameters']['profile']} profile, seed {made['parameters']['seed']}; {made['device']}, "
        by += f"{made['seconds']} s, {made['date']}; commit {made['commit']}; {data}; {versions}"
        facts.append(f"Made by <a href='{made['notebook']}.html'>{made['notebook']}</a>: {html.escape(by)}.")
    facts.append(f"<code>{row['id']}</code>")
    inside = evidence_list(row) + "".join(f"<p>{fact}</p>" for fact in facts)
    cells = (
        f"<b>{html.escape(row['where'])}</b>: {html.escape(row['what'])}",
        f"{html.escape(row['reported'])} {html.escape(row['unit'])}",
        f"{html.escape(show(row['ours']))} {unit}{aside}",
        f"{_word(row['verdict'], verdict_words(row['paper'], row['verdict']))}{state}"
        f"<br><small>{html.escape(explain(row))}</small>"
        f"<details><summary>evidence and provenance</summary>{inside}</details>",
    )
    shown = "".join(f"<td data-label='{head}'>{cell}</td>" for head, cell in zip(heads, cells, strict=True))
    return f"<tr id='{row['id']}' class='ecd-is-{_key(row['verdict'])}'>{shown}</tr>"
