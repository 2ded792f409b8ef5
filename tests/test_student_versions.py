"""Every exercise as students get it: nothing is solved, and no test passes before they have done something."""

from __future__ import annotations

import pytest

from ecdlib.course.exercises import errors_in, exercises, prepared, run_notebook, student_version

EXERCISES = exercises()


@pytest.mark.parametrize("exercise", EXERCISES, ids=[f"{e.session}/{e.name}" for e in EXERCISES])
def test_the_student_version_fails_every_test(exercise):
    source = prepared(exercise, student="20261124")
    tests = {
        cell.metadata.nbgrader.grade_id
        for cell in source.cells
        if cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("grade")
    }
    nb = student_version(source)
    text = "\n".join(cell.source for cell in nb.cells)
    assert tests
    for secret in ("BEGIN SOLUTION", "HIDDEN TESTS", "MARK SCHEME"):
        assert secret not in text
    failed = errors_in(run_notebook(nb))
    assert tests <= set(failed), "tests that pass without a solution"
    given = {
        cell.metadata.nbgrader.grade_id
        for cell in nb.cells
        if cell.metadata.get("nbgrader", {}).get("locked") and cell.metadata.nbgrader.grade_id not in tests
    }
    first = next(name for name in failed if name not in given)
    assert failed[first].startswith("NotImplementedError"), "the given code runs up to the first thing to do"
