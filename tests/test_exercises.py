"""Every exercise of the course: its solution passes all tests, for any student's number."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import nbformat
import pytest

from ecdlib.book.parameters import NOTEBOOKS
from ecdlib.course.data import SESSIONS
from ecdlib.course.exercises import KINDS, errors_in, exercises, prepared, run_notebook
from ecdlib.course.pages import load_sessions

EXERCISES = exercises()
IDS = [f"{e.session}/{e.name}" for e in EXERCISES]


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_the_solution_passes_its_tests(exercise):
    assert errors_in(run_notebook(prepared(exercise, student="20261124"))) == {}


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
