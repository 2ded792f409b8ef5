"""Every exercise of the course: the solution passes all tests, and what students get passes none of them."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.display import display

from ecdlib.book.parameters import NOTEBOOKS
from ecdlib.course.data import SESSIONS
from ecdlib.course.exercises import KINDS, exercises, prepared, student_version
from ecdlib.course.texts import load_sessions

EXERCISES = exercises()
IDS = [f"{e.session}/{e.name}" for e in EXERCISES]


def errors(nb: nbformat.NotebookNode) -> dict[str, str]:
    """Cell name -> first line of its error, of all cells run in this process in a fresh namespace.

    A kernel for each notebook would only import the same packages again; `ecd course make` uses kernels.
    """
    namespace: dict[str, Any] = {"__name__": "__main__", "display": display}
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as a kernel does, a warning stops nothing
        for number, cell in enumerate(nb.cells):
            if cell.cell_type == "code":
                name = cell.metadata.get("nbgrader", {}).get("grade_id", f"cell {number + 1}")
                try:
                    exec(compile(cell.source, name, "exec"), namespace)
                except Exception as error:
                    found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    plt.close("all")
    return found


@pytest.mark.course
@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_the_solution_passes_its_tests(exercise):
    assert errors(prepared(exercise, student="20261124")) == {}


@pytest.mark.course
@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
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
    failed = errors(nb)
    assert tests <= set(failed), "tests that pass without a solution"
    given = {
        cell.metadata.nbgrader.grade_id
        for cell in nb.cells
        if cell.metadata.get("nbgrader", {}).get("locked") and cell.metadata.nbgrader.grade_id not in tests
    }
    first = next(name for name in failed if name not in given)
    assert failed[first].startswith("NotImplementedError"), "the given code runs up to the first thing to do"


def test_there_are_exercises_of_every_kind_in_every_session():
    assert len(EXERCISES) >= 20
    assert set(Counter(e.kind for e in EXERCISES)) == set(KINDS)
    for session in SESSIONS:
        assert len({e.kind for e in EXERCISES if e.session == session}) >= 3, session


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_exercises_keep_to_nbgraders_conventions(exercise):
    nb = nbformat.read(exercise.path, as_version=4)
    nbformat.validate(nb)
    cells = [cell for cell in nb.cells if "nbgrader" in cell.metadata]
    ids = [cell.metadata.nbgrader.grade_id for cell in cells]
    assert len(ids) == len(set(ids)), "names of cells are unique"
    assert not any(cell.get("outputs") for cell in nb.cells), "sources hold no outputs"
    assert sum(cell.source.startswith('STUDENT = "0"') for cell in nb.cells) == 1
    assert sum(cell.source == 'DATA = "course"' and cell.metadata.nbgrader.locked for cell in cells) == 1
    assert exercise.title
    assert exercise.points > exercise.by_hand, "something is marked by the grader"
    assert set(exercise.pages) <= set(NOTEBOOKS)
    for before, cell in pairwise(nb.cells):
        about = cell.metadata.get("nbgrader")
        if about and about.solution and cell.cell_type == "markdown":  # all of it is cleared
            assert cell.source.startswith("=== BEGIN MARK SCHEME ===")
            assert (before.cell_type, before.metadata.nbgrader.locked) == ("markdown", True), "the question"
    for cell in cells:
        about = cell.metadata.nbgrader
        if about.solution and cell.cell_type == "code":
            assert cell.source.count("### BEGIN SOLUTION") == cell.source.count("### END SOLUTION") > 0
        elif cell.cell_type == "code":
            assert "SOLUTION" not in cell.source
        if about.grade and about.solution:
            rubric = re.search(r"BEGIN MARK SCHEME ===(.*)=== END", cell.source, re.DOTALL)
            assert rubric, "an answer that is marked by hand has a rubric"
            assert sum(int(n) for n in re.findall(r"^- (\d+) marks?\b", rubric[1], re.MULTILINE)) == about.points
    assert exercise.kind != "open" or exercise.by_hand, "open questions are marked by hand"


def test_every_exercise_has_its_place_in_a_plan():
    for session in load_sessions():
        text = " ".join([*(what for _, what in session["plan"]), session["assignment"]])
        for exercise in EXERCISES:
            if exercise.session == session["name"]:
                assert f"`{exercise.name}`" in text, f"{exercise.name} is not in the plan of {session['name']}"
