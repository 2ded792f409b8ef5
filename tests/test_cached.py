"""The cache knows what a value depends on: code by imports, bundled files by reading them."""

import json
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from ecdlib.base import cached as module
from ecdlib.base.cached import cached, closure
from ecdlib.base.resources import data_file, data_folder, files_read, load_manifest, read_once, recording
from ecdlib.base.workers import in_processes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A library of two modules of which one imports the other, and a data folder of two files."""
    for name, source in {
        "base": "def double(x):\n    return 2 * x\n",
        "top": "import numpy\nfrom ecdlib.base import double\n",
        "apart": "",
    }.items():
        (tmp_path / "ecdlib").mkdir(exist_ok=True)
        (tmp_path / "ecdlib" / f"{name}.py").write_text(source)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / "data" / name).write_text("1\n")
    write_manifest(tmp_path / "data")
    monkeypatch.setenv("ECDLIB_DATA", str(tmp_path / "data"))
    return tmp_path


def write_manifest(data):
    import hashlib

    entries = {p.name: {"bytes": 2, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in data.glob("*.csv")}
    (data / "manifest.json").write_text(json.dumps(entries))


class Maker:
    """Counts how often it was asked, and belongs to the module ``ecdlib.top``."""

    def __init__(self, reads=()):
        self.calls, self.reads, self.__module__ = 0, reads, "ecdlib.top"

    def __call__(self):
        self.calls += 1
        return {"x": np.array([float(data_file(name).read_text()) for name in self.reads])}


def test_the_closure_follows_imports_and_names_packages(folder):
    modules, packages = closure(["ecdlib.top"])
    assert list(modules) == ["ecdlib.base", "ecdlib.top"]
    assert packages == ["numpy"]


def test_code_that_is_imported_counts_and_nothing_else(folder):
    make = Maker()
    cached("t", make)
    cached("t", make)
    assert make.calls == 1
    (folder / "ecdlib" / "apart.py").write_text("x = 1\n")
    (folder / "ecdlib" / "base.py").write_text("def double(x):  # twice\n\n    return 2 * x\n")
    cached("t", make)
    assert make.calls == 1, "a comment, or a module that is not imported"
    (folder / "ecdlib" / "base.py").write_text("def double(x):\n    return 3 * x\n")
    cached("t", make)
    assert make.calls == 2


def test_data_that_were_read_count_and_no_others(folder):
    make = Maker(reads=["a.csv"])
    assert cached("t", make)["x"] == 1
    (folder / "data" / "b.csv").write_text("2\n")
    write_manifest(folder / "data")
    cached("t", make)
    assert make.calls == 1
    (folder / "data" / "a.csv").write_text("3\n")
    write_manifest(folder / "data")
    assert cached("t", make)["x"] == 3
    assert make.calls == 2


def test_a_value_from_the_cache_or_the_memory_brings_what_it_has_read(folder):
    make = Maker(reads=["a.csv"])
    cached("t", make)
    remembered = read_once(lambda: data_file("b.csv").read_text())
    remembered()
    with recording() as reads:
        cached("t", make)
        remembered()
    assert make.calls == 1
    assert reads == {name: entry["sha256"] for name, entry in load_manifest().items()}
    assert reads.items() <= files_read().items()


def test_what_a_worker_reads_is_noted(folder):
    with recording() as reads:
        list(in_processes(data_file, [("a.csv",), ("b.csv",)], 2))
    assert sorted(reads) == ["a.csv", "b.csv"]


def test_a_damaged_file_of_the_cache_is_made_anew(folder):
    make = Maker()
    cached("t", make)
    (path,) = (folder / "cache").glob("t-*.npz")
    path.write_bytes(path.read_bytes()[:40])
    cached("t", make)
    assert make.calls == 2


def test_a_provenance_needs_nothing_that_a_training_does_not(tmp_path):
    """Where neither plotly nor SimpleITK is installed, a number still says what it came from."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['SimpleITK', 'matminer', 'plotly', 'dask'])\n"
        "from ecdlib.base.provenance import provenance; print(provenance('x', {}, 1)['versions']['numpy'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == np.__version__
    assert data_folder().is_dir()


def slow(folder, number):
    """What two processes ask for at once: the first to begin leaves its number."""
    time.sleep(0.5)
    (folder / f"made-by-{number}").touch()
    return {"x": np.array(number)}


def ask(folder, number):
    module.CACHE = folder
    make = partial(slow, folder, number)
    make.__module__ = __name__
    return float(cached("t", make)["x"])


def test_of_two_that_want_the_same_one_computes_and_the_other_waits(tmp_path):
    found = dict(in_processes(ask, [(tmp_path, 1), (tmp_path, 2)], 2))
    assert found[0] == found[1]
    assert len(list(tmp_path.glob("made-by-*"))) == 1
