"""Notebooks against the library: every name, import, attribute and argument exists; one chapter is executed."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ecdlib import cli
from ecdlib.base.resources import ROOT
from ecdlib.book import parameters, runs
from ecdlib.book.artifacts import VERDICTS, load_artifacts
from ecdlib.book.runs import RECORDED, covered_artifacts, execute

NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))


def code(path: Path) -> str:
    """All code cells of a notebook, without the lines that only IPython understands."""
    cells = nbformat.read(path, as_version=4).cells
    return runs._plain("\n\n".join(cell.source for cell in cells if cell.cell_type == "code"))


def test_no_name_is_undefined():
    command = [sys.executable, "-m", "ruff", "check", "--select=F", "--output-format=concise", *map(str, NOTEBOOKS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def found(module: Any, name: str) -> Any:
    """``module.name``, or the submodule of that name."""
    return getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{module.__name__}.{name}")


def wrong(source: str) -> list[str]:
    """What a source takes from modules and does not exist, and calls of the library whose arguments do not fit."""
    tree, names, problems = ast.parse(source), dict[str, Any](), []
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    module = importlib.import_module(alias.name)
                    top = importlib.import_module(alias.name.split(".")[0])
                    names[alias.asname or alias.name.split(".")[0]] = module if alias.asname else top
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                names |= {alias.asname or alias.name: found(module, alias.name) for alias in node.names}
        except (ImportError, AttributeError) as error:
            problems.append(f"line {node.lineno}: {error}")
    names = {name: thing for name, thing in names.items() if name not in stored}

    def resolved(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return names.get(node.id)
        owner = resolved(node.value) if isinstance(node, ast.Attribute) else None
        return found(owner, node.attr) if inspect.ismodule(owner) else getattr(owner, getattr(node, "attr", ""), None)

    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.Attribute):
                resolved(node)
            elif isinstance(node, ast.Call) and callable(called := resolved(node.func)):
                known = all(k.arg for k in node.keywords) and not any(isinstance(a, ast.Starred) for a in node.args)
                if known and str(called.__module__).startswith("ecdlib"):
                    inspect.signature(called).bind(*node.args, **{k.arg: k for k in node.keywords})
        except (ImportError, TypeError) as error:
            problems.append(f"line {node.lineno}: {ast.unparse(node)[:80]}: {error}")
    return problems


@pytest.mark.filterwarnings("ignore")  # of packages, when they are imported
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_a_notebook_takes_from_elsewhere_exists(path):
    assert wrong(code(path)) == []


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("from ecdlib.density.cell import to_primitive", "to_primitive"),
        ("import ecdlib.density.correlations", "ecdlib.density.correlations"),
        ("from ecdlib.density import cell\ncell.to_primitive(1)", "to_primitive"),
        ("from ecdlib.density.cell import resample\nresample(1, shape=2, order=3)", "order"),
        ("from ecdlib.density.cell import resample\nresample()", "missing"),
    ],
)
def test_what_would_break_is_seen(source, why):
    assert why in " ".join(wrong(source))


def test_every_notebook_is_a_chapter_with_parameters():
    chapters = [path.stem for path in NOTEBOOKS if path.parent.name == "notebooks"]
    assert sorted(chapters) == sorted(parameters.NOTEBOOKS)
    assert set(covered_artifacts()) <= set(load_artifacts())


@pytest.mark.parametrize("name", sorted(parameters.NOTEBOOKS))
def test_every_figure_of_a_chapter_is_cited_in_its_text(name):
    cells = nbformat.read(runs.notebook_path(name), as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    figures = [cell.metadata["mystnb"]["figure"] for cell in cells if "figure" in cell.metadata.get("mystnb", {})]
    assert [f["caption"] for f in figures if f"{{numref}}`{f.get('name')}`" not in text] == []


@pytest.mark.parametrize("name", sorted(parameters.NOTEBOOKS))
def test_a_cell_with_a_figure_shows_nothing_else(name):
    """What a method of the axes returns would become a second output, and the figure's name a duplicate."""
    cells = nbformat.read(runs.notebook_path(name), as_version=4).cells
    figures = [cell for cell in cells if "figure" in cell.metadata.get("mystnb", {})]
    last = [node for node in (ast.parse(cell.source).body[-1] for cell in figures) if isinstance(node, ast.Expr)]
    calls = [ast.unparse(node.value.func) for node in last if isinstance(node.value, ast.Call)]
    returns = re.compile(r"ax\w*\.(set\w*|legend|plot|bar\w*|hist|scatter|text|annotate)")
    assert [call for call in calls if returns.fullmatch(call)] == []


def test_a_chapter_is_executed_once_and_a_variant_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "BUILD", tmp_path)
    values = parameters.resolve("own_crystal", {}, "tiny")
    folder, cached = execute("own_crystal", values)
    assert not cached
    payloads = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    assert {p["id"] for p in payloads} == set(RECORDED.findall(code(ROOT / "notebooks" / "own_crystal.ipynb")))
    for payload in payloads:
        assert payload["verdict"] in VERDICTS
        assert payload["provenance"]["notebook"] == "own_crystal"
        assert all(math.isfinite(v) for v in payload["ours"] if not isinstance(payload["ours"], str))
    assert execute("own_crystal", values) == (folder, True)
    assert not runs.is_current("own_crystal", parameters.resolve("own_crystal", {"file": "LiH_225"}, "tiny"))
    (run,) = runs.finished_runs()
    assert run == ("own_crystal", values, folder, True)


@pytest.mark.parametrize(
    ("argument", "words"),
    [("fold=3", "unknown parameter 'fold'"), ("folds=many", "folds = 'many'"), ("folds=1", "folds = ")],
)
def test_a_wrong_parameter_is_one_line_and_leaves_no_run(argument, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "BUILD", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ecd", "run", "baseline", "-p", argument])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())
