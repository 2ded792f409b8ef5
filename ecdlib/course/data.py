"""What the exercises of the course start from: a small data set, and what is different for each student."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from typing import Any, Literal

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT, read_once
from ecdlib.data.tables import load_crystals, load_structures
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_densities
from ecdlib.features.collection import FeatureSettings, statistics

Data = Literal["course", "full"]

#: Folder of the exercises: one notebook each, with solution and tests, in a folder for each session.
EXERCISES = ROOT / "notebooks" / "exercises"
#: Sessions of the course.
SESSIONS = ("session_1", "session_2", "session_3", "session_4", "session_5", "session_6")
#: Crystals of the course data set.
COURSE_SIZE = 120
#: Crystals that every textbook shows; they are in the course data set whatever the rule below picks.
TEXTBOOK = (
    *("Al_225", "BaTiO3_221", "Cu_225", "Fe3SnC_221", "GaAs_216"),
    *("KCl_225", "LiF_225", "MgO_225", "NaCl_225", "Si_227"),
)
#: Autocorrelations of the exercises: the range of the book's features at half their resolution.
SETTINGS = FeatureSettings(size=25, voxel=0.4)


@read_once
def course_crystals(data: Data = "course") -> pd.DataFrame:
    """Crystals of the exercises, all cubic, with a density and all labels.

    ``"course"`` holds :data:`COURSE_SIZE` crystals: the textbook ones, then every k-th of the others with at most five
    atoms in the primitive cell in the order of their bulk modulus, so that soft and stiff ones are there. ``"full"``
    holds all that have these labels.

    Returns:
        A table indexed by name: ``formula``, ``spacegroup``, ``n_atoms`` (primitive cell), ``volume`` (Å³),
        ``n_electrons`` (valence electrons of our potentials), ``total_energy`` (eV/atom, ours), ``bulk_modulus``,
        ``shear_modulus`` (GPa), ``cohesive_energy`` (eV/atom).

    Raises:
        EcdError: there is no such data set.
    """
    if data not in ("course", "full"):
        raise EcdError(f"data {data!r}", "is not a data set of the course", "Choose 'course' or 'full'.")
    table = load_densities("cubic").table
    labels = ["bulk_modulus", "shear_modulus", "cohesive_energy"]
    known = table[["formula", "spacegroup", "n_atoms", "volume", "n_electrons"]].join(load_crystals()[labels])
    known.insert(5, "total_energy", table["energy"] / table["n_atoms"])
    known = known.dropna().sort_index()
    if data == "full":
        return known
    others = known[(known["n_atoms"] <= 5) & ~known.index.isin(TEXTBOOK)].sort_values("bulk_modulus", kind="stable")
    rows = np.linspace(0, len(others) - 1, COURSE_SIZE - len(TEXTBOOK)).round().astype(int)
    return known.loc[sorted([*TEXTBOOK, *others.index[rows]])]


class Individual:
    """What one student works on: everything follows from the student's number, so that the grader knows it, too.

    Two students get other crystals, targets and random numbers; one student gets the same ones every time.

    Args:
        student: the student's number or name, as in the name of the folder that is handed in.
        data: ``"course"`` (a small data set, seconds) or ``"full"``.

    Raises:
        EcdError: no number is given, or the work was handed in under another one.

    >>> one, two = Individual("4711"), Individual("4712")
    >>> one.seed == Individual(4711).seed, one.seed == two.seed
    (True, False)
    >>> one.crystal("electrons"), two.crystal("electrons")
    ('CdSbAu_216', 'LiCd2Pd_225')
    """

    def __init__(self, student: str | int, data: Data = "course"):
        self.student, self.data = unicodedata.normalize("NFC", str(student).strip()), data
        if not self.student:
            raise EcdError("STUDENT", "is empty", 'Write your student number, for example STUDENT = "4711".')
        owner = unicodedata.normalize("NFC", os.environ.get("ECD_STUDENT", self.student))  # set by the grader
        if owner != self.student:
            raise EcdError(
                f'STUDENT = "{self.student}"', f"but handed in by {owner}", "Write your own number and run again."
            )
        #: Whole number below 2³² for every random choice.
        self.seed = self._number("seed")
        #: The property to predict: ``bulk_modulus`` or ``total_energy``.
        self.target = ("bulk_modulus", "total_energy")[self._number("target") % 2]
        #: The data set, see :func:`course_crystals`.
        self.crystals = course_crystals(data)

    def _number(self, purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.student}/{purpose}".encode()).digest()[:4], "big")

    def rng(self, exercise: str) -> np.random.Generator:
        """Random numbers of this student for this exercise, the same at each call."""
        return np.random.default_rng(self._number(exercise))

    def choose(self, exercise: str, among: list[Any]) -> Any:
        """One of a list."""
        return among[self._number(exercise) % len(among)]

    def crystal(self, exercise: str, among: list[str] | None = None) -> str:
        """Name of one crystal, of the whole data set or of some names."""
        return str(self.choose(exercise, list(self.crystals.index) if among is None else among))

    def density(self, exercise: str, among: list[str] | None = None) -> ChargeDensity:
        """Density of :meth:`crystal`."""
        return load_densities("cubic")[self.crystal(exercise, among)]


def course_features(data: Data = "course") -> Floats:
    """Autocorrelations of the course's crystals, reduced to the values that are distinct under m-3m.

    Computed once (``_build/cache``), a few seconds for ``"course"``, then read.

    Returns:
        ``(n, 455)``, in e/Å³, in the order of :func:`course_crystals`.
    """
    names = list(course_crystals(data).index)

    def make() -> Arrays:
        store = load_densities("cubic")
        return {"features": np.stack([statistics(store[name], SETTINGS)["autocorrelation"] for name in names])}

    return cached(f"course-{data}", make, names)["features"]


def course_structures(data: Data = "course") -> list[Structure]:
    """Structures (primitive cells) of the course's crystals, in the order of :func:`course_crystals`."""
    known = load_structures()
    return [known[name] for name in course_crystals(data).index]
