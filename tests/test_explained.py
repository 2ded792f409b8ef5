"""What intervals consist of, and electrons by element."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ecdlib.data.tables import load_structures
from ecdlib.density.images import atoms_around
from ecdlib.density.io import read_density
from ecdlib.density.store import load_density
from ecdlib.density.superpose import structure_of
from ecdlib.density.voronoi import electrons_by_element
from ecdlib.learn.answer import answer, structure_model
from ecdlib.learn.any_crystal import DERIVED, scaled, unscaled
from ecdlib.learn.explained import RESULT, TIMES, interval_parts, learned_values


@pytest.mark.parametrize("moved", [False, True])
def test_parts_make_the_interval(moved: bool) -> None:
    """Of a training crystal, and of one that the model has not seen."""
    structure = load_structures()["GeO2_136"].copy()
    if moved:
        structure.scale_lattice(1.2 * structure.volume)
    records = answer(structure).records
    parts, model = interval_parts(records, structure), structure_model()
    assert set(parts["property"]) == {r["property"] for r in records if r["high"] == r["high"]}
    for record in records:
        mine = parts[parts["property"] == record["property"]].set_index("part")
        target = record["property"].replace(" ", "_")
        if mine.empty or target == "refractive_index":
            continue
        assert mine.loc[RESULT, "value"] == pytest.approx(record["high"] - record["value"])
        factor = mine.loc[mine["unit"] == TIMES, "value"].prod()
        assert "calibration for tetragonal crystals" in mine.index
        assert "calibration for oxides" in mine.index
        if target in DERIVED and target not in model.learned:
            half = mine["value"].iloc[0] * factor
            exact = record["value"] + half if target == "poisson_ratio" else record["value"] * np.exp(half)
            assert exact == pytest.approx(record["high"], rel=1e-5)
            continue
        learned = model.learned_as(target)
        at = scaled(np.array([record["value"]]), learned)
        steps = [scaled(np.array([record["value"] + v]), learned) - at for v in mine["value"].iloc[:3]]
        assert np.hypot(*steps[:2]) == pytest.approx(steps[2], rel=1e-4)
        assert unscaled(at + steps[2] * factor, learned) == pytest.approx(record["high"], rel=1e-4)
    spread = parts[parts["part"] == "standard deviation of the model, of both"].set_index("property")["value"]
    assert (spread > 0).all()


def test_parts_of_a_density() -> None:
    from ecdlib.base.resources import data_folder

    density = read_density(data_folder() / "vasp" / "CHGCAR.NaCl.gz")
    record = next(r for r in answer(density).records if r["property"] == "bulk modulus")
    parts = interval_parts([record], structure_of(density)).set_index("part")
    conversion = parts.loc["conversion of the valence, its share of 95 %, in quadrature", "value"]
    structure = parts.loc["standard deviation of the model, of both", "value"]
    assert 0 < conversion < parts.loc[RESULT, "value"] < 4 * structure
    assert 0 < parts.loc["with the density's share", "value"] < 2
    portable = answer(density, "density-gpr-portable").records
    parts = interval_parts(portable, structure_of(density))
    for record in portable:
        own, cost, normal, all_of_it = parts.loc[parts["property"] == record["property"], "value"]
        assert np.hypot(own, cost) * normal == pytest.approx(all_of_it)
        assert cost == pytest.approx(record["conversion_std"])
    values = learned_values(portable[0])
    assert len(values) < 1000 < len(learned_values(answer(structure_of(density)).records[0]))


def test_images_are_all_that_lie_near_the_cell() -> None:
    lattice, rng = np.array([[3.0, 0, 0], [1.4, 2.5, 0], [-0.9, 1.1, 1.7]]), np.random.default_rng(0)
    positions, reach = rng.uniform(-2, 2, (4, 3)), 3.3
    points, owner = atoms_around(lattice, positions, reach)
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    expected = set()
    for atom, own in enumerate(positions % 1):
        for image in product(range(-4, 5), repeat=3):
            beyond = np.maximum(-(own + image), own + image - 1) * heights
            if (beyond < reach).all():
                expected.add((atom, *np.round((own + image) @ lattice, 6)))
    assert {(atom, *np.round(point, 6)) for atom, point in zip(owner.tolist(), points, strict=True)} == expected
    np.testing.assert_allclose(points[:4], positions % 1 @ lattice)
    assert owner[:4].tolist() == [0, 1, 2, 3]
    assert len(points) == len(expected)


def test_electrons_by_element() -> None:
    """In rocksalt the halves are equal by symmetry; all electrons and all space are shared out."""
    for name in ("NaCl_225", "Fe3SnC_221"):
        density = load_density(name)
        table = electrons_by_element(density)
        assert table["valence electrons"].sum() == pytest.approx(density.n_electrons)
        assert table["volume"].sum() == pytest.approx(density.volume)
        assert table["atoms"].sum() == len(density.species)
    volume = electrons_by_element(load_density("NaCl_225"))["volume"]
    assert volume["Na"] == pytest.approx(volume["Cl"])
