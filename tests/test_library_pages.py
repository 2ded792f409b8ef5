"""The pages on the library: every public name has an entry and an example, and the recipes run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from bench_library import markdown

import ecdlib as ecd
from ecdlib.base.resources import ROOT, data_file, data_folder

SECTIONS = [text.split("\n", 1) for text in (ROOT / "book" / "cookbook.md").read_text().split("\n## ")[1:]]
RECIPES = [(title, code) for title, text in SECTIONS for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("name", ecd.__all__)
def test_public_names_have_an_entry_and_an_example(name: str) -> None:
    page = (ROOT / "book" / "api.md").read_text()
    assert re.search(rf"^.. auto(function|class):: ecdlib\.{name}$", page, re.MULTILINE)
    assert ">>> " in getattr(ecd, name).__doc__


def test_the_page_names_nothing_that_is_not_public() -> None:
    page = (ROOT / "book" / "api.md").read_text()
    assert set(re.findall(r"^.. auto\w+:: ecdlib\.(\w+)$", page, re.MULTILINE)) == set(ecd.__all__)


@pytest.mark.parametrize(("title", "code"), RECIPES, ids=[title for title, _ in RECIPES])
def test_recipes_run(title: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(data_folder() / "vasp" / "CHGCAR.NaCl.gz", "CHGCAR.gz")
    ecd.read("CHGCAR.gz").to_pymatgen().write_file("CHGCAR")
    ecd.load_structures()["NaCl_225"].to(filename="crystal.cif")
    exec(compile(code, title, "exec"), {})


def test_the_tables_of_the_page_are_those_of_the_measurement() -> None:
    found = data_file("results/library.json"), data_file("results/library.md")
    assert found[1].read_text() == markdown(json.loads(found[0].read_text()))


def notebook_to_try() -> str:
    """Code of the notebook for Binder and Colab, without the line that installs the package."""
    cells = json.loads((ROOT / "binder" / "start.ipynb").read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return "\n".join(line for line in code.splitlines() if not line.lstrip().startswith("%"))


def test_the_notebook_to_try_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(notebook_to_try(), "start.ipynb", "exec"), found := {})
    assert "bulk modulus" in set(found["table"]["property"])
