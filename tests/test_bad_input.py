"""What bad input gets: one clear line naming the file and the remedy, exit code 2, nothing half-written."""

from __future__ import annotations

import bz2
import ctypes
import errno
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from ase.units import Bohr
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from ecdlib import cli
from ecdlib.base import errors
from ecdlib.base.arrays import read_arrays
from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.resources import data_file, data_folder
from ecdlib.base.workers import in_processes, map_chunks
from ecdlib.data.tables import load_crystals
from ecdlib.density import io as readers
from ecdlib.density.core import CLOSE, FLAT, ChargeDensity, misplaced, symmetry_dataset
from ecdlib.density.io import write_chgcar, write_cube, write_npz
from ecdlib.density.store import DensityStore, load_densities, load_density, write_store
from ecdlib.density.valence import read_potcar


@pytest.fixture
def ecd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The real command line: ``ecd(*arguments)`` gives exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ecd", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def refused(ecd: Any, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused in one line naming ``source``; the folder must not change."""

    def run(source: object, *arguments: object) -> str:
        before = listing(tmp_path)
        code, out, err = ecd(*arguments)
        assert code == 2
        assert out == ""
        assert err.count("\n") == 1, f"not one line: {err}"
        assert err.startswith(f"ecd: {source}: "), err
        assert re.fullmatch(r"ecd: .+: .+\. \S.+\n", err), f"source, problem and remedy: {err}"
        assert listing(tmp_path) == before
        return str(err)

    return run


# Density files


@functools.cache
def vasp(name: str) -> str:
    text = gzip.decompress((data_folder() / "vasp" / f"CHGCAR.{name}.gz").read_bytes()).decode()
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


@functools.cache
def small() -> ChargeDensity:
    values = np.random.default_rng(0).uniform(0.5, 1, (4, 5, 6))
    lattice = np.diag([3.0, 3.5, 4.0])
    values *= 2 / (values.mean() * 42)
    return ChargeDensity(values, lattice, ("Li", "H"), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), "LiH")


@functools.cache
def written(kind: str, factor: float = 1.0) -> bytes:
    """The bytes of a small file; with a factor, of one whose numbers are off by it."""
    write = {"CHGCAR": write_chgcar, "d.cube": write_cube, "d.npz": write_npz}[kind]
    with tempfile.TemporaryDirectory() as folder:
        write(small().step("scaled", values=small().values * factor), Path(folder) / kind)
        return (Path(folder) / kind).read_bytes()


def line_changed(text: str | bytes, number: int, line: str) -> bytes:
    lines = (text.decode() if isinstance(text, bytes) else text).splitlines()
    lines[number] = line
    return ("\n".join(lines) + "\n").encode()


def npz(**changes: Any) -> bytes:
    arrays = {
        "rho": small().values, "cell": small().lattice, "positions": small().positions, "numbers": np.array([3, 1]),
        **changes,
    }  # fmt: skip
    stream = io.BytesIO()
    np.savez(stream, **{key: value for key, value in arrays.items() if value is not None})
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, small().values)
    return stream.getvalue()


def flipped(content: bytes, at: float) -> bytes:
    changed = bytearray(content)
    position = int(at * (len(changed) - 10))
    changed[position : position + 8] = bytes(b ^ 0xFF for b in changed[position : position + 8])
    return bytes(changed)


CHGCAR_DAMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "blank lines": (lambda: b"\n\n\n", "not a complete CHGCAR"),
    "other text": (lambda: b"Dear colleague,\n\nhere is the density.\n", "not a complete CHGCAR"),
    "binary": (lambda: bytes(range(256)) * 20, "not a complete CHGCAR"),
    "cut off in the header": (lambda: vasp("NaCl")[:150].encode(), "not a complete CHGCAR"),
    "cut off in the density": (lambda: vasp("NaCl")[:1_000_000].encode(), "not a complete CHGCAR"),
    "cut off in the last line": (lambda: written("CHGCAR")[:-25], "not a complete CHGCAR"),
    "cut off in the augmentation": (lambda: vasp("NaCl")[:-300].encode(), "not a complete CHGCAR"),
    "cut off in the spin density": (lambda: vasp("Li_spin")[:-400_000].encode(), "not a complete CHGCAR"),
    "grid larger than the data": (
        lambda: vasp("Li").replace("32   32   32", "32   32   33").encode(),
        "not a complete CHGCAR",
    ),
    "grid smaller than the data": (
        lambda: vasp("Li").replace("32   32   32", "32   32   31").encode(),
        "holds more numbers than its grid of 32x32x31. Correct the grid",
    ),
    "grid smaller, no augmentation": (
        lambda: written("CHGCAR").replace(b"4   5   6", b"4   5   5"),
        "holds more numbers than its grid of 4x5x5",
    ),
    "no grid": (lambda: written("CHGCAR").replace(b"   4   5   6\n", b""), "not a complete CHGCAR"),
    "grid of two numbers": (lambda: written("CHGCAR").replace(b"4   5   6", b"4   5"), "not a complete CHGCAR"),
    "grid of no memory": (
        lambda: written("CHGCAR").replace(b"4   5   6", b"400000   500000   600000"),
        "not a complete CHGCAR",
    ),
    "grid of zeros": (lambda: written("CHGCAR").replace(b"4   5   6", b"0   0   0"), "at least 2 voxels a side"),
    "spin on another grid": (
        lambda: (vasp("Li_spin").rpartition("   48   48   48\n")[0] + "   2   2   2\n" + " .1 .1 .1 .1\n" * 2).encode(),
        "blocks of different grids",
    ),
    "stars": (lambda: line_changed(vasp("Li"), 20, " ****************" * 5), "not a complete CHGCAR"),
    "NaN": (lambda: line_changed(vasp("Li"), 20, " NaN" * 5), "5 values are NaN or infinite"),
    "infinity": (
        lambda: line_changed(vasp("Li"), 20, " 0.1E+01 Infinity 0.1E+01 -Infinity 0.1E+01"),
        "2 values are NaN",
    ),
    "cut off after the atoms": (lambda: written("CHGCAR")[: written("CHGCAR").index(b" \n")], "not a complete CHGCAR"),
    "unknown species": (lambda: line_changed(vasp("NaCl"), 5, " Na Xx"), "unknown species Xx"),
    "no species": (
        lambda: "".join(line for i, line in enumerate(vasp("NaCl").splitlines(True)) if i != 5).encode(),
        "unknown species: the header names no elements",
    ),
    "cell without volume": (lambda: line_changed(vasp("Li"), 3, " 0.0 0.0 0.0"), "no volume"),
    "not multiplied by the volume": (lambda: written("CHGCAR", 1 / 42), "electrons, which does not fit LiH"),
    "multiplied by it twice": (lambda: written("CHGCAR", 42), "electrons, which does not fit LiH"),
    "in e/bohr3": (lambda: written("CHGCAR", Bohr**3), "Check the units"),
}
CUBE_DAMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "other text": (lambda: b"Dear colleague,\n", "not a complete cube file"),
    "cut off": (lambda: written("d.cube")[:-200], "not a complete cube file"),
    "cut off in the header": (lambda: written("d.cube")[:200], "not a complete cube file"),
    "binary": (lambda: bytes(range(256)) * 20, "not a complete cube file"),
    "grid does not fit": (
        lambda: line_changed(written("d.cube"), 3, "    5    1.4 0.0 0.0"),
        "not a complete cube file",
    ),
    "NaN": (lambda: line_changed(written("d.cube"), 20, "nan"), "1 values are NaN"),
    "unknown element": (
        lambda: line_changed(written("d.cube"), 6, "  300  0.0 0.0 0.0 0.0"),
        "not a complete cube file",
    ),
    "dummy atom": (lambda: line_changed(written("d.cube"), 6, "    0  0.0 0.0 0.0 0.0"), "unknown species X"),
    "cell without volume": (
        lambda: line_changed(written("d.cube"), 3, "    4    0.0 0.0 0.0"),
        "not a complete cube file",
    ),
    "in e/Å3": (lambda: written("d.cube", 1 / Bohr**3), "Check the units"),
    "not divided by the volume": (lambda: written("d.cube", 42), "Check the units"),
}
NPZ_DAMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "other text": (lambda: b"Dear colleague,\n", "not a density .npz"),
    "cut off": (lambda: written("d.npz")[:-100], "not a density .npz"),
    "an .npy": (npy, "not a density .npz"),
    "no cell": (lambda: npz(cell=None), "It needs the arrays rho, cell, positions, numbers"),
    "pickled": (lambda: npz(rho=np.array([{}], dtype=object)), "not a density .npz"),
    "text": (lambda: npz(cell=np.full((3, 3), "x")), "not a density .npz"),
    "symbols for numbers": (lambda: npz(numbers=np.array(["Li", "H"])), "not a density .npz"),
    "unknown element": (lambda: npz(numbers=np.array([200, 1])), "not a density .npz"),
    "complex": (lambda: npz(rho=small().values * 1j), "values of type complex128"),
    "flat": (lambda: npz(rho=small().values[0]), "3-D grid"),
    "atoms without positions": (lambda: npz(positions=np.zeros((1, 3))), "2 species need as many positions"),
    "flat positions": (lambda: npz(positions=np.zeros((2, 2))), "positions of 3 numbers"),
    "positions nowhere": (lambda: npz(positions=np.full((2, 3), np.nan)), "NaN or infinity"),
    "difference density": (lambda: npz(rho=small().values - small().values.mean() - 1), "total charge is not positive"),
    "in e/bohr3": (lambda: npz(rho=small().values * Bohr**3), "Check the units"),
    **{f"flipped at {at}": (lambda at=at: flipped(written("d.npz"), at), "d.npz") for at in (0.0, 0.05, 0.3, 0.5)},
}


@pytest.mark.parametrize("damage", CHGCAR_DAMAGE)
def test_a_damaged_chgcar(damage, refused, tmp_path):
    make, problem = CHGCAR_DAMAGE[damage]
    (tmp_path / "CHGCAR").write_bytes(make())
    assert problem in refused(tmp_path / "CHGCAR", "convert", tmp_path / "CHGCAR", tmp_path / "out.cube")


@pytest.mark.parametrize("damage", CUBE_DAMAGE)
def test_a_damaged_cube(damage, refused, tmp_path):
    make, problem = CUBE_DAMAGE[damage]
    (tmp_path / "d.cube").write_bytes(make())
    assert problem in refused(tmp_path / "d.cube", "convert", tmp_path / "d.cube", tmp_path / "out" / "CHGCAR")


@pytest.mark.parametrize("damage", NPZ_DAMAGE)
def test_a_damaged_npz(damage, refused, tmp_path):
    make, problem = NPZ_DAMAGE[damage]
    (tmp_path / "d.npz").write_bytes(make())
    assert problem in refused(tmp_path / "d.npz", "convert", tmp_path / "d.npz", tmp_path / "out.h5")


@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_a_total_charge_that_is_not_positive(factor, refused, tmp_path):
    lines = written("CHGCAR").decode().splitlines()
    start = lines.index("   4   5   6") + 1
    lines[start:] = [" ".join(f"{factor * float(x):.8f}" for x in line.split()) for line in lines[start:]]
    (tmp_path / "CHGCAR").write_text("\n".join(lines))
    said = refused(tmp_path / "CHGCAR", "convert", tmp_path / "CHGCAR", tmp_path / "out.cube")
    assert (
        "the total charge is not positive. A spin or difference density is not a charge density: give the total."
        in said
    )


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("damage", ["cut off", "flipped", "not compressed", "empty inside"])
def test_a_damaged_compressed_file(suffix, pack, damage, refused, tmp_path):
    text = vasp("Li").encode()
    content = {
        "cut off": lambda: pack(text)[:50_000],
        "flipped": lambda: flipped(pack(text), 0.1),
        "not compressed": lambda: text,
        "empty inside": lambda: pack(b""),
    }[damage]()
    path = tmp_path / f"CHGCAR{suffix}"
    path.write_bytes(content)
    said = refused(path, "convert", path, tmp_path / "out.cube")
    assert ("not a complete CHGCAR" if damage == "empty inside" else "damaged or cut off. Copy it again.") in said


def test_a_gzip_stream_that_becomes_invalid(refused, tmp_path):
    """The stream itself cannot be decoded, which is another error than a wrong checksum."""
    content = bytearray(gzip.compress(vasp("Li").encode()))
    content[10] = 0x07  # a block of a type that does not exist
    (tmp_path / "CHGCAR.gz").write_bytes(content)
    said = refused(tmp_path / "CHGCAR.gz", "convert", tmp_path / "CHGCAR.gz", tmp_path / "out.cube")
    assert "damaged or cut off. Copy it again." in said


@given(st.integers(1, 10**6))
@settings(max_examples=15)
def test_bytes_lost_or_changed_anywhere_never_give_another_error(tmp_path_factory, seed):
    """Whatever happens to a file, the reader gives a density or the one error that users see."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(seed)
    for kind in ("CHGCAR", "d.cube", "d.npz"):
        content = bytearray(written(kind))
        if rng.random() < 0.3:
            content = content[: rng.integers(1, len(content))]
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(32, 127)
        (folder / kind).write_bytes(content)
        try:
            density = readers.read_density(folder / kind)
        except EcdError as error:
            said = str(error)
        else:
            said = str(folder / kind) if np.isfinite(density.values).all() else "not finite"
        assert str(folder / kind) in said
        assert "\n" not in said


# Files that are not there


@pytest.mark.parametrize("name", ["nowhere/CHGCAR", "d.cube", "d.npz", "CHGCAR.gz", "a folder"])
def test_a_missing_file(name, refused, tmp_path):
    (tmp_path / "a folder").mkdir()
    said = refused(tmp_path / name, "convert", tmp_path / name, tmp_path / "out.cube")
    assert ("is a folder. Name a file in it." if name == "a folder" else "no such file. Check the path.") in said


def test_a_bundled_crystal_that_is_not_there(refused, tmp_path):
    said = refused("Xy9_225", "convert", "Xy9_225", tmp_path / "out.cube")
    assert "no bundled density of that name. `ecd data` lists them" in said


def test_a_store_that_is_not_there_or_lacks_the_crystal(refused, ecd, tmp_path):
    write_store(tmp_path / "s.h5", [small()])
    out = tmp_path / "out.cube"
    assert "no such file" in refused(tmp_path / "no.h5", "convert", f"{tmp_path / 'no.h5'}::LiH", out)
    said = refused(f"{tmp_path / 's.h5'}::NaCl", "convert", f"{tmp_path / 's.h5'}::NaCl", out)
    assert "no such crystal in this store" in said
    assert f"Name one: {tmp_path / 's.h5'}::NAME" in refused(tmp_path / "s.h5", "convert", tmp_path / "s.h5", out)
    code, _, err = ecd("featurize", tmp_path / "no.h5", "-o", tmp_path / "f.h5", "--workers", "1")
    assert code == 2
    assert f"{tmp_path / 'no.h5'}: no such " in err.splitlines()[-1]


# Stores


@functools.cache
def store_content() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "s.h5", [small(), load_density("LiH_225").step("mine", convention=None)])
        return (Path(folder) / "s.h5").read_bytes()


@pytest.mark.parametrize("damage", ["cut off", "empty", "text", "other HDF5", "flipped", "one bit"])
def test_a_corrupted_store(damage, refused, ecd, tmp_path):
    path = tmp_path / "s.h5"
    content = store_content()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    made = {
        "cut off": content[:-1000],
        "empty": b"",
        "text": b"Dear colleague,\n",
        "other HDF5": b"",
        "flipped": flipped(content, 0.7),
        "one bit": bytes(changed),
    }[damage]
    path.write_bytes(made)
    if damage == "other HDF5":
        with h5py.File(path, "w") as h:
            h["something"] = [1, 2, 3]
    said = refused(path, "convert", f"{path}::LiH", tmp_path / "out.cube")
    problem = "the file is empty" if damage == "empty" else "is not a readable density store"
    assert problem in said
    before = listing(tmp_path)
    code, _, err = ecd("featurize", path, "-o", tmp_path / "f.h5", "--workers", "1")
    assert code == 2
    assert problem in err.splitlines()[-1]
    assert listing(tmp_path) == before


@given(st.integers(0, 10**9), st.integers(1, 255))
@settings(max_examples=100)
def test_no_changed_byte_of_a_store_goes_unnoticed(tmp_path_factory, position, change):
    """Neither in the values nor in what HDF5 keeps about them, where a change can make it hang."""
    content = bytearray(store_content())
    content[position % len(content)] ^= change
    path = tmp_path_factory.mktemp("store") / "s.h5"
    path.write_bytes(content)
    with pytest.raises(EcdError, match=r"s\.h5: is not a readable density store"):
        DensityStore(path)


def test_a_store_without_seal_is_not_read(tmp_path, refused):
    """HDF5 loops without end on some files of which one byte has changed."""
    (tmp_path / "s.h5").write_bytes(store_content()[512:])
    said = refused(tmp_path / "s.h5", "convert", f"{tmp_path / 's.h5'}::LiH", tmp_path / "out.cube")
    assert "is not a readable density store" in said
    copy = tmp_path / "copy.h5"
    copy.write_bytes(data_file("ecd_pairs.h5").read_bytes())  # a bundled one is known by its hash
    assert DensityStore(copy).names == DensityStore(data_file("ecd_pairs.h5")).names


def test_an_entry_that_contradicts_itself(tmp_path, refused):
    """A sealed store whose parts do not fit together."""
    for key, value in (("grid", 4), ("grid", 10**9), ("numbers", 200), ("value_offset", 3)):
        path = tmp_path / f"{key}.h5"
        path.write_bytes(store_content()[512:])
        with h5py.File(path, "a") as h:
            h[key][-1 if key == "value_offset" else 0] = value
        content = path.read_bytes()
        path.write_bytes(hashlib.sha256(content).hexdigest().encode().ljust(512, b"\0") + content)
        name = "LiH_225" if key == "value_offset" else "LiH"
        said = refused(f"{path}::{name}", "convert", f"{path}::{name}", tmp_path / "out.cube")
        assert "this entry is damaged. Fetch or write the store again." in said


# Bundled data


@pytest.fixture
def copy_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of links, of which each test replaces one."""
    copy = tmp_path / "data"
    copy.mkdir()
    for file in data_folder().iterdir():
        if file.is_file():
            (copy / file.name).symlink_to(file.resolve())
    monkeypatch.setenv("ECDLIB_DATA", str(copy))
    return copy


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_bundled_data_that_changed(copy_of_data, refused, tmp_path):
    path = copy_of_data / "ecd_cubic.h5"
    assert readers.read_density("LiH_225").n_electrons == pytest.approx(2, abs=3e-4)
    replace(path, flipped(path.read_bytes(), 0.5))
    said = refused(path, "convert", "LiH_225", tmp_path / "out.cube")
    assert "has changed: 9912713 bytes with SHA-256" in said
    assert "Restore it with: git checkout -- data" in said
    replace(copy_of_data / "mp_crystals.csv", (copy_of_data / "mp_crystals.csv").read_bytes() + b"\n")
    with pytest.raises(EcdError, match=r"mp_crystals\.csv: has changed"):
        load_crystals()


def test_bundled_data_that_are_missing(copy_of_data, refused, tmp_path):
    (copy_of_data / "ecd_general.h5").unlink()
    assert "is missing. Restore it" in refused(copy_of_data / "ecd_general.h5", "convert", "Ga_139", tmp_path / "out")
    replace(copy_of_data / "manifest.json", b"{")
    assert "is not valid JSON" in refused(copy_of_data / "manifest.json", "convert", "Ga_139", tmp_path / "out")
    (copy_of_data / "manifest.json").unlink()
    assert "holds no manifest.json. Work in a clone" in refused(copy_of_data, "convert", "Ga_139", tmp_path / "out")
    with pytest.raises(EcdError, match=r"holds no manifest\.json"):
        load_densities("pairs")


def test_the_manifest_names_what_is_bundled():
    with pytest.raises(EcdError, match=r"is not among the bundled files\. Did you mean ecd_"):
        data_file("ecd_hexagonal.h5")
    manifest = json.loads((data_folder() / "manifest.json").read_text())
    for name, entry in manifest.items():
        assert data_file(name).stat().st_size == entry["bytes"]
        assert {"what", "units", "source", "licence", "sha256"} <= set(entry)


# Parameters and options


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-p", "sizze=3"], "notebook 'features': unknown parameter 'sizze'"),
        (["-p", "size=many"], "notebook 'features': parameter size = 'many'"),
        (["-p", "voxel=-1"], "notebook 'features': parameter voxel = '-1'"),
        (["-p", "size"], "-p size: is not name=value"),
        (["-p", "profile=full"], "-p profile: a profile is not a parameter. Write: --profile full"),
    ],
)
def test_unknown_and_ill_typed_notebook_parameters(arguments, problem, refused):
    assert problem in refused(problem.split(": ")[0], "run", "features", *arguments)


def test_an_unknown_notebook(refused):
    assert "Choose one of: dataset" in refused("nonsense", "run", "nonsense")


@pytest.mark.parametrize("options", [("--size", "50"), ("--size", "-1"), ("--voxel", "0"), ("--voxel", "-0.2")])
def test_a_grid_that_cannot_be(options, ecd, tmp_path):
    code, _, err = ecd("featurize", "LiH_225", "-o", tmp_path / "f.h5", *options)
    assert code == 2
    assert "the size must be odd and the voxel width positive. Try 51 and 0.2." in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_source_of_downloads(refused):
    assert "Choose jarvis or materials-project." in refused("arxiv", "download", "arxiv", "1")


# Disks


@pytest.mark.parametrize("name", ["CHGCAR", "d.cube", "d.npz", "d.h5"])
def test_a_full_disk_is_reported_and_leaves_nothing(name, refused, tmp_path, monkeypatch):
    """The temporary file is led to the device that is always full."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"an older result")
    before = sorted(p.name for p in out.iterdir())

    def full(target: Path) -> Path:
        (link := target.with_name(f".1{target.suffix}")).symlink_to("/dev/full")
        return link

    monkeypatch.setattr(errors, "_reserve", full)
    code_line = refused(out / name, "convert", "LiH_225", out / name)
    assert "cannot be written (No space left on device). Free disk space or choose another folder." in code_line
    assert sorted(p.name for p in out.iterdir()) == before
    assert (out / name).read_bytes() == b"an older result"


@pytest.mark.parametrize("name", ["CHGCAR", "d.cube", "d.npz", "d.h5"])
def test_a_limit_on_the_size_of_files_is_like_a_full_disk(name, tmp_path):
    """In a process of its own: the file grows until the system stops it, midway."""
    done = subprocess.run(
        [sys.executable, "-m", "ecdlib.cli", "convert", "LiH_225", str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"ecd: {tmp_path / name}: cannot be written (")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["CHGCAR", "d.cube", "d.npz", "d.h5"])
def test_a_target_that_cannot_be_written(name, refused, tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / name
    assert "cannot be written" in refused(target, "convert", "LiH_225", target)
    (tmp_path / name).mkdir()
    assert "cannot be written (Is a directory)" in refused(tmp_path / name, "convert", "LiH_225", tmp_path / name)


def test_features_that_cannot_be_written(ecd, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = ecd("featurize", "LiH_225", "-o", tmp_path / "file" / "f.h5", "--size", "5", "--workers", "1")
    assert code == 2
    assert err.startswith(f"ecd: {tmp_path / 'file' / 'f.h5'}: cannot be written (")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("a bug"), OSError(errno.EIO, "Input/output error")])
def test_a_write_that_breaks_off_keeps_the_older_file(error, tmp_path):
    (tmp_path / "d.txt").write_text("older")

    def breaks_off() -> None:
        with atomic_write(tmp_path / "d.txt") as temporary:
            temporary.write_text("half of the new")
            assert temporary.suffix == ".txt"
            raise error

    with pytest.raises((KeyboardInterrupt, ValueError, EcdError)):
        breaks_off()
    assert listing(tmp_path) == {"d.txt": b"older"}
    with atomic_write(tmp_path / "d.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "d.txt").read_text() == "older", "readers see the old file until the new one is whole"
    assert listing(tmp_path) == {"d.txt": b"new"}


# Headers that promise what the file does not hold


def promised(kind: str, change: Callable[[str], str]) -> bytes:
    return change(written(kind).decode()).encode()


def edit(number: int, line: str) -> Callable[[str], str]:
    return lambda text: line_changed(text, number, line).decode()


PROMISES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "3e8 atoms": ("CHGCAR", lambda: promised("CHGCAR", edit(6, "  1 300000000")), "positions for 300000001 atoms"),
    "-1 atoms": ("CHGCAR", lambda: promised("CHGCAR", edit(6, "  3 -1")), "not a complete CHGCAR"),
    "a surplus species": ("CHGCAR", lambda: promised("CHGCAR", edit(5, " H Li Na")), "3 species with 2 atom counts"),
    "a surplus position": (
        "CHGCAR",
        lambda: promised("CHGCAR", edit(8, " 0.1 0.1 0.1\n 0 0 0")),
        "more positions than atoms",
    ),
    "a header without end": ("CHGCAR", lambda: b"x\n" * 200_000, "no empty line after the atoms"),
    "a line without end": ("CHGCAR", lambda: b"1 " * 10**6, "a line without end"),
    "an orbital cube": ("d.cube", lambda: promised("d.cube", edit(2, "   -2 0. 0. 0.")), "holds orbitals"),
    "1e9 atoms in a cube": ("d.cube", lambda: promised("d.cube", edit(2, "1000000000 0. 0. 0.")), "atoms, not 1 to"),
    "1e18 voxels in a cube": (
        "d.cube",
        lambda: promised("d.cube", edit(3, "1000000000000000000 1. 0. 0.")),
        "more than the file can hold",
    ),
    "an endless count in a cube": ("d.cube", lambda: promised("d.cube", edit(3, "9" * 400 + " 1. 0. 0.")), "complete"),
    "a negative voxel count": (
        "d.cube",
        lambda: promised("d.cube", edit(3, "  -4    1.4 0.0 0.0")),
        "has a negative number of voxels",
    ),
    "a negative atomic number": ("d.cube", lambda: promised("d.cube", edit(6, " -3 0. 0. 0. 0.")), "atomic number"),
    "two values a voxel": ("d.cube", lambda: promised("d.cube", edit(2, " 2 0. 0. 0. 2")), "holds orbitals"),
    "2e7 numbers in an npz": ("d.npz", lambda: npz(numbers=np.ones(20_000_000, np.int8)), "not a density .npz"),
}


@pytest.mark.parametrize("name", PROMISES)
def test_counts_are_checked_before_memory_is_taken(name, refused, tmp_path):
    kind, make, problem = PROMISES[name]
    (tmp_path / kind).write_bytes(make())
    with at_most(seconds=2, megabytes=100):
        assert problem in refused(tmp_path / kind, "convert", tmp_path / kind, tmp_path / "out.cube")


@contextmanager
def at_most(seconds: float, megabytes: float) -> Iterator[None]:
    """CPU time and Python's memory within the block; numpy's arrays count."""
    tracemalloc.start()
    started = time.process_time()
    yield
    took, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < seconds
    assert peak < megabytes * 1e6


def test_arrays_of_a_model_or_result_are_checked_before_memory_is_taken(tmp_path):
    for shape in ("(1000000000000,)", "(100000, 100000, 8)", "(-5,)"):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64))
        with at_most(seconds=2, megabytes=10), pytest.raises(errors.DAMAGED):
            read_arrays(tmp_path / "m.npz")


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_a_bomb_stops_where_it_no_longer_fits_its_header(suffix, pack, refused, tmp_path):
    """20 MB of gzip became 4.5 GB on the disk and 8.7 GB in memory."""
    bombs = {"zeros": pack(b"0" * 10**6) * 60, "numbers": pack(written("CHGCAR")) + pack(b" 0.1" * 10**6) * 10}
    for name, content in bombs.items():
        path = tmp_path / f"CHGCAR.{name}{suffix}"
        path.write_bytes(content)
        assert path.stat().st_size < 1_000_000
        with at_most(seconds=5, megabytes=40):
            said = refused(path, "convert", path, tmp_path / "out.cube")
        assert "a line without end" in said or "more numbers" in said


@pytest.mark.parametrize("name", ["CHGCAR.GZ", "CHGCAR.Bz2", "d.CUBE", "d.npz.GZ", "d.NPZ"])
def test_upper_case_suffixes(name, ecd, tmp_path):
    stem = next(kind for kind in ("CHGCAR", "d.cube", "d.npz") if name.lower().startswith(kind.lower()))
    pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(name.lower().rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(pack(written(stem)))
    assert np.allclose(readers.read_density(tmp_path / name).values, small().values)


# A CHGCAR whose numbers shift


def body(text: str) -> tuple[list[str], int]:
    """Lines of a CHGCAR and where its values begin."""
    lines = text.splitlines()
    return lines, lines.index("") + 2


def test_a_short_exponent_of_fortran_is_read_as_what_it_means(tmp_path):
    """VASP writes 0.69880420394-101, which looked like two numbers and shifted all that follow."""

    lines, start = body(vasp("Li"))
    words = lines[start].split()
    words[0] = "0.69880420394-101"
    lines[start] = " " + " ".join(words)
    (tmp_path / "CHGCAR").write_text("\n".join(lines) + "\n")
    (tmp_path / "whole").write_text(vasp("Li"))
    whole = readers.read_chgcar(tmp_path / "whole")
    found = readers.read_chgcar(tmp_path / "CHGCAR")
    assert found.values[0, 0, 0] * found.volume == pytest.approx(0.69880420394e-101, rel=1e-9)
    assert np.array_equal(found.values.ravel()[1:], whole.values.ravel()[1:])


@pytest.mark.parametrize("name", ["Li", "Li_spin"])
@pytest.mark.parametrize("damage", ["twice", "lost", "one number more", "one number less", "joined", "a stray sign"])
def test_every_number_of_a_chgcar_is_counted(name, damage, refused, tmp_path):
    lines, start = body(vasp(name))
    at = start + 1000
    words = lines[at].split()
    lines[at : at + 1] = {
        "twice": [lines[at]] * 2,
        "lost": [],
        "one number more": [f"{lines[at]} 0.1"],
        "one number less": [" ".join(words[1:])],
        "joined": [" ".join(["".join(words[:2]), *words[2:]])],
        "a stray sign": [" ".join([f"{words[0][:5]}-{words[0][5:]}", *words[1:]])],
    }[damage]
    (tmp_path / "CHGCAR").write_text("\n".join(lines) + "\n")
    said = refused(tmp_path / "CHGCAR", "convert", tmp_path / "CHGCAR", tmp_path / "out.cube")
    assert "not a complete CHGCAR" in said or "holds more numbers than its grid" in said


def test_atoms_that_cannot_be_where_they_are(refused, tmp_path):
    places = {
        "has atoms only 0.00 Å apart": np.array([[0, 0, 0], [1, 0, 0]]),
        "has atoms only 0.30 Å apart": np.array([[0, 0, 0], [0.9, 0, 0]]),
        "has atoms more than 1000 cells away": np.array([[0, 0, 0], [1e300, 0.5, 0.5]]),
    }
    for problem, positions in places.items():
        (tmp_path / "d.npz").write_bytes(npz(positions=positions))
        said = refused(tmp_path / "d.npz", "convert", tmp_path / "d.npz", tmp_path / "out.cube")
        assert f"{problem}. Check lattice and coordinates" in said


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_atoms_agree_with_pymatgen(seed):
    rng = np.random.default_rng(seed)
    lattice, positions = rng.normal(size=(3, 3)) * 2, rng.uniform(-2, 2, (4, 3))
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    structure = Structure(Lattice(lattice), ["H"] * 4, positions)
    wanted = structure.get_neighbor_list(CLOSE)[3]
    found = misplaced(lattice, positions)
    if heights.min() > FLAT and structure.volume > 0.4:
        assert found == (f"has atoms only {wanted.min():.2f} Å apart" if len(wanted) else "")


# Outputs that are something else


def test_no_input_is_overwritten(refused, tmp_path):
    for kind in ("CHGCAR", "d.npz"):
        (tmp_path / kind).write_bytes(written(kind))
    write_store(tmp_path / "s.h5", [small()])
    (tmp_path / "link.h5").symlink_to("s.h5")
    (tmp_path / "hard.npz").hardlink_to(tmp_path / "d.npz")
    chgcar, npz_, store = tmp_path / "CHGCAR", tmp_path / "d.npz", tmp_path / "s.h5"
    commands: list[tuple[object, ...]] = [
        (store, "convert", f"{store}::LiH", store),
        (tmp_path / "link.h5", "convert", f"{store}::LiH", tmp_path / "link.h5"),
        (chgcar, "convert", f"{tmp_path / 'AECCAR0'}+{chgcar}", chgcar),
        (chgcar, "featurize", chgcar, "-o", chgcar),
        (chgcar, "predict", chgcar, "--csv", chgcar),
        (npz_, "predict", chgcar, "--model", npz_, "--csv", npz_),
        (npz_, "encode", npz_, "-o", npz_),
        (tmp_path / "hard.npz", "encode", npz_, "-o", tmp_path / "hard.npz"),
        (npz_, "decode", "LiH", npz_, "--database", npz_),
        (chgcar, "calibrate", f"{chgcar}=LiH_225", "-o", chgcar),
        (chgcar, "density", chgcar, "-o", chgcar),
        (chgcar, "screen", chgcar, "-o", chgcar),
    ]
    for source, *arguments in commands:
        said = refused(source, *arguments)
        assert "is the same file as" in said
        assert "which is read. Choose another name." in said


@pytest.mark.parametrize("out", ["/dev/full", "/dev/null", "pipe", "", "a folder"])
def test_an_output_that_is_no_file_is_refused_before_the_work(out, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("a folder").mkdir()
    before = os.stat("/dev/full")
    for arguments in (("convert", "nothing there", out), ("featurize", "nothing there", "-o", out)):
        said = refused(out or "-o", *arguments)
        assert any(w in said for w in ("is a device or a pipe", "is empty", "Is a directory"))
    after = os.stat("/dev/full")
    assert (before.st_mode, before.st_rdev, before.st_ino) == (after.st_mode, after.st_rdev, after.st_ino)


@pytest.mark.parametrize("out", ["-", "/dev/stdout"])
def test_text_goes_to_standard_output(out, tmp_path):
    command = [sys.executable, "-m", "ecdlib.cli"]
    done = subprocess.run([*command, "convert", "LiH_225", out], capture_output=True, check=True, cwd=tmp_path)
    (tmp_path / "CHGCAR").write_bytes(done.stdout)
    assert readers.read_density(tmp_path / "CHGCAR").n_electrons == pytest.approx(2, abs=3e-4)
    assert b"written" in done.stderr
    done = subprocess.run(
        [*command, "featurize", "LiH_225", "-o", out], capture_output=True, check=False, cwd=tmp_path, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"ecd: {out}: this format cannot go to standard output. Give the name of a file.\n"


def test_a_table_on_standard_output_is_nothing_but_the_table(ecd):
    code, out, _ = ecd("predict", "LiH_225", "--csv", "-")
    assert code == 0
    assert list(pd.read_csv(io.StringIO(out))["file"].unique()) == ["LiH_225"]


def test_temporary_names_cannot_be_foreseen_and_links_stay(tmp_path):
    names = set()
    (tmp_path / "link.txt").symlink_to("there.txt")
    for _ in range(3):
        with atomic_write(tmp_path / "link.txt") as temporary:
            names.add(temporary.name)
            temporary.write_text("new")
    assert len(names) == 3
    assert (tmp_path / "link.txt").is_symlink()
    assert listing(tmp_path) == {"link.txt": b"new", "there.txt": b"new"}


# Words for what is no file, and for what nobody foresaw


def test_what_is_no_file_is_called_what_it_is(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    words = {
        "pipe": "is a pipe or a device, not a file. Write its content to a file first.",
        "circle": "cannot be opened (Too many levels of symbolic links)",
        "folder": "is a folder. Name a file in it.",
        "x" * 300: "cannot be opened (File name too long)",
    }
    for name, problem in words.items():
        for source in (tmp_path / name, f"{tmp_path / name}::LiH"):
            assert problem in refused(tmp_path / name, "convert", source, tmp_path / "out.cube")


def obey_permissions() -> None:
    """In a child that is root: without the two rights to pass over permissions (PR_CAPBSET_DROP)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def test_folders_and_files_without_permission_are_one_line(tmp_path):
    (tmp_path / "closed").mkdir()
    for name in ("closed/CHGCAR", "CHGCAR"):
        (tmp_path / name).write_bytes(written("CHGCAR"))
        (tmp_path / name).chmod(0)
    (tmp_path / "closed").chmod(0)
    closed = str(tmp_path / "closed" / "CHGCAR")
    said = {
        ("convert", closed, "out"): "cannot be opened (Permission denied)",
        ("convert", "CHGCAR", "out"): "cannot be read (Permission denied)",
        ("convert", "LiH_225", closed): "cannot be written (Permission denied)",
        ("featurize", closed, "-o", "out.h5", "--workers", "1"): "Permission denied",
        ("featurize", "LiH_225", "-o", closed): "cannot be written (Permission denied)",
        ("encode", "LiH_225", "-o", closed + ".npz"): "cannot be written (Permission denied)",
        ("predict", closed): "cannot be opened (Permission denied)",
        ("predict", "LiH_225", "--model", closed + ".npz"): "cannot be opened (Permission denied)",
        ("predict", "LiH_225", "--calibration", closed): "cannot be opened (Permission denied)",
        ("predict", "LiH_225", "--csv", closed): "cannot be written (Permission denied)",
        ("screen", closed, "-o", "out.parquet"): "Permission denied",
        ("density", closed, "-o", "out.npz"): "cannot be opened (Permission denied)",
        ("decode", "LiH_225", closed): "cannot be written (Permission denied)",
    }
    code = (
        "import sys, shlex; from ecdlib import cli\n"
        "for line in sys.stdin:\n"
        "    sys.argv = ['ecd', *shlex.split(line)]\n"
        "    try: cli.main()\n"
        "    except SystemExit as stop: print(stop.code, file=sys.stderr)\n"
    )
    done = subprocess.run(  # one process for all, which is quicker
        [sys.executable, "-c", code],
        input="".join(shlex.join(arguments) + "\n" for arguments in said),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        preexec_fn=obey_permissions,
    )
    lines = [line for line in done.stderr.splitlines() if line == "2" or line.startswith("ecd: ")]
    assert "Traceback" not in done.stderr
    assert lines[1::2] == ["2"] * len(said), done.stderr
    for problem, line in zip(said.values(), lines[::2], strict=True):
        assert problem in line


@pytest.mark.parametrize(
    "error", [RuntimeError("two\nlines"), MemoryError(), KeyboardInterrupt(), EOFError(), OSError(5)]
)
def test_the_last_resort_is_one_line(error, monkeypatch, ecd):
    def broken(_: Any) -> Any:
        raise error

    monkeypatch.setattr(readers, "read_density", broken)
    code, out, err = ecd("convert", "LiH_225", "out.cube")
    assert out == ""
    assert err.count("\n") == 1, err
    if isinstance(error, KeyboardInterrupt):
        assert (code, err) == (130, "ecd: interrupted; the same command resumes\n")
        return
    assert code == 1
    assert err.startswith("ecd: out of memory. " if isinstance(error, MemoryError) else "ecd: unexpected error (")
    if isinstance(error, RuntimeError):
        assert err == (
            "ecd: unexpected error (RuntimeError: two lines). Please report it, with what --traceback shows.\n"
        )
        monkeypatch.setattr(sys, "argv", ["ecd", "convert", "LiH_225", "out.cube", "--traceback"])
        with pytest.raises(RuntimeError):
            cli.main()


def test_what_is_terminated_leaves_nothing_half_written(tmp_path):
    code = (
        "import signal, os, sys; from ecdlib import cli; from ecdlib.density import io\n"
        "write = io.write_npz\n"
        "def stopped(density, path):\n"
        "    with io.atomic_write(path) as temporary:\n"
        "        temporary.write_text('half'); os.kill(os.getpid(), signal.SIGTERM)\n"
        "io.write_npz = stopped\n"
        f"sys.argv = ['ecd', 'convert', 'LiH_225', {str(tmp_path / 'd.npz')!r}]; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "")
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(ecd):
    for arguments in (("-h",), ("convert", "-h"), ("course", "-h")):
        code, out, _ = ecd(*arguments)
        assert code == 0
        assert "Usage" in out
    code, out, _ = ecd("--version")
    assert (code, out) == (0, f"ecdlib {version('ecdlib')}\n")


def test_errors_of_valence_and_symmetry_name_the_path(refused, tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "CHGCAR"
    path.write_bytes(written("CHGCAR"))
    said = refused(path, "convert", path, tmp_path / "out.npz", "--convention", "gpaw", "--valence", "Li=3,H=1")
    assert "holds 2 electrons, not 4" in said
    assert "holds 2 electrons, not 4" in refused(path, "predict", path, "--valence", "Li=3,H=1")


def test_spglib_prints_nothing(capfd):
    lattice, positions = 4 * np.eye(3), [[0, 0, 0], [1e-4, 0, 0]]
    assert symmetry_dataset((lattice, positions, [3, 3]), 0.01) is None
    assert capfd.readouterr().err == ""


def test_a_gpu_that_is_not_there_is_said_before_the_work(refused, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = refused("device=cuda", "train", "-p", "device=cuda", "-o", tmp_path / "r.npz")
    assert "CUDA is not available" in said


@pytest.mark.parametrize("workers", [0, -3])
def test_too_few_workers(workers, ecd, tmp_path):
    code, _, err = ecd("featurize", "LiH_225", "-o", tmp_path / "f.h5", "--workers", workers)
    assert code == 2
    assert "greater than or equal to 1" in err
    with pytest.raises(EcdError, match="at least one is needed"):
        list(map_chunks(len, [[1]], scheduler=None, workers=workers))
    with pytest.raises(EcdError, match="at least one is needed"):
        list(in_processes(len, [([1],), ([2],)], workers))


def test_a_potcar_with_an_endless_number_says_nothing(tmp_path):
    (tmp_path / "POTCAR").write_text(f"\n TITEL  = PAW_PBE Li\n ZVAL   =  {'9' * 400} \n" + "\n" * 100_000)
    with at_most(seconds=2, megabytes=50):
        assert read_potcar(tmp_path, ("Li",)) is None


# As a process of its own: nothing but that line on stderr, no traceback and no warning


@pytest.mark.parametrize("kind", ["truncated CHGCAR", "no species", "corrupted store"])
def test_the_whole_program(kind, tmp_path):
    path = tmp_path / ("s.h5" if kind == "corrupted store" else "CHGCAR")
    content = {
        "truncated CHGCAR": lambda: CHGCAR_DAMAGE["cut off in the density"][0](),
        "no species": lambda: CHGCAR_DAMAGE["no species"][0](),
        "corrupted store": lambda: flipped(store_content(), 0.7),
    }[kind]()
    path.write_bytes(content)
    source = f"{path}::LiH" if kind == "corrupted store" else str(path)
    done = subprocess.run(
        [sys.executable, "-m", "ecdlib.cli", "convert", source, str(tmp_path / "out.cube")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"ecd: {path}: ")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
