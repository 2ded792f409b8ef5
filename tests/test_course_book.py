"""What the book shows of the course: plans, questions, times."""

from __future__ import annotations

import shlex
from itertools import pairwise

import nbformat
import pytest

from ecdlib.book import parameters
from ecdlib.book.build import PACE, reading_minutes
from ecdlib.book.parameters import NOTEBOOKS
from ecdlib.book.runs import notebook_path
from ecdlib.course.answers import FIELD, RUBRIC, insert, load_answers
from ecdlib.course.data import SESSIONS
from ecdlib.course.exercises import exercises
from ecdlib.course.pages import load_times, questions_html, session_page
from ecdlib.course.texts import load_questions, load_sessions

pytestmark = pytest.mark.course


def test_sessions_are_planned_to_the_minute():
    assert [session["name"] for session in load_sessions()] == list(SESSIONS)
    for session in load_sessions():
        assert sum(minutes for minutes, _ in session["plan"]) == 90, session["name"]
        assert 3 <= len(session["goals"]) <= 6
        assert all(goal[0].islower() for goal in session["goals"]), "a goal continues 'After this session you can'"
        assert session["prerequisites"]
        assert session["assignment"]
        assert len(session["mistakes"]) >= 4


def test_every_chapter_belongs_to_a_session():
    pages = [page for session in load_sessions() for page in session["pages"] if page in NOTEBOOKS]
    assert sorted(pages) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("command", [c for session in load_sessions() for c in session["live"]])
def test_live_commands_are_valid(command):
    program, verb, notebook, *rest = shlex.split(command)
    assert (program, verb) == ("ecd", "run")
    given = dict(text.split("=") for flag, text in pairwise(rest) if flag == "-p")
    assert len(rest) == 2 * len(given)
    assert parameters.changed(notebook, parameters.resolve(notebook, given)), "it changes a parameter"


@pytest.mark.parametrize("page", sorted(NOTEBOOKS))
def test_questions_have_one_right_answer_and_a_reason_for_each(page):
    questions = load_questions()[page]
    assert len(questions) >= 2
    for question in questions:
        answers = question["answers"]
        assert 3 <= len(answers) <= 5
        assert [answer["right"] for answer in answers].count(True) == 1
        assert all(len(answer["why"]) > 40 for answer in answers), "a reason, not just no"
        assert len({answer["text"] for answer in answers}) == len(answers)
    assert questions_html(page).count("<details") == sum(len(q["answers"]) for q in questions)


def test_the_right_answer_is_not_always_at_the_same_place_or_the_longest():
    questions = [q for page in load_questions().values() for q in page]
    places = [[a["right"] for a in q["answers"]].index(True) for q in questions]
    assert max(places.count(place) for place in set(places)) < 0.6 * len(places)
    longest = [max(q["answers"], key=lambda a: len(a["text"]))["right"] for q in questions]
    assert sum(longest) < 0.6 * len(longest)


def test_every_open_question_has_a_good_and_a_middling_answer():
    answers = load_answers()
    assert set(answers) == {f"{e.session}/{e.name}" for e in exercises() if e.kind == "open"}
    for e in exercises():
        nb = nbformat.read(e.path, as_version=4)
        before = len(nb.cells)
        insert(nb, f"{e.session}/{e.name}")
        if e.kind != "open":
            assert len(nb.cells) == before
            continue
        entry = answers[f"{e.session}/{e.name}"]
        rubric = next(c.source for c in nb.cells if c.metadata.get("nbgrader", {}).get("grade_id") == entry["cell"])
        best = [int(marks) for marks in RUBRIC.findall(rubric)]
        assert [a["level"] for a in entry["answers"]] == ["good", "middling"]
        for answer, (low, high) in zip(entry["answers"], ((0.7, 1), (0.35, 0.6)), strict=True):
            given = [marks for marks, _ in answer["marked"]]
            assert all(0 <= marks <= most for marks, most in zip(given, best, strict=True))
            assert low <= sum(given) / sum(best) <= high, (e.name, answer["level"])
            assert FIELD.search(answer["text"]), "numbers are those of a run"
        compile(nb.cells[-1].source, e.name, "exec")


def test_chapters_say_how_long_they_take_to_read():
    minutes = [reading_minutes(nbformat.read(notebook_path(name), as_version=4)) for name in NOTEBOOKS]
    assert all(1 <= n <= 30 for n in minutes)
    words = nbformat.v4.new_markdown_cell("word " * 3 * PACE + "$$ " + "x " * PACE + "$$")
    assert reading_minutes(nbformat.v4.new_notebook(cells=[words])) == 3


def test_times_were_measured_for_all_that_a_class_runs_and_stand_in_the_pages():
    times = load_times()
    assert set(times["chapters"]) == set(NOTEBOOKS)
    assert set(times["live"]) == {command for session in load_sessions() for command in session["live"]}
    assert set(times["exercises"]) == {f"{e.session}/{e.name}" for e in exercises()}
    assert times["made_by"]["offline"]
    assert "uncommitted" not in times["made_by"]["commit"]
    for session in SESSIONS:
        total = sum(times["exercises"][f"{e.session}/{e.name}"] for e in exercises(session))
        assert total < 120, f"the assignment of {session} takes more than two minutes"
    for session in load_sessions():
        page = session_page(session, times, solutions=False)
        assert "not measured" not in page
        assert all(e.title in page for e in exercises(session["name"]))
