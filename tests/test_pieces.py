"""Runs in pieces: whatever cuts them off, finished pieces stay, and nothing of another run is taken for them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.pieces import in_pieces


def squares(out: Path, n: int = 5, stop_before: int | None = None, **parameters: object) -> list[int]:
    """A run of n pieces; returns those that it computed itself."""
    computed = []
    with in_pieces(out, "squares", {"n": n} | parameters) as pieces:
        for i in range(n):
            if i == stop_before:
                raise KeyboardInterrupt
            if f"{i}" not in pieces:
                pieces.save(f"{i}", {"square": np.array(i**2)}, seconds=1.0)
                computed.append(i)
        assert pieces.provenance()["seconds"] == n
        with atomic_write(out) as temporary:
            np.savez(temporary, squares=np.array([pieces.load(f"{i}")["square"] for i in range(n)]))
    return computed


def test_an_interrupted_run_resumes_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "r.npz"
    with pytest.raises(KeyboardInterrupt):
        squares(out, stop_before=3)
    assert squares(out) == [3, 4]
    with np.load(out) as z:
        assert z["squares"].tolist() == [0, 1, 4, 9, 16]
    assert [path.name for path in tmp_path.iterdir()] == ["r.npz"]


def test_pieces_of_other_parameters_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path / "r.npz", stop_before=3)
    with pytest.raises(EcdError, match=r"r\.npz\.parts: holds an interrupted run with other parameters"):
        squares(tmp_path / "r.npz", seed=1)
    assert squares(tmp_path / "r.npz") == [3, 4]


def test_a_damaged_piece_or_label_is_named(tmp_path: Path) -> None:
    out = tmp_path / "r.npz"
    with pytest.raises(KeyboardInterrupt):
        squares(out, stop_before=3)
    piece = tmp_path / "r.npz.parts" / "1.npz"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:30])
    with pytest.raises(EcdError, match=r"1\.npz: is damaged"):
        squares(out)
    piece.unlink()
    (tmp_path / "r.npz.parts" / "label.json").write_text("{}")
    with pytest.raises(EcdError, match=r"label\.json: is damaged"):
        squares(out)


def test_two_runs_on_one_file_do_not_meet(tmp_path: Path) -> None:
    with (
        in_pieces(tmp_path / "r.npz", "squares", {}),
        pytest.raises(EcdError, match="being written by another run"),
        in_pieces(tmp_path / "r.npz", "squares", {}),
    ):
        pass


def test_files_of_something_else_stay(tmp_path: Path) -> None:
    mine = tmp_path / "r.npz.parts" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(EcdError, match="holds files that do not belong to this run"):
        squares(tmp_path / "r.npz")
    assert mine.read_text() == "mine"


def test_a_run_that_finished_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at once"), in_pieces(tmp_path / "r.npz", "squares", {}):
        raise ValueError("at once")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kill_at", range(1, 12))
def test_a_kill_at_any_write_loses_at_most_one_piece(kill_at: int, tmp_path: Path) -> None:
    """The process is killed at its k-th file operation (a file opened to write, or renamed)."""
    out = tmp_path / "r.npz"
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from test_pieces import squares
count = 0
def watch(event, arguments):
    global count
    writing = event == "os.rename" or (event == "open" and str(arguments[0]).startswith({str(tmp_path)!r})
        and arguments[1] and set(arguments[1]) & set("wxa+"))
    count += bool(writing)
    if writing and count == {kill_at}:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
sys.addaudithook(watch)
squares(Path({str(out)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
    finished = len(list((tmp_path / "r.npz.parts").glob("[0-9].npz")))
    assert squares(out) == list(range(finished, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["r.npz"]
