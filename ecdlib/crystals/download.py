"""Fetch charge densities from where the papers took them: JARVIS-DFT and the Materials Project.

Both functions fill a folder with ``CHGCAR.<id>.gz`` files and a ``manifest.json`` that says of each file where it came
from (source, id, task, address), the SHA-256 of what was downloaded and of what is kept, its bytes and the date. A
second run checks the files against the manifest and downloads only what is missing.

What has been tested: both functions against a local HTTP server that answers as jarvis-tools 2026.6 and mp-api 0.46
expect (their own code runs in the tests), not against figshare and the Materials Project themselves.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from ecdlib.base.arrays import EXPANSION
from ecdlib.base.errors import DAMAGED, EcdError, atomic_write
from ecdlib.base.resources import sha256
from ecdlib.data.structures import structure_from_json

MANIFEST = "manifest.json"
JARVIS, MATERIALS_PROJECT = "JARVIS-DFT", "Materials Project"
JARVIS_INDEX = "jarvis-raw-files.zip"
CHGCARS_URL = "https://materialsproject-parsed.s3.amazonaws.com/chgcars"  # the bucket that mp-api reads
TOO_LARGE = 2_000_000_000  # bytes of an unpacked density of the Materials Project
TIMEOUT = 60  # seconds without an answer
EXTRA = "Install it: pip install 'ecdlib[download]'"
AGAIN = "Check the connection and the proxy, then run the same command again: finished downloads are kept."


class _NotThere(EcdError):
    """The source does not have this one file; it may have others."""


def fetch_jarvis(
    jids: str | Iterable[str],
    folder: str | os.PathLike[str],
    *,
    index_url: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Fetch the CHGCAR of JARVIS-DFT calculations from figshare.

    jarvis-tools knows one list of JARVIS's raw VASP files (its data set ``raw_files``, of 2020: zip archives by id, in
    categories such as FD-ELAST or TBMBJ). The list is downloaded once into ``folder``; of each id the archives are
    downloaded, one after the other, until one holds a file named CHGCAR, which is kept (gzipped, else unchanged).

    JARVIS's own description names POSCAR, INCAR, KPOINTS, OSZICAR and vasprun.xml as the content of these archives and
    promises no CHGCAR: expect ids that have none.

    Args:
        jids: one or more JARVIS ids (``"JVASP-1002"``).
        folder: made if needed; holds ``CHGCAR.<id>.gz``, the list and ``manifest.json`` afterwards.
        index_url: address of the list, if not the one in jarvis-tools.
        progress: show a progress bar for each download.

    Returns:
        The CHGCAR files, in the order of ``jids``.

    Raises:
        EcdError: jarvis-tools is not installed; an id is malformed; the source cannot be reached or sends another
            file than recorded; a file in ``folder`` was changed; ids without CHGCAR (raised at the end, after the
            others were fetched). Nothing half-written is left.
    """
    ids = _check_ids(jids, r"JVASP-\d+", "JVASP-1002")
    store = _Store(Path(folder), progress)
    if absent := [jid for jid in ids if not store.verify(_file_name(jid))]:
        archives = _jarvis_archives(store, index_url or _jarvis_index_url())
        _fetch_each(absent, lambda jid: _fetch_jarvis_one(store, jid, archives.get(jid, [])), JARVIS)
    return [store.folder / _file_name(jid) for jid in ids]


def fetch_materials_project(
    material_ids: str | Iterable[str],
    folder: str | os.PathLike[str],
    api_key: str | None = None,
    *,
    endpoint: str | None = None,
    chgcars_url: str = CHGCARS_URL,
    progress: bool = True,
) -> list[Path]:
    """Fetch the charge density of materials from the Materials Project, as CHGCAR files.

    As mp-api's ``get_charge_density_from_material_id`` does it: of a material's static GGA and GGA+U calculations the
    one updated last; its ``<task>.json.gz`` is downloaded from the project's public bucket and written as a CHGCAR.
    The task id is recorded, because a material's density may come from another task tomorrow. Materials Project data
    are CC BY 4.0: cite it.

    Args:
        material_ids: one or more ids (``"mp-149"``).
        folder: made if needed; holds ``CHGCAR.<id>.gz`` and ``manifest.json`` afterwards.
        api_key: 32 characters; the environment variable MP_API_KEY if None.
        endpoint: address of the API, if not mp-api's.
        chgcars_url: address below which the ``<task>.json.gz`` files lie.
        progress: show a progress bar for each download.

    Returns:
        The CHGCAR files, in the order of ``material_ids``.

    Raises:
        EcdError: mp-api is not installed; no API key; an id is malformed; the source cannot be reached, refuses the
            key or sends another file than recorded; a file in ``folder`` was changed; ids without charge density
            (raised at the end, after the others were fetched). Nothing half-written is left.
    """
    ids = _check_ids(material_ids, r"(mp|mvc)-[0-9a-z]+", "mp-149")
    store = _Store(Path(folder), progress)
    if absent := [one for one in ids if not store.verify(_file_name(one))]:
        rester = materials_project(api_key, endpoint)
        with ExitStack() as stack:
            with explained():
                stack.enter_context(rester)
            _fetch_each(absent, lambda one: _fetch_mp_one(store, one, rester, chgcars_url), MATERIALS_PROJECT)
    return [store.folder / _file_name(one) for one in ids]


def _check_ids(ids: str | Iterable[str], pattern: str, example: str) -> list[str]:
    ids = [ids] if isinstance(ids, str) else list(ids)
    for one in ids:
        if not re.fullmatch(pattern, one):
            raise EcdError(one, "is not an id of this source", f"Ids look like {example}.")
    return ids


def _file_name(one: str) -> str:
    return f"CHGCAR.{one}.gz"


def _fetch_each(ids: list[str], fetch: Callable[[str], None], source: str) -> None:
    """Fetch what exists; then say what does not."""
    failed = {}
    ids = list(dict.fromkeys(ids))
    for one in ids:
        try:
            fetch(one)
        except _NotThere as error:
            failed[one] = error
    if failed:
        raise EcdError(
            source,
            f"no charge density for {len(failed)} of {len(ids)} ids: "
            + "; ".join(f"{one} ({error.problem})" for one, error in failed.items()),
            "Omit these ids (all others were downloaded), or compute their densities: ecd density POSCAR --with gpaw.",
        ) from next(iter(failed.values()))


class _Store:
    """A folder of fetched files, and its manifest: ``{"files": {name: {source, id, url, sha256, bytes, ...}}}``."""

    def __init__(self, folder: Path, progress: bool):
        self.folder, self.progress = folder, progress
        self.path = folder / MANIFEST
        self.files: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                self.files = dict(json.loads(self.path.read_text(encoding="utf-8"))["files"])
            except (ValueError, KeyError, TypeError) as error:
                raise EcdError(
                    self.path, "is not a manifest of downloaded files", "Restore it, or download into another folder."
                ) from error

    def verify(self, name: str) -> bool:
        """Whether the file is there as recorded; an EcdError if it differs."""
        path = self.folder / name
        if not path.exists():
            return False
        recorded = self.files.get(name, {}).get("sha256")
        if recorded is None:
            raise EcdError(
                path, f"is not listed in the {MANIFEST} beside it", "Move or delete it, then download again."
            )
        if (found := sha256(path)) != recorded:
            raise EcdError(
                path,
                f"has changed since it was downloaded (SHA-256 {found[:12]}..., recorded {recorded[:12]}...)",
                "Delete it, then download again.",
            )
        return True

    @contextmanager
    def download(self, source: str, url: str, name: str, known_hash: str | None = None) -> Iterator[tuple[Path, str]]:
        """Yield a temporary copy of what ``url`` holds and its SHA-256.

        Checked against the download that the manifest records for ``name`` and ``url``, else against ``known_hash``.
        """
        import pooch
        from requests.exceptions import HTTPError, RequestException

        before = self.files.get(name, {})
        if before.get("url") == url:
            known_hash = before["download_sha256"]
        with ExitStack() as stack:
            logger = pooch.get_logger()
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.WARNING)  # it announces each file and advises to write down its hash
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = pooch.retrieve(
                    url,
                    known_hash=known_hash,
                    fname="download",
                    path=stack.enter_context(tempfile.TemporaryDirectory(prefix=".download-", dir=self.folder)),
                    downloader=pooch.HTTPDownloader(progressbar=self.progress, chunk_size=1 << 16, timeout=TIMEOUT),
                )
            except HTTPError as error:
                response = error.response
                assert response is not None  # raised for its status
                response.close()
                status = response.status_code
                kind = _NotThere if status in (403, 404, 410) else EcdError
                raise kind(
                    source,
                    f"{url} answers {status}",
                    "Check the id, and the address in a browser: the file may have moved, be gone or not be public.",
                ) from error
            except RequestException as error:
                raise EcdError(source, f"no (complete) answer from {url} ({type(error).__name__})", AGAIN) from error
            except ValueError as error:  # pooch: the hash differs
                raise EcdError(
                    source,
                    f"{url} sends a file other than the one recorded (expected {known_hash})",
                    f"Try again; if the source did replace it, remove {name} from {self.path} first.",
                ) from error
            except OSError as error:
                raise EcdError(
                    self.folder, f"cannot be written ({error.strerror})", "Free disk space or choose another folder."
                ) from error
            yield Path(path), sha256(Path(path))

    @contextmanager
    def add(self, name: str, **entry: str) -> Iterator[Path]:
        """Yield a temporary path to write; keep it as ``name`` and record it in the manifest if the block succeeds."""
        with atomic_write(self.folder / name) as temporary:
            yield temporary
            recorded = {
                **entry,
                "sha256": sha256(temporary),
                "bytes": temporary.stat().st_size,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        self.files[name] = recorded
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps({"files": self.files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# JARVIS-DFT


def _jarvis_index_url() -> str:
    try:
        from jarvis.db.figshare import get_db_info
    except ImportError as error:
        raise EcdError(JARVIS, "jarvis-tools is not installed", EXTRA) from error
    return str(get_db_info()["raw_files"][0])


def _jarvis_archives(store: _Store, url: str) -> dict[str, list[dict[str, Any]]]:
    """JARVIS's list of raw files as ``{jid: [{name, download_url, ...}, ...]}``; downloaded if it is not there."""
    path = store.folder / JARVIS_INDEX
    if not store.verify(JARVIS_INDEX) or store.files[JARVIS_INDEX]["url"] != url:
        with store.download(JARVIS, url, JARVIS_INDEX) as (downloaded, digest):
            _read_index(downloaded, url)
            with store.add(JARVIS_INDEX, source=JARVIS, id="raw_files", url=url, download_sha256=digest) as temporary:
                shutil.copyfile(downloaded, temporary)
    archives: dict[str, list[dict[str, Any]]] = {}
    for category, entries in _read_index(path, url).items():
        for entry in entries if category != "STM" else ():  # those hold a PARCHG
            if isinstance(entry, dict) and "download_url" in entry:  # JVASP-1002.zip or JVASP-1002_<what>.zip
                archives.setdefault(str(entry.get("name", "")).split(".zip")[0].split("_")[0], []).append(entry)
    return archives


def _read_index(path: Path, url: str) -> dict[str, Any]:
    with _unzip(path, url) as members:
        try:
            (name,) = (m for m in members.namelist() if m.endswith(".json"))
            index = json.loads(members.read(name))
        except ValueError:
            index = None
    if not isinstance(index, dict):
        raise EcdError(JARVIS, f"{url} is not the list of raw files", "Check index_url, or update jarvis-tools.")
    return index


def _fetch_jarvis_one(store: _Store, jid: str, archives: list[dict[str, Any]]) -> None:
    name = _file_name(jid)
    for archive in archives:
        url, md5 = str(archive["download_url"]), archive.get("computed_md5") or archive.get("supplied_md5")
        with (
            store.download(JARVIS, url, name, f"md5:{md5}" if md5 else None) as (path, digest),
            _unzip(path, url) as members,
        ):
            found = [m for m in members.namelist() if m.rsplit("/", 1)[-1] in ("CHGCAR", "CHGCAR.gz")]
            if found:
                with (
                    members.open(min(found, key=len)) as chgcar,
                    store.add(name, source=JARVIS, id=jid, url=url, download_sha256=digest) as temporary,
                    temporary.open("wb") as out,
                ):
                    _copy_gzipped(chgcar, out)
                return
    raise _NotThere(JARVIS, f"no CHGCAR in its {len(archives)} archives", "Leave it out.")


@contextmanager
def _unzip(path: Path, url: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as members:
            yield members
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise EcdError(
            JARVIS,
            f"{url} does not send a sound zip archive",
            "Open it in a browser: the source may require one. Try again later.",
        ) from error


def _copy_gzipped(source: IO[bytes], out: IO[bytes]) -> None:
    """Copy a stream, gzipped if it is not yet; the same content gives the same bytes."""
    start = source.read(2)
    if start == b"\x1f\x8b":
        out.write(start)
        shutil.copyfileobj(source, out)
    else:
        with gzip.GzipFile(filename="", fileobj=out, mode="wb", compresslevel=6, mtime=0) as zipped:
            zipped.write(start)
            shutil.copyfileobj(source, zipped)


# Materials Project


def materials_project(api_key: str | None = None, endpoint: str | None = None, **options: Any) -> Any:
    """A client of the Materials Project, to be entered with ``with``; its answers are asked for in :func:`explained`.

    Raises:
        EcdError: mp-api is not installed, no API key, or one that is malformed.
    """
    api_key = api_key or os.environ.get("MP_API_KEY")
    if not api_key:
        raise EcdError(
            MATERIALS_PROJECT,
            "an API key is needed",
            "Get one (free) at https://next-gen.materialsproject.org/api and give it or set MP_API_KEY.",
        )
    try:
        from mp_api.client import MPRester
    except ImportError as error:
        raise EcdError(MATERIALS_PROJECT, "mp-api is not installed", EXTRA) from error
    with explained():
        return MPRester(api_key, endpoint=endpoint, mute_progress_bars=True, **options)


def _fetch_mp_one(store: _Store, material_id: str, rester: Any, chgcars_url: str) -> None:
    with explained():
        task_id = _latest_static_task(rester, material_id)
    name, url = _file_name(material_id), f"{chgcars_url.rstrip('/')}/{task_id}.json.gz"
    with store.download(MATERIALS_PROJECT, url, name) as (path, digest):
        chgcar = _decode_chgcar(path, url)
        entry = {"source": MATERIALS_PROJECT, "id": material_id, "task_id": task_id, "url": url}
        with store.add(name, **entry, download_sha256=digest) as temporary:
            chgcar.write_file(temporary)  # gzipped, for its name


@contextmanager
def explained() -> Iterator[None]:
    """Turn what mp-api raises into one line."""
    from mp_api.client.core.exceptions import MPRestError
    from requests.exceptions import RequestException

    try:
        yield
    except (MPRestError, RequestException) as error:
        # mp-api turns a failed request into its own error, but not the first one of a process
        if isinstance(error, RequestException) or isinstance(error.__context__, RequestException):
            raise EcdError(MATERIALS_PROJECT, f"no answer from the API ({_shorten(error)})", AGAIN) from error
        remedy = f"Check the API key and the ids. {AGAIN}"
        raise EcdError(MATERIALS_PROJECT, f"the API gives no answer ({_shorten(error)})", remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        problem = f"the API's answer is not what mp-api expects ({_shorten(error)})"
        raise EcdError(MATERIALS_PROJECT, problem, "Update mp-api: pip install -U mp-api") from error


def _latest_static_task(rester: Any, material_id: str) -> str:
    """Id, as the bucket of charge densities writes it, of the material's static calculation that was updated last."""
    from emmet.core.mpid import AlphaID
    from emmet.core.vasp.calc_types import CalcType

    statics = [CalcType.GGA_Static, CalcType.GGA_U_Static]
    task_ids = rester.get_task_ids_associated_with_material_id(material_id, calc_types=statics)
    tasks = rester.materials.tasks.search(task_ids=task_ids, fields=["last_updated", "task_id"]) if task_ids else []
    if not tasks:
        raise _NotThere(MATERIALS_PROJECT, "unknown material, or no static GGA calculation", "Leave it out.")
    task_id = str(max(tasks, key=lambda task: task["last_updated"])["task_id"])
    return AlphaID(task_id.split("-")[-1], prefix="mp").string


def _decode_chgcar(path: Path, url: str) -> Any:
    """The pymatgen Chgcar in one of the bucket's files; monty's decoder would import whatever class a file names."""
    from pymatgen.io.vasp import Chgcar, Poscar

    try:
        with open(path, "rb") as f:
            packed = f.read(2) == b"\x1f\x8b"  # unless it was unpacked on the way
        with gzip.open(path) if packed else open(path, "rb") as f:
            text = f.read(min(TOO_LARGE, EXPANSION * path.stat().st_size))
        found = json.loads(text)["data"]
        if found["@class"] != "Chgcar":
            raise EcdError(MATERIALS_PROJECT, f"{url} holds no charge density", "Update mp-api.")
        poscar = Poscar(structure_from_json(found["poscar"]["structure"]), comment=str(found["poscar"]["comment"]))
        data = {str(key): _array(values) for key, values in found["data"].items()}
        return Chgcar(poscar, data, {str(k): _occupancies(v) for k, v in (found.get("data_aug") or {}).items()} or None)
    except DAMAGED as error:
        raise EcdError(MATERIALS_PROJECT, f"{url} cannot be decoded ({_shorten(error)})", "Update mp-api.") from error


def _array(values: Any) -> Any:
    """An array of numbers as monty writes it: plain lists, or a dictionary with ``data``; complex as two lists."""
    if not isinstance(values, dict):
        return np.asarray(values, dtype=np.float64)
    array = np.asarray(values["data"], dtype=np.float64)
    return array[0] + 1j * array[1] if str(values["dtype"]).startswith("complex") else array


def _occupancies(values: Any) -> Any:
    """Augmentation occupancies by atom; older files hold the lines of a CHGCAR."""
    return {int(k): _array(v) for k, v in values.items()} if isinstance(values, dict) else [str(v) for v in values]


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
