"""The pages on the library: every public name has an entry and an example, and the recipes run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import ecdlib as ecd
from ecdlib.base.resources import ROOT, data_folder

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
