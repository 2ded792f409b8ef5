"""Files that a page is given: read without trust, and no more of them than fit into memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ecdlib.base.errors import EcdError
from ecdlib.data.structures import is_crystal_file
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import packing
from ecdlib.density.store import load_density
from ecdlib.density.valence import parse_valence
from ecdlib.learn.answer import read_crystal

if TYPE_CHECKING:
    from pymatgen.core import Structure

UPLOAD_LIMIT = 200_000_000  #: bytes of all files of a page together: they stay in memory while it is open
ALL_UPLOADS = 1_000_000_000  #: bytes of the files of all pages
CHUNK = 5_000_000  #: bytes of one message from the browser: files come in parts, Bokeh's limit (20 MB) need not grow
_HELD: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # bytes of the files of each page


def safe_name(name: str) -> str:
    """The last part of a path, harmless in a table, a page and a spreadsheet: letters, digits and ``._()-`` only."""
    kept = re.sub(r"[^A-Za-z0-9._()-]", "_", re.split(r"[/\\]", name)[-1])
    return kept.lstrip(".-")[-80:] or "file"


def read_upload(name: str, content: bytes, folder: Path) -> ChargeDensity | Structure:
    """Read an uploaded density or structure: CHGCAR or cube (plain, ``.gz``, ``.bz2``, ``.xz``), npz, CIF, POSCAR.

    The content is written into ``folder`` under a name that does not come from the user, and removed again.

    Raises:
        EcdError: too large (also when unpacked), damaged, or of another format; nothing else is raised.
    """
    shown = safe_name(name)
    packed = packing(shown)
    kind = os.path.splitext(shown.lower().removesuffix(packed))[1]
    check_size({shown: content})
    if kind in (".h5", ".hdf5"):
        raise EcdError(shown, "is a store of several crystals", "Write one of them to a file with `ecd convert`.")
    usual = "POSCAR" if is_crystal_file(shown) else "CHGCAR"
    stem = {".npz": "density.npz", ".cube": "density.cube", ".cub": "density.cube", ".cif": "a.cif"}.get(kind, usual)
    path = folder / f"{stem}{packed}"
    try:
        path.write_bytes(content)
        crystal = read_crystal(path)
        if isinstance(crystal, ChargeDensity):
            crystal = replace(crystal, name=shown, history=(f"read {shown}",))
        return crystal
    except EcdError as error:
        problem, remedy = (text.replace(f"{folder}{os.sep}", "") for text in (error.problem, error.remedy))
        raise EcdError(shown, problem, remedy) from error
    except Exception as error:  # whatever a parser meets in a strange file: words
        remedy = "Give a CHGCAR, a cube file, an npz of this project, a CIF or a POSCAR."
        raise EcdError(shown, "could not be read", remedy) from error
    finally:
        path.unlink(missing_ok=True)


def check_size(files: Mapping[str, bytes | str]) -> None:
    """Refuse more than :data:`UPLOAD_LIMIT` bytes.

    Raises:
        EcdError: naming the files' size.
    """
    total = sum(map(len, files.values()))
    if total > UPLOAD_LIMIT:
        what = f"{total / 1e6:.0f} MB are more than the limit of {UPLOAD_LIMIT / 1e6:.0f} MB"
        raise EcdError(", ".join(map(safe_name, files)), what, "Use `ecd predict` for large files.")


@dataclass(frozen=True)
class Source:
    """A file or a bundled crystal on the page."""

    kind: str  #: ``"file"`` or ``"bundled"``
    name: str  #: as the user gives it
    shown: str  #: as tables and messages call it
    content: bytes | str  #: of a file, as it came: Panel decodes what the browser calls text
    valence: str  #: that the user states for files

    def read(self, folder: Path) -> ChargeDensity | Structure:
        """The density, or the structure of a file without one.

        Raises:
            EcdError: a file that cannot be used.
        """
        if self.kind == "bundled":
            return replace(load_density(self.name), name=self.shown)
        raw = self.content.encode() if isinstance(self.content, str) else self.content
        crystal = read_upload(self.name, raw, folder)
        if isinstance(crystal, ChargeDensity):
            crystal = replace(crystal, name=self.shown, valence=parse_valence(self.valence) or crystal.valence)
        return crystal


def dropper() -> Any:
    """Panel's widget for files, which keeps no more than the limits while it receives them."""
    import panel as pn

    class Dropper(pn.widgets.FileDropper):
        def _process_event(self, event: Any) -> None:
            name, part = event.data.get("name"), event.data.get("data", b"")
            parts = {key: value for key, value in self._file_buffer.items() if key != name or event.data["chunk"] != 1}
            mine = sum(len(each) for each in self.value.values()) + sum(len(p) for ps in parts.values() for p in ps)
            others = sum(size for page, size in _HELD.items() if page is not self)
            if event.event_name == "upload_event":
                if mine + len(part) > UPLOAD_LIMIT or others + mine + len(part) > ALL_UPLOADS:
                    self._file_buffer.pop(name, None)
                    self.refused(safe_name(str(name)))
                    return
                if event.data["chunk"] != 1 and name not in self._file_buffer:  # refused before
                    return
                mine += len(part)
            _HELD[self] = mine
            super()._process_event(event)

        def refused(self, name: str) -> None:
            """Called with the name of a file that is too large."""

    limit = f"{UPLOAD_LIMIT // 10**6}MB"
    return Dropper(
        multiple=True, max_file_size=limit, chunk_size=CHUNK, previews=[], sizing_mode="stretch_width"
    )  # it reports by itself that a single file is too large
