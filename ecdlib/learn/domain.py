"""In which ways a crystal is unlike those that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ecdlib.base.resources import read_once
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_densities

#: The model that takes densities of any code, and that predicts unless told otherwise.
DEFAULT_MODEL = "density-gpr-portable"


@dataclass(frozen=True)
class Domain:
    """What a training set covers."""

    valence: dict[str, int]  #: valence electrons of each element in its densities
    a: tuple[float, float] | None  #: smallest and largest cubic lattice parameter, Å; None if not all are cubic
    volume: tuple[float, float]  #: smallest and largest volume per atom, Å³

    @classmethod
    @read_once
    def of(cls, names: tuple[str, ...]) -> Domain:
        """Domain of bundled crystals."""
        from pymatgen.core import Composition

        table = pd.concat([load_densities(which).table for which in ("cubic", "general")]).loc[list(names)]
        shares = [Composition(formula).fractional_composition.as_dict() for formula in table["formula"]]
        elements = sorted(set().union(*shares))
        counts = np.array([[share.get(e, 0) for e in elements] for share in shares]) * table[["n_atoms"]].to_numpy()
        total = table["n_electrons"].to_numpy(dtype=float)
        electrons = np.linalg.lstsq(counts.T @ counts, counts.T @ total, rcond=None)[0]
        edges = cls.lattice_parameters(table)
        valence = {e: round(float(v)) for e, v in zip(elements, electrons, strict=True)}
        volume = table["volume"] / table["n_atoms"]
        cubic = (table["spacegroup"] >= 195).all()
        a = (float(edges.min()), float(edges.max())) if cubic else None
        return cls(valence, a, (float(volume.min()), float(volume.max())))

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Domain:
        """From what ``dataclasses.asdict`` and JSON made of one."""
        (low, high), a = found["volume"], found["a"]
        return cls(found["valence"], a and (a[0], a[1]), (low, high))

    @staticmethod
    def lattice_parameters(table: pd.DataFrame) -> Floats:
        """Cubic lattice parameters, Å, of rows of a store's table (primitive cells)."""
        edges: Floats = (table["volume"] * table["spacegroup"].map(_points)).to_numpy() ** (1 / 3)
        return edges

    def warnings(self, density: ChargeDensity, converted: bool = False) -> list[str]:
        """In which ways the density is unlike the training set; empty if none is found.

        Args:
            converted: whether the model converts its valence.
        """
        found = []
        unseen = sorted(set(density.species) - set(self.valence))
        if unseen:
            found.append(f"no training crystal holds {', '.join(unseen)}")
        dataset = density.symmetry(1e-2)
        number = 0 if dataset is None else int(dataset.number)
        if self.a is None:
            volume = density.volume / max(1, len(density.species))
            if not self.volume[0] <= volume <= self.volume[1]:
                limits = f"{self.volume[0]:.1f} to {self.volume[1]:.1f} Å³"
                found.append(f"volume per atom {volume:.1f} Å³ is outside the {limits} of the training set")
        elif number < 195:
            what = "no crystal symmetry was found" if number == 0 else f"space group {number} is not cubic"
            found.append(f"{what}, but all training crystals are: the 48 orientations were averaged")
        else:
            primitive_atoms = len(set(dataset.mapping_to_primitive))
            a = (density.volume * _points(number) * primitive_atoms / len(density.species)) ** (1 / 3)
            if not self.a[0] <= a <= self.a[1]:
                limits = f"{self.a[0]:.2f} to {self.a[1]:.2f} Å"
                found.append(f"lattice parameter {a:.2f} Å is outside the {limits} of the training set")
        if not unseen and density.species and not converted:
            expected = sum(self.valence[e] for e in density.species)
            if abs(density.n_electrons - expected) > 0.2:
                found.append(
                    f"holds {density.n_electrons:.1f} valence electrons, training densities of this crystal "
                    f"{expected}: another valence convention, so the prediction is unreliable; --model {DEFAULT_MODEL} "
                    "converts it"
                )
        return found


def _points(spacegroup: int) -> int:
    """Lattice points of the conventional cell of a cubic space group."""
    if spacegroup in (196, 202, 203, 209, 210, 216, 219, 225, 226, 227, 228):
        return 4
    return 2 if spacegroup in (197, 199, 204, 206, 211, 214, 217, 220, 229, 230) else 1
