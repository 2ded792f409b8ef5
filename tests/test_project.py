"""The project itself: pins in step, documented code, help texts, nothing in the files that does not belong there."""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from importlinter.cli import lint_imports
from packaging.requirements import Requirement
from packaging.version import Version
from typer.testing import CliRunner

import ecdlib
from ecdlib import cli
from ecdlib.base.resources import ROOT, data_folder
from ecdlib.book.parameters import NOTEBOOKS, parameter_rows

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"pytorch-cpu": "torch", "xgboost": "xgboost-cpu"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """Versions of requirements.lock, and of torch, which the Makefile installs apart."""
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split(";")[0].strip().split("==")
            pins[canonical(name)] = version
    (torch,) = set(re.findall(r'"torch==([0-9.]+)', (ROOT / "Makefile").read_text()))
    assert "torch" not in pins
    return {**pins, "torch": torch}


def conda() -> dict[str, str]:
    """Versions of environment.yml by the names that pip knows."""
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    flat = [p for p in parts if isinstance(p, str)] + next(p["pip"] for p in parts if isinstance(p, dict))
    pins = dict(p.split("==") for p in flat if "==" in p)
    assert {p for p in flat if "==" not in p} == {"python=3.11", "pip", "make", "-e ."}, "everything is pinned"
    return {canonical(CONDA_NAMES.get(name, name)): version for name, version in pins.items()}


def direct(*extras: str) -> list[Requirement]:
    """What the library needs, and its extras with those that they name."""
    groups = PYPROJECT["project"]["optional-dependencies"]
    lines = [*PYPROJECT["project"]["dependencies"], *(line for extra in extras for line in groups[extra])]
    found = [Requirement(line) for line in lines]
    named = [extra for r in found if r.name == "ecdlib" for extra in r.extras]
    found = [r for r in found if r.marker is None or r.marker.evaluate({"sys_platform": "linux"})]
    return [r for r in found if r.name != "ecdlib"] + (direct(*named) if named else [])


def test_nothing_imports_what_stands_above_it(capsys):
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0, capsys.readouterr().out


def test_conda_pins_are_those_of_the_lock():
    lock = locked()
    for name, version in conda().items():
        assert lock.get(name) == version, f"environment.yml has {name} {version}, the lock {lock.get(name)}"


def test_conda_users_get_all_that_the_library_and_its_tests_need():
    missing = {canonical(r.name) for r in direct("download", "dev", "course")} - set(conda())
    assert missing <= {"uv"}, "only the tool that makes the lock may be left out"


def test_the_lock_satisfies_the_project():
    lock = locked()
    for requirement in direct("download", "dev", "course"):
        version = lock[canonical(requirement.name)]
        assert requirement.specifier.contains(Version(version)), f"{requirement} but locked {version}"


PACKAGE = Path(ecdlib.__path__[0])
MODULES = sorted(p.relative_to(PACKAGE.parent).with_suffix("").as_posix() for p in PACKAGE.rglob("*.py"))


def public(owner: Any, module: str) -> Any:
    """Public functions, classes, methods and properties that are defined here."""
    for name, thing in vars(owner).items():
        if name.startswith("_") or getattr(thing, "__module__", module) != module:
            continue
        if inspect.isclass(thing) and not issubclass(thing, enum.Enum):
            yield thing
            yield from public(thing, module)
        elif inspect.isfunction(thing):
            yield thing
        elif isinstance(thing, property) and thing.fget.__module__ == module:
            yield thing.fget


@pytest.mark.parametrize("path", MODULES)
def test_public_code_is_documented(path):
    module = importlib.import_module(path.replace("/", ".").removesuffix(".__init__"))
    assert module.__doc__ or not Path(module.__file__).read_text().strip()
    undocumented = [
        thing.__qualname__
        for thing in public(module, module.__name__)
        if not thing.__doc__ and not inherits_documentation(module, thing)
    ]
    assert undocumented == []


def inherits_documentation(module: ModuleType, thing: Any) -> bool:
    """Methods that a base class documents, such as torch's ``forward`` and scikit-learn's ``fit``."""
    owner, _, name = thing.__qualname__.rpartition(".")
    bases = getattr(module, owner, type).__mro__[1:] if owner and "<" not in owner else ()
    return any(hasattr(base, name) for base in bases)


def tracked() -> list[Path]:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_files_hold_no_traces_of_the_machines_they_were_made_on():
    words = ["/wo" + "rk/", "/ro" + "ot/", "py" + "pi.org", "sub" + "agent", "registry." + "npmjs"]
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert found == []


def test_no_build_products_are_tracked():
    names = [str(path.relative_to(ROOT)) for path in tracked()]
    assert not [n for n in names if n.startswith(("_build/", "book/executed/", ".venv/")) or "__pycache__" in n]
    assert sum(path.stat().st_size for path in tracked() if path.is_relative_to(data_folder())) < 75e6


def commands() -> dict[str, Any]:
    """All commands by name, those of `ecd course` too."""
    group = typer.main.get_command(cli.app)
    found = dict(group.commands)
    for name, command in group.commands.items():
        found |= {f"{name} {own}": c for own, c in getattr(command, "commands", {}).items()}
    return found


def test_every_command_and_option_has_a_help_text():
    assert {"list", "run", "book", "scoreboard", "featurize", "convert", "data", "density", "download"} <= set(
        commands()
    )
    for name, command in commands().items():
        told = CliRunner().invoke(cli.app, [*name.split(), "--help"])
        assert told.exit_code == 0, name
        assert "Usage:" in told.output
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None) or parameter.name == "help", f"{name} {parameter.name}"


def test_the_core_is_small():
    core = {canonical(r.name) for r in direct()}
    assert core.isdisjoint({"torch", "dask", "panel", "plotly", "jupyter-book", "pyarrow", "shap", "optuna"})
    in_extras = {canonical(r.name) for r in direct("course", "download")} - core
    assert {"torch", "dask", "panel", "plotly", "jupyter-book", "pyarrow", "shap", "optuna"} <= in_extras


HEAVY = {"torch", "pymatgen", "pandas", "sklearn", "scipy", "plotly", "matplotlib", "dask", "papermill", "IPython"}


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("--help", HEAVY | {"numpy", "pydantic"}),
        ("course --help", HEAVY | {"numpy"}),
        ("predict NaCl_225", HEAVY - {"pymatgen", "pandas", "sklearn", "scipy"}),
        ("convert NaCl_225 density.npz", HEAVY - {"pymatgen", "pandas", "scipy"}),
    ],
)
def test_commands_import_only_what_they_need(command, unwanted, tmp_path):
    code = f"""if True:
        import sys
        from ecdlib import cli
        sys.argv = ["ecd", *{command.split()}]
        try:
            cli.main()
        except SystemExit:
            pass
        print(*sorted({unwanted} & set(sys.modules)), file=sys.stderr)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    "document",
    [
        *("README.md", "CONTRIBUTING.md", "book/how_to_use.md", "book/index.md", "book/data.md"),
        *("book/course/teachers.md", "book/course/index.md", "book/course/sessions.yml"),
    ],
)
def test_documents_name_only_commands_that_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|- )ecd (course [a-z]+|[a-z]+)", text, re.MULTILINE)) <= set(commands())
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_list_prints_the_notebooks_and_their_parameters(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ecd", "list", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    listed = json.loads(capsys.readouterr().out)
    shown = {name: entry["parameters"] for name, entry in listed.items()}
    assert shown == {name: parameter_rows(name) for name in NOTEBOOKS}
    monkeypatch.setattr(sys, "argv", ["ecd", "list"])
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    assert all(row["name"] in text for name in NOTEBOOKS for row in parameter_rows(name))


def test_data_lists_the_bundled_crystals(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ecd", "data"])
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    assert len(re.findall(r"ecd_(?:cubic|general)", text)) == 1125
    assert "Fe3SnC_221" in text


def test_citation_and_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["title"]
    assert citation.get("version", PYPROJECT["project"]["version"]) == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"]
