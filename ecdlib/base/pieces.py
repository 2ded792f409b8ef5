"""Long runs in pieces: one atomic file for each finished piece, merged at the end.

Every resumable command works this way. Whatever cuts a run off (a kill at any write, a full disk), what is finished
stays finished, and the same command resumes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ecdlib.base.arrays import read_arrays
from ecdlib.base.errors import DAMAGED, EcdError, atomic_write
from ecdlib.base.provenance import provenance
from ecdlib.base.resources import files_read, note_read

LABEL = "label.json"


class Pieces:
    """Finished pieces of an unfinished run, in the folder ``<out>.parts``; see :func:`in_pieces`."""

    def __init__(self, folder: Path, made_by: dict[str, Any]):
        self.folder, self.made_by = folder, made_by

    def path(self, name: str) -> Path:
        """File of a piece."""
        return self.folder / f"{name}.npz"

    def checkpoint(self, name: str) -> Path:
        """File beside a piece for the training that makes it."""
        return self.folder / f"{name}.checkpoint"

    def __contains__(self, name: str) -> bool:
        return self.path(name).is_file()

    def save(self, name: str, arrays: Mapping[str, Any], seconds: float = 0.0) -> None:
        """Write a finished piece, atomically, with the seconds it took and the bundled files read by now."""
        note = np.array(json.dumps({"seconds": seconds, "reads": files_read()}))
        with atomic_write(self.path(name)) as temporary:
            np.savez(temporary, **dict(arrays), __note__=note)

    @contextmanager
    def timing(self, name: str) -> Iterator[Callable[[], float]]:
        """Yield what tells the seconds that a piece has taken, with those of earlier attempts that were interrupted."""
        note, begun = self.folder / f".{name}.seconds", time.perf_counter()
        before = float(note.read_text()) if note.is_file() else 0.0
        try:
            yield lambda: before + time.perf_counter() - begun
        except BaseException:
            note.write_text(f"{before + time.perf_counter() - begun}")
            raise

    def made(self, name: str, make: Callable[..., Mapping[str, Any]], *arguments: Any) -> dict[str, Any]:
        """Arrays of a piece, which ``make(*arguments)`` returns if it is not finished.

        Raises:
            EcdError: a damaged file.
        """
        if name not in self:
            with self.timing(name) as seconds:
                self.save(name, make(*arguments), seconds())
        return self.load(name)

    def load(self, name: str) -> dict[str, Any]:
        """Arrays of a finished piece.

        Raises:
            EcdError: a damaged file.
        """
        return {key: value for key, value in self._read(name).items() if key != "__note__"}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            arrays = read_arrays(self.path(name))
            return arrays | {"__note__": json.loads(str(arrays["__note__"]))}
        except DAMAGED as error:
            raise EcdError(self.path(name), "is damaged", "Remove it; the same command makes it again.") from error

    def seconds(self, name: str) -> float:
        """How long a finished piece took."""
        return float(self._read(name)["__note__"]["seconds"])

    @property
    def names(self) -> list[str]:
        """Names of the finished pieces, sorted."""
        return sorted(path.stem for path in self.folder.glob("[!.]*.npz"))

    def provenance(self) -> dict[str, Any]:
        """Of the run as it was begun, with the seconds of all pieces and the bundled files that they have read.

        Raises:
            EcdError: a damaged piece.
        """
        notes = [self._read(name)["__note__"] for name in self.names]
        for note in notes:
            note_read(note["reads"])
        now = provenance("", {}, sum(note["seconds"] for note in notes))
        return self.made_by | {key: now[key] for key in ("seconds", "data", "device")}


@contextmanager
def in_pieces(out: Path, name: str, parameters: Mapping[str, Any]) -> Iterator[Pieces]:
    """Begin a run that writes ``out``, or resume it; the pieces are removed once the block has written ``out``.

    Args:
        out: file that the block writes (atomically) from the finished pieces.
        name: of the command or notebook, for the provenance.
        parameters: JSON values. Pieces of other parameters, or of another commit, are not mixed with these.

    Raises:
        EcdError: pieces of another run are already there, or another process is at work on the same file.
    """
    folder = out.with_name(f"{out.name}.parts")
    made_by = provenance(name, parameters, 0)
    label = json.loads(json.dumps({"parameters": dict(parameters), "commit": made_by["commit"]}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EcdError(out, f"cannot be written ({error.strerror or error})", "Choose another folder.") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise EcdError(out, "is being written by another run", "Wait for it, or choose another name.") from error
    pieces = Pieces(folder, made_by)
    try:
        if (folder / LABEL).is_file():
            found = _read_label(folder / LABEL)
            if found["label"]["parameters"] != label["parameters"]:
                remedy = "Remove it, or use the same parameters."
                raise EcdError(folder, "holds an interrupted run with other parameters", remedy)
            if found["label"]["commit"] != label["commit"]:
                problem = f"holds a run begun with another version of the sources ({found['label']['commit']})"
                raise EcdError(folder, problem, "Remove it, or go back to that commit.")
            pieces.made_by = found["made_by"]
        elif _visible(folder):
            raise EcdError(folder, "holds files that do not belong to this run", "Remove it, or choose another name.")
        else:
            with atomic_write(folder / LABEL) as temporary:
                temporary.write_text(json.dumps({"label": label, "made_by": made_by}), encoding="utf-8")
        yield pieces
        if out.exists():
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()
        if folder.is_dir() and not _visible(folder) - {LABEL}:
            shutil.rmtree(folder, ignore_errors=True)  # nothing to resume


def _visible(folder: Path) -> set[str]:
    """Names of its files but the lock and what a kill has left half-written."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def _read_label(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["label"]["parameters"], found["label"]["commit"], found["made_by"]["commit"]
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EcdError(path, "is damaged", f"Remove the folder {path.parent} and run again.") from error
