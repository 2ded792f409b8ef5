"""A thousand damaged files for all readers: each is refused in words, or gives what the sound file gives.

What is accepted and differs must be told by the comparison with its atoms, or be of a kind in :data:`UNSEEN`,
which no reader can see. Cases are numbered by seeds; they run in processes with limits of memory and time.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CASES = 1000
MEMORY = 2 * 2**30  #: bytes of the whole process, its libraries included
SECONDS = 20  #: of one case
KINDS = ("CHGCAR", "spin", "CHGCAR.gz", "d.cube", "d.npz", "s.h5", "POTCAR", "x.cif", "POSCAR", "model.npz")

#: What is accepted and differs from the sound file, and why no reader can see it.
UNSEEN = {
    "a few values": "a digit of a few numbers is another, or two lines are interchanged",
    "geometry": "a digit of the cell or of a position is another, by little or where the density hardly depends on it",
    "element": "an element is another one with which the number of electrons still fits",
    "electrons": "all values are scaled by little, within what rounding may do",
}

Rng = np.random.Generator


# Mutations


def in_lines(change: Callable[[list[bytes], int, Rng], None]) -> Callable[[bytes, Rng], bytes]:
    """A mutation at one line; half of the time it is one of the first 15, where the header is."""

    def mutate(content: bytes, rng: Rng) -> bytes:
        lines = content.split(b"\n")
        change(lines, int(rng.integers(min(15, len(lines)) if rng.random() < 0.5 else len(lines))), rng)
        return b"\n".join(lines)

    return mutate


ODD = [b"nan", b"inf", b"-1", b"0", b"1e308", b"999999999", b"****", b"1.2.3", b"0.5-101", b"1e", b"9" * 400, b"x", b""]


def other_word(lines: list[bytes], at: int, rng: Rng) -> None:
    words = lines[at].split() or [b""]
    words[rng.integers(len(words))] = ODD[rng.integers(len(ODD))]
    lines[at] = b" ".join(words)


def interchanged_words(lines: list[bytes], at: int, rng: Rng) -> None:
    words = lines[at].split()
    rng.shuffle(words)
    lines[at] = b" ".join(words)


def lost_word(lines: list[bytes], at: int, rng: Rng) -> None:
    words = lines[at].split()
    del words[: rng.integers(1, 3)]
    lines[at] = b" ".join(words)


def other_sign(lines: list[bytes], at: int, rng: Rng) -> None:
    words = lines[at].split() or [b""]
    i = rng.integers(len(words))
    words[i] = words[i][1:] if words[i].startswith(b"-") else b"-" + words[i]
    lines[at] = b" ".join(words)


def moved_block(lines: list[bytes], at: int, rng: Rng) -> None:
    block = [lines.pop(at) for _ in range(min(int(rng.integers(2, 200)), len(lines) - at))]
    to = int(rng.integers(len(lines) + 1))
    lines[to:to] = block


def interchanged_lines(lines: list[bytes], at: int, rng: Rng) -> None:
    to = int(rng.integers(len(lines)))
    lines[at], lines[to] = lines[to], lines[at]


def other_digit(content: bytes, rng: Rng) -> bytes:
    digits = [i for i in rng.integers(0, len(content), 200) if 48 <= content[i] < 58]
    changed = bytearray(content)
    for i in digits[:1]:
        changed[i] = 48 + int(rng.integers(10))
    return bytes(changed)


def flipped(content: bytes, rng: Rng) -> bytes:
    changed = bytearray(content)
    for i in rng.integers(0, len(content), rng.integers(1, 9)):
        changed[i] ^= int(rng.integers(1, 256))
    return bytes(changed)


def cut(content: bytes, rng: Rng) -> bytes:
    return content[: rng.integers(len(content))]


def lost_bytes(content: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(content)))
    return content[:at] + content[at + int(rng.integers(1, 100)) :]


def zeros(content: bytes, rng: Rng) -> bytes:
    at, n = int(rng.integers(len(content))), int(rng.integers(1, 1000))
    return content[:at] + bytes(len(content[at : at + n])) + content[at + n :]


def repeated(content: bytes, rng: Rng) -> bytes:
    a, b = sorted(rng.integers(0, len(content), 2))
    return content[:b] + content[a:]


TEXT = {
    "line twice": in_lines(lambda lines, at, rng: lines.insert(at, lines[at])),
    "line lost": in_lines(lambda lines, at, rng: lines.pop(at) and None),
    "empty line": in_lines(lambda lines, at, rng: lines.insert(at, b"")),
    "other word": in_lines(other_word),
    "interchanged words": in_lines(interchanged_words),
    "lost word": in_lines(lost_word),
    "other sign": in_lines(other_sign),
    "moved block": in_lines(moved_block),
    "interchanged lines": in_lines(interchanged_lines),
    "other digit": other_digit,
}
BYTES = {"flipped": flipped, "cut": cut, "lost bytes": lost_bytes, "zeros": zeros, "repeated": repeated}


# Sound files, and what is read from them


def make_sound_files(folder: Path) -> None:
    """One of each of :data:`KINDS`, small, of a tetragonal crystal of three elements."""
    import gzip
    import shutil

    from pymatgen.io.cif import CifWriter

    from ecdlib.base.resources import data_file
    from ecdlib.density.cell import resample
    from ecdlib.density.core import VaspBlocks
    from ecdlib.density.io import write_chgcar, write_cube, write_npz, write_poscar
    from ecdlib.density.store import load_density, write_store

    whole = load_density("LiHPd_123")
    density = whole.step("small", values=resample(whole.values, (14, 14, 20)), convention=None)
    write_chgcar(density, folder / "CHGCAR")
    spin = VaspBlocks({"diff": density.values * 10}, {})
    from dataclasses import replace

    write_chgcar(replace(density, vasp=spin), folder / "spin")
    (folder / "CHGCAR.gz").write_bytes(gzip.compress((folder / "CHGCAR").read_bytes()))
    write_cube(density, folder / "d.cube")
    write_npz(density, folder / "d.npz")
    write_store(folder / "s.h5", [replace(density, name="a")])
    write_poscar(density, folder / "POSCAR")
    CifWriter(density.structure).write_file(folder / "x.cif")
    potcar = [f"  PAW_PBE {e} 1\n   TITEL  = PAW_PBE {e} 1\n   POMASS = 1; ZVAL = {n}" for e, n in (("Pd", "10.000"),)]
    potcar += [f"   TITEL  = PAW_PBE {e} 1\n   POMASS = 1; ZVAL = {n}" for e, n in (("Li", "3.000"), ("H", "1.000"))]
    (folder / "POTCAR").write_text("\n".join(potcar) + "\n")
    shutil.copy(data_file("portable/density-gpr-portable--bulk_modulus--seed1.npz"), folder / "model.npz")


def read(kind: str, path: Path) -> Any:
    """What a file gives: a density, a structure, or something that is compared as it is."""
    from ecdlib.base.arrays import read_arrays
    from ecdlib.base.errors import EcdError
    from ecdlib.crystals.candidate import Candidate
    from ecdlib.crystals.sources import read_source
    from ecdlib.density.io import read_density
    from ecdlib.learn.model_file import load_model

    if kind == "model.npz":
        load_model(path)
        return {key: value.tobytes() for key, value in read_arrays(path).items()}
    if kind in ("x.cif", "POSCAR"):
        (found,) = read_source(str(path))
        if not isinstance(found, Candidate):
            raise EcdError(path, found.message, "")
        return found.structure
    density = read_density(f"{path}::a" if kind == "s.h5" else path)
    return density if kind != "POTCAR" else dict(density.valence or {})


def difference(kind: str, found: Any, sound: Any) -> str:
    """``"same"``, ``"warned"``, one of :data:`UNSEEN`, or ``"wrong"``."""
    from ecdlib.density.core import ChargeDensity
    from ecdlib.density.doubts import doubts

    if kind == "POTCAR":  # what it says must fit the count of electrons where it is used
        return "same" if found in ({}, sound) else "element"
    if isinstance(found, dict):
        return "same" if found == sound else "wrong"
    old, new = (x if kind in ("x.cif", "POSCAR") else x.structure for x in (sound, found))
    same_elements = [s.specie for s in new] == [s.specie for s in old]
    same_places = len(new) == len(old) and all(
        np.allclose(a, b, atol=2e-6)
        for a, b in ((new.lattice.matrix, old.lattice.matrix), (new.frac_coords, old.frac_coords))
    )
    if not isinstance(found, ChargeDensity):
        if len(new) != len(old):
            return "wrong"
        return "same" if same_elements and same_places else "geometry" if same_elements else "element"
    in_file = [x.values * (x.volume if kind != "d.cube" else 1) for x in (found, sound)]
    same_shape = in_file[0].shape == in_file[1].shape
    close = np.isclose(*in_file, rtol=1e-6, atol=1e-9) if same_shape else np.array(False)
    if same_elements and same_places and close.all():
        return "same"
    if doubts(found):
        return "warned"
    if close.all():
        return "geometry" if same_elements else "element"
    if same_elements and same_places and same_shape and (~close).sum() <= 12:
        return "a few values"
    if same_elements and same_shape and np.allclose(in_file[0] / in_file[0].mean(), in_file[1] / in_file[1].mean()):
        return "electrons"
    return "wrong"


def damaged(seed: int, folder: Path) -> tuple[str, str, bytes]:
    """Kind of file, mutation and content of a case."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    content = (folder / kind).read_bytes()
    choice = BYTES if kind in ("CHGCAR.gz", "d.npz", "s.h5", "model.npz") or rng.random() < 0.2 else TEXT
    name = list(choice)[rng.integers(len(choice))]
    return kind, name, choice[name](content, rng)


def work(folder: Path, seeds: list[int]) -> None:
    """Run cases in this process; a line of JSON when a case begins and when it ends."""
    from ecdlib.base.errors import EcdError

    warnings.simplefilter("ignore")
    sound = {kind: read(kind, folder / ("CHGCAR" if kind == "POTCAR" else kind)) for kind in KINDS}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for seed in seeds:
        kind, mutation, content = damaged(seed, folder)
        print(json.dumps([seed, kind, mutation, None]), flush=True)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / kind
            path.write_bytes(content)
            if kind == "POTCAR":
                (path := Path(place) / "CHGCAR").write_bytes((folder / "CHGCAR").read_bytes())
            signal.alarm(SECONDS)
            try:
                outcome = difference(kind, read(kind, path), sound[kind])
            except EcdError as error:
                outcome = "refused" if str(error).count("\n") == 0 else "two lines"
            except BaseException as error:
                outcome = f"{type(error).__name__}: {error}"[:200]
            signal.alarm(0)
        print(json.dumps([seed, kind, mutation, outcome]), flush=True)
    print(json.dumps(["peak", own_peak()]), flush=True)


def own_peak() -> int:
    """Largest memory of this process in MiB; what getrusage says includes that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file() and (own := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(own[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(folder: Path, seeds: list[int]) -> tuple[list[tuple[int, str, str, str]], int]:
    """Outcomes of cases in processes of their own, and the largest memory in MiB; what ends a process is an outcome."""
    outcomes: list[tuple[int, str, str, str]] = []
    peak = 0
    while seeds:
        command = [sys.executable, __file__, str(folder), *map(str, seeds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        finished = [tuple(line) for line in lines if line[0] != "peak" and line[3] is not None]
        outcomes += finished
        if lines and lines[-1][0] == "peak":
            peak = max(peak, lines[-1][1])
            break
        assert lines, done.stderr
        seed, kind, mutation, _ = lines[-1]
        outcomes.append((seed, kind, mutation, f"ended its process ({done.returncode}): {done.stderr[-200:]}"))
        seeds = seeds[seeds.index(seed) + 1 :]
    return outcomes, peak


def check(outcomes: list[tuple[int, str, str, str]]) -> None:
    allowed = {"refused", "same", "warned", *UNSEEN}
    assert [case for case in outcomes if case[3] not in allowed] == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_sound_files(folder)
    return folder


def test_a_few_damaged_files_of_each_kind(sound: Path) -> None:
    outcomes, _ = run(sound, list(range(3 * len(KINDS))))
    assert len(outcomes) == 3 * len(KINDS)
    check(outcomes)


@pytest.mark.slow
def test_a_thousand_damaged_files(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = range(10_000, 10_000 + CASES)
    for i, kind in enumerate(KINDS):  # each in processes of its own, whose peak of memory is then the reader's
        outcomes, peak = run(sound, [seed for seed in seeds if seed % len(KINDS) == i])
        with capsys.disabled():
            print(f"\n{kind}: {dict(Counter(outcome for *_, outcome in outcomes))}, peak {peak} MiB", end="")
        assert len(outcomes) == CASES / len(KINDS)
        check(outcomes)
        assert peak < MEMORY / 2**20


if __name__ == "__main__":
    work(Path(sys.argv[1]), list(map(int, sys.argv[2:])))
