"""Sources of crystals to screen, by name: adding one is a reader in a file of its own and a line in :data:`SOURCES`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ecdlib.base.errors import EcdError, check_input
from ecdlib.base.lazy import lazy

if TYPE_CHECKING:
    from ecdlib.crystals.candidate import Crystals


@dataclass(frozen=True)
class Options:
    """What a reader may need."""

    filter: bool = False  #: leave out what the paper does (see :func:`ecdlib.crystals.candidate.paper_filter`)
    api_key: str | None = None  #: of the Materials Project; else the environment variable MP_API_KEY
    endpoint: str | None = None  #: address of the Materials Project's API, if not mp-api's


@dataclass(frozen=True)
class Source:
    """A source, what it gives, and its reader.

    ``read(source, options)`` yields candidates and failures of what a user has written. A crystal is read when it is
    asked for, in the same order every time.
    """

    syntax: str  #: how it is written: ``"name"``, ``"name:REST"`` or ``"name[:REST]"``
    help: str
    read: Callable[[str, Options], Crystals]
    filters: bool = False  #: whether the reader obeys ``options.filter`` itself, so that it reads less

    @property
    def name(self) -> str:
        """What it is called by."""
        return self.syntax.split(":")[0].rstrip("[")

    def takes(self, source: str) -> bool:
        """Whether a text names this source."""
        name, _, rest = source.partition(":")
        may, must = ":" in self.syntax, ":" in self.syntax and "[" not in self.syntax
        return name == self.name and (bool(rest) or not must) and (may or name == source)


SOURCES = (
    Source(
        "materials-project",
        "its crystals with a band gap of 0.1 to 3 eV",
        lazy("ecdlib.crystals.databases:read_materials_project"),
        filters=True,
    ),
    Source("gnome:FOLDER", "GNoME's published files", lazy("ecdlib.crystals.databases:read_gnome"), filters=True),
    Source("labelled", "the 6,059 bundled crystals", lazy("ecdlib.crystals.databases:read_labelled")),
    Source(
        "hypothetical[:N[:SEED]]",
        "known prototypes with other elements",
        lazy("ecdlib.crystals.hypothetical:read_hypothetical"),
    ),
)
PATHS = "a folder or file of crystals (CIF, POSCAR), a table (.csv) with a column structure, cif or poscar"
#: For the command line.
SOURCES_HELP = "; ".join([PATHS, *(f"{source.syntax}: {source.help}" for source in SOURCES)])
GRAMMAR = f"Give {PATHS}, or {', '.join(source.syntax for source in SOURCES)}."


def read_source(
    source: str, *, api_key: str | None = None, filter: bool = False, endpoint: str | None = None
) -> Crystals:
    """The crystals of a source, one after the other; what cannot be used comes as a Failure between them.

    Args:
        source: a path (see :func:`ecdlib.crystals.files.read_path`), or one of :data:`SOURCES`.
        filter: leave out what :func:`ecdlib.crystals.candidate.paper_filter` names; of GNoME also crystals without a
            band gap, as the paper must have done.
        api_key, endpoint: see :class:`Options`.

    Raises:
        EcdError: no such source, or nothing in it can be used (after the last crystal).
    """
    for known in SOURCES:
        if known.takes(source):
            crystals = known.read(source, Options(filter, api_key, endpoint))
            return _checked(source, crystals, filter and not known.filters)
    path = Path(source)
    if not os.path.isdir(path):
        try:
            check_input(path)
        except EcdError as error:
            if error.problem == "no such file":
                raise EcdError(source, "no such file, folder or source", GRAMMAR) from error
            raise
    from ecdlib.crystals.files import read_path

    if (found := read_path(path)) is None:
        raise EcdError(source, "is not a file that holds crystals", GRAMMAR)
    return _checked(source, found, filter)


def _checked(source: str, crystals: Crystals, filter: bool) -> Crystals:
    from ecdlib.crystals.candidate import Failure, paper_filter

    usable, left_out, failure = 0, "", None
    for each in crystals:
        if isinstance(each, Failure):
            failure = failure or each
            yield each
        elif filter and (reason := paper_filter(each.structure, each.info.get("band_gap"))):
            left_out = f"{each.id}: {reason}"
        else:
            usable += 1
            yield each
    if not usable:
        if left_out:
            raise EcdError(source, f"no crystal passes the filter ({left_out})", "Omit the filter.")
        why = f" ({failure.id}: {failure.message})" if failure else ""
        raise EcdError(source, f"holds no crystal that can be used{why}", GRAMMAR)
