"""Hypothetical crystals: the rules hold for what is planned and built, volumes are as good as they are said to be."""

from __future__ import annotations

import math
import warnings
from itertools import islice

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Element, Lattice, Structure

from ecdlib.base.errors import EcdError
from ecdlib.crystals import hypothetical
from ecdlib.crystals.candidate import RADIOACTIVE, paper_filter
from ecdlib.crystals.hypothetical import (
    MAX_ATOMS,
    REACH,
    SIZE_RATIO,
    VolumeModel,
    bonding,
    build,
    bundled_gaps,
    bundled_prototypes,
    candidates,
    described,
    hypothetical_crystals,
    known_crystals,
    plan,
    prototype,
    volume_error,
    volume_model,
)
from ecdlib.crystals.screening import shipped_screening
from ecdlib.data.tables import load_crystals, load_matbench_elasticity, load_structures
from ecdlib.density.core import symmetry_dataset
from ecdlib.learn.model_file import load_model

N = 3000


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return plan(N)


def formula(composition: Composition) -> hypothetical.Formula:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's remark that He, Ne and Ar have no electronegativity
        return tuple(sorted((e, round(n)) for e, n in composition.reduced_composition.get_el_amt_dict().items()))


# Rules


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NaCl", "charge-neutral"),
        ("NaCl2", ""),
        ("MgO", "charge-neutral"),
        ("CaTiO3", "charge-neutral"),
        ("CaCO3", "charge-neutral"),
        ("KClO4", "charge-neutral"),
        ("Mg2Si", "intermetallic"),
        ("LiH", "charge-neutral"),
        ("GaAs", "charge-neutral"),
        ("Co2MnSi", "intermetallic"),
        ("TiB2", "intermetallic"),
        ("NaK", "intermetallic"),
        ("SiC", "charge-neutral"),
        ("SiGe", "charge-neutral"),
        ("GaAs2", ""),
        ("NaO2", ""),
        ("NF3", "charge-neutral"),
    ],
)
def test_bonding(name: str, kind: str) -> None:
    assert bonding(formula(Composition(name))) == kind


@pytest.mark.slow
def test_most_known_crystals_obey_the_rule() -> None:
    known = known_crystals()
    share = (known["formula"].map(bonding) != "").mean()
    assert 0.75 < share < 0.95


# Prototypes


def test_prototype_does_not_depend_on_elements_origin_or_cell() -> None:
    salt = Structure.from_spacegroup(225, Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    other = Structure.from_spacegroup(225, Lattice.cubic(4.2), ["O", "Mg"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    moved = other.copy()
    moved.translate_sites(range(len(moved)), [0.1, 0.2, 0.3])
    labels = {prototype(s) for s in (salt, other, moved, salt.get_primitive_structure(), salt * [1, 1, 2])}
    assert labels == {"AB_225_a_b"}
    assert prototype(Structure(Lattice.cubic(4), ["Ar"], [[0, 0, 0]])) == "A_221_a"
    fluorite = Structure.from_spacegroup(225, Lattice.cubic(5.5), ["F", "Ca"], [[0.25, 0.25, 0.25], [0, 0, 0]])
    assert prototype(fluorite) == "AB2_225_a_c"


def test_known_crystals() -> None:
    known = known_crystals()
    parents = known[known["parent"]]
    assert parents["n_atoms"].max() <= MAX_ATOMS
    assert len(parents) > 0.85 * len(known)
    listed = load_crystals()["spacegroup"].reindex(parents.index).dropna()
    assert (listed == parents["spacegroup"].loc[listed.index]).all()
    assert known.at["Fe3SnC_221", "prototype"].split("_")[1] == "221"


# The plan


def test_plan_is_the_same_again_and_a_smaller_one_is_its_beginning(rows: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(plan(N), rows)
    pd.testing.assert_frame_equal(plan(7), rows.iloc[:7])
    assert list(rows["id"][:2]) == ["hyp-0000000", "hyp-0000001"]
    assert not plan(100, seed=1)["formula"].equals(rows["formula"][:100])


def test_rules_hold(rows: pd.DataFrame) -> None:
    sizes = volume_model().weights
    for row in rows.itertuples():
        composition = Composition(row.formula)
        symbols = {e.symbol for e in composition.elements}
        assert bonding(formula(composition))
        assert not symbols & RADIOACTIVE
        assert not any(e.is_noble_gas for e in composition.elements)
        assert len(symbols) == row.prototype.count("_") - 1  # all different
        pairs = [pair.split(">") for pair in row.replaced.split()]
        assert pairs
        for old, new in pairs:
            assert abs(Element(old).mendeleev_no - Element(new).mendeleev_no) <= REACH
            assert abs(sizes[old] - sizes[new]) <= math.log(SIZE_RATIO)


def test_none_is_known_and_none_is_there_twice(rows: pd.DataFrame) -> None:
    found = set(zip(rows["formula"].map(lambda f: formula(Composition(f))), rows["spacegroup"], strict=True))
    assert len(found) == N
    known = {
        (formula(Composition(f)), int(group))
        for table in (load_crystals(), load_matbench_elasticity())
        for f, group in zip(table["formula"], table["spacegroup"], strict=True)
    }
    structures = load_structures()
    table = known_crystals()
    known |= {(formula(structures[str(name)].composition), table.at[name, "spacegroup"]) for name in table.index}
    assert len(known) > 10_000
    assert not found & known


def test_no_prototype_dominates_more_than_among_the_known(rows: pd.DataFrame) -> None:
    share = rows["prototype"].value_counts(normalize=True)
    known = known_crystals().query("parent")["prototype"].value_counts(normalize=True)
    assert share.index[0] == known.index[0] == "ABC2_225_a_b_c"
    assert share.iloc[0] < 1.5 * known.iloc[0]
    assert len(share) > 500


@pytest.mark.parametrize("n", [0, -1])
def test_too_few(n: int) -> None:
    with pytest.raises(EcdError, match=f"^hypothetical: {n} crystals cannot be made. Ask for at least one"):
        plan(n)


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    few = known_crystals().iloc[:50]
    monkeypatch.setattr(hypothetical, "known_crystals", lambda: few)
    with pytest.raises(EcdError, match=r"^hypothetical: only \d+ crystals exist within the rules\. Ask for fewer"):
        plan(10**6)


# The crystals


def test_built_crystals_are_what_the_plan_says(rows: pd.DataFrame) -> None:
    structures = load_structures()
    for row in rows.sample(150, random_state=0).itertuples():
        built, parent = build(row), structures[row.parent]
        assert built.composition.reduced_formula == row.formula
        assert len(built) == row.n_atoms == len(parent)
        assert built.volume == pytest.approx(row.volume_scale * parent.volume)
        assert 1 / SIZE_RATIO <= row.volume_scale <= SIZE_RATIO
        np.testing.assert_allclose(built.frac_coords, parent.frac_coords)
        np.testing.assert_allclose(built.lattice.angles, parent.lattice.angles)
        cell = (built.lattice.matrix, built.frac_coords, list(built.atomic_numbers))
        assert symmetry_dataset(cell, 0.01).number == row.spacegroup
        assert prototype(built) == row.prototype
        assert built.distance_matrix[~np.eye(len(built), dtype=bool)].min() > 0.6


def test_rows_are_built_in_any_order(rows: pd.DataFrame) -> None:
    some = rows.iloc[[7, 3]]
    one, other = candidates(some)
    assert (one.id, other.id) == ("hyp-0000007", "hyp-0000003")
    assert build(rows.iloc[3]) == other.structure
    assert one.source == "hypothetical"
    assert one.info == {"hypothetical": True, "prototype": some["prototype"].iloc[0], "parent": some["parent"].iloc[0]}
    assert [c.id for c in islice(hypothetical_crystals(10), 2)] == ["hyp-0000000", "hyp-0000001"]
    assert paper_filter(one.structure, None) == ""


# Volumes


def test_volume_model_finds_sizes_that_are_there() -> None:
    """log V = a(prototype) + Σ x_e w_e is fitted exactly, whatever the prototypes' parts."""
    truth = {"A": 0.0, "B": 0.5, "C": -0.3}
    formulas = [((a, n), (b, m)) for a, b in (("A", "B"), ("A", "C"), ("B", "C")) for n, m in ((1, 1), (1, 3), (3, 1))]
    known = pd.DataFrame({"formula": formulas * 200})
    known["prototype"] = ["_".join(str(n) for _, n in f) for f in known["formula"]]
    mean = known["formula"].map(lambda f: sum(n * truth[e] for e, n in f) / sum(n for _, n in f))
    known["volume"] = np.exp(mean + known["prototype"].map({"1_1": 2.0, "1_3": 3.0, "3_1": 1.0}))
    model = VolumeModel.fit(known)
    scale = model.scale((("A", 1), ("B", 1)), (("B", 1), ("C", 1)))
    assert scale == pytest.approx(math.exp(-0.15), rel=1e-3)
    assert model.scale((("A", 1), ("B", 1)), (("A", 1), ("B", 1))) == 1


def test_volume_error_is_small_and_below_the_peers() -> None:
    errors = volume_error(200)
    assert {e["n"] for e in errors.values()} == {200}
    assert errors["ours"]["median"] < 0.04
    assert errors["ours"]["q90"] < 0.15
    for peer in ("RLS", "DLS", "parent"):
        assert errors["ours"]["median"] < errors[peer]["median"]
        assert errors["ours"]["q90"] < errors[peer]["q90"]
    assert volume_error(20) == volume_error(20)


def test_the_table_of_prototypes_is_what_symmetry_says():
    table, structures = bundled_prototypes(), load_structures()
    assert list(table.index) == list(structures)
    for name in sorted(structures)[::400]:
        assert tuple(table.loc[name, ["prototype", "primitive"]]) == described(structures[name]), name
    assert (table["primitive"] <= [len(s) for s in structures.values()]).all()


def test_predicted_band_gaps_are_those_of_the_model():
    gaps = bundled_gaps()
    assert list(gaps.index) == shipped_screening()[0]["id"].iloc[: len(gaps)].to_list()
    first = list(hypothetical_crystals(4))
    again = load_model("crystal").predict([each.structure for each in first], ["band_gap"])["band_gap", "value"]
    assert gaps[[each.id for each in first]].to_numpy() == pytest.approx(again.to_numpy(), abs=2e-3)
    assert (gaps >= 0).all()
