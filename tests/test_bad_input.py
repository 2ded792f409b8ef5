"""What bad input gets: one clear line naming the file and the remedy, exit code 2, nothing half-written."""

from __future__ import annotations

import bz2
import errno
import functools
import gzip
import io
import json
import lzma
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.units import Bohr
from hypothesis import given, settings
from hypothesis import strategies as st

from ecdlib import cli
from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.resources import data_file, data_folder
from ecdlib.data.tables import load_crystals
from ecdlib.density import io as readers
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import write_chgcar, write_cube, write_npz
from ecdlib.density.store import DensityStore, load_densities, load_density, write_store


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
    import tempfile

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
        "holds 32768 numbers for a grid of 32x32x31. Correct the grid",
    ),
    "grid smaller, no augmentation": (
        lambda: written("CHGCAR").replace(b"4   5   6", b"4   5   5"),
        "holds 120 numbers for a grid of 4x5x5",
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
        "the total charge is not positive. A spin or difference density is no charge density: give the total." in said
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
    assert "no such file. Check the path." in said


def test_a_bundled_crystal_that_is_not_there(refused, tmp_path):
    said = refused("Xy9_225", "convert", "Xy9_225", tmp_path / "out.cube")
    assert "no bundled density of that name. `ecd data` lists them" in said


def test_a_store_that_is_not_there_or_lacks_the_crystal(refused, ecd, tmp_path):
    write_store(tmp_path / "s.h5", [small()])
    out = tmp_path / "out.cube"
    assert "no such store" in refused(tmp_path / "no.h5", "convert", f"{tmp_path / 'no.h5'}::LiH", out)
    said = refused(f"{tmp_path / 's.h5'}::NaCl", "convert", f"{tmp_path / 's.h5'}::NaCl", out)
    assert "no such crystal in this store" in said
    assert f"Name one: {tmp_path / 's.h5'}::NAME" in refused(tmp_path / "s.h5", "convert", tmp_path / "s.h5", out)
    code, _, err = ecd("featurize", tmp_path / "no.h5", "-o", tmp_path / "f.h5", "--workers", "1")
    assert code == 2
    assert f"{tmp_path / 'no.h5'}: no such " in err.splitlines()[-1]


# Stores


@functools.cache
def store_content() -> bytes:
    import tempfile

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
    assert "is not a readable density store. Fetch or write it again." in said
    before = listing(tmp_path)
    code, _, err = ecd("featurize", path, "-o", tmp_path / "f.h5", "--workers", "1")
    assert code == 2
    assert "is not a readable density store" in err.splitlines()[-1]
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


def test_an_entry_that_contradicts_itself(tmp_path, refused):
    """A store without seal (as another program may write it) whose parts do not fit together."""
    for key, value in (("grid", 4), ("numbers", 200), ("value_offset", 3)):
        path = tmp_path / f"{key}.h5"
        path.write_bytes(store_content()[512:])
        with h5py.File(path, "a") as h:
            h[key][-1 if key == "value_offset" else 0] = value
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
    with pytest.raises(EcdError, match=r"is not among the bundled files\. Known: .*ecd_cubic\.h5"):
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
        (["-p", "profile=full"], "-p profile: a preset is no parameter. Write: --profile full"),
    ],
)
def test_unknown_and_ill_typed_notebook_parameters(arguments, problem, refused):
    assert problem in refused(problem.split(": ")[0], "run", "features", *arguments)


def test_an_unknown_notebook(refused):
    assert "There are: dataset" in refused("nonsense", "run", "nonsense")


@pytest.mark.parametrize("options", [("--size", "50"), ("--size", "-1"), ("--voxel", "0"), ("--voxel", "-0.2")])
def test_a_grid_that_cannot_be(options, ecd, tmp_path):
    code, _, err = ecd("featurize", "LiH_225", "-o", tmp_path / "f.h5", *options)
    assert code == 2
    assert "the size must be odd, the voxel positive. Try 51 and 0.2." in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_source_of_downloads(refused):
    assert "There are: jarvis, materials-project." in refused("arxiv", "download", "arxiv", "1")


# Disks


@pytest.mark.parametrize("name", ["CHGCAR", "d.cube", "d.npz", "d.h5"])
def test_a_full_disk_is_reported_and_leaves_nothing(name, refused, tmp_path):
    """The temporary file is led to the device that is always full."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"an older result")
    (out / f".{os.getpid()}-{name}").symlink_to("/dev/full")
    before = sorted(p.name for p in out.iterdir() if not p.is_symlink())
    code_line = refused_but_for_the_link(refused, out / name)
    assert "cannot be written (No space left on device). Free disk space or choose another folder." in code_line
    assert sorted(p.name for p in out.iterdir()) == before
    assert (out / name).read_bytes() == b"an older result"


def refused_but_for_the_link(refused: Any, target: Path) -> str:
    return str(refused(target, "convert", "LiH_225", target))


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


def test_no_space_to_unpack(refused, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "CHGCAR.gz").write_bytes(gzip.compress(vasp("Li").encode()))
    monkeypatch.setattr(shutil, "copyfileobj", full)
    said = refused(tmp_path / "CHGCAR.gz", "convert", tmp_path / "CHGCAR.gz", tmp_path / "out.cube")
    assert "cannot be unpacked ([Errno 28] No space left on device). Free space in the temporary folder." in said


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
