"""The course: who gets what, releasing, grading, and whatever students can hand in."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from nbformat import NotebookNode

from ecdlib.base.errors import EcdError
from ecdlib.course import data as course
from ecdlib.course import exercises, grading
from ecdlib.course.data import Individual, course_crystals, course_features

pytestmark = pytest.mark.course

SESSION = "session_1"


def test_the_course_data_set_is_small_and_covers_the_full_one() -> None:
    small, full = course_crystals(), course_crystals("full")
    assert len(small) == course.COURSE_SIZE
    assert set(small.index) <= set(full.index)
    assert set(course.TEXTBOOK) <= set(small.index)
    assert not small.isna().any().any()
    assert not small.index.duplicated().any()
    for label in ("bulk_modulus", "total_energy"):
        shares = np.histogram(small[label], np.quantile(full[label], [0, 0.25, 0.5, 0.75, 1]))[0] / len(small)
        assert shares.min() > 0.15, f"{label}: a quarter of the full set is hardly there"
    assert course_features().shape == (len(small), 455)


def test_a_student_always_gets_the_same_and_another_student_something_else() -> None:
    numbers = [str(n) for n in range(1000, 1060)]
    crystals = [Individual(n).crystal("electrons") for n in numbers]
    assert crystals == [Individual(n).crystal("electrons") for n in numbers]
    assert len(set(crystals)) > 40
    assert len({Individual(n).seed for n in numbers}) == len(numbers)
    assert {Individual(n).target for n in numbers} == {"bulk_modulus", "total_energy"}
    one = Individual("1000")
    assert one.rng("a").integers(1 << 30) == one.rng("a").integers(1 << 30) != one.rng("b").integers(1 << 30)
    assert Individual(1000).seed == Individual(" 1000 ").seed


def test_bad_numbers_and_data_sets_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EcdError, match=r"STUDENT: is empty\. Write your student number"):
        Individual(" ")
    with pytest.raises(EcdError, match="is not a data set of the course"):
        Individual("1", "huge")  # type: ignore[arg-type]
    with pytest.raises(EcdError, match="is not a session of the course"):
        exercises.exercises("session_7")
    monkeypatch.setenv("ECD_STUDENT", "2")
    with pytest.raises(EcdError, match=r'STUDENT = "1": but handed in by 2'):
        Individual("1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course with one session released."""
    target = tmp_path_factory.mktemp("course")
    lines: list[str] = []
    exercises.make([SESSION], folder=target, report=lines.append)
    assert len(lines) == 1 + len(exercises.exercises(SESSION))
    return target


Edit = Callable[[dict[str, NotebookNode]], None]


def hand_in(folder: Path, student: str, edit: Edit = lambda cells: None, only: str | None = None) -> None:
    """What a student hands in who got the release and wrote the solutions into it, but for some cells."""
    target = folder / "submitted" / student / SESSION
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted((folder / "release" / SESSION).glob("*.ipynb")):
        if only and path.stem != only:
            continue
        nb = nbformat.read(path, as_version=4)
        solved = nbformat.read(folder / "source" / SESSION / path.name, as_version=4)
        cells = {}
        for cell, known in zip(nb.cells, solved.cells, strict=True):
            about = cell.metadata.get("nbgrader", {})
            if cell.source.startswith("STUDENT"):
                cell.source = f'STUDENT = "{student}"'
            elif about.get("solution"):
                cell.source = re.sub(r"^ *### (BEGIN|END) SOLUTION$", "", known.source, flags=re.MULTILINE)
                if cell.cell_type == "markdown":
                    cell.source = "Because the potentials decide which shells count."
            if about:
                cells[f"{path.stem}/{about['grade_id']}"] = cell
        edit(cells)
        nbformat.write(nb, target / path.name)


def put(name: str, source: str) -> Edit:
    """Replace the source of a cell, if the notebook has it."""

    def edit(cells: dict[str, NotebookNode]) -> None:
        if name in cells:
            cells[name].source = source

    return edit


def test_release_hides_solutions_tests_rubrics_and_numbers(folder: Path) -> None:
    released = sorted((folder / "release" / SESSION).glob("*.ipynb"))
    assert [path.stem for path in released] == sorted(e.name for e in exercises.exercises(SESSION))
    for path in released:
        text = path.read_text(encoding="utf-8")
        for secret in ("SOLUTION", "HIDDEN", "MARK SCHEME", "mark:", "marks:"):
            assert secret not in text, (path.name, secret)
        assert '"STUDENT = \\"\\"' in text
        solution = folder / "solutions" / SESSION / f"{path.stem}.html"
        assert "http" + "s://cdn" not in solution.read_text(encoding="utf-8")


def test_nbgraders_whole_cycle_gives_the_right_marks(folder: Path) -> None:
    hand_in(folder, "4711")
    hand_in(folder, "4712", put("electrons/integral", "electrons = float(density.values.sum())"))
    table = grading.grade(SESSION, folder, students=["4711", "4712"])
    known = {e.name: e for e in exercises.exercises(SESSION)}
    for name, exercise in known.items():
        assert table.loc["4711", name] == exercise.points - exercise.by_hand, name
        if name != "electrons":
            assert table.loc["4712", name] == exercise.points - exercise.by_hand, name
    assert table.loc["4712", "electrons"] == 1, "the prediction was made, the integral and what follows are wrong"
    assert list(table["note"]) == ["", ""]
    assert (table["of"] == sum(e.points for e in known.values())).all()
    assert (table["by_hand"] > 0).all(), "open answers wait for the teacher"
    written = pd.read_csv(folder / f"marks-{SESSION}.csv", dtype={"student": str}).set_index("student")
    assert written["total"].to_dict() == table["total"].to_dict()
    for student in table.index:
        page = (folder / "feedback" / student / SESSION / "electrons.html").read_text(encoding="utf-8")
        assert ("AssertionError" in page) == (student == "4712")


def test_warnings_cost_nothing_and_what_never_ran_gets_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = "import sys\nprint('a warning', file=sys.stderr)"
    hand_in(folder, "4714", put("electrons/compare", given), only="electrons")
    path = folder / "submitted/4714" / SESSION / "electrons.ipynb"
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source += "\nimport builtins, sys\ndef abs(x):\n    print('slow', file=sys.stderr)"
            cell.source += "\n    return builtins.abs(x)"
    nbformat.write(nb, path)
    good = {e.name: e for e in exercises.exercises(SESSION)}["electrons"]
    assert grading.grade(SESSION, folder, students=["4714"]).loc["4714", "electrons"] == good.points - good.by_hand

    unsolved = nbformat.read(folder / "release" / SESSION / "electrons.ipynb", as_version=4)
    guard = grading.GuardedExecute(kernel_name="python3")
    monkeypatch.setattr(guard, "setup_kernel", lambda **options: (_ for _ in ()).throw(RuntimeError("no kernel")))
    done, _ = guard.preprocess(unsolved, {})
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert [cell.outputs[0].ename for cell in code] == ["NotRun"] * len(code)


def test_exercises_do_not_change_under_the_students(folder: Path) -> None:
    hand_in(folder, "4715", only="electrons")
    before = sorted((folder / "release" / SESSION).iterdir())
    with pytest.raises(EcdError, match="have changed since students handed in"):
        exercises.make([SESSION], data="full", folder=folder)
    assert sorted((folder / "release" / SESSION).iterdir()) == before


def test_marks_by_hand_reach_the_sheet(folder: Path) -> None:
    from nbgrader.api import Gradebook

    hand_in(folder, "4713")
    before = grading.grade(SESSION, folder, students=["4713"]).loc["4713"]
    with Gradebook(exercises.nbgrader_api(folder).coursedir.db_url, "ecdlib") as book:
        for exercise in exercises.exercises(SESSION):
            for grade in book.find_submission_notebook(exercise.name, SESSION, "4713").grades:
                if grade.needs_manual_grade:
                    grade.manual_score, grade.needs_manual_grade = grade.max_score, False
        book.db.commit()
    after = grading.marks(SESSION, folder).loc["4713"]
    assert after["total"] == after["of"] == before["total"] + sum(e.by_hand for e in exercises.exercises(SESSION))
    assert after["by_hand"] == 0


BAD = {
    "5001": ("import os; os._exit(1)", "ended Python"),
    "5002": ("while True: pass", "ran out of time and was interrupted"),
    "5003": ("while True: print('x' * 1000)", "printed more than 5 MB and was interrupted"),
    "5004": ("print('y' * 8_000_000)", "printed more than 5 MB and was interrupted"),
    "5005": ("import numpy as np\nx = np.ones(10**11)", "needed too much memory"),
    "5011": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "process was ended (signal 9)"),
}


def test_tricks_and_accidents_give_no_marks_and_leave_nothing_behind(folder: Path) -> None:
    hand_in(folder, "6001", only="electrons")
    path = folder / "submitted/6001" / SESSION / "electrons.ipynb"
    first = grading.grade(SESSION, folder, students=["6001"]).loc["6001"]
    assert first["electrons"] > 0
    path.write_text("{", encoding="utf-8")
    again = grading.grade(SESSION, folder, students=["6001"]).loc["6001"]
    assert (again["electrons"], again["by_hand"]) == (0, 0), "marks of an earlier run must not stay"

    hand_in(folder, "6002", only="electrons")
    hand_in(folder, "6003", put("electrons/integral", "electrons = 1.0"), only="electrons")
    hand_in(
        folder,
        "6004",
        put("electrons/core", "import subprocess\nsubprocess.Popen(['sleep', '987'], start_new_session=True)"),
        only="electrons",
    )
    lost = folder / "submitted/6002" / SESSION / "electrons.ipynb"
    nb = nbformat.read(lost, as_version=4)
    for cell in nb.cells:
        cell.metadata.clear()  # as some editors do, and give new ids
        cell["id"] = nbformat.v4.new_code_cell().id
    nbformat.write(nb, lost)
    skip = folder / "submitted/6003" / SESSION / "electrons.ipynb"
    nb = nbformat.read(skip, as_version=4)
    for cell in nb.cells:
        cell.metadata["tags"] = ["skip-execution"]
    nbformat.write(nb, skip)
    hand_in(folder, "6005", only="electrons")
    split = folder / "submitted/6005" / SESSION / "electrons.ipynb"
    nb = nbformat.read(split, as_version=4)
    at = next(i for i, cell in enumerate(nb.cells) if cell.source.strip().startswith("voxel_volume"))
    parts = nb.cells[at].source.strip().split("\n", 1)
    nb.cells.insert(at + 1, nbformat.v4.new_code_cell(parts[1], metadata=nb.cells[at].metadata))
    nb.cells[at].source = parts[0] + "\nprint('y' * 8_000_000)"  # interrupted when the last line is done
    for cell in nb.cells[:at]:
        cell.metadata.clear()  # found again by their ids
    nbformat.write(nb, split)
    hand_in(folder, "[6006]", only="electrons")
    table = grading.grade(SESSION, folder, students=["6002", "6003", "6004", "6005", "[6006]"])
    good = {e.name: e for e in exercises.exercises(SESSION)}["electrons"]
    assert table.loc["6005", "electrons"] == good.points - good.by_hand, "a split cell, lost metadata: nothing is lost"
    assert "rename it" in table.loc["[6006]", "note"]
    assert table.loc["6002", "electrons"] == 0
    assert "cells deleted, or saved without metadata" in table.loc["6002", "note"]
    assert table.loc["6003", "electrons"] == 1, "only the prediction"
    assert not any(p.info["cmdline"] == ["sleep", "987"] for p in psutil.process_iter(["cmdline"]))


def test_bad_notebooks_get_a_line_and_do_not_stop_the_others(folder: Path) -> None:
    for student, (source, _) in BAD.items():
        hand_in(folder, student, put("electrons/integral", source), only="electrons")
    hand_in(folder, "5006", only="electrons")
    (folder / "submitted/5006" / SESSION / "electrons.ipynb").write_text('{"cells": [', encoding="utf-8")
    hand_in(folder, "5007", only="electrons")
    shutil.move(folder / "submitted/5007", folder / "submitted/5008")  # a copy of someone else's work
    (folder / "submitted/5009" / SESSION).mkdir(parents=True)
    hand_in(folder, "5010", only="electrons")  # the last one, all right
    shutil.copy(
        folder / "submitted/5010" / SESSION / "electrons.ipynb", folder / "submitted/5010" / SESSION / "copy.ipynb"
    )
    students = [*BAD, "5006", "5008", "5009", "5010"]
    table = grading.grade(SESSION, folder, students=students, seconds=8)
    for student, (_, why) in BAD.items():
        assert why in table.loc[student, "note"], student
        if student != "5011":
            assert table.loc[student, "electrons"] == 1, "the cells before are graded"
    assert "electrons.ipynb: is not a readable notebook" in table.loc["5006", "note"]
    assert 'STUDENT = "5007": but handed in by 5008' in table.loc["5008", "note"]
    assert "electrons: not handed in" in table.loc["5009", "note"]
    assert table.loc[["5006", "5008", "5009"], "total"].tolist() == [0, 0, 0]
    good = {e.name: e for e in exercises.exercises(SESSION)}["electrons"]
    assert table.loc["5010", "electrons"] == good.points - good.by_hand
    assert "copy.ipynb: not an exercise of this session" in table.loc["5010", "note"]


def test_students_code_does_not_see_the_teachers_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold keys of services."""
    seen: dict[str, str] = {}

    class Popen:
        def __init__(self, *_: Any, env: dict[str, str], **__: Any) -> None:
            seen.update(env)

        def wait(self, **_: Any) -> int:
            return 0

    hand_in(folder, "4719")
    monkeypatch.setenv("MP_API_KEY", "secret")
    monkeypatch.setattr(grading.subprocess, "Popen", Popen)
    grading.grade(SESSION, folder, students=["4719"])
    assert seen["ECD_STUDENT"] == "4719"
    assert "secret" not in seen.values()
    assert set(seen) <= {*grading.PASSED_ON, "ECD_STUDENT", "ECD_GRADING", "OMP_NUM_THREADS"}


def test_grading_without_a_course_or_submissions_says_what_to_do(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(EcdError, match="Make one with `ecd course make`"):
        grading.grade(SESSION, tmp_path)
    with pytest.raises(EcdError, match="holds nothing of 9999"):
        grading.grade(SESSION, folder, students=["9999"])
    with pytest.raises(EcdError, match=r"submitted/NUMBER/session_2"):
        grading.grade("session_2", folder)
