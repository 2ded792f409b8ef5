"""Every command that resumes, killed at any of its writes: the same command ends with what an unharmed run gives."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from ecdlib import cli
from ecdlib.crystals import screening
from ecdlib.density.io import write_poscar
from ecdlib.density.store import load_density

CRYSTALS = ("LiH_225", "NaCl_225", "TiAl_123", "MgO_225", "Al_225")

#: Arguments of each command, for which ``OUT`` stands for the file to write.
COMMANDS = {
    "featurize": ["featurize", *CRYSTALS, "-o", "OUT.h5", "--size", "5", "--workers", "1"],
    "screen": ["screen", "crystals", "-o", "OUT.parquet", "--workers", "1"],
    "train": ["train", "-o", "OUT.npz", "--profile", "tiny", "-p", "protocol=9-fold"],
    "train-autoencoder": ["train-autoencoder", "-o", "OUT.npz", "--profile", "tiny"],
    "train-fusion": ["train-fusion", "-o", "OUT.npz", "--profile", "tiny", "-p", "model=attention"],
    "train-cgcnn": ["train-cgcnn", "-o", "OUT.npz", "--profile", "tiny", "-p", "sample=60", "-p", "folds=all"],
}
QUICK = ("featurize", "screen")


def in_child(folder: Path, arguments: list[str], kill_at: int = 0) -> tuple[int, int]:
    """Run a command in a forked child, killed at its k-th opening of a file to write or renaming in the folder.

    Returns:
        How it ended, negative for a signal; and how many such operations it made, if it came to an end.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        with open("log", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        count = 0

        def watch(event: str, details: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in ("open", "os.rename") or not isinstance(details[0], str | bytes | os.PathLike):
                return
            flags = os.O_RDWR if event == "os.rename" else details[2]
            if flags & (os.O_WRONLY | os.O_RDWR) and str(folder) in os.path.abspath(os.fsdecode(details[0])):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(watch)
            sys.argv = ["ecd", *arguments]
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os.write(write, str(count).encode())
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        count = int(pipe.read() or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count


def content(path: Path) -> dict[str, Any]:
    """What a result holds, without what tells of the run that made it."""
    if path.suffix == ".parquet":
        return {"table": pd.read_parquet(path).sort_values("id").to_csv()}
    if path.suffix == ".h5":
        with h5py.File(path) as h:
            order = np.argsort(h["source"].asstr()[:])
            return {key: h[key][:][order].tobytes() for key in h if h[key].shape and h[key].dtype.kind == "f"}
    with np.load(path) as z:
        return {key: z[key].tobytes() for key in z.files if key != "meta"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, int]]:
    """``run(command, name, kill_at)`` writes the file of that name."""
    monkeypatch.setattr(screening, "CHUNK", 2)
    (tmp_path / "crystals").mkdir()
    for name in CRYSTALS:
        write_poscar(load_density(name), tmp_path / "crystals" / f"{name}.poscar")

    def command(which: str, name: str, kill_at: int = 0) -> tuple[int, int]:
        arguments = [word.replace("OUT", str(tmp_path / name)) for word in COMMANDS[which]]
        return in_child(tmp_path, arguments, kill_at)

    return command


@pytest.mark.parametrize(
    ("which", "kills"),
    [
        *((which, 3) for which in QUICK),
        *(pytest.param(which, 8, marks=pytest.mark.slow) for which in QUICK),
        *(pytest.param(which, 5, marks=pytest.mark.slow) for which in COMMANDS if which not in QUICK),
    ],
)
def test_a_kill_at_any_write_is_survived(
    which: str, kills: int, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if which not in QUICK:
        importlib.import_module("torch._dynamo")  # torch's optimizers ask for it, which takes seconds in each child
    code, writes = run(which, "whole")
    assert code == 0, (tmp_path / "log").read_text()[-500:]
    suffix = Path(COMMANDS[which][COMMANDS[which].index("-o") + 1]).suffix
    wanted = content(tmp_path / f"whole{suffix}")
    rng = np.random.default_rng(0)
    tried = sorted(rng.choice(np.arange(1, writes + 1), min(kills, writes), replace=False))
    for kill_at in tried:
        name = f"killed{kill_at}"
        assert run(which, name, int(kill_at))[0] == -signal.SIGKILL
        code, _ = run(which, name)
        assert code == 0, (tmp_path / "log").read_text()[-500:]
        assert content(tmp_path / f"{name}{suffix}") == wanted
        assert not (tmp_path / f"{name}{suffix}.parts").exists()
    with capsys.disabled():
        print(f"\n{which}: {len(tried)} kills survived, at {writes} writes", end="")
