"""The book's pages, built from notebooks whose outputs are stand-ins: every page, link and reference holds."""

from __future__ import annotations

import ast
import base64
import io
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from ecdlib.base.resources import ROOT
from ecdlib.book import build as book
from ecdlib.book import parameters, runs
from ecdlib.book.artifacts import load_artifacts
from ecdlib.book.parameters import NOTEBOOKS
from ecdlib.course import pages, pictures
from ecdlib.course.texts import load_questions

#: A figure as notebooks hold it.
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="4pt"><rect width="9" height="4"/></svg>'
GLUE = re.compile(r"\{glue:text\}`([^`:]+)(?::[^`]*)?`")


def picture() -> str:
    """The smallest of all pictures, as a notebook holds it."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def glued(code: str) -> re.Pattern[str]:
    """Names that a notebook glues; what it computes of a name may be anything."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "glue":
            name = node.args[0]
            parts = name.values if isinstance(name, ast.JoinedStr) else [name]
            found.append("".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in parts))
    return re.compile("|".join(found) or "(?!)")


def stand_in(notebook: str, folder: Path) -> Path:
    """A run of a notebook that was not executed: a picture for each figure, one for each number in prose."""
    nb = nbformat.read(runs.notebook_path(notebook), as_version=4)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    known = glued(runs._plain("\n".join(cell.source for cell in cells)))
    texts = [c.source if c.cell_type == "markdown" else str(c.metadata.get("mystnb", "")) for c in nb.cells]
    for cell in cells:
        if "figure" in cell.metadata.get("mystnb", {}):
            cell.outputs = [nbformat.v4.new_output("display_data", {"image/svg+xml": DRAWING})]
    for name in {name for text in texts for name in GLUE.findall(text) if known.fullmatch(name)}:
        told = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
        data = {"application/papermill.record/text/plain": "1"}
        cells[0].outputs.append(nbformat.v4.new_output("display_data", data, metadata=told))
    folder.mkdir(parents=True)
    nbformat.write(nb, folder / "executed.ipynb")
    return folder


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book as HTML; a warning of Sphinx would have failed it."""
    root = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("executed"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root / name)
    (root / "data").symlink_to(ROOT / "data")
    varied = parameters.resolve("baseline", {"folds": 2}, "tiny")
    variant = stand_in("baseline", root / "_build" / "runs" / parameters.run_name("baseline", varied))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "ROOT", root)
        patch.setattr(book, "BUILD", root / "_build")
        patch.setattr(book, "PAGES", root / "book" / "executed")
        patch.setattr(runs, "BUILD", root / "_build")
        patch.setattr(book, "execute", lambda name, values, **_: (stand_in(name, root / "runs" / name), True))
        patch.setattr(pictures, "svg", lambda name: f"data:image/png;base64,{picture()}")
        patch.setattr(book, "finished_runs", lambda: [("baseline", varied, variant, True)])
        patch.setenv("PYTHONPATH", str(ROOT))
        return book.build_book(pages, "tiny").parent


def test_every_page_of_the_contents_is_there(html: Path) -> None:
    listed = re.findall(r"file: (.*)", (html.parent / "_toc.yml").read_text())
    assert [page for page in listed if not (html / f"{page}.html").is_file()] == []
    assert {f"book/executed/{name}" for name in NOTEBOOKS} <= set(listed)


def test_a_variant_stands_beside_the_original(html: Path) -> None:
    pages = {p.name for p in (html / "book/executed").glob("baseline*.html")}
    assert pages == {"baseline.html", "baseline--tiny--folds-2.html"}


def test_scoreboard_page_lists_every_artifact(html: Path) -> None:
    page = (html / "book/executed/scoreboard.html").read_text()
    assert [i for i in load_artifacts() if f'id="{i}"' not in page and f"id='{i}'" not in page] == []


def test_every_question_is_on_its_page(html: Path) -> None:
    for name, questions in load_questions().items():
        page = (html / f"book/executed/{name}.html").read_text()
        assert page.count("ecd-question") == len(questions)


def test_a_variant_page_keeps_its_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prose = "# Title\n\nA sentence\n(with a bracket) goes on.\n\n(label)=\n## Section"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose)])
    nbformat.write(nb, tmp_path / "executed.ipynb")
    monkeypatch.setattr(book, "PAGES", tmp_path)
    book._page(tmp_path, "page--folds-2", variant="folds-2")
    text = nbformat.read(tmp_path / "page--folds-2.ipynb", as_version=4).cells[0].source
    assert text == "# Title — folds-2\n\nA sentence\n(with a bracket) goes on.\n\n\n## Section"


RESULT = re.compile(r"(?<![\w`{.:])[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?\s*(?:GPa|eV/atom|%|eV per atom)")
LAYOUT = re.compile(r"^:\w+:.*$|\{[^}]*width=[^}]*\}", re.MULTILINE)  # options of directives and images


def test_no_result_is_typed_by_hand() -> None:
    """In prose, a number with a unit of a result must be glued from a run."""
    prose = [*(ROOT / "book").rglob("*.md"), *(ROOT / "book" / "course").glob("*.yml")]
    texts = {path: path.read_text() for path in sorted(prose) if "executed" not in path.parts}
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        texts[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        if "exercises" in path.parts:  # tasks say what interval is wanted, rubrics quote what is printed in a paper
            texts[path] = re.sub(r"=== BEGIN MARK.*?=== END MARK|[\d.]+ %", "", texts[path], flags=re.DOTALL)
    typed = {path.name: found for path, text in texts.items() if (found := RESULT.findall(LAYOUT.sub("", text)))}
    assert not typed
