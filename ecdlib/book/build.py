"""Building the book: execute the notebooks, generate the scoreboard page, run Jupyter Book."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import nbformat
import yaml

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT
from ecdlib.base.settings import Parameters, Profile
from ecdlib.base.workers import available_cores, in_processes
from ecdlib.book import parameters
from ecdlib.book.parameters import NOTEBOOKS
from ecdlib.book.runs import BUILD, current_scoreboard, execute, finished_runs
from ecdlib.book.scoreboard import front_findings, scoreboard_page

PAGES = ROOT / "book" / "executed"
#: Words that one reads in a minute, of a text with formulas and figures.
PACE = 200
#: Beneath the pages: what the front page includes.
FRONT = "front"


class Course(Protocol):
    """What a course adds to the book (:mod:`ecdlib.course.pages`)."""

    def chapter_seconds(self, page: str, /) -> float:
        """How long a chapter took when it was last measured; 0 if it was not."""

    def questions_html(self, page: str, /) -> str:
        """Questions for the end of a chapter."""

    def write_pages(self, folder: Path, solutions: bool, /) -> dict[str, list[str]]:
        """Write its own pages; returns the names of those beneath each chapter."""

    def write_slides(self, folder: Path, page: Callable[[str], Path], /) -> Any:
        """Write its slides from the pages of the book."""


def build_book(
    course: Course,
    profile: Profile = "quick",
    *,
    kernel: str | None = None,
    force: bool = False,
    solutions: bool = False,
) -> Path:
    """Execute all notebooks (those whose cached run is current are taken as they are) and build the HTML.

    Those of the `quick` and `tiny` profiles are executed two at a time, with one thread each, the longest first.

    Finished runs with other parameters become pages beneath their original; those made from older sources are left
    out with a notice.

    Args:
        solutions: also pages with the solutions of the course's exercises.

    Returns:
        Path of the front page.

    Raises:
        EcdError: a notebook failed, or Jupyter Book gave warnings (they count as errors).
    """
    started = time.monotonic()
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    folders = {}
    longest_first = sorted(NOTEBOOKS, key=course.chapter_seconds, reverse=True)
    calls = [(notebook, parameters.resolve(notebook, {}, profile), kernel, force) for notebook in longest_first]
    workers = 1 if profile == "full" or kernel else min(2, available_cores())
    for number, (i, (folder, seconds)) in enumerate(in_processes(_timed, calls, workers), 1):
        how = "unchanged" if seconds is None else f"executed in {seconds:.0f} s"
        print(f"[{number}/{len(calls)}] {calls[i][0]} ({profile}) {how}", flush=True)
        folders[calls[i][0]] = folder
    for notebook in NOTEBOOKS:
        _page(folders[notebook], notebook, questions=course.questions_html(notebook))
    beneath: dict[str, list[str]] = {}
    for notebook, values, folder, current in finished_runs():
        if not parameters.changed(notebook, values) and values.profile == profile:
            continue
        if not current:
            print(f"left out: {folder.name} was made from older sources; run it again to show it")
            continue
        name = folder.name if folder.name != notebook else f"{notebook}--{values.profile}"
        _page(folder, name, variant=name.removeprefix(f"{notebook}--").replace("--", ", "))
        beneath.setdefault(notebook, []).append(name)
    rows = current_scoreboard()
    (PAGES / "scoreboard.md").write_text(scoreboard_page(rows), encoding="utf-8")
    (PAGES / FRONT / "findings.md").parent.mkdir()
    (PAGES / FRONT / "findings.md").write_text(front_findings(rows), encoding="utf-8")
    (PAGES / FRONT / "picture.md").write_text(_picture(folders["dataset"]), encoding="utf-8")
    beneath |= course.write_pages(PAGES, solutions)
    _assets()
    print(f"building the HTML ({time.monotonic() - started:.0f} s so far)", flush=True)
    for product in ("html", ".doctrees"):  # a page that is gone must go, and a warning must come again
        shutil.rmtree(BUILD / product, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(ROOT), "--path-output", str(ROOT)]
    command += ["--toc", str(_contents(beneath)), "-W", "-n", "--keep-going", "-q"]
    log = BUILD / "book.log"
    with log.open("w") as f, subprocess.Popen(command, cwd=ROOT, stdout=f, stderr=subprocess.STDOUT) as jupyter_book:
        course.write_slides(BUILD / "slides", lambda page: PAGES / f"{page}.ipynb")
    if jupyter_book.returncode:
        said = log.read_text(encoding="utf-8").splitlines()
        lines = [line for line in said if "WARNING" in line or "ERROR" in line]
        print("\n".join(lines[:20]))
        raise EcdError("book", f"Jupyter Book gave {len(lines)} warnings or errors", f"See {log.relative_to(ROOT)}.")
    (BUILD / "slides").rename(BUILD / "html" / "_static" / "slides")
    print(f"book built in {time.monotonic() - started:.0f} s")
    return BUILD / "html" / "index.html"


def _timed(notebook: str, values: Parameters, kernel: str | None, force: bool) -> tuple[Path, float | None]:
    """Folder of a notebook's run and the seconds that it took; None if it was already there."""
    started = time.monotonic()
    folder, cached = execute(notebook, values, kernel=kernel, force=force)
    return folder, None if cached else time.monotonic() - started


def _page(folder: Path, name: str, variant: str = "", questions: str = "") -> None:
    """Copy an executed notebook to where the book takes its pages from.

    Args:
        variant: goes into its title.
        questions: go to its end; a page with them also says how long it takes to read.
    """
    nb = nbformat.read(folder / "executed.ipynb", as_version=4)
    if variant:
        first = next(cell for cell in nb.cells if cell.cell_type == "markdown")
        head, _, rest = first.source.partition("\n")
        first.source = f"{head} — {variant}\n{rest}"
        for cell in nb.cells:  # targets belong to the original page
            if cell.cell_type == "markdown":
                cell.source = re.sub(r"^\([\w-]+\)=$", "", cell.source, flags=re.MULTILINE)
            cell.metadata.get("mystnb", {}).get("figure", {}).pop("name", None)
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        if not {"parameters", "injected-parameters"}.isdisjoint(tags):  # the table of parameters shows them
            cell.metadata["tags"] = [*(tag for tag in tags if tag != "hide-input"), "remove-input"]
    if questions:
        head, _, rest = nb.cells[0].source.partition("\n")
        nb.cells[0].source = f"{head}\n\n*{reading_minutes(nb)} minutes to read*\n{rest}"
        nb.cells.append(nbformat.v4.new_markdown_cell(questions))
    nbformat.write(nb, PAGES / f"{name}.ipynb")


def reading_minutes(nb: nbformat.NotebookNode) -> int:
    """How long a chapter's prose and captions take to read; code, formulas, directives and addresses do not count."""
    captions = [cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "") for cell in nb.cells]
    prose = [cell.source for cell in nb.cells if cell.cell_type == "markdown"]
    text = re.sub(
        r"```.*?```|\$\$.*?\$\$|\$[^$]+\$|\]\([^)]*\)|^:.*$|\{[\w:]+\}",
        " ",
        "\n".join(prose + captions),
        flags=re.S | re.M,
    )
    return max(1, round(len(re.findall(r"[^\W\d_]{2,}", text)) / PACE))


def _picture(folder: Path) -> str:
    """The first view of an executed notebook that turns with the mouse, as MyST; nothing where there is none."""
    nb = nbformat.read(folder / "executed.ipynb", as_version=4)
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    views = [
        output.data["text/html"]
        for output in outputs
        if "ecd-interactive" in output.get("data", {}).get("text/html", "")
    ]
    return f"```{{raw}} html\n{views[0]}\n```\n" if views else ""


def _assets() -> None:
    """Put plotly.js where ``_config.yml`` lists it among the static files: the book needs no network."""
    target = BUILD / "assets" / "plotly.min.js"
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir(parents=True)
    shutil.copyfile(str(files("plotly") / "package_data" / "plotly.min.js"), target)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx extension (see ``_config.yml``): only pages with interactive figures load plotly.js."""

    def load_plotly(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
        if "plotly-graph-div" in context.get("body", ""):
            app.add_js_file("plotly.min.js", priority=100)  # before the figures' own scripts

    app.connect("html-page-context", load_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _contents(beneath: dict[str, list[str]]) -> Path:
    """``_toc.yml`` with variant pages beneath their originals and exercises beneath their sessions."""
    toc: dict[str, Any] = yaml.safe_load((ROOT / "_toc.yml").read_text())
    for part in toc["parts"]:
        for chapter in part["chapters"]:
            pages = beneath.get(Path(chapter["file"]).name, [])
            if pages:
                chapter["sections"] = [{"file": f"book/executed/{page}"} for page in pages]
    path = BUILD / "_toc.yml"
    path.write_text(yaml.safe_dump(toc, sort_keys=False))
    return path
