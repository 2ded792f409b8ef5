"""The exercises of the course: from one notebook each, the student version, the solution and what nbgrader needs.

An exercise is ``notebooks/exercises/SESSION/NAME.ipynb`` in nbgrader's conventions: cells with ``### BEGIN SOLUTION``,
tests with ``### BEGIN HIDDEN TESTS``, rubrics between ``=== BEGIN MARK SCHEME ===`` and its end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.resources import is_unchanged
from ecdlib.book.runs import BUILD, code_key
from ecdlib.course import answers
from ecdlib.course.data import EXERCISES, SESSIONS, Data

#: Folder in which nbgrader finds the course.
COURSE = BUILD / "course"
#: The four kinds of exercises.
KINDS = {
    "predict": "predict, then run",
    "complete": "complete the code",
    "find": "find the error",
    "open": "open question",
}
CONFIG = '''"""nbgrader's settings, made by `ecd course make`; see the page For teachers."""

from pathlib import Path

c = get_config()  # noqa: F821
c.CourseDirectory.root = str(Path(__file__).resolve().parent)
c.CourseDirectory.course_id = "ecdlib"
c.Autograde.autograde_preprocessors = [
    "ecdlib.course.grading.GuardedExecute",  # stops what crashes, loops or floods
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
'''


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        session, name: where it is.
        kind: one of :data:`KINDS`.
        minutes: what it should take a student.
        pages: chapters that it belongs to.
        points: marks of all its cells; ``by_hand`` of them are given by the teacher.
        path: the notebook.
    """

    session: str
    name: str
    title: str
    kind: str
    minutes: int
    pages: tuple[str, ...]
    points: float
    by_hand: float
    path: Path


def exercises(session: str | None = None, folder: Path = EXERCISES) -> list[Exercise]:
    """Exercises of one session, or of all, in the order of the sessions.

    Args:
        folder: where they are; the ``source`` folder of a course holds those that were handed out.

    Raises:
        EcdError: there is no such session.
    """
    if session is not None and session not in SESSIONS:
        raise EcdError(session, "is not a session of the course", f"Choose one of: {', '.join(SESSIONS)}.")
    found = []
    for part in [session] if session else SESSIONS:
        for path in (folder / part).glob("*.ipynb"):
            nb = nbformat.read(path, as_version=4)
            about = nb.metadata.exercise
            graded = [cell.metadata.nbgrader for cell in nb.cells if cell.metadata.get("nbgrader", {}).get("grade")]
            found.append(
                Exercise(
                    part,
                    path.stem,
                    nb.cells[0].source.splitlines()[0].removeprefix("# "),
                    about.kind,
                    about.minutes,
                    tuple(about.pages),
                    sum(cell.points for cell in graded),
                    sum(cell.points for cell in graded if cell.solution),
                    path,
                )
            )
    order = list(KINDS)
    return sorted(found, key=lambda e: (e.session, order.index(e.kind), e.name))


def prepared(exercise: Exercise, data: Data = "course", student: str = "") -> NotebookNode:
    """The source notebook with its data set, the student's number and a line that says what it is."""
    nb = nbformat.read(exercise.path, as_version=4)
    for cell in nb.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = f'DATA = "{data}"'
        elif cell.cell_type == "code":
            cell.source = re.sub(r'^STUDENT = "[^"]*"', f'STUDENT = "{student}"', cell.source)
    title, _, rest = nb.cells[0].source.partition("\n")
    line = f"*{exercise.session.replace('_', ' ').capitalize()} · {KINDS[exercise.kind]}"
    line += f" · about {exercise.minutes} minutes · {exercise.points:.0f} marks*"
    nb.cells[0].source = f"{title}\n\n{line}\n{rest}"
    return nb


def student_version(nb: NotebookNode) -> NotebookNode:
    """The notebook without solutions, hidden tests and rubrics, as nbgrader hands it out."""
    from nbgrader.preprocessors import ClearHiddenTests, ClearMarkScheme, ClearSolutions

    for step in (ClearSolutions(), ClearHiddenTests(), ClearMarkScheme()):
        nb, _ = step.preprocess(nb, {})
    return nb


#: Last cell of a solution that is executed: the bundled files that it has read.
READS = "import json\nfrom ecdlib.base.resources import files_read\nprint(json.dumps(files_read()))"


def run_notebook(nb: NotebookNode) -> NotebookNode:
    """Execute a notebook in a kernel of its own; errors become outputs of their cells."""
    from nbclient import NotebookClient

    client = NotebookClient(nb, timeout=600, allow_errors=True, kernel_name="python3")
    client.extra_arguments = ["--IPKernelApp.log_level=40"]
    client.execute()
    return nb


def errors_in(nb: NotebookNode) -> dict[str, str]:
    """Cell name (nbgrader's ``grade_id``) -> first line of its error."""
    found: dict[str, str] = {}
    for number, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                name = cell.metadata.get("nbgrader", {}).get("grade_id", f"cell {number + 1}")
                found.setdefault(name, f"{output.ename}: {output.evalue}".splitlines()[0])
    return found


def solve(
    exercise: Exercise, data: Data = "course", folder: Path = COURSE, *, force: bool = False
) -> tuple[Path, bool]:
    """The executed solution, ``solutions/SESSION/NAME.ipynb``, from the cache if nothing has changed.

    Below an open question stand its sample answers (:mod:`ecdlib.course.answers`).

    Returns:
        Its path and whether it came from the cache. The notebook's metadata say how many seconds it took.

    Raises:
        EcdError: a cell of the solution fails.
    """
    nb = prepared(exercise, data, student="0")
    answers.insert(nb, f"{exercise.session}/{exercise.name}")
    key = code_key(nb)
    path = folder / "solutions" / exercise.session / f"{exercise.name}.ipynb"
    if not force and path.is_file():
        made = nbformat.read(path, as_version=4).metadata.get("ecdlib", {})
        if made.get("key") == key and is_unchanged(made["reads"]):
            return path, True
    started = time.monotonic()
    nb.cells.append(nbformat.v4.new_code_cell(READS))
    run_notebook(nb)
    reads = json.loads(nb.cells.pop().outputs[0].text)
    seconds = time.monotonic() - started
    if failed := errors_in(nb):
        name, why = next(iter(failed.items()))
        raise EcdError(exercise.path, f"the solution fails in cell {name} ({why})", "Correct the exercise.")
    answers.fill(nb)
    nb.metadata["ecdlib"] = {"key": key, "reads": reads, "seconds": round(seconds, 1), "data": data}
    with atomic_write(path) as temporary:
        nbformat.write(nb, temporary)
    return path, False


def as_html(nb: NotebookNode, path: Path) -> None:
    """Write a notebook as one HTML file that needs no network."""
    from nbconvert import HTMLExporter

    scripts = ("html_head_js", "html_head_js_mathjax", "html_head_js_mermaidjs")  # all from the network
    without = "".join(f"{{%- block {name} -%}}{{%- endblock -%}}" for name in scripts)
    exporter = HTMLExporter(raw_template="{%- extends 'lab/index.html.j2' -%}" + without)
    body, _ = exporter.from_notebook_node(nb)
    with atomic_write(path) as temporary:
        temporary.write_text(body, encoding="utf-8")


def nbgrader_api(folder: Path = COURSE) -> Any:
    """nbgrader's Python interface to the course in ``folder``.

    Raises:
        EcdError: nbgrader is not installed, or the folder holds no course.
    """
    try:
        from nbgrader.apps import NbGraderAPI
    except ImportError as error:
        raise EcdError("nbgrader", "is not installed", "Run `make env`, or pip install -e '.[course]'.") from error
    from traitlets.config.loader import PyFileConfigLoader

    if not (folder / "nbgrader_config.py").is_file():
        raise EcdError(folder, "holds no course", "Make one with `ecd course make`.")
    own = str(Path(sys.executable).parent)  # nbgrader calls alembic, which an environment that is not active hides
    if own not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = own + os.pathsep + os.environ["PATH"]
    config = PyFileConfigLoader("nbgrader_config.py", path=str(folder)).load_config()
    return NbGraderAPI(config=config)


def make(
    sessions: Sequence[str] = SESSIONS,
    data: Data = "course",
    folder: Path = COURSE,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """From the source notebooks: student versions, solutions, and the course in which nbgrader grades.

    Writes into ``folder``: ``release/`` (student versions), ``solutions/`` (executed, as notebook and HTML),
    ``source/``, ``gradebook.db`` and ``nbgrader_config.py``. Existing submissions and marks are kept.

    Raises:
        EcdError: nbgrader is not installed, a solution fails, or nbgrader refuses a notebook.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "nbgrader_config.py") as temporary:
        temporary.write_text(CONFIG, encoding="utf-8")
    api = nbgrader_api(folder)
    for session in sessions:
        own = exercises(session)
        target = folder / "source" / session
        texts = {exercise.path.name: nbformat.writes(prepared(exercise, data)) for exercise in own}
        present = {path.name: path.read_text(encoding="utf-8") for path in target.glob("*.ipynb")}
        if present and present != texts and any((folder / "submitted").glob(f"*/{session}")):
            problem = "its exercises or data have changed since students handed in, so marks would no longer fit"
            raise EcdError(target, problem, "Make a new course: ecd course make --folder NEW.")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name, text in texts.items():
            (target / name).write_text(text, encoding="utf-8")
        done = api.generate_assignment(session, force=True, create=True)
        if not done["success"]:
            log = folder / "nbgrader.log"
            log.write_text(str(done.get("log")) + str(done.get("error")), encoding="utf-8")
            raise EcdError(target, "nbgrader made no student version of it", f"See {log}.")
        report(f"{folder / 'release' / session}: {len(own)} notebooks")
        for exercise in own:
            path, cached = solve(exercise, data, folder)
            nb = nbformat.read(path, as_version=4)
            as_html(nb, path.with_suffix(".html"))
            report(f"{path.with_suffix('.html')}: {'unchanged' if cached else nb.metadata.ecdlib.seconds} s")
