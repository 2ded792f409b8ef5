"""Functions that are imported when they are first called, so that a registry of them loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from ecdlib.base.extras import missing


def lazy(name: str) -> Callable[..., Any]:
    """A function, class or class method, ``"module:name"``, imported at its first call.

    A package that its module needs and that is not installed is an error that names the extra.

    The name is written out where this is called: so the import closure of a module sees it
    (:func:`ecdlib.base.cached.imported_names`).

    >>> lazy("math:hypot")(3, 4)
    5.0
    """
    module, _, attribute = name.partition(":")

    def call(*arguments: Any, **more: Any) -> Any:
        try:
            found = attrgetter(attribute)(import_module(module))
        except ModuleNotFoundError as error:
            raise missing(error) from error
        return found(*arguments, **more)

    return call
