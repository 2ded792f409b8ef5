"""What the book shows of the course: pages of the sessions, exercises, self-check questions, measured times."""

from __future__ import annotations

import json
import shlex
import socket
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

from ecdlib.base.errors import EcdError
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import ROOT
from ecdlib.book import parameters
from ecdlib.book.build import reading_minutes
from ecdlib.book.parameters import NOTEBOOKS, title
from ecdlib.book.runs import execute, is_current, notebook_path, run_folder
from ecdlib.course.data import SESSIONS
from ecdlib.course.exercises import KINDS, Exercise, exercises, prepared, solve, student_version
from ecdlib.course.slides import write_slides as write_slides  # a part of the book's Course
from ecdlib.course.texts import MARKS, TEXTS, load_questions, load_sessions

#: Stand-ins of the texts for what is generated.
TABLE_OF_SESSIONS, TABLE_OF_TIMES, ADDRESS = "<!-- sessions -->", "<!-- times -->", "<!-- address -->"


def questions_html(page: str) -> str:
    """The questions of a chapter as HTML that needs no script: a click on an answer says whether and why."""
    text = ["## Check yourself", "", "Click on an answer; each one explains itself.", ""]
    for question in load_questions().get(page, []):
        text += ["<div class='ecd-question'>", f"<p>{question['question']}</p>"]
        for letter, answer in zip("abcdef", question["answers"], strict=False):
            kind, word = ("right", "Right.") if answer["right"] else ("wrong", "No.")
            text += [
                f"<details class='ecd-{kind}'><summary>({letter}) {answer['text']}</summary>",
                f"<p><b>{MARKS[answer['right']]} {word}</b> {answer['why']}</p></details>",
            ]
        text += ["</div>", ""]
    return "\n".join(text)


def _title(page: str) -> str:
    return title(page).rstrip(".")


def _clock(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02d}"


def load_times() -> dict[str, Any]:
    """Seconds of chapters, live commands and exercises as :func:`measure` found them, and where; else empty."""
    path = TEXTS / "times.json"
    nothing: dict[str, Any] = {"chapters": {}, "live": {}, "exercises": {}, "made_by": None}
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else nothing


def chapter_seconds(page: str) -> float:
    """How long a chapter took when it was last measured; 0 if it was not."""
    return float(load_times()["chapters"].get(page, 0))


def _seconds(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.0f} min"


def _exercise_seconds(times: dict[str, Any], own: Iterable[Exercise]) -> float:
    return sum(times["exercises"].get(f"{e.session}/{e.name}", 0) for e in own)


def session_page(session: dict[str, Any], times: dict[str, Any], solutions: bool) -> str:
    """One session as a MyST page."""
    name = session["name"]
    number = SESSIONS.index(name) + 1
    own = exercises(name)
    text = [f"# Session {number}: {session['title']}", "", f"*{session['question']}*", ""]
    slides = f"../../../_static/slides/{name}"
    text += [f"<p><a href='{slides}.html'>Slides</a> · <a href='{slides}-handout.html'>Handout to print</a></p>", ""]
    text += ["## Goals", "", "After this session you can", "", *(f"- {goal}" for goal in session["goals"]), ""]
    text += ["## What you need to know", "", *(f"- {need}" for need in session["prerequisites"]), ""]
    text += ["## Plan", "", "| from | minutes | what |", "| --- | --- | --- |"]
    at = 0
    for minutes, what in session["plan"]:
        text.append(f"| {_clock(at)} | {minutes} | {what} |")
        at += minutes
    text += ["", "## Pages", "", "| page | to read | computed in |", "| --- | --- | --- |"]
    for page in session["pages"]:
        if page in NOTEBOOKS:
            minutes = reading_minutes(nbformat.read(notebook_path(page), as_version=4))
            computed = _seconds(times["chapters"].get(page))
            text.append(f"| [{_title(page)}](../{page}.ipynb) | {minutes} min | {computed} |")
        else:
            text.append(f"| [{page.capitalize()}](../{page}.md) | | with the others |")
    text += ["", "Live in the session:", "", "| command | takes |", "| --- | --- |"]
    text += [f"| `{command}` | {_seconds(times['live'].get(command))} |" for command in session["live"]]
    text += ["", "## Exercises", "", session["assignment"], ""]
    text += ["| exercise | kind | minutes | marks (by hand) | computed in |", "| --- | --- | --- | --- | --- |"]
    for e in own:
        marks = f"{e.points:.0f} ({e.by_hand:.0f})" if e.by_hand else f"{e.points:.0f}"
        computed = _seconds(times["exercises"].get(f"{name}/{e.name}"))
        link = f"[{e.title}]({name}/{e.name}.ipynb) `{e.name}`"
        if solutions:
            link += f", [solution]({name}/{e.name}_solution.ipynb)"
        text.append(f"| {link} | {KINDS[e.kind]} | {e.minutes} | {marks} | {computed} |")
    total = _seconds(_exercise_seconds(times, own))
    text += ["", f"All exercises of the session together compute for {total}. {_measured(times)}", ""]
    text += ["## For the teacher", "", ":::{dropdown} What students usually get wrong, and what to answer"]
    text += [*(f"- {mistake}" for mistake in session["mistakes"]), ":::", ""]
    return "\n".join(text)


def _measured(times: dict[str, Any]) -> str:
    made = times["made_by"]
    if not made:
        return "Times have not been measured yet: run `ecd course times`."
    net = "live commands and exercises without a network" if made["offline"] else "with a network"
    return f"Times were measured on {made['device']}, {net}, on {made['date']} (commit {made['commit']})."


def table_of_sessions(times: dict[str, Any]) -> str:
    """The path of the course as a table."""
    text = ["| session | chapters | exercises | they compute |", "| --- | --- | --- | --- |"]
    for number, session in enumerate(load_sessions(), 1):
        own = exercises(session["name"])
        pages = ", ".join(f"[{_title(p)}](../{p}.ipynb)" for p in session["pages"] if p in NOTEBOOKS)
        names = ", ".join(f"[{e.title}]({e.session}/{e.name}.ipynb)" for e in own)
        seconds = _seconds(_exercise_seconds(times, own))
        text.append(f"| {number}. [{session['title']}]({session['name']}.md) | {pages} | {names} | {seconds} |")
    return "\n".join([*text, "", _measured(times)])


def table_of_times(times: dict[str, Any]) -> str:
    """Measured times of each session."""
    text = ["| session | its chapters | its live commands | its exercises |", "| --- | --- | --- | --- |"]
    for number, session in enumerate(load_sessions(), 1):
        chapters = sum(times["chapters"].get(page, 0) for page in session["pages"])
        live = sum(times["live"].get(command, 0) for command in session["live"])
        own = _exercise_seconds(times, exercises(session["name"]))
        text.append(f"| {number} | {_seconds(chapters)} | {_seconds(live)} | {_seconds(own)} |")
    return "\n".join([*text, "", _measured(times)])


def address() -> str:
    """Where the repository can be cloned from: ``repository: url`` of ``_config.yml``, else a word for it."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return str(config.get("repository", {}).get("url") or "ADDRESS")


def write_pages(folder: Path, solutions: bool = False) -> dict[str, list[str]]:
    """Write the pages of the course.

    Args:
        folder: where the book takes its pages from.
        solutions: also the executed solutions, folded.

    Returns:
        For each session, the pages beneath it, relative to the folder.

    Raises:
        EcdError: a solution fails.
    """
    times = load_times()
    target = folder / "course"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("index", "teachers"):
        text = (TEXTS / f"{name}.md").read_text(encoding="utf-8")
        text = text.replace(TABLE_OF_SESSIONS, table_of_sessions(times)).replace(TABLE_OF_TIMES, table_of_times(times))
        text = text.replace(ADDRESS, address())
        (target / f"{name}.md").write_text(text, encoding="utf-8")
    beneath: dict[str, list[str]] = {}
    for session in load_sessions():
        name = session["name"]
        (target / f"{name}.md").write_text(session_page(session, times, solutions), encoding="utf-8")
        (target / name).mkdir(exist_ok=True)
        for exercise in exercises(name):
            pages = {exercise.name: student_version(prepared(exercise))}
            if solutions:
                pages[f"{exercise.name}_solution"] = _solution_page(exercise)
            for page, nb in pages.items():
                nbformat.write(nb, target / name / f"{page}.ipynb")
                beneath.setdefault(name, []).append(f"course/{name}/{page}")
    return beneath


def _solution_page(exercise: Exercise) -> NotebookNode:
    nb = nbformat.read(solve(exercise)[0], as_version=4)
    head, _, rest = nb.cells[0].source.partition("\n")
    nb.cells[0].source = f"{head} — solution\n{rest}"
    for cell in nb.cells:
        about = cell.metadata.get("nbgrader", {})
        if about.get("solution") or about.get("grade"):
            cell.metadata.setdefault("tags", []).append("hide-cell")
            cell.source = cell.source.replace("=== BEGIN MARK SCHEME ===", "Rubric:\n")
            cell.source = cell.source.replace("=== END MARK SCHEME ===", "")
    return nb


# Times


def measure(report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run what a class runs, one after the other, and note the seconds.

    Chapters count as their last run took (``_build/runs``); live commands and solutions are run anew.

    Raises:
        EcdError: a chapter has not been run with the present sources, or a run fails.
    """
    chapters = {}
    for notebook in NOTEBOOKS:
        values = parameters.resolve(notebook, {}, "quick")
        if not is_current(notebook, values):
            raise EcdError(notebook, "has not been run with the present sources", "Run `ecd book` first.")
        chapters[notebook] = json.loads((run_folder(notebook, values) / "key.json").read_text())["seconds"]
    live = {}
    for session in load_sessions():
        for command in session["live"]:
            words = shlex.split(command)
            given = [word.partition("=") for flag, word in pairwise(words) if flag == "-p"]
            started = time.monotonic()
            values = parameters.resolve(words[2], {name: value for name, _, value in given}, "quick")
            execute(words[2], values, force=True)
            live[command] = round(time.monotonic() - started, 1)
            report(f"{command}: {live[command]} s")
    seconds = {}
    for exercise in exercises():
        path = solve(exercise, force=True)[0]
        seconds[f"{exercise.session}/{exercise.name}"] = nbformat.read(path, as_version=4).metadata.ecdlib.seconds
        report(f"{exercise.session}/{exercise.name}: {seconds[f'{exercise.session}/{exercise.name}']} s")
    try:
        socket.create_connection(("1.1.1.1", 53), timeout=3).close()
        offline = False
    except OSError:
        offline = True
    made = provenance("course", {}, 0)
    keep = {key: made[key] for key in ("commit", "versions", "device", "date")} | {"offline": offline}
    return {"chapters": chapters, "live": live, "exercises": seconds, "made_by": keep}
