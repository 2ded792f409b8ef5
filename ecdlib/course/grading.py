"""Grading what students hand in, with nbgrader, so that no notebook can stop the class's run.

Each submission is graded in a process of its own, with limits on time, output and memory. What was stopped stands as a
line in the mark sheet; the other cells, notebooks and students are graded all the same.

Grading runs the students' code with the rights of whoever grades: use an account or a container of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil
from jupyter_core.utils import ensure_async, run_sync
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.preprocessors import Execute
from traitlets import Integer

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.course.exercises import COURSE, exercises, nbgrader_api

#: Bytes of a notebook that is handed in.
SIZE_LIMIT = 20_000_000
#: Bytes that the Python of a submission may hold.
MEMORY_LIMIT = 4 * 2**30
#: What the students' code sees of the teacher's environment, which may hold keys of services.
PASSED_ON = (
    *("PATH", "HOME", "USERPROFILE", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TEMP", "SYSTEMROOT"),
    *("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "ECDLIB_DATA", "MPLBACKEND", "MPLCONFIGDIR"),
    *("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"),
)
#: Names of the errors that say that the grader stopped a cell.
STOPPED = ("CellTimeoutError", "KernelDied", "TooMuchOutput", "NotRun")


class GuardedExecute(Execute):
    """nbgrader's execution of a notebook, with limits; what they stop becomes an error of its cell, without a mark.

    A cell that runs too long or prints too much is interrupted, and the next one is run; after the kernel's end (a
    crash, ``exit``, too little memory) or the notebook's time the rest is not run.
    """

    timeout = Integer(60, help="seconds that one cell may take").tag(config=True)
    notebook_timeout = Integer(180, help="seconds that one notebook may take").tag(config=True)
    output_limit = Integer(5_000_000, help="bytes that one cell may print").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Any = None, km: Any = None) -> Any:
        """Execute all cells of a notebook.

        Returns:
            The notebook with outputs, and the resources.
        """
        self._end = time.monotonic() + self.notebook_timeout
        self._printed: dict[int, int] = {}
        self._interrupt: asyncio.Future[Any] | None = None
        self.timeout_func = lambda cell: max(1, min(self.timeout, int(self._end - time.monotonic())))
        self.error_on_timeout = {
            "ename": "CellTimeoutError",
            "evalue": "ran out of time and was interrupted",
            "traceback": ["CellTimeoutError: ran out of time and was interrupted"],
        }
        self.iopub_timeout = 20
        for cell in nb.cells:  # for nbgrader a test without output has passed: what is never run must not look so
            _stop(cell, "NotRun", "not run: Python did not start, had ended, or had no time left")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:  # what students write goes with it
            place = {**(resources or {}), "metadata": {**(resources or {}).get("metadata", {}), "path": own}}
            with suppress(DeadKernelError, CellTimeoutError, RuntimeError):  # told in the cells
                super().preprocess(nb, place, km)
        return nb, resources

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> Any:
        """Execute one cell."""
        if time.monotonic() > self._end or cell.cell_type != "code":
            return cell, resources
        cell.outputs = []
        try:
            cell, resources = super().preprocess_cell(cell, resources, index)
        except DeadKernelError:
            _stop(cell, "KernelDied", "ended Python (a crash, exit, or too much memory)")
            raise
        except (CellTimeoutError, RuntimeError) as error:
            _stop(cell, "KernelDied", f"left Python without an answer ({type(error).__name__})")
            raise
        for output in cell.outputs:  # nbgrader takes a warning on stderr for a failed test
            if output.output_type == "stream":
                output.name = "stdout"
        return cell, resources

    async def async_execute_cell(self, cell: NotebookNode, cell_index: int, *rest: Any, **options: Any) -> NotebookNode:
        """Execute one cell; an interrupt that is still under way must not reach the next one."""
        try:
            return await super().async_execute_cell(cell, cell_index, *rest, **options)
        finally:
            if self._interrupt is not None:
                await self._interrupt
                await asyncio.sleep(0.5)
                self._interrupt = None

    execute_cell = run_sync(async_execute_cell)

    def process_message(self, msg: Any, cell: NotebookNode, cell_index: int) -> Any:
        """Take one message of the kernel; output beyond the limit is dropped and its cell interrupted."""
        if msg["msg_type"] in ("stream", "display_data", "execute_result", "update_display_data"):
            before = self._printed.get(cell_index, 0)
            self._printed[cell_index] = before + len(json.dumps(msg["content"], default=str))
            if self._printed[cell_index] > self.output_limit:
                if before <= self.output_limit:
                    _stop(
                        cell, "TooMuchOutput", f"printed more than {self.output_limit / 1e6:g} MB and was interrupted"
                    )
                    assert self.km is not None
                    self._interrupt = asyncio.ensure_future(ensure_async(self.km.interrupt_kernel()))
                return None
        return super().process_message(msg, cell, cell_index)


def _stop(cell: NotebookNode, name: str, why: str) -> None:
    if cell.cell_type == "code":
        cell.outputs = [*cell.get("outputs", [])[:20], new_output("error", ename=name, evalue=why, traceback=[why])]


def _students(folder: Path, session: str) -> list[str]:
    """Whoever handed something in; the name of the folder is the student's number."""
    return sorted(path.parent.name for path in (folder / "submitted").glob(f"*/{session}") if path.is_dir())


def _accept(folder: Path, session: str, student: str) -> list[str]:
    """Copy what can be read to ``accepted/``, where nbgrader takes it: one damaged file would end its work on all.

    Returns:
        What was refused and why, one line each.
    """
    came, target = folder / "submitted" / student / session, folder / "accepted" / student / session
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if student != student.strip() or re.search(r"^\.|[\[\]*?]", student):
        return [f"folder {student!r}: rename it, without blanks at its ends, a dot at its start or any of []*?"]
    refused = []
    known = {exercise.path.name for exercise in exercises(session, folder / "source")}
    for path in sorted(came.glob("*.ipynb")):
        if path.name not in known:
            refused.append(f"{path.name}: not an exercise of this session")
        elif path.stat().st_size > SIZE_LIMIT:
            refused.append(f"{path.name}: larger than {SIZE_LIMIT / 1e6:g} MB; hand it in without outputs")
        else:
            try:
                nb = nbformat.read(path, as_version=4)
                lost = _restore(nb, nbformat.read(folder / "release" / session / path.name, as_version=4))
                nbformat.validate(nb)
                nbformat.write(nb, target / path.name)
            except Exception as error:
                (target / path.name).unlink(missing_ok=True)
                refused.append(f"{path.name}: is not a readable notebook ({type(error).__name__}); hand it in again")
                continue
            if lost:
                refused.append(f"{path.name}: no marks for {', '.join(lost)}: cells deleted, or saved without metadata")
    return refused


def _restore(nb: NotebookNode, released: NotebookNode) -> list[str]:
    """Give the cells nbgrader's metadata as they were handed out, by name or else by the cell's id.

    A cell that an editor has split keeps them in its first part; tags, which could keep a test from being run, go.

    Returns:
        Names of missing cells with marks.
    """
    known = {cell.metadata.nbgrader.grade_id: cell for cell in released.cells if "nbgrader" in cell.metadata}
    names = {cell.get("id"): name for name, cell in known.items()}
    left = dict(known)
    for cell in nb.cells:
        about = cell.metadata.pop("nbgrader", None)
        cell.metadata.pop("tags", None)
        name = about.get("grade_id") if isinstance(about, dict) else names.get(cell.get("id"))
        if name in left and left[name].cell_type == cell.cell_type:
            cell.metadata["nbgrader"] = left.pop(name).metadata.nbgrader
    return sorted(name for name, cell in left.items() if cell.metadata.nbgrader.grade)


def _limit_memory() -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))


def grade(
    session: str,
    folder: Path = COURSE,
    *,
    students: Sequence[str] | None = None,
    seconds: int = 60,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Grade all submissions of a session, then write the mark sheet and the feedback.

    Args:
        session: for example ``"session_2"``.
        folder: the course, as :func:`exercises.make` leaves it, with ``submitted/STUDENT/SESSION/*.ipynb``.
        students: only these.
        seconds: what one cell may take; a notebook may take three times as long.

    Returns:
        The mark sheet, see :func:`marks`.

    Raises:
        EcdError: no course in the folder, or nobody handed in.
    """
    nbgrader_api(folder)
    found = _students(folder, session)
    if unknown := sorted(set(students or []) - set(found)):
        raise EcdError(
            folder / "submitted", f"holds nothing of {', '.join(unknown)} for {session}", "Check the number."
        )
    if not found:
        raise EcdError(
            folder / "submitted", f"holds nothing for {session}", f"Put notebooks into submitted/NUMBER/{session}/."
        )
    limit = (len(exercises(session, folder / "source")) + 1) * 3 * seconds + 60
    for student in students or found:
        refused = _accept(folder, session, student)
        command = [sys.executable, "-m", "ecdlib.course.grading", str(folder), session, student, str(seconds)]
        environment = {
            **{name: value for name, value in os.environ.items() if name in PASSED_ON},
            "ECD_STUDENT": student,
            "ECD_GRADING": uuid.uuid4().hex,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        }
        started = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:  # a pipe would wait for orphans
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                code = process.wait(timeout=limit)
                log.seek(0)
                trouble = [] if code == 0 else [_why(code, log.read())]
            except subprocess.TimeoutExpired:
                trouble = [f"grading took longer than {limit} s and was stopped"]
            finally:  # also if the teacher interrupts
                _kill_all(environment["ECD_GRADING"])
                process.wait()
        if trouble:  # no mark of an earlier run stays
            shutil.rmtree(folder / "accepted" / student / session, ignore_errors=True)
        note = folder / "notes" / session / f"{student}.txt"
        with atomic_write(note) as temporary:
            temporary.write_text("; ".join(refused + trouble), encoding="utf-8")
        report(f"{student}: {'; '.join(refused + trouble) or 'graded'} ({time.monotonic() - started:.0f} s)")
    return marks(session, folder)


def _why(code: int, output: str) -> str:
    if code < 0:
        return f"could not be graded: the grader's own process was ended (signal {-code})"
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()]
    lines = [line for line in lines if line and "[IPKernelApp]" not in line and "see the the above" not in line]
    return f"could not be graded: {lines[-1][:200] if lines else 'no message'}"


def _kill_all(mark: str) -> None:
    """End whatever a submission has left behind: its processes carry the mark in their environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("ECD_GRADING") == mark:
                process.kill()


def marks(session: str, folder: Path = COURSE) -> pd.DataFrame:
    """Write the mark sheet ``marks-SESSION.csv`` and the feedback pages; run it again after marking by hand.

    Returns:
        A table with a row for each student: marks of each exercise, ``total``, ``of`` (what can be reached),
        ``by_hand`` (answers that still wait for the teacher) and ``note`` (what was stopped, and where).

    Raises:
        EcdError: no course in the folder, or nobody handed in.
    """
    from nbgrader.api import Gradebook, MissingEntry

    api = nbgrader_api(folder)
    own = exercises(session, folder / "source")
    rows = []
    with Gradebook(api.coursedir.db_url, "ecdlib") as book:
        for student in _students(folder, session):
            row: dict[str, Any] = {"student": student}
            note = folder / "notes" / session / f"{student}.txt"
            notes = [note.read_text(encoding="utf-8")] if note.is_file() else ["not graded yet"]
            waiting = 0
            for exercise in own:
                row[exercise.name] = 0.0
                if (folder / "accepted" / student / session / exercise.path.name).is_file():
                    with suppress(MissingEntry):
                        found = book.find_submission_notebook(exercise.name, session, student)
                        row[exercise.name] = found.score
                        waiting += sum(g.needs_manual_grade for g in found.grades)
                notes += _notes(folder, session, student, exercise.name)
            row["total"] = sum(row[e.name] for e in own)
            row |= {"of": sum(e.points for e in own), "by_hand": waiting, "note": "; ".join(n for n in notes if n)}
            rows.append(row)
            autograded = (folder / "autograded" / student / session).is_dir()
            if autograded and not api.generate_feedback(session, student, force=True)["success"]:
                row["note"] += "; no feedback could be written"
    if not rows:
        raise EcdError(folder / "submitted", f"holds nothing for {session}", "Put the students' folders there.")
    table = pd.DataFrame(rows).set_index("student")
    with atomic_write(folder / f"marks-{session}.csv") as temporary:
        table.to_csv(temporary)
    return table


def _notes(folder: Path, session: str, student: str, name: str) -> list[str]:
    """What the grader stopped in a notebook, and what is missing."""
    path = folder / "autograded" / student / session / f"{name}.ipynb"
    if not path.is_file():
        handed_in = (folder / "submitted" / student / session / f"{name}.ipynb").is_file()
        return [] if handed_in else [f"{name}: not handed in"]  # a refused one has its line already
    try:
        nb = nbformat.read(path, as_version=4)
    except Exception as error:
        return [f"{name}: damaged by the code that was run ({type(error).__name__})"]
    found, not_run = [], 0
    for number, cell in enumerate(nb.cells, 1):
        for output in cell.get("outputs", []):
            if output.output_type != "error":
                continue
            if output.ename == "NotRun":
                not_run += 1
            elif output.ename in STOPPED:
                found.append(f"{name}: cell {number} {output.evalue}")
            elif output.ename.endswith("MemoryError"):
                found.append(f"{name}: cell {number} needed too much memory")
            elif output.ename == "EcdError" and "STUDENT" in output.evalue:
                found.append(f"{name}: {output.evalue}")
    if not_run:
        found.append(f"{name}: {not_run} cells not run")
    return found


def _grade_one(folder: Path, session: str, student: str, seconds: int) -> None:
    """In a process of its own: nbgrader's autograde of one submission."""
    with suppress(ImportError, OSError, ValueError):
        _limit_memory()
    api = nbgrader_api(folder)
    if not any((folder / "accepted" / student / session).glob("*.ipynb")):
        shutil.rmtree(folder / "autograded" / student / session, ignore_errors=True)
        return
    api.coursedir.submitted_directory = "accepted"
    api.config.GuardedExecute.timeout = seconds
    api.config.GuardedExecute.notebook_timeout = 3 * seconds
    done = api.autograde(session, student, force=True, create=True)
    if not done["success"]:
        log = str(done.get("error") or done.get("log") or "nbgrader gave no reason")
        raise SystemExit(log)


if __name__ == "__main__":
    _grade_one(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
