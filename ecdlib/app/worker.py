"""The process of a page, in which everything runs that reads a file or computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from ecdlib.base.workers import Bounded

SECONDS = 120  #: that the computation for one file and model may take
LONG = 3600  #: the same where the foundation potential is installed, which takes seconds to minutes, or more
MEMORY = 4 * 2**30  #: bytes that it may need
PRELOAD = ("ecdlib.app", "ecdlib.book.plotting", "ecdlib.learn.fusion", "torch", "lightgbm", "plotly.graph_objects")


class Cancelled(Exception):
    """A call has been ended by its user."""


def has_potential() -> bool:
    """Whether the foundation potential can be offered (``pip install "ecdlib[potential]"``)."""
    return importlib.util.find_spec("sevenn") is not None


class Worker:
    """One call at a time in a process of its own, within limits; a call under way can be cancelled."""

    def __init__(self) -> None:
        self._process = self._new()

    @staticmethod
    def _new() -> Bounded:
        return Bounded(LONG if has_potential() else SECONDS, MEMORY, PRELOAD)

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """``work(*arguments)``; see :class:`ecdlib.base.workers.Bounded` for what else is raised.

        Raises:
            Cancelled: by :meth:`cancel`.
        """
        process = self._process
        try:
            return process(work, *arguments)
        except ChildProcessError:
            if process is not self._process:
                raise Cancelled from None
            raise

    def cancel(self) -> None:
        """End the calls under way, at once; later ones get a fresh process."""
        last, self._process = self._process, self._new()
        last.end()

    def end(self) -> None:
        """End the process."""
        self._process.end()
