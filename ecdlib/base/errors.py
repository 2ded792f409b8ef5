"""The one error that users see, and the checks of files before they are read or written."""

from __future__ import annotations

import errno
import lzma
import os
import re
import secrets
import shutil
import stat
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import BadZipFile

#: What numpy, zipfile and the decompressors raise for a missing or damaged file.
DAMAGED = (
    *(OSError, LookupError, ValueError, TypeError, AttributeError, EOFError, ArithmeticError, MemoryError),
    *(NotImplementedError, RuntimeError, BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
#: Names of standard output among the names of files to write.
STDOUT = ("-", "/dev/stdout")


class EcdError(Exception):
    """An input or an environment that cannot be used.

    ``str(error)`` is one line, ``"<source>: <problem>. <remedy>"``; the command line prints it and exits with 2.
    """

    def __init__(self, source: object, problem: str, remedy: str):
        self.source, self.problem, self.remedy = str(source), problem, remedy
        super().__init__(re.sub(r"\s*[\n\r]\s*", " ", f"{source}: {problem.rstrip('.')}. {remedy}"))

    def __reduce__(self) -> tuple[type[EcdError], tuple[str, str, str]]:  # survives the way back from a worker
        return type(self), (self.source, self.problem, self.remedy)


@contextmanager
def told_as(source: object, name: str) -> Iterator[None]:
    """Errors about ``name`` are about ``source``: many folders hold a file CHGCAR, a user needs the whole path."""
    try:
        yield
    except EcdError as error:
        if error.source != name:
            raise
        raise type(error)(source, error.problem, error.remedy) from error


def check_input(path: str | os.PathLike[str]) -> Path:
    """The path of a file that can be read.

    Raises:
        EcdError: it is missing, empty, may not be read, or is a folder, a pipe, a device or a circle of links.
    """
    path = Path(path)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EcdError(path, "no such file", "Check the path.") from error
    except (OSError, ValueError) as error:
        raise EcdError(path, f"cannot be opened ({_reason(error)})", "Check the path and its permissions.") from error
    if stat.S_ISDIR(found.st_mode):
        raise EcdError(path, "is a folder", "Name a file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise EcdError(path, "is a pipe or a device, not a file", "Write its content to a file first.")
    if not os.access(path, os.R_OK):
        raise EcdError(path, "cannot be read (Permission denied)", "Change its permissions.")
    if not found.st_size:
        raise EcdError(path, "the file is empty", "Write or copy it again.")
    return path


def check_output(out: str | os.PathLike[str], inputs: Iterable[object] = (), *, stdout: bool = False) -> None:
    """Refuse, before the work, a file that cannot be written or that must not be overwritten.

    Args:
        inputs: what the command reads: files, also as ``store.h5::NAME``, ``A+B`` and ``FILE=NAME``; anything
            else is not a file and is ignored.
        stdout: whether the format can go to standard output (see :data:`STDOUT`).

    Raises:
        EcdError: an input, a folder, a device, a pipe, an empty name, or a place that cannot be written.
    """
    text = os.fspath(out)
    if text in STDOUT:
        if not stdout:
            raise EcdError(text, "this format cannot go to standard output", "Give the name of a file.")
        return
    if not text or text == ".":  # what pathlib makes of nothing
        raise EcdError("-o", "the name of the output file is empty", "Give one.")
    try:
        found: os.stat_result | None = os.stat(text)
    except FileNotFoundError:
        found = None
    except (OSError, ValueError) as error:
        raise _not_written(text, error) from error
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise EcdError(text, "cannot be written (Is a directory)", "Give the name of a file.")
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise EcdError(
            text, "is a device or a pipe, not a file", "Give the name of a file, or - where text is written."
        )
    for each in map(str, inputs):
        for file in (each, each.partition("::")[0], *each.split("+"), each.rpartition("=")[0]):
            if _same(text, file):
                raise EcdError(text, f"is the same file as {file}, which is read", "Choose another name.")
    folder = Path(os.path.realpath(text)).parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise _not_written(text, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_written(text, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _same(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):  # at least one is not there
        return False


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _not_written(target: object, error: Exception) -> EcdError:
    return EcdError(target, f"cannot be written ({_reason(error)})", "Free disk space or choose another folder.")


def _reserve(target: Path) -> Path:
    """An empty new file beside ``target``: its name is unpredictable, so that nobody can have put a link there."""
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there only if the block succeeds, else leave nothing.

    The temporary name keeps the suffix of ``path``, so that writers that look at it behave the same. A link stays one:
    what it leads to is written. For :data:`STDOUT` the content is printed.

    Raises:
        EcdError: the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        if os.fspath(path) in STDOUT:
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / "stdout"
                yield temporary
                with open(temporary, "rb") as content:
                    shutil.copyfileobj(content, sys.stdout.buffer)
                sys.stdout.flush()
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _reserve(target)
        yield temporary
        os.replace(temporary, target)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # moved
                temporary.unlink()
