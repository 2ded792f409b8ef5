"""The files that ship with the project, each checked against its hash, and the record of which ones were read.

They lie in ``$ECDLIB_DATA``, else in ``data/`` of the checkout. An installed package brings models and small tables
along; the rest is fetched from :func:`data_address` when it is first needed, and kept in :func:`cache_folder`.

What is read through :func:`data_file` is noted, so that a cached value and a provenance name exactly the data they
depend on (:func:`recording`, :func:`files_read`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from ecdlib.base.errors import EcdError

#: Root of the checkout: holds data/, notebooks/ and book/. Of an installed package: the folder that it lies in.
ROOT = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (ROOT / "data" / "manifest.json").is_file()
#: What an installed package brings along; its file ``address.txt``, of a released one, says where the rest is.
PACKAGED = ROOT / "ecdlib" / "_data"

Function = TypeVar("Function", bound=Callable[..., Any])

_recorders: list[dict[str, str]] = [{}]  # the first is the process's own


def data_folder() -> Path:
    """Folder of the bundled data: ``$ECDLIB_DATA``, ``data/`` of the checkout, or that of the installed package."""
    return Path(os.environ.get("ECDLIB_DATA") or (ROOT / "data" if IN_CHECKOUT else PACKAGED))


def cache_folder() -> Path:
    """``_build/cache`` of the checkout, or the platform's cache folder of the installed package."""
    if IN_CHECKOUT:
        return ROOT / "_build" / "cache"
    from platformdirs import user_cache_path

    return user_cache_path("ecdlib", appauthor=False)


def data_address() -> str:
    """Where a copy of ``data/`` is served: ``$ECDLIB_DATA_URL``, else that of the release; empty if there is none."""
    file = PACKAGED / "address.txt"
    return os.environ.get("ECDLIB_DATA_URL") or (file.read_text().strip() if file.is_file() else "")


def needs_checkout(what: str) -> None:
    """Refuse what needs notebooks and pages.

    Raises:
        EcdError: the package is installed away from a clone of the repository.
    """
    if not IN_CHECKOUT:
        raise EcdError(what, "needs the notebooks and pages", "Work in a clone of the repository, after `make env`.")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, modified: int) -> str:
    return sha256(path)


@lru_cache(maxsize=4)
def _manifest(path: Path, size: int, modified: int) -> dict[str, dict[str, Any]]:
    manifest: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def load_manifest() -> dict[str, dict[str, Any]]:
    """``data/manifest.json``: bytes, SHA-256 and origin of every bundled file.

    Raises:
        EcdError: no data folder, or a damaged manifest.
    """
    path = data_folder() / "manifest.json"
    try:
        stat = path.stat()
        return _manifest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        remedy = "Work in a clone of the repository, or set ECDLIB_DATA to its data folder."
        raise EcdError(path.parent, "holds no manifest.json", remedy) from error
    except ValueError as error:
        raise EcdError(path, "is not valid JSON", "Restore it with: git checkout -- data") from error


def data_file(name: str) -> Path:
    """Path of a bundled file, its SHA-256 compared with ``data/manifest.json``; the file is noted as read.

    Raises:
        EcdError: the file is missing, is not in the manifest, or its hash differs.
    """
    manifest, path = load_manifest(), data_folder() / name
    remedy = "Restore it with: git checkout -- data"
    if name not in manifest:
        alike = get_close_matches(name, manifest, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(alike)}?" if alike else "The names are those of data/manifest.json."
        raise EcdError(path, "is not among the bundled files", hint)
    if not path.is_file() and data_folder() == PACKAGED:
        path = _fetched(name, manifest[name]["sha256"])
    if not path.is_file():
        raise EcdError(path, "is missing", remedy)
    stat = path.stat()
    found = _digest(path, stat.st_size, stat.st_mtime_ns)
    expected = manifest[name]
    if found != expected["sha256"]:
        raise EcdError(
            path,
            f"has changed: {stat.st_size} bytes with SHA-256 {found[:12]}…, not {expected['bytes']} with "
            f"{expected['sha256'][:12]}…",
            remedy,
        )
    note_read({name: found})
    return path


def _fetched(name: str, digest: str) -> Path:
    """The file in the cache, fetched if it is not there or has changed."""
    address, remedy = data_address(), "Or set ECDLIB_DATA to the folder data/ of a clone."
    if not address:
        raise EcdError(
            name, "does not come with the package", f"Set ECDLIB_DATA_URL to where data/ is served. {remedy}"
        )
    import pooch

    own = cache_folder() / "data" / name
    try:
        return Path(pooch.retrieve(f"{address.rstrip('/')}/{name}", f"sha256:{digest}", own.name, own.parent))
    except (OSError, ValueError) as error:  # of the network, and a wrong hash
        what = " ".join(str(error).split())[:200]
        raise EcdError(
            name, f"could not be fetched ({what})", f"Check the network and ECDLIB_DATA_URL. {remedy}"
        ) from error


def bundled_in(folder: str) -> list[str]:
    """Names, without suffix, of the bundled ``.npz`` files in a folder of the data; the list is noted as read."""
    note_read({f"{folder}/": _listing(folder)})
    return sorted(Path(name).stem for name in load_manifest() if re.fullmatch(rf"{re.escape(folder)}/.*\.npz", name))


def _listing(folder: str) -> str:
    names = sorted(name for name in load_manifest() if name.startswith(f"{folder}/"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def is_unchanged(reads: Mapping[str, str]) -> bool:
    """Whether the bundled files that were read are still the same (by the manifest), and so are the folders listed."""
    manifest = load_manifest()
    present = {
        name: _listing(name[:-1]) if name.endswith("/") else manifest.get(name, {}).get("sha256") for name in reads
    }
    return present == dict(reads)


def note_read(reads: Mapping[str, str]) -> None:
    """Add files, by name with their SHA-256, to what was read."""
    for recorder in _recorders:
        recorder.update(reads)


def files_read() -> dict[str, str]:
    """Name and SHA-256 of the bundled files that this process has read so far."""
    return dict(sorted(_recorders[0].items()))


@contextmanager
def recording() -> Iterator[dict[str, str]]:
    """Yield a dictionary that fills with name and SHA-256 of the bundled files read within the block."""
    reads: dict[str, str] = {}
    _recorders.append(reads)
    try:
        yield reads
    finally:
        _recorders[:] = [recorder for recorder in _recorders if recorder is not reads]


def read_once(function: Function) -> Function:
    """Keep the result of a function that reads bundled files; each call notes these files as read."""
    known: dict[Any, tuple[Any, dict[str, str]]] = {}

    @wraps(function)
    def call(*arguments: Any) -> Any:
        key = (data_folder(), arguments)
        if key not in known:
            with recording() as reads:
                value = function(*arguments)
            known[key] = value, reads
        value, reads = known[key]
        note_read(reads)
        return value

    return call  # type: ignore[return-value]
