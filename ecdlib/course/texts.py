"""What authors write for the course, in ``book/course/``: the sessions and the self-check questions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import yaml

from ecdlib.base.resources import ROOT

TEXTS = ROOT / "book" / "course"

#: Before an answer that is right or wrong.
MARKS = {True: "✓", False: "✗"}


@lru_cache
def load_sessions() -> list[dict[str, Any]]:
    """The six sessions, from ``book/course/sessions.yml``: title, goals, plan by the minute, pages, mistakes."""
    found: list[dict[str, Any]] = yaml.safe_load((TEXTS / "sessions.yml").read_text(encoding="utf-8"))
    return found


@lru_cache
def load_questions() -> dict[str, list[dict[str, Any]]]:
    """Self-check questions by chapter, from ``book/course/questions.yml``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for question in yaml.safe_load((TEXTS / "questions.yml").read_text(encoding="utf-8")):
        found.setdefault(question["page"], []).append(question)
    return found
