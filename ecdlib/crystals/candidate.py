"""Crystals to screen, and which of them the paper leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pymatgen.core import Element, Structure

from ecdlib.base.errors import DAMAGED
from ecdlib.data.structures import parse_structure

#: eV: the paper screens crystals with a band gap within (CGCNN elasticity, 1).
BAND_GAP = (0.1, 3.0)

#: The elements without a stable isotope. The paper excludes "radioactive elements" and does not print which; bismuth,
#: whose isotope lives 2e19 years, counts as stable here.
RADIOACTIVE = frozenset(Element.from_Z(z).symbol for z in (43, 61, *range(84, 119)))


@dataclass(frozen=True)
class Candidate:
    """A crystal to screen: ordered, of elements, with a sound cell.

    Attributes:
        id: unique within its source.
        structure: the cell as the source gives it.
        source: ``"files"``, ``"table"``, ``"Materials Project"``, ``"GNoME"``, ``"labelled"`` or ``"hypothetical"``.
        info: ``band_gap`` (eV) where known; ``hypothetical``, True for what :mod:`hypothetical` makes, then
            also ``prototype`` and ``parent``.
    """

    id: str
    structure: Structure
    source: str
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A crystal of a source that cannot be used, and why."""

    id: str
    message: str


Crystals = Iterator[Candidate | Failure]


def paper_filter(structure: Structure, band_gap: float | None) -> str:
    """Why the paper's filter leaves a crystal out; empty if it passes.

    The paper (1 and 2.1) keeps band gaps from 0.1 to 3.0 eV and excludes simple substances and compounds of
    radioactive elements (see :data:`RADIOACTIVE`).

    Args:
        band_gap: eV; None where it is not known, which passes.

    >>> from pymatgen.core import Lattice
    >>> salt = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    >>> paper_filter(salt, 5.0)
    'band gap of 5 eV is outside 0.1 to 3 eV'
    >>> paper_filter(salt, None)
    ''
    """
    return left_out([element.symbol for element in structure.composition.elements], band_gap)


def left_out(elements: Sequence[str], band_gap: float | None) -> str:
    """The same, from the elements alone."""
    if band_gap is not None and not BAND_GAP[0] <= band_gap <= BAND_GAP[1]:
        return f"band gap of {band_gap:g} eV is outside {BAND_GAP[0]:g} to {BAND_GAP[1]:g} eV"
    if radioactive := sorted(RADIOACTIVE.intersection(elements)):
        return f"radioactive: {', '.join(radioactive)}"
    return "a single element" if len(set(elements)) == 1 else ""


def candidate(id: str, text: Callable[[], str], source: str, band_gap: Any = None) -> Candidate | Failure:
    """A crystal from a text that is read now, and its band gap (eV) if that is a number."""
    try:
        structure = parse_structure(text())
    except DAMAGED as error:
        return Failure(id, " ".join(str(error).split()))
    gap = number(band_gap)
    return Candidate(id, structure, source, {"hypothetical": False} | ({} if gap is None else {"band_gap": gap}))


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
