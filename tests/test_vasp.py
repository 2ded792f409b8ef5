"""Numbers of VASP's potentials: where they come from, for which densities they are, and what they do to real files."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT, data_file
from ecdlib.density import charge3net
from ecdlib.density.cell import resample, to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_density, write_chgcar, write_cube, write_npz
from ecdlib.density.store import DensityStore, load_density
from ecdlib.density.valence import (
    Valence,
    apart,
    describe_numbers,
    known_sets,
    recognize,
    solve,
    target_electrons,
    to_convention,
    vasp_numbers,
    vasp_pbe,
)
from ecdlib.learn.conversion_cost import PARTS, cost
from ecdlib.learn.predict import DEFAULT_MODEL, load_predictors, predict
from ecdlib.learn.vasp import (
    equations,
    numbers_without,
    shipped_movement,
    vasp_crystals,
    vasp_density,
    vasp_movement,
)

VASP = data_file("vasp/CHGCAR.NaCl.gz").parent


@pytest.mark.slow
def test_the_table_is_what_its_crystals_say() -> None:
    table, crystals = vasp_pbe(), vasp_crystals()
    fitted = crystals.index[~crystals["held_out"]]
    found = solve(list(equations(tuple(fitted)).values()))
    assert sorted(found) == list(table.index)
    for element, numbers in found.items():
        assert numbers == pytest.approx(tuple(table.loc[element, ["a", "b"]]), rel=1e-3, abs=1e-6)
    held_out = set(crystals.index[crystals["held_out"]])
    assert not held_out & {name for names in table["crystals"] for name in names.split()}


def test_every_potential_of_the_table_is_one_of_vasps() -> None:
    sets = known_sets().query("family == 'vasp-pbe'").set_index("set")["electrons"]
    for element, row in vasp_pbe().iterrows():
        family, name = row["title"].split()[:2]
        assert family == "PAW_PBE"
        assert name.split("_")[0] == element
        assert sets[name] == row["electrons"]


def test_numbers_carry_over_to_crystals_that_neither_network_nor_fit_has_seen() -> None:
    crystals = vasp_crystals()
    names = crystals.index[crystals["held_out"]]
    every = equations(tuple(names))
    numbers = {e: (float(a), float(b)) for e, a, b in vasp_pbe()[["a", "b"]].itertuples()}
    shells, calibrated = (np.array([every[n].apart(x) for n in names]) for x in ({}, numbers))
    assert np.median(shells) > 0.05
    assert np.median(calibrated) < 0.005
    assert (calibrated < shells).all()


def test_a_crystal_is_left_out_of_its_own_numbers() -> None:
    name = "TaC_225"
    numbers, table = numbers_without(name), vasp_pbe()
    assert set(numbers) == {"Ta", "C"}
    assert numbers["Ta"][0] != pytest.approx(table.loc["Ta", "a"], rel=1e-6)
    one = equations((name,))[name]
    assert one.apart({e: tuple(table.loc[e, ["a", "b"]]) for e in numbers}) < one.apart(numbers) < one.apart({}) / 5
    theirs, ours = vasp_density(name), load_density(name)
    for calibration in ({}, numbers):
        values = to_convention(theirs, calibration=calibration).values
        assert apart(values, to_convention(ours).values) == pytest.approx(one.apart(calibration), rel=1e-3)
    moved = vasp_movement(load_predictors(DEFAULT_MODEL), [name]).set_index("property")
    assert abs(moved["calibrated"] - moved["own"])["bulk_modulus"] < abs(moved["shells"] - moved["own"])["bulk_modulus"]


def test_a_real_file_of_vasp_comes_ten_times_closer() -> None:
    ours = DensityStore(data_file("vasp/gpaw.h5"))["NaCl"]
    theirs = read_density(VASP / "CHGCAR.NaCl.gz")
    wanted = to_conventional(to_convention(ours))

    def distance(calibration: dict[str, tuple[float, float]] | None) -> float:
        turned = to_conventional(to_convention(theirs, calibration=calibration))
        grid = [max(n) for n in zip(turned.shape, wanted.shape, strict=True)]
        return apart(resample(turned.values, grid), resample(wanted.values, grid))

    assert distance({}) > 0.01
    assert distance(None) < 0.002


def test_shipped_movements_are_what_the_library_finds() -> None:
    name, shipped = "TiOs_221", shipped_movement()
    shipped = shipped[(shipped["crystal"] == name) & (shipped["model"] == DEFAULT_MODEL)].set_index("property")
    found = vasp_movement(load_predictors(DEFAULT_MODEL), [name]).set_index("property")
    for column in ("own", "shells", "calibrated"):
        assert found[column].to_dict() == pytest.approx(shipped[column].to_dict(), rel=1e-3)


def test_no_maker_hides_a_package_that_it_imports() -> None:
    makers = {path.stem for path in (ROOT / "data/make").glob("*.py")}
    assert not makers & {*packages_distributions(), *charge3net.REQUIRES, "gpaw"}


def test_densities_of_other_codes_are_not_touched(tmp_path: Path) -> None:
    vasp = read_density(VASP / "CHGCAR.NaCl.gz")
    assert set(vasp_numbers(recognize(vasp))) == {"Na", "Cl"}
    write_cube(vasp, tmp_path / "NaCl.cube")
    cube = read_density(tmp_path / "NaCl.cube")
    for other in (cube, load_density("NaCl_225")):
        assert vasp_numbers(recognize(other)) == {}
    assert "by whole shells: Na, Cl" in to_convention(cube).history[-1]
    assert "numbers of VASP's PBE potentials: Na, Cl" in to_convention(vasp).history[-1]


@pytest.mark.parametrize(
    ("electrons", "titles", "known", "words"),
    [
        ({"Fe": 8, "O": 6}, {}, {"Fe", "O"}, "with the numbers of VASP's PBE potentials: Fe, O"),
        (
            {"Fe": 14, "O": 6},
            {"Fe": "PAW_PBE Fe_pv 02Aug2007", "O": "PAW_PBE O 08Apr2002"},
            {"O"},
            "with the numbers of VASP's PBE potentials: O; by whole shells: Fe_pv",
        ),
        ({"Fe": 14}, {}, set(), "by whole shells: Fe"),
        ({"O": 6}, {"O": "PAW_PBE O_s 07Sep2000"}, set(), "by whole shells: O_s"),
        ({"O": 6}, {"O": "PAW_PBE O 01Jan2030"}, {"O"}, "with the numbers of VASP's PBE potentials: O"),
        ({"O": 6}, {"O": "PAW O 22Mar2012"}, set(), "by whole shells: O"),
        ({"Er": 9}, {"Er": "PAW_PBE Er_3 06Sep2000"}, set(), "by whole shells: Er_3"),
    ],
)
def test_which_potentials_the_table_is_for(
    electrons: dict[str, int], titles: dict[str, str], known: set[str], words: str
) -> None:
    valence = Valence(electrons, False, "test", titles)
    assert set(vasp_numbers(valence)) == known
    assert describe_numbers(valence) == words


def test_predicted_densities_say_their_valence_in_every_format(tmp_path: Path) -> None:
    density = vasp_density("TaC_225")
    write_npz(density, tmp_path / "TaC.npz")
    read = recognize(read_density(tmp_path / "TaC.npz"))
    assert read.electrons == {"Ta": 5, "C": 4}
    assert set(vasp_numbers(read)) == {"Ta", "C"}


@pytest.mark.slow
def test_what_a_conversion_costs_depends_on_what_is_known() -> None:
    bulk = load_predictors(DEFAULT_MODEL)[0]
    valence = Valence({"Ta": 5, "C": 4}, False, "test", {})
    known, partly = vasp_numbers(valence), {"Ta": (0.0, 0.0)}
    assert 0 < bulk.cost(valence, 300.0, known) < bulk.cost(valence, 300.0, partly) / 3
    assert bulk.cost(valence, 300.0, partly) == bulk.cost(valence, 300.0)
    for part in PARTS[:4]:
        assert cost(bulk.model, "bulk_modulus", part, known=False) == pytest.approx(
            cost(bulk.model, "bulk_modulus", part), rel=1e-3
        )


def test_a_calibration_of_ones_own_goes_before_the_table(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("element,electrons,a,b,compound\nNa,1,0.0,0.0,mine\n")
    density, predictors = read_density(VASP / "CHGCAR.NaCl.gz"), load_predictors(DEFAULT_MODEL)[:1]
    (record,) = predict(density, predictors, tmp_path / "mine.csv")
    assert record["conversion"].endswith("calibrated: Na; with the numbers of VASP's PBE potentials: Cl")
    (tmp_path / "other.csv").write_text("element,electrons,a,b,compound\nNa,7,0.1,0.0,mine\n")
    with pytest.raises(EcdError, match="calibrates Na with 7 valence electrons, but the density has 1"):
        predict(density, predictors, tmp_path / "other.csv")


def test_a_sum_of_core_and_valence_densities_is_refused(tmp_path: Path) -> None:
    own = load_density("NaCl_225")
    values = own.values.copy()
    values[0, 0, 0] += (0.97 * sum(own.numbers) - own.n_electrons) * values.size / own.volume  # cores, in part
    write_chgcar(replace(own, values=values, convention=None), tmp_path / "CHGCAR_sum")
    with pytest.raises(EcdError, match=r"the sum of core and valence densities .* Give the CHGCAR of the same calc"):
        read_density(tmp_path / "CHGCAR_sum")


def test_a_lanthanide_with_its_f_electrons_in_the_core_is_converted_by_shells(tmp_path: Path) -> None:
    values, lattice = np.full((12, 12, 12), 14 / 4.8**3), 4.8 * np.eye(3)
    density = ChargeDensity(values, lattice, ("Er", "N"), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), "ErN")
    write_chgcar(density, tmp_path / "CHGCAR")
    titles = {"Er_3 06Sep2000": 9, "N 08Apr2002": 5}
    lines = [f" TITEL  = PAW_PBE {title}\n ZVAL   = {n:.3f} mass\n" for title, n in titles.items()]
    (tmp_path / "POTCAR").write_text("".join(lines))
    read = read_density(tmp_path / "CHGCAR")
    assert recognize(read).electrons == {"Er": 9, "N": 5}
    assert (
        to_convention(read).history[-1].endswith("with the numbers of VASP's PBE potentials: N; by whole shells: Er_3")
    )


def test_a_valence_that_the_table_lacks_is_converted_by_shells() -> None:
    own = load_density("CaO_225")
    other = replace(own, convention=None, potentials={}, valence={"Ca": target_electrons("Ca", "gpaw"), "O": 6})
    assert isinstance(other, ChargeDensity)
    (record,) = predict(other, load_predictors(DEFAULT_MODEL)[:1])
    assert record["conversion"].endswith("with the numbers of VASP's PBE potentials: O; by whole shells: Ca")
