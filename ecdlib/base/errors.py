"""The one error that users see: what is wrong with which input, and what to do about it."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import BadZipFile

#: What numpy raises for a missing or damaged file.
DAMAGED = (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile, zlib.error)


class EcdError(Exception):
    """An input or an environment that cannot be used.

    ``str(error)`` is one line, ``"<source>: <problem>. <remedy>"``; the command line prints it and exits with 2.
    """

    def __init__(self, source: object, problem: str, remedy: str):
        self.source, self.problem, self.remedy = str(source), problem, remedy
        super().__init__(re.sub(r"\s*\n\s*", " ", f"{source}: {problem.rstrip('.')}. {remedy}"))

    def __reduce__(self) -> tuple[type[EcdError], tuple[str, str, str]]:  # survives the way back from a worker
        return type(self), (self.source, self.problem, self.remedy)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there only if the block succeeds, else leave nothing.

    The temporary name keeps the suffix of ``path``, so that writers that look at it behave the same.

    Raises:
        EcdError: the folder cannot be written or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise EcdError(
            target, f"cannot be written ({error.strerror or error})", "Free disk space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):  # not there, or the folder is none
            temporary.unlink()
