"""Values that are computed once and kept (:func:`ecdlib.base.resources.cache_folder`) until something they depend on
changes.

A value depends on the source of the function that makes it and of every module of the library reachable from it by
imports (its *import closure*), on the versions of the packages imported there, on its key, and on the bundled files
read while it was made. Nothing of this is listed by hand.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ecdlib.base.errors import DAMAGED, atomic_write
from ecdlib.base.extras import DISTRIBUTIONS
from ecdlib.base.resources import ROOT, cache_folder, is_unchanged, note_read, recording

#: Where the values are kept.
CACHE = cache_folder()
#: Values for a machine that lacks what makes them (:mod:`ecdlib.reproduce`), by name and key alone.
PACKED = ROOT / "packed"
#: What runs a notebook without touching its numbers: parameters count by their values, not by their schemas.
HARNESS = ("ecdlib.base.settings", "ecdlib.book.runs", "ecdlib.book.parameters")

Arrays = dict[str, NDArray[Any]]
_taken: list[dict[str, Arrays]] = []


@lru_cache(maxsize=1024)
def _parsed(path: Path, modified: int) -> tuple[str, frozenset[str]]:
    """Digest of a module's code, blind to comments and layout, and the dotted names that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(imported_names(tree))


def imported_names(tree: ast.AST) -> Iterable[str]:
    """Dotted names of all imports in a source, those inside functions and in ``lazy("module:name")`` too, but for
    those that only types need."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            nodes += node.orelse
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy":
            yield ast.literal_eval(node.args[0]).replace(":", ".")
        else:
            nodes += ast.iter_child_nodes(node)


def _file(module: str) -> Path | None:
    """Source of a module of the library; None if there is no module of that name."""
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def closure(names: Iterable[str], stop: Iterable[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Import closure of some modules.

    Args:
        names: dotted names, of modules or of things in modules; those outside the library are packages.
        stop: modules of the library that are left out.

    Returns:
        Digest of the code of each module of the library that is reached, and the names of the packages that they
        import.
    """
    waiting, found, met = list(names), dict[str, str](), set(stop)
    packages = set()
    while waiting:
        name = waiting.pop()
        if name.split(".")[0] != "ecdlib":
            packages.add(name.split(".")[0])
            continue
        parts = name.split(".")
        for module in (".".join(parts[: i + 1]) for i in range(len(parts))):
            if module in met:
                continue
            met.add(module)
            if path := _file(module):
                found[module], imported = _parsed(path, path.stat().st_mtime_ns)
                waiting += imported
    return dict(sorted(found.items())), sorted(packages)


_version = lru_cache(maxsize=None)(version)


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of Python and of those packages that are installed as distributions."""
    found = {"python": platform.python_version()}
    for name in packages:
        for distribution in (DISTRIBUTIONS.get(name, name), name):
            try:
                found[name] = _version(distribution)
                break
            except PackageNotFoundError:  # of the standard library
                continue
    return found


def code_digest(names: Iterable[str], stop: Iterable[str] = ()) -> str:
    """Digest of the import closure of some modules, with the versions of the packages in it."""
    modules, packages = closure(names, stop)
    return hashlib.sha256(json.dumps([modules, package_versions(packages)]).encode()).hexdigest()


def cached(name: str, make: Callable[[], Arrays], *key: Any) -> Arrays:
    """Arrays that ``make()`` returns: computed once, then read, until what they depend on changes.

    Of several processes that want the same, one computes and the others wait.

    Args:
        name: of the file in :data:`CACHE`.
        make: its module's import closure is part of what the value depends on.
        key: everything else that it depends on but bundled files; its text (``repr``) counts.
    """
    file = f"{name}-{hashlib.sha256(chr(0).join(map(repr, key)).encode()).hexdigest()[:16]}.npz"
    outer, _taken[:] = list(_taken), []  # what it takes to make a value is not asked for beside it
    try:
        with recording() as reads:
            found = _read(PACKED / file)
            found = _kept(name, make, key) if found is None else found
    finally:
        _taken[:] = outer
    for values in _taken:
        values[file] = found | {"__reads__": np.array(json.dumps(reads))}
    return found


@contextmanager
def taken() -> Iterator[dict[str, Arrays]]:
    """Yield a dictionary that fills with the values asked for within the block, by their names in :data:`PACKED`."""
    values: dict[str, Arrays] = {}
    _taken.append(values)
    try:
        yield values
    finally:
        _taken[:] = [each for each in _taken if each is not values]


def _kept(name: str, make: Callable[[], Arrays], key: tuple[Any, ...]) -> Arrays:
    """A value in :data:`CACHE`, made if it is not there."""
    text = "\0".join([code_digest([make.__module__]), *map(repr, key)])
    path = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if (found := _read(path)) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if (found := _read(path)) is None:
                with recording() as reads:
                    found = make()
                with atomic_write(path) as temporary:
                    label: Any = {"__reads__": np.array(json.dumps(reads))}
                    np.savez(temporary, **(found | label))
    return found


def _read(path: Path) -> Arrays | None:
    """What a file of the cache holds; None if it is missing, damaged, or made from data that have changed."""
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as z:
            arrays = dict(z)
        reads = json.loads(str(arrays.pop("__reads__")))
    except DAMAGED:
        return None
    if not is_unchanged(reads):
        return None
    note_read(reads)
    return arrays
