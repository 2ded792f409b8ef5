"""Sample answers to open questions, with marks by the rubric: from ``book/course/answers.yml`` into the solutions."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from ecdlib.course.texts import TEXTS

#: Python between braces, as in an f-string.
FIELD = re.compile(r"\{[^{}]+\}")
#: A line of a rubric: how many marks it is worth.
RUBRIC = re.compile(r"^- (\d+) marks?: ", re.MULTILINE)
#: Name, in the metadata of a cell, of the answer that is shown there.
SAMPLE = "sample_answer"


@lru_cache
def load_answers() -> dict[str, dict[str, Any]]:
    """By exercise, such as ``session_1/negative_charge``: its ``cell``, and ``answers`` with level, text and marks."""
    found = yaml.safe_load((TEXTS / "answers.yml").read_text(encoding="utf-8"))
    return {entry["exercise"]: entry for entry in found}


def insert(nb: NotebookNode, exercise: str) -> None:
    """Put the sample answers of an exercise below its question, and a last cell that evaluates their fields.

    Nothing happens for exercises without sample answers.
    """
    entry = load_answers().get(exercise)
    if entry is None:
        return
    names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in nb.cells]
    place = names.index(entry["cell"]) + 1
    rubric = [int(marks) for marks in RUBRIC.findall(nb.cells[place - 1].source)]
    shown = []
    for answer in entry["answers"]:
        rows = [f"| {given} of {best} | {why} |" for (given, why), best in zip(answer["marked"], rubric, strict=True)]
        total = sum(given for given, _ in answer["marked"])
        head = f"**A {answer['level']} answer: {total} of {sum(rubric)} marks**"
        cell = new_markdown_cell("\n".join([head, "", answer["text"], "", "| marks | why |", "| --- | --- |", *rows]))
        cell.metadata[SAMPLE] = answer["level"]
        shown.append(cell)
    nb.cells[place:place] = shown
    fields = [FIELD.findall(cell.source) for cell in shown]
    rows = [f"    [{', '.join(f'f{json.dumps(field, ensure_ascii=False)}' for field in part)}]," for part in fields]
    code = new_code_cell("\n".join(["import json", "print(json.dumps([", *rows, "]))"]))
    code.metadata[SAMPLE] = "fields"
    nb.cells.append(code)


def fill(nb: NotebookNode) -> None:
    """Fill the fields of an executed solution's sample answers, and remove the cell that has evaluated them."""
    evaluated = [cell for cell in nb.cells if cell.metadata.get(SAMPLE) == "fields"]
    if evaluated:
        nb.cells.remove(evaluated[0])
        values = json.loads(evaluated[0].outputs[0].text)
        answers = [cell for cell in nb.cells if SAMPLE in cell.metadata]
        for cell, own in zip(answers, values, strict=True):
            rest = iter(own)
            cell.source = FIELD.sub(lambda _, rest=rest: next(rest), cell.source)  # type: ignore[misc]
