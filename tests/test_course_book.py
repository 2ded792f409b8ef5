"""What the book shows of the course: plans, questions, times."""

from __future__ import annotations

import shlex
from itertools import pairwise

import pytest

from ecdlib.book import parameters
from ecdlib.book.parameters import NOTEBOOKS
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
