"""The data card says of the data what the data say."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd

from ecdlib.base.resources import ROOT
from ecdlib.crystals.screening import shipped_screening
from ecdlib.data.tables import load_crystals
from ecdlib.density.store import load_densities, load_selection

CARD = (ROOT / "data" / "README.md").read_text()


def said(*phrases: str) -> None:
    for phrase in phrases:
        assert phrase in CARD, phrase


def test_sets_groups_and_wells() -> None:
    cubic, general = load_densities("cubic-all"), load_densities("general-all")
    groups = cubic.table["spacegroup"].value_counts()
    said(", ".join(f"{group} ({count})" for group, count in groups.items()))
    said(f"{general.table['spacegroup'].nunique()} groups: trigonal")
    for which in ("cubic", "general"):
        frozen = load_densities(which)
        said(f"| {which} | {len(frozen)} | of {which}-all: ")
    held_out, lean = load_selection("held-out"), load_selection("lean")
    said(f"all {len(lean)} crystals", f"a tenth of all {len(cubic) + len(general):,}, {len(held_out)} crystals drawn")
    lowest = []
    for store in (cubic, general):
        with h5py.File(store.path) as h:
            lowest.append(np.minimum.reduceat(h["values"][:], h["value_offset"][:-1]))
    wells = [(values < 0).sum() for values in lowest]
    said(
        f"{wells[0]} of the {len(cubic)} cubic densities are negative",
        f"so are {wells[1]} of the {len(general)} others",
    )
    said(f"down to −{-min(v.min() for v in lowest):.1f} e/Å³")
    said(f"Of all cubic ones {(cubic.table['magnetic_moment'].abs() > 0.05).sum()} crystals carry a magnetic moment")
    labels = general.table.index.str.rsplit("_", n=1).str[-1].astype(int)
    said(f"for {(labels != general.table['spacegroup']).sum()} crystals")
    assert set(cubic.names) | set(general.names) <= set(load_crystals().index)


def test_labels_and_their_oddities() -> None:
    crystals = load_crystals()
    for column in ("debye_temperature", "cohesive_energy", "total_energy", "band_gap"):
        said(f"{crystals[column].notna().sum():,}")
    stiff = crystals["youngs_modulus"].idxmax()
    said(f"{crystals['youngs_modulus'].max():.1f} GPa", f"Poisson ratio of {crystals['poisson_ratio'][stiff]:.3f}")
    said(f"({(crystals['poisson_ratio'] > 0.5).sum()} entries do)")
    K, G = crystals["bulk_modulus"].max(), crystals["shear_modulus"].max()
    said(f"({K:.1f} GPa)", f"({G:.1f} GPa)")
    assert crystals["youngs_modulus"].max() > 9 * K * G / (3 * K + G)
    said(f"has −{-crystals['cohesive_energy'].min():.1f} eV/atom")
    assert (crystals["cohesive_energy"] > 0).sum() == 1
    assert crystals["original_split"].value_counts().to_dict() == {"train": 4847, "val": 606, "test": 606}
    expected = 2 * crystals["shear_modulus"] * (1 + crystals["poisson_ratio"])
    assert np.allclose(crystals["youngs_modulus"], expected, rtol=1e-6)
    assert pd.Series(crystals.index).is_unique


def test_hypothetical_crystals() -> None:
    table, made_by = shipped_screening()
    said(f"{len(table):,} hypothetical crystals with predicted moduli")
    assert made_by["parameters"]["sources"] == [f"hypothetical:{len(table)}"]
    assert table["id"].is_unique
    assert not set(zip(table["formula"], table["spacegroup"], strict=True)) & set(
        zip(load_crystals()["formula"], load_crystals()["spacegroup"], strict=True)
    )
    assert (table[["bulk_modulus", "shear_modulus", "bulk_modulus_std", "shear_modulus_std"]] > 0).all(axis=None)
