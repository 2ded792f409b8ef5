"""Slides and handouts of the sessions, made from ``book/course/slides/session_N.md``.

Slides are separated by lines of three dashes. Each has a heading, Markdown with formulas between dollar signs, at most
one picture, and after a line ``Notes:`` what is said, in words. A picture is ``![alt text](plot:NAME)``, one of
:mod:`ecdlib.course.pictures`, or ``![](figure:CHAPTER/LABEL)``, the figure of a chapter with the name
``fig-CHAPTER-LABEL``. A value that a chapter glues is written ``{glue}`CHAPTER:NAME:FORMAT```. A slide that reads
``question: CHAPTER K`` asks the K-th self-check question of a chapter.
"""

from __future__ import annotations

import base64
import html
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.resources import ROOT
from ecdlib.book import parameters
from ecdlib.book.runs import execute
from ecdlib.course import pictures
from ecdlib.course.data import SESSIONS
from ecdlib.course.exercises import KINDS, exercises
from ecdlib.course.texts import MARKS, TEXTS, load_questions, load_sessions

PICTURE = re.compile(r"!\[([^\]]*)\]\((plot|figure):([^)]+)\)")
VALUE = re.compile(r"\{glue\}`(\w+):(\w+)(?::([^`]*))?`")
QUESTION = re.compile(r"question: (\w+) (\d+)")


@dataclass(frozen=True)
class Slide:
    """One slide: Markdown of what is shown, without and with its picture, and of what is said."""

    heading: str
    text: str
    notes: str
    kind: str = "concept"  #: or "question"


@lru_cache
def load_slides(session: str) -> list[Slide]:
    """Slides of a session as they are written, without those that follow from ``sessions.yml``."""
    found = []
    for part in re.split(
        r"^---$", (TEXTS / "slides" / f"{session}.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    ):
        asked = QUESTION.fullmatch(part.strip())
        found.append(_question(asked[1], int(asked[2])) if asked else _slide(part))
    return found


def _slide(part: str) -> Slide:
    shown, _, said = part.strip().partition("\nNotes:")
    heading, _, text = shown.partition("\n")
    return Slide(heading.removeprefix("## "), text.strip(), said.strip())


def _question(page: str, number: int) -> Slide:
    """A self-check question; the notes hold its answers with their reasons."""
    question = load_questions()[page][number - 1]
    answers = list(zip("abcdef", question["answers"], strict=False))
    text = "\n\n".join([question["question"], *(f"({letter}) {answer['text']}" for letter, answer in answers)])
    notes = "\n\n".join(f"{MARKS[a['right']]} ({letter}) {a['why']}" for letter, a in answers)
    return Slide("Check yourself", text, notes, "question")


def session_slides(session: dict[str, Any]) -> list[Slide]:
    """All slides of a session: its title and aims, those that are written, its exercises."""
    name = session["name"]
    aims = "\n".join(f"- {goal}" for goal in session["goals"])
    needs = "\n".join(f"- {need}" for need in session["prerequisites"])
    rows = [f"| {e.title} | {KINDS[e.kind]} | {e.minutes} |" for e in exercises(name)]
    table = "\n".join(["| exercise | kind | minutes |", "| --- | --- | --- |", *rows])
    mistakes = "\n".join(f"- {mistake}" for mistake in session["mistakes"])
    return [
        Slide(
            session["title"], f"Session {SESSIONS.index(name) + 1}\n\n*{session['question']}*", f"Needed:\n\n{needs}"
        ),
        Slide("After this session you can", aims, "Say which of these the exercises will ask for."),
        *load_slides(name),
        Slide("Exercises", f"{table}\n\n{session['assignment']}", f"What usually goes wrong:\n\n{mistakes}"),
    ]


def chapters_of(session: str) -> list[str]:
    """Chapters whose figures or values the slides of a session show."""
    text = "\n".join(slide.text + slide.notes for slide in load_slides(session))
    figures = [name.partition("/")[0] for _, kind, name in PICTURE.findall(text) if kind == "figure"]
    return sorted({*figures, *(chapter for chapter, _, _ in VALUE.findall(text))})


class Chapters:
    """Figures and values of executed chapters.

    Args:
        executed: gives the executed notebook of a chapter.
    """

    def __init__(self, executed: Callable[[str], Path]):
        self._notebook = lru_cache(lambda chapter: nbformat.read(executed(chapter), as_version=4))

    def value(self, chapter: str, name: str, form: str) -> str:
        """What a chapter has glued under a name, formatted.

        Raises:
            EcdError: nothing was.
        """
        raw = glued(self._notebook(chapter)).get(name)
        if raw is None:
            raise EcdError(f"slides: {chapter}", f"glues nothing named {name}", "Name a value that it glues.")
        raw = raw.strip("'")
        return format(float(raw), form) if form else raw

    def figure(self, chapter: str, label: str) -> tuple[str, str]:
        """``src`` and alternative text of a figure.

        Raises:
            EcdError: there is no such figure, or it was not drawn.
        """
        wanted = f"fig-{chapter}-{label}".replace("_", "-")
        for cell in self._notebook(chapter).cells:
            about = cell.metadata.get("mystnb", {})
            source = still(cell) if about.get("figure", {}).get("name") == wanted else ""
            if source:
                return source, about.get("image", {}).get("alt", "")
        raise EcdError(f"slides: {chapter}", f"has no figure named {wanted}", "Name a figure that it draws.")


def glued(nb: NotebookNode) -> dict[str, str]:
    """Values that a notebook has made usable in prose."""
    found = {}
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                found[name] = str(next(iter(output.data.values())))
    return found


def still(cell: NotebookNode) -> str:
    """The first still picture of a cell's output as the ``src`` of an image, or nothing."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/svg+xml" in data:
            packed = base64.b64encode("".join(data["image/svg+xml"]).encode()).decode()
            return f"data:image/svg+xml;base64,{packed}"
        if "image/png" in data:
            return "data:image/png;base64," + "".join(data["image/png"]).replace("\n", "")
    return ""


@lru_cache
def _markdown() -> MarkdownIt:
    def formula(content: str, options: dict[str, Any]) -> str:
        ends = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
        return f"{ends[0]}{html.escape(content.strip())}{ends[1]}"

    return MarkdownIt("commonmark", {"html": True}).enable("table").use(dollarmath_plugin, renderer=formula)


def rendered(text: str, chapters: Chapters) -> str:
    """Markdown of a slide as HTML, its pictures drawn and its values filled in."""

    def image(match: re.Match[str]) -> str:
        alt, kind, name = match.groups()
        if kind == "plot":
            source = pictures.svg(name)
        else:
            source, found = chapters.figure(*name.split("/"))
            alt = alt or found
        return f'\n<figure><img alt="{html.escape(alt, quote=True)}" src="{source}"></figure>\n'

    text = VALUE.sub(lambda match: chapters.value(match[1], match[2], match[3] or ""), text)
    return str(_markdown().render(PICTURE.sub(image, text)))


# What is shared by slides and handouts

MATHJAX = """<script>MathJax = {startup: {typeset: true}, options: {enableMenu: false}};</script>
<script src="../mathjax/tex-svg-full.js"></script>"""

DECK = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>%(title)s</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="reveal/dist/reveal.css"><link rel="stylesheet" href="reveal/dist/theme/white.css">
<style>
.reveal { font-size: 27px; }
.reveal .slides section { height: 655px; box-sizing: border-box; flex-direction: column; text-align: left; }
.reveal :is(h1, h2) { text-transform: none; letter-spacing: 0; margin: 0 0 0.5em; }
.reveal h1 { font-size: 2em; margin-top: 4.5em; } .reveal h2 { font-size: 1.4em; }
.reveal :is(p, ul) { margin: 0 0 0.5em; line-height: 1.35; } .reveal ul { margin-left: 1.1em; }
.reveal figure { flex: 1 1 0; min-height: 240px; margin: 0.3em 0 0; }
.reveal figure img { width: 100%%; height: 100%%; max-height: none; margin: 0; display: block; object-fit: contain; }
.reveal table { font-size: 0.85em; margin: 0 0 0.8em; } .reveal mjx-container[display="true"] { margin: 0.4em 0; }
.reveal .slide-number { right: auto; left: 8px; }
.reveal section.question p:first-of-type { font-weight: 600; } .reveal section.question { font-size: 0.93em; }
</style></head><body><div class="reveal"><div class="slides">
%(body)s
</div></div>
%(mathjax)s
<script src="reveal/dist/reveal.js"></script><script src="reveal/plugin/notes/notes.js"></script>
<script>Reveal.initialize({hash: true, slideNumber: "c/t", transition: "none", center: false, display: "flex",
  plugins: [RevealNotes], width: 1000, height: 700, margin: 0.06});</script>
</body></html>
"""

SHEET = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>%(title)s: handout</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
@page { size: A4; margin: 18mm 20mm; }
body { max-width: 42rem; margin: 1.5rem auto; padding: 0 1rem; font: 11pt/1.45 Georgia, serif; color: #111; }
h1, h2 { font-family: Helvetica, Arial, sans-serif; line-height: 1.2; } h1 { font-size: 20pt; } h2 { font-size: 13pt; }
section { break-inside: avoid; margin: 0 0 1.4em; } h2 { break-after: avoid; margin: 0 0 0.4em; }
section.answers { break-before: page; break-inside: auto; }
figure { margin: 0.6em 0; } img { display: block; max-width: 100%%; max-height: 8cm; margin: 0 auto; }
p, ul { margin: 0 0 0.5em; } table { border-collapse: collapse; }
td, th { padding: 0.1em 0.7em 0.1em 0; text-align: left; }
mjx-container[display="true"] { overflow-x: auto; overflow-y: hidden; }
@media print { body { margin: 0; padding: 0; max-width: none; } .screen { display: none; } }
</style></head><body>
<p class="screen"><i>To print this handout, or to save it as PDF, use your browser's command Print.</i></p>
%(body)s
%(mathjax)s
</body></html>
"""


def deck(session: dict[str, Any], chapters: Chapters) -> str:
    """The slides of a session as an HTML page that stands beside ``reveal/``, under the book's ``mathjax/``."""
    body = []
    for number, slide in enumerate(session_slides(session)):
        level = "h2" if number else "h1"
        body.append(
            f'<section class="{slide.kind}"><{level}>{_inline(slide.heading)}</{level}>\n'
            f'{rendered(slide.text, chapters)}<aside class="notes">{rendered(slide.notes, chapters)}</aside></section>'
        )
    return DECK % {"title": _title(session), "body": "\n".join(body), "mathjax": MATHJAX}


def handout(session: dict[str, Any], chapters: Chapters) -> str:
    """The slides of a session on paper, with what is said as text; answers to the questions on a page of their own."""
    title, aims, *slides, tasks = session_slides(session)
    parts = [f"<h1>{_inline(title.heading)}</h1>\n{rendered(title.text, chapters)}"]
    answers: list[str] = []
    for slide in (aims, *slides, tasks):
        text, heading = rendered(slide.text, chapters), _inline(slide.heading)
        if slide.kind == "question":
            answers.append(f"<h3>Question {len(answers) + 1}</h3>{rendered(slide.notes, chapters)}")
            heading = f"Question {len(answers)}"
        elif slide in slides:
            text += rendered(slide.notes, chapters)
        parts.append(f"<section><h2>{heading}</h2>\n{text}</section>")
    parts.append(f'<section class="answers"><h2>Answers</h2>\n{"".join(answers)}</section>')
    return SHEET % {"title": _title(session), "body": "\n".join(parts), "mathjax": MATHJAX}


def _inline(text: str) -> str:
    return str(_markdown().renderInline(text))


def _title(session: dict[str, Any]) -> str:
    return f"Session {SESSIONS.index(session['name']) + 1}: {session['title']}"


def write_slides(folder: Path, executed: Callable[[str], Path], sessions: Iterable[str] = SESSIONS) -> list[Path]:
    """Write ``session_N.html`` and ``session_N-handout.html``, with reveal.js beside them: no network is needed.

    Formulas take the copy of MathJax that is ``mathjax/`` beside the folder, as in the book.

    Args:
        executed: gives the executed notebook of a chapter.

    Returns:
        The pages.

    Raises:
        EcdError: reveal.js is not installed, or a chapter lacks a figure or value.
    """
    try:
        reveal = files("sphinx_revealjs") / "_static" / "revealjs"
    except ImportError as error:
        raise EcdError("slides", f"need {error.name}", "Run `make env`, or pip install -e '.[course]'.") from error
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("dist", "plugin/notes"):
        shutil.copytree(str(reveal / part), folder / "reveal" / part, ignore=shutil.ignore_patterns("*.map"))
    shutil.copyfile(str(reveal / "LICENSE"), folder / "reveal" / "LICENSE")
    chapters, written = Chapters(executed), []
    for session in load_sessions():
        if session["name"] in sessions:
            for name, make in (("", deck), ("-handout", handout)):
                written.append(folder / f"{session['name']}{name}.html")
                with atomic_write(written[-1]) as temporary:
                    temporary.write_text(make(session, chapters), encoding="utf-8")
    return written


def write_lecture(folder: Path, sessions: Iterable[str]) -> list[Path]:
    """Slides and handouts in a folder of their own, apart from the book: ``slides/`` and the ``mathjax/`` they need.

    Chapters whose figures or values they show are executed, unless their run is current.
    """

    def executed(chapter: str) -> Path:
        return execute(chapter, parameters.resolve(chapter, {}, "quick"))[0] / "executed.ipynb"

    shutil.copytree(ROOT / "book" / "assets" / "mathjax", folder / "mathjax", dirs_exist_ok=True)
    return write_slides(folder / "slides", executed, sessions)
