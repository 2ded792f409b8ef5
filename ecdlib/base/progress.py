"""The progress bar; where tqdm is not installed, the loop alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm
else:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:

        class tqdm:
            """What the library takes of it."""

            def __init__(self, what: Iterable[Any] = (), **_: Any):
                self.what = what

            def __iter__(self) -> Iterator[Any]:
                return iter(self.what)

            def __enter__(self) -> tqdm:
                return self

            def __exit__(self, *_: object) -> None: ...

            def update(self, n: int) -> None:
                """Nothing to see."""

            def set_postfix(self, values: Any) -> None:
                """Nothing to see."""


__all__ = ["tqdm"]
