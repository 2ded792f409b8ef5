"""The wheel, installed away from the checkout: what it brings along, what it fetches, and what it says it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
import urllib.request
import venv
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pymatgen.core import Lattice, Structure
from test_library_pages import notebook_to_try

from ecdlib.base.resources import ROOT, data_folder
from ecdlib.learn.answer import answer

pytestmark = pytest.mark.slow
Run = Callable[..., "subprocess.CompletedProcess[str]"]
DENSITY = "import ecdlib; print(ecdlib.read('NaCl_225').n_electrons)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from links to the sources, so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("ecdlib", "data", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run([*pip, str(source)], check=True, cwd=source)
    (built,) = out.glob("ecdlib-*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fresh virtual environment with the wheel; what the wheel needs is taken from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    (site,) = folder.glob("lib/python3.*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin"


@pytest.fixture
def away(bin_folder: Path, tmp_path: Path) -> Run:
    """``away("ecd", ...)``: run a program of that environment in an empty folder, with a home of its own."""

    def run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        keep = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ECDLIB_DATA", "ECDLIB_DATA_URL")}
        home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [str(bin_folder / program), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=keep | home | variables, capture_output=True, text=True)

    Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.9), ["Ca", "O"], [[0, 0, 0], [0.5, 0, 0]]).to(
        str(tmp_path / "mine.cif")
    )
    return run


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Address at which the data folder is served, and what was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(data_folder()))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", asked
        served.shutdown()


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 25e6


def test_a_structure_is_answered_as_in_the_checkout(away: Run, tmp_path: Path) -> None:
    done = away("ecd", "predict", "mine.cif", "--csv", "-")
    assert done.returncode == 0, done.stderr
    here = answer(Structure.from_file(str(tmp_path / "mine.cif"))).records
    K = next(record for record in here if record["property"] == "bulk modulus")
    assert f"bulk modulus,{K['value']:.6}"[:18] in done.stdout
    assert not (tmp_path / "cache").exists(), "nothing was fetched"


def test_a_density_of_vasp_is_answered_without_fetching(away: Run, tmp_path: Path) -> None:
    files = [str(data_folder() / "vasp" / f"CHGCAR.{name}.gz") for name in ("NaCl", "Li")]
    done = away("ecd", "predict", *files, "--csv", "-")
    assert done.returncode == 0, done.stderr
    assert "the conversion" not in done.stderr
    assert done.stdout.count("total energy") == 2
    assert not (tmp_path / "cache").exists(), "nothing was fetched"


def test_the_notebook_to_try_needs_the_wheel_alone(away: Run, tmp_path: Path) -> None:
    done = away("python", "-c", notebook_to_try(), MPLBACKEND="agg")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache" / "ecdlib").exists(), "nothing was fetched"


def test_structures_are_screened(away: Run, tmp_path: Path) -> None:
    done = away("ecd", "screen", "mine.cif", "-o", "table.parquet", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "1 crystals predicted" in done.stdout


def test_densities_are_fetched_once_checked_and_kept_in_the_users_cache(
    away: Run, server: Any, tmp_path: Path, bin_folder: Path
) -> None:
    address, asked = server
    for _ in range(2):
        done = away("python", "-c", DENSITY, ECDLIB_DATA_URL=address)
        assert done.returncode == 0, done.stderr
        assert round(float(done.stdout)) == 14
    assert sorted(asked) == sorted(dict.fromkeys(asked)), "each file once"
    kept = tmp_path / "cache" / "ecdlib" / "data" / "ecd_cubic.h5"
    assert kept.is_file()
    (site,) = bin_folder.parent.glob("lib/python3.*/site-packages")
    assert not (site / "_build").exists()
    kept.write_bytes(b"damaged")
    assert away("python", "-c", DENSITY, ECDLIB_DATA_URL=address).returncode == 0, "fetched again"


def test_offline_the_data_of_a_clone_serve(away: Run, tmp_path: Path) -> None:
    done = away("ecd", "convert", "NaCl_225", "CHGCAR", ECDLIB_DATA=str(data_folder()))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("variables", "problem"),
    [({}, "does not come with the package"), ({"ECDLIB_DATA_URL": "http://127.0.0.1:9"}, "could not be fetched")],
)
def test_what_cannot_be_fetched_is_one_line(away: Run, variables: dict[str, str], problem: str) -> None:
    done = away("ecd", "convert", "NaCl_225", "CHGCAR", **variables)
    assert done.returncode == 2
    (line,) = (text for text in done.stderr.splitlines() if not text.startswith("Downloading"))
    assert problem in line
    assert "ECDLIB_DATA" in line


@pytest.mark.parametrize("command", ["book", "run baseline", "scoreboard", "course list"])
def test_what_needs_the_notebooks_says_so(away: Run, command: str) -> None:
    done = away("ecd", *command.split())
    assert done.returncode == 2
    assert "needs the notebooks and pages. Work in a clone" in done.stderr


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("panel", "app --no-browser", "app"),
        ("torch", "screen mine.cif -o table.parquet --workers 1", "networks"),  # in this process, where torch is hidden
        ("dask", "screen mine.cif -o t.parquet --scheduler tcp://127.0.0.1:9", "cluster"),
    ],
)
def test_a_missing_extra_is_one_line(away: Run, server: Any, module: str, command: str, extra: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['ecd', *{command.split()}]"
    done = away("python", "-c", f"{code}; from ecdlib import cli; cli.main()", ECDLIB_DATA_URL=server[0])
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"ecd: ecdlib: needs {module}. pip install 'ecdlib[{extra}]'"


def test_the_app_serves_its_page(bin_folder: Path, server: Any, tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "ECDLIB_DATA_URL": server[0]}
    environment.pop("PYTHONPATH", None)
    command = [str(bin_folder / "ecd"), "app", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next(text for text in process.stdout if "http://" in text)
            address = next(word for word in line.split() if word.startswith("http://"))
            with urllib.request.urlopen(address, timeout=60) as page:
                assert "ecdlib" in page.read().decode()
        finally:
            process.kill()
