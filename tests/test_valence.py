"""Valence conventions: shells and electrons, conversions against direct sums and against VASP, and what is refused."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Element
from scipy.interpolate import CubicSpline

from ecdlib import cli
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT, data_file, data_folder
from ecdlib.density.cell import resample, supercell, to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_chgcar, read_density, write_chgcar, write_cube, write_npz
from ecdlib.density.store import DensityStore, load_densities, symmetry_reduce
from ecdlib.density.valence import (
    SMOOTHING,
    Target,
    Valence,
    calibrate,
    change_of_form_factor,
    is_standard,
    known_sets,
    ladder,
    parse_valence,
    read_calibration,
    read_potcar,
    recognize,
    shells,
    target_electrons,
    to_convention,
    write_calibration,
)
from ecdlib.learn.portability import spectra_apart
from ecdlib.learn.predict import load_predictors, predict

Array = np.ndarray[Any, Any]
ROWS: dict[str, Array] = dict(np.load(data_file("valence/form_factors.npz"), allow_pickle=False))
ELEMENTS = sorted(set(map(str, ROWS["element"])))
VASP = data_folder() / "vasp"
#: Pairs of a metal, of salts and alloys, of both groups of elements, and of space groups 216, 221 and 225.
SAMPLE = ("NaCl_225", "Ir_225", "AlIr_221", "BeTe_216", "MnAlCu2_225")
TARGETS: tuple[Target, ...] = ("gpaw", "chemical")


def form_factor(element: str, name: str, *which: str) -> Array:
    """Sum of shells of the data file; of all shells of the set if none are named."""
    mask = (ROWS["element"] == element) & (ROWS["set"] == name)
    mask &= np.isin(ROWS["shell"], which) if which else True
    assert not which or mask.sum() == len(which)
    return np.asarray(ROWS["form_factor"][mask].astype(float).sum(0))


def made_up(species: str, electrons: float, **more: Any) -> ChargeDensity:
    """A density of so many electrons on a small skewed cell; ``species`` are symbols with spaces between."""
    names = tuple(species.split())
    lattice = np.array([[3, 0.1, -0.3], [0.4, 3.3, 0.2], [-0.5, 0.7, 3.7]])
    values = np.random.default_rng(0).uniform(0.5, 1, (4, 5, 6))
    values *= electrons / (values.mean() * np.linalg.det(lattice))
    return ChargeDensity(values, lattice, names, np.arange(3 * len(names)).reshape(-1, 3) / 11, "made up", **more)


# Shells and sets of potentials


def test_every_known_set_has_whole_shells() -> None:
    table = known_sets()
    assert not table.isna().any(axis=None)
    for row in table.itertuples():
        named = row.shells.split()
        assert sum(int(shell[2:]) for shell in named) == row.electrons
        assert len(set(named)) == len(named)
    assert table["family"].nunique() == 6
    assert table[table["family"] == "vasp-pbe"]["set"].is_unique
    na = table[(table["element"] == "Na") & (table["family"] == "vasp-pbe")].set_index("set")["electrons"]
    assert na.to_dict() == {"Na": 1, "Na_pv": 7, "Na_sv": 9}


def test_the_sets_of_gpaw_hold_the_shells_that_their_electrons_say() -> None:
    """The data file says which shells a set has, the ladder follows from the number of electrons alone."""
    table = known_sets()
    table = table[table["family"].str.startswith("gpaw-")]
    assert len(table) == 85
    for row in table.itertuples():
        own = ROWS["shell"][(ROWS["element"] == row.element) & (ROWS["set"] == row.set)]
        assert set(row.shells.split()) == set(map(str, own)), row.set


def test_form_factors_begin_with_the_electrons_of_the_shell_and_fall_off() -> None:
    electrons = [float(shell[2:]) for shell in ROWS["shell"]]
    assert np.allclose(ROWS["form_factor"][:, 0], electrons, rtol=1e-6)
    share = np.abs(ROWS["form_factor"]) / np.array(electrons)[:, None]
    assert share.max() == pytest.approx(1)
    damped = share * np.exp(-((ROWS["wavenumbers"] * SMOOTHING) ** 2) / 2)
    assert damped[:, -1].max() < 2e-6  # nothing is left beyond the last wavenumber


@pytest.mark.parametrize("element", ELEMENTS)
def test_shells_hold_the_electrons_asked_for_and_one_valence_contains_the_smaller(element: str) -> None:
    steps = ladder(element)
    assert list(steps) == sorted(steps)
    before: tuple[str, ...] = ()
    for electrons, named in steps.items():
        assert shells(element, electrons) == named
        assert sum(int(shell[2:]) for shell in named) == electrons <= Element(element).Z
        assert named[: len(before)] == before
        before = named
    impossible = set(range(Element(element).Z)) - set(steps)
    with pytest.raises(
        EcdError, match=f"{element}={min(impossible)}: no set of whole shells holds that many electrons. Possi"
    ):
        shells(element, min(impossible))


def test_the_chemical_valence_is_that_of_the_group() -> None:
    actinides = {"Th": 4, "Pa": 5, "U": 6, "Np": 7, "Pu": 8}  # 5f is valence, as everywhere
    for element in set(ELEMENTS) - {"He", "Eu", "Yb"} - set(actinides):
        group = Element(element).group
        assert target_electrons(element, "chemical") == (group if group <= 12 else group - 10), element
        assert target_electrons(element, "gpaw") in ladder(element)
    assert target_electrons("He", "chemical") == target_electrons("Eu", "chemical") == 2
    assert {e: target_electrons(e, "chemical") for e in actinides} == actinides
    assert {target_electrons(e, "gpaw") - n for e, n in actinides.items()} == {8}
    assert [target_electrons(e, "gpaw") for e in ("Na", "Fe", "In", "Cl")] == [7, 8, 13, 7]


@given(st.sampled_from(ELEMENTS), st.data())
def test_a_change_of_form_factor_brings_the_electrons_that_are_missing(element: str, data: st.DataObject) -> None:
    electrons = data.draw(st.sampled_from(list(ladder(element))))
    for target in TARGETS:
        change = change_of_form_factor(element, electrons, target, gpaw=False)
        assert change[0] == pytest.approx(target_electrons(element, target) - electrons, abs=1e-5)
    assert not change_of_form_factor(element, target_electrons(element, "gpaw"), "gpaw", gpaw=True).any()


# The conversion


def direct(density: ChargeDensity, change: dict[str, Array], smoothing: float) -> Array:
    """Wave by wave: each coefficient, and what each atom adds to it, summed up in real space."""
    cartesian, points = 2 * np.pi * np.linalg.inv(density.lattice).T, np.indices(density.shape).reshape(3, -1).T
    shape, flat = np.array(density.shape), density.values.ravel().astype(float)
    total = np.zeros(flat.size)
    for m in points - shape // 2:
        G = m @ cartesian
        wave = np.exp(2j * np.pi * (points / shape @ m))
        coefficient = flat @ wave.conj() * density.voxel_volume
        if (2 * np.abs(m) < shape).all():  # at the Nyquist frequency a wave has no partner
            for symbol, position in zip(density.species, density.positions, strict=True):
                gained = CubicSpline(ROWS["wavenumbers"], change[symbol])(min(float(np.linalg.norm(G)), 16))
                coefficient += gained * np.exp(-2j * np.pi * (m @ position))
        total += (coefficient * np.exp(-(G @ G) * smoothing**2 / 2) * wave).real
    return total.reshape(density.shape) / density.volume


@pytest.mark.parametrize("kind", ["rocksalt", "triclinic", "monoclinic", "CsCl"])
@pytest.mark.parametrize("shape", [(5, 7, 5), (6, 5, 8)])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_conversion_equals_the_sum_over_all_waves_and_atoms(
    kind: str, shape: tuple[int, int, int], smoothing: float, crystal: Callable[..., Any], waves: Callable[..., Any]
) -> None:
    density = crystal(kind, waves(2).on(shape))
    valences = {"Na": 1, "Cl": 7, "Li": 3, "H": 1, "Cs": 9}
    valence = Valence({s: valences[s] for s in density.species}, False, "test")
    change = {e: np.zeros(len(ROWS["wavenumbers"])) for e in valences}
    change["Na"] = form_factor("Na", "Na", "2p6")
    change["Li"] = -form_factor("Li", "", "1s2")
    converted = to_convention(density, "gpaw", valence, smoothing=smoothing)
    assert np.allclose(converted.values, direct(density, change, smoothing), atol=1e-10)


def test_an_added_shell_is_a_cloud_of_its_own_around_each_atom() -> None:
    """In real space: the inverse transform of the form factor, summed over periodic images."""
    lattice = np.array([[3.6, 0.2, 0], [0, 3.8, -0.3], [0.4, 0, 4.0]])
    positions = np.array([[0.1, 0.25, 0.3], [0.6, 0.7, 0.85]])
    density = ChargeDensity(np.full((24, 25, 27), 8 / np.linalg.det(lattice)), lattice, ("Na", "Cl"), positions)
    converted = to_convention(density, "gpaw", Valence({"Na": 1, "Cl": 7}, False, ""))

    k = np.linspace(0, 16, 4001)
    smooth = CubicSpline(ROWS["wavenumbers"], form_factor("Na", "Na", "2p6"))(k) * np.exp(-((k * SMOOTHING) ** 2) / 2)
    r = np.linspace(0, 8, 400)
    shell = np.trapezoid(k**2 * smooth * np.sinc(np.outer(r, k) / np.pi), k) / (2 * np.pi**2)
    shell[r > 6] = 0
    points = np.indices(density.shape).reshape(3, -1).T / density.shape - positions[0]
    images = np.indices((5, 5, 5)).reshape(3, -1).T - 2
    cloud = sum(np.interp(np.linalg.norm((points - image) @ lattice, axis=1), r, shell) for image in images)
    gained = (converted.values - density.values).ravel()
    assert np.abs(gained - cloud).max() < 2e-3 * cloud.max()
    assert gained.sum() * density.voxel_volume == pytest.approx(6, abs=1e-6)
    assert np.abs(gained).argmax() == np.linalg.norm((points - points.round()) @ lattice, axis=1).argmin()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLE)
def test_electrons_before_and_after(name: str, target: Target) -> None:
    density = load_densities("pairs")[name]
    found = recognize(density)
    assert density.n_electrons == pytest.approx(sum(found.electrons[s] for s in density.species), abs=3e-4)
    error = density.n_electrons - round(density.n_electrons)
    converted = to_convention(density, target)
    wanted = sum(target_electrons(s, target) for s in density.species)
    assert converted.n_electrons == pytest.approx(wanted + error, abs=1e-5)
    assert (converted.shape, converted.species) == (density.shape, density.species)
    assert f"converted to {target}" in converted.history[-1]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLE)
def test_the_conversion_keeps_the_symmetry_of_the_crystal(name: str, target: Target) -> None:
    density = load_densities("pairs")[name]
    rotations, _, _, error = symmetry_reduce(to_convention(density, target), tolerance=1e-10)
    assert len(rotations) == len(symmetry_reduce(density)[0]) >= 24
    assert error < 1e-12


@pytest.mark.parametrize("name", [*SAMPLE, "VASP"])
def test_one_crystal_in_another_cell_or_from_another_origin_gives_the_same(name: str) -> None:
    density = read_density(VASP / "CHGCAR.NaCl.gz") if name == "VASP" else load_densities("pairs")[name]
    converted = to_convention(density, "gpaw")
    peak = float(np.abs(converted.values).max())
    shift = (3, 5, 7)
    moved = replace(
        density,
        values=np.roll(density.values, shift, (0, 1, 2)),
        positions=density.positions + np.array(shift) / density.shape,
    )
    assert np.allclose(to_convention(moved).values, np.roll(converted.values, shift, (0, 1, 2)), atol=1e-12 * peak)
    large = to_convention(supercell(density, (1, 2, 1)))
    assert np.allclose(large.values, np.tile(converted.values, (1, 2, 1)), atol=1e-12 * peak)
    cubic = to_convention(to_conventional(density))
    assert np.allclose(cubic.values, to_conventional(converted).values, atol=1e-12 * peak)


def test_what_is_in_the_convention_already_stays_as_it_is() -> None:
    density = load_densities("cubic")["NaCl_225"]
    assert is_standard(recognize(density))
    same = to_convention(density, "gpaw", smoothing=0)
    assert np.allclose(same.values, density.values, atol=1e-6 * density.values.max())
    assert "valence as it is" in same.history[-1]
    other = recognize(load_densities("pairs")["NaCl_225"])
    assert (other.electrons, other.gpaw, is_standard(other)) == ({"Na": 1, "Cl": 7}, True, False)


def test_smoothing_is_a_gaussian_and_removes_no_electrons() -> None:
    density = load_densities("cubic")["LiH_225"]
    once, twice = (to_convention(density, smoothing=s) for s in (0.3, 0.3 * 2**0.5))
    again = to_convention(once, valence=recognize(density), smoothing=0.3)
    assert np.allclose(again.values, twice.values, atol=1e-9)
    assert twice.n_electrons == pytest.approx(density.n_electrons, abs=1e-9)
    assert twice.values.std() < once.values.std() < density.values.std()


# Against other calculations


@pytest.mark.slow
def test_both_densities_of_every_pair_become_one() -> None:
    pairs = load_densities("pairs")
    assert len(pairs) == 99
    names = pairs.fastest
    converted = np.array([spectra_apart(name, "radial functions") for name in names])
    before = np.array([spectra_apart(name, "as computed") for name in names])
    assert converted.max() < 0.02
    assert np.median(converted) < 0.003
    assert before.min() > 0.2
    assert (converted < before / 10).all()


def vasp_and_gpaw(name: str, target: Target, as_is: bool) -> float:
    """Distance of VASP's density of a crystal from GPAW's, both smoothed, in the fluctuating part of the latter."""
    vasp, gpaw = read_density(VASP / f"CHGCAR.{name}.gz"), DensityStore(data_file("vasp/gpaw.h5"))[name]
    lengths, expected = (np.sort(np.linalg.norm(d.lattice, axis=1)) for d in (vasp, gpaw))
    assert np.allclose(lengths, expected, atol=1e-3)
    valence = Valence({e: target_electrons(e, target) for e in vasp.species}, False, "") if as_is else recognize(vasp)
    a, b = to_convention(vasp, target, valence), to_convention(gpaw, target)
    values = resample(a.values, b.shape)
    return float((values - b.values).std() / b.values.std())


def test_vasp_and_gpaw_agree_on_sodium_chloride_once_converted() -> None:
    assert vasp_and_gpaw("NaCl", "gpaw", as_is=True) > 0.5
    assert vasp_and_gpaw("NaCl", "gpaw", as_is=False) < 0.03
    assert vasp_and_gpaw("NaCl", "chemical", as_is=False) < 0.05
    converted = to_convention(read_density(VASP / "CHGCAR.NaCl.gz"))
    assert converted.n_electrons == pytest.approx(14, abs=1e-3)


def test_vasp_and_gpaw_agree_on_lithium_which_both_give_one_electron() -> None:
    """Its density is so flat that what is left inside the cutoff radius is a larger part of it."""
    assert recognize(read_density(VASP / "CHGCAR.Li.gz")).electrons == {"Li": 1}
    assert vasp_and_gpaw("Li", "gpaw", as_is=False) < 0.08


def with_numbers(reference: ChargeDensity, numbers: dict[str, tuple[float, float]]) -> ChargeDensity:
    """A density of GPAW as other potentials would give it: these numbers must be added to come back to it."""
    opposite = {e: (-a, -b) for e, (a, b) in numbers.items()}
    changed = to_convention(reference, smoothing=0, calibration=opposite)
    return changed.step("of other potentials", convention=None)


def test_a_calibration_finds_what_was_put_in_and_moves_no_electrons() -> None:
    reference, numbers = load_densities("cubic")["AlIr_221"], {"Ir": (0.03, -0.0006), "Al": (-0.01, 0.0003)}
    other, valence = with_numbers(reference, numbers), recognize(reference)
    assert other.n_electrons == pytest.approx(reference.n_electrons, abs=1e-9)
    assert np.abs(other.values - reference.values).max() > 1e-3 * reference.values.max()
    found = calibrate(other, reference, ["Al", "Ir"], valence)
    assert {e: pytest.approx(x, rel=1e-5) for e, x in found.items()} == numbers
    one = calibrate(other, reference, ["Ir"], valence, known={"Al": numbers["Al"]})
    assert one == {"Ir": pytest.approx(numbers["Ir"], rel=1e-5)}
    restored = to_convention(other, "gpaw", valence, smoothing=0, calibration=found)
    assert np.allclose(restored.values, reference.values, atol=1e-5 * reference.values.max())
    finer = other.step("finer", values=resample(other.values, (40, 40, 45)))
    again = calibrate(finer, reference, ["Al", "Ir"], valence)
    assert {e: pytest.approx(x, rel=1e-3) for e, x in again.items()} == numbers


def test_a_calibration_carries_over_to_another_compound() -> None:
    pairs, cubic = load_densities("pairs"), load_densities("cubic")

    def of_shells(density: ChargeDensity) -> Valence:
        return replace(recognize(density), gpaw=False)

    element, other = pairs["Ir_225"], pairs["AlIr_221"]
    numbers = calibrate(element, cubic["Ir_225"], ["Ir"], of_shells(element))
    wanted = to_convention(cubic["AlIr_221"]).values
    apart = [
        float((to_convention(other, valence=of_shells(other), calibration=c).values - wanted).std() / wanted.std())
        for c in ({}, numbers)
    ]
    assert apart[0] > 0.05
    assert apart[1] < apart[0] / 10


def test_a_calibration_brings_vasp_closer_to_gpaw() -> None:
    vasp, gpaw = read_density(VASP / "CHGCAR.NaCl.gz"), DensityStore(data_file("vasp/gpaw.h5"))["NaCl"]
    numbers, wanted = calibrate(vasp, gpaw, ["Na", "Cl"]), to_convention(gpaw).values
    converted = [resample(to_convention(vasp, calibration=c).values, gpaw.shape) for c in ({}, numbers)]
    before, after = (float((values - wanted).std() / wanted.std()) for values in converted)
    assert after < before / 2


def test_a_calibration_needs_the_same_cell_and_atoms() -> None:
    pairs, cubic = load_densities("pairs"), load_densities("cubic")
    for other in (cubic["NaBr_225"], cubic["Ir_225"], to_conventional(cubic["NaCl_225"])):
        with pytest.raises(EcdError, match="NaCl_225: is not the same cell with the same atoms"):
            calibrate(pairs["NaCl_225"], other, ["Na"])
    with pytest.raises(EcdError, match="NaCl_225: holds no K, Br"):
        calibrate(pairs["NaCl_225"], cubic["NaCl_225"], ["Na", "K", "Br"])


def test_a_calibration_is_kept_as_a_table(tmp_path: Path) -> None:
    path, valence = tmp_path / "mine.csv", Valence({"V": 5, "C": 4}, False, "")
    write_calibration(path, {"V": (5, 0.02, -0.0003, "V_229"), "Na": (1, 0.001, 0.0, "NaCl_225")})
    assert read_calibration(path, valence) == {"V": (0.02, -0.0003)}
    assert read_calibration(path, Valence({"Cl": 7}, False, "")) == {}
    with pytest.raises(EcdError, match=r"mine\.csv: calibrates V with 5 valence electrons, but the density has 11"):
        read_calibration(path, replace(valence, electrons={"V": 11}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"element,electrons\nV,5\n",
        b"element,electrons,a,b,compound\nV,five,0,0,V_229\n",
        b"element,electrons,a,b,compound\nV,5,nan,0,V_229\n",
        b"element,electrons,a,b,compound\nV,inf,0,0,V_229\n",
        bytes(range(256)),
    ],
)
def test_what_is_no_calibration(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(content)
    problem = r"is not a calibration file\. Make one with `ecd calibrate`\." if content else "the file is empty"
    with pytest.raises(EcdError, match=problem):
        read_calibration(tmp_path / "mine.csv", Valence({"V": 5}, False, ""))
    with pytest.raises(EcdError, match="is a folder"):
        read_calibration(tmp_path, Valence({"V": 5}, False, ""))


# Form factors from GPAW


@pytest.mark.slow
def test_gpaw_gives_the_form_factors_that_are_shipped(gpaw: str, tmp_path: Path) -> None:
    """Of both sets of two elements, of core shells that were made smooth, and of elements without a set.

    An element that has a set, made with a neighbour's radii as if it had none, is within 1.2 % of it, smoothed.
    """
    script = tmp_path / "probe.py"
    script.write_text(f"""
import json, runpy
own, found = runpy.run_path({str(ROOT / "data" / "make" / "gpaw_shells.py")!r}), []
for symbol, which in (("Na", ""), ("Na", "1"), ("Ir", ""), ("Ir", "9")):
    found += own["rows_of_set"](symbol, which)
for symbol in ("Tc", "Er"):
    found += own["rows_of_atom"](symbol)
made = [sum(own["smooth_shells"](s, like, wanted).values()) for s, like, wanted in (
    ("Mo", "Ru", lambda n, l: (n, l) in [(4, 0), (4, 1), (4, 2), (5, 0)]),
    ("W", "Hf", lambda n, l: (n, l) in [(5, 0), (5, 1), (5, 2), (6, 0)]),
)]
found = [(*row, list(f)) for *row, f in found]
json.dump((found, [list(f) for f in made]), open("found.json", "w"))
""")
    subprocess.run([gpaw, str(script)], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    found, made = json.loads((tmp_path / "found.json").read_text())
    for element, factor in zip(("Mo", "W"), made, strict=True):
        k, own = ROWS["wavenumbers"], form_factor(element, element)
        weights = k**2 * np.exp(-((k * SMOOTHING) ** 2))
        assert (weights * (factor - own) ** 2).sum() < 0.012**2 * (weights * own**2).sum(), element
    expected = np.isin(ROWS["element"], ["Na", "Ir", "Tc", "Er"])
    assert len(found) == expected.sum()
    for symbol, name, shell, values in found:
        assert np.allclose(values, form_factor(symbol, name, shell), atol=1e-4 * float(shell[2:])), (name, shell)


# Recognition


def test_the_valence_of_the_vasp_files_is_recognized_from_their_count() -> None:
    found = recognize(read_density(VASP / "CHGCAR.NaCl.gz"))
    assert found == Valence({"Na": 1, "Cl": 7}, False, "its number of electrons", {})
    assert str(found) == "Na 1, Cl 7"
    assert recognize(read_density(VASP / "CHGCAR.Li_spin.gz")).electrons == {"Li": 1}


def test_every_pair_is_recognized() -> None:
    pairs, cubic = load_densities("pairs"), load_densities("cubic")
    for name in pairs.names:
        found = recognize(pairs[name])
        assert found.gpaw
        assert not is_standard(found)
        assert sum(found.electrons[s] for s in pairs[name].species) == pairs.table["n_electrons"][name]
        assert is_standard(recognize(cubic[name]))


def test_a_count_that_fits_several_valences_names_them_and_one_can_be_chosen() -> None:
    with pytest.raises(EcdError, match="made up: holds 20 electrons, which fits several valences") as error:
        recognize(made_up("Ti Ni", 20))
    assert error.value.remedy == "Say which: --valence Ti=4,Ni=16 or Ti=10,Ni=10 (or put the POTCAR beside the file)."
    found = recognize(made_up("Ti Ni", 20, valence=parse_valence("Ni=10, Ti=10")))
    assert found == Valence({"Ti": 10, "Ni": 10}, False, "its POTCAR, header or --valence")


@pytest.mark.parametrize("name", ["ScNi_221", "TiOs_221", "TiNiSb_216"])
def test_a_count_that_fits_several_valences_is_decided_by_the_density(name: str) -> None:
    """Converted by the true valence it is near free atoms, by another one several times as far from them."""
    stores = load_densities("cubic"), load_densities("pairs")
    densities = [store[name] for store in stores if name in store]
    assert densities
    for density in densities:
        found = recognize(replace(density, convention=None))
        assert found.electrons == recognize(density).electrons
        if "its shape" in found.how:
            near, far = (float(x) for x in re.findall(r"([0-9.]+) %", found.how))
            assert far > 3 * near


@pytest.mark.parametrize(
    ("species", "electrons", "more", "problem"),
    [
        (
            "Na Cl",
            8,
            {"valence": {"Na": 3, "Cl": 5}},
            "valence Na=3: no set of whole shells holds that many electrons. Possible",
        ),
        (
            "Na Cl",
            8,
            {"valence": {"Na": 7, "Cl": 7}},
            "holds 8 electrons, not 14, as Na=7, Cl=7 would be. Correct",
        ),
        ("Na Cl", 8, {"valence": {"Na": 1}}, "no valence is given for Cl. Add it: --valence Na=1,Cl=N."),
        ("Fe", 2.2, {}, r"holds 2\.2 electrons, which fits no known valence \(Fe 8 or 14 or 16\). Is it a spin"),
        ("Na Cl", 9, {}, r"holds 9 electrons, which fits no known valence \(Na 1 or 7 or 9, Cl 7\)"),
        ("Na Cl", 7, {}, ".*or a charged cell"),
        ("Na Cl", 28, {}, "holds 28 electrons, all that NaCl has: an all-electron density"),
        (
            "Li H",
            4,
            {},
            r"holds 4 electrons, all that LiH has: an all-electron density, or the valence Li=3,H=1\. If it",
        ),
        ("Na Cl", 8, {"convention": "gpaw-0.9.20000"}, "holds 8 electrons, which fits no known valence .Na 7, Cl 7"),
        (
            "Na Cl",
            14,
            {"convention": "gpaw-0.9.20000", "valence": {"Na": 1, "Cl": 13}},
            "uses GPAW's sets \\(Na=7, Cl=7\\)",
        ),
        ("Na Cl", 28, {"convention": "all-electron"}, "is an all-electron density: no grid resolves its cores"),
        ("Am", 17, {}, "no valence shells are known for Am. Known: H to Pu"),
        ("Na Am", 18, {"valence": {"Na": 1, "Am": 17}}, "no valence shells are known for Am"),
        ("Na Cl", 14, {"convention": "gpaw, smoothed 0.3 Å"}, "has already been converted .*Convert the original"),
        ("", 8, {}, "has no atoms"),
    ],
)
def test_a_valence_that_cannot_be_known_is_one_line(
    species: str, electrons: float, more: dict[str, Any], problem: str
) -> None:
    for attempt in (recognize, to_convention):
        with pytest.raises(EcdError, match=f"^made up: {problem}") as error:
            attempt(made_up(species, electrons, **more))
        assert "\n" not in str(error.value)


def test_a_convention_of_gpaw_that_the_count_contradicts_is_not_believed() -> None:
    with pytest.raises(EcdError, match="made up: holds 8 electrons"):
        recognize(made_up("Na Cl", 8, convention="gpaw-0.9.20000"))


def test_a_magnetization_is_no_charge_density(tmp_path: Path) -> None:
    """The second block of a spin-polarized CHGCAR, with its sign turned where need be."""
    density = read_chgcar(VASP / "CHGCAR.Li_spin.gz")
    assert density.vasp is not None
    moment = np.abs(density.vasp.spin["diff"]) / density.volume
    spin = replace(density, values=moment * 0.4 / (moment.mean() * density.volume), vasp=None)
    with pytest.raises(EcdError, match=r"which fits no known valence.*Is it a spin"):
        recognize(spin)


def test_a_density_is_not_converted_twice(tmp_path: Path) -> None:
    once = to_convention(read_density(VASP / "CHGCAR.NaCl.gz"))
    with pytest.raises(EcdError, match="has already been converted"):
        to_convention(once)
    write_npz(once, tmp_path / "once.npz")
    with pytest.raises(EcdError, match=r"once\.npz: has already been converted"):
        recognize(read_density(tmp_path / "once.npz"))


def test_text_with_a_valence() -> None:
    assert parse_valence("Na=1, Cl = 7,") == {"Na": 1, "Cl": 7}
    assert parse_valence("") == {}
    for text in ("Na", "Na=", "=1", "Na=x", "Na=-1", "Na=1.5", "Xx=1", "Na=1;Cl=7", "garbage", "Na=1=2", "Na=\u00b2"):
        with pytest.raises(EcdError, match=r"is not element=electrons\. For example: Na=1,Cl=7"):
            parse_valence(text)
    with pytest.raises(EcdError, match=r"Na=3: no set of whole shells holds that many electrons\. Possible: 1, 7, 9\."):
        parse_valence("Na=3,Cl=7")
    with pytest.raises(EcdError, match="Am: no valence shells are known for it"):
        parse_valence("Am=9")


# What stands beside a file, or in its header


def potcar(*potentials: tuple[str, str, float]) -> str:
    """The two lines of a POTCAR that are read, of each potential (name, date, electrons)."""
    return "".join(
        f" TITEL  = PAW_PBE {name} {date}\n   POMASS =   22.990; ZVAL   = {electrons:8.3f}    mass and valenz\n"
        for name, date, electrons in potentials
    )


SODIUM_CHLORIDE = potcar(("Na_pv", "19Sep2006", 7), ("Cl", "06Sep2000", 7))


@pytest.fixture
def calculation(tmp_path: Path) -> Path:
    """A folder with the CHGCAR of a made-up TiNi of 20 electrons, whose count alone does not say the valence."""
    write_chgcar(made_up("Ti Ni", 20), tmp_path / "CHGCAR")
    return tmp_path


@pytest.mark.parametrize("name", ["POTCAR", "POTCAR.gz", "POTCAR.spec"])
def test_the_potentials_beside_a_chgcar_say_its_valence(name: str, calculation: Path) -> None:
    with pytest.raises(EcdError, match="several valences"):
        recognize(read_density(calculation / "CHGCAR"))
    text = "Ti_pv\nNi\n" if name == "POTCAR.spec" else potcar(("Ti_pv", "07Sep2000", 10), ("Ni", "02Aug2007", 10))
    (calculation / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    density = read_density(calculation / "CHGCAR")
    assert density.valence == {"Ti": 10, "Ni": 10}
    assert recognize(density).electrons == {"Ti": 10, "Ni": 10}
    turned = to_conventional(density)
    assert recognize(turned).electrons == {"Ti": 10, "Ni": 10}


def test_a_potcar_of_other_elements_is_not_used(calculation: Path) -> None:
    (calculation / "POTCAR").write_text(SODIUM_CHLORIDE)
    assert read_density(calculation / "CHGCAR").valence is None
    (calculation / "POTCAR").write_text("")
    assert read_density(calculation / "CHGCAR").valence is None
    (calculation / "POTCAR").unlink()
    assert read_potcar(calculation, ("Ti", "Ni")) is None
    (calculation / "POTCAR").write_text(SODIUM_CHLORIDE)
    assert read_potcar(calculation, ()) is None
    assert read_potcar(calculation, ("Cl", "Cl")) == {"Cl": ("PAW_PBE Cl 06Sep2000", 7)}


def test_two_potentials_of_one_element_are_refused(calculation: Path) -> None:
    mixed = potcar(("Ti_pv", "07Sep2000", 10), ("Ni", "02Aug2007", 10), ("Ti", "08Apr2002", 4))
    (calculation / "POTCAR").write_text(mixed)
    problem = r"POTCAR: has two potentials for Ti: PAW_PBE Ti_pv 07Sep2000 and PAW_PBE Ti 08Apr2002\. All atoms"
    with pytest.raises(EcdError, match=problem):
        read_density(calculation / "CHGCAR")
    again = potcar(("Ti_pv", "07Sep2000", 10), ("Ni", "02Aug2007", 10), ("Ti_pv", "07Sep2000", 10))
    (calculation / "POTCAR").write_text(again)
    assert read_density(calculation / "CHGCAR").valence == {"Ti": 10, "Ni": 10}


def test_a_density_keeps_its_potentials_and_other_codes_have_none(calculation: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    titles = {"Ti": "PAW_PBE Ti_pv 07Sep2000", "Ni": "PAW_PBE Ni 02Aug2007"}
    (calculation / "POTCAR").write_text(potcar(("Ti_pv", "07Sep2000", 10), ("Ni", "02Aug2007", 10)))
    density = to_conventional(read_density(calculation / "CHGCAR"))
    assert density.potentials == recognize(density).potentials == titles
    write_cube(density, tmp_path / "TiNi.cube")
    from_cube = replace(read_density(tmp_path / "TiNi.cube"), valence={"Ti": 10, "Ni": 10})
    assert from_cube.potentials is None
    write_chgcar(from_cube, tmp_path / "other" / "CHGCAR")  # the format alone makes no density of VASP's
    assert read_density(tmp_path / "other" / "CHGCAR").potentials is None


def test_a_potcar_of_another_calculation_does_not_fit_the_count(tmp_path: Path) -> None:
    (tmp_path / "CHGCAR.gz").write_bytes((VASP / "CHGCAR.NaCl.gz").read_bytes())
    (tmp_path / "POTCAR").write_text(SODIUM_CHLORIDE)
    with pytest.raises(
        EcdError,
        match=r"holds 8 electrons, not 14, as Na=7, Cl=7 would be\. Correct --valence, or where it is stated: a POTCAR",
    ):
        recognize(read_density(tmp_path / "CHGCAR.gz"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("POTCAR.gz", b"not compressed"),
        ("POTCAR.gz", gzip.compress(SODIUM_CHLORIDE.encode() * 200)[:-12]),
        ("POTCAR", SODIUM_CHLORIDE.replace("7.000", "7.0.0").encode()),
        ("POTCAR", ("TITEL = PAW K\n ZVAL = x\n" + potcar(("Cl", "", 7), ("Na", "", 1), ("I", "", 7))).encode()),
        ("POTCAR", bytes(range(256))),
    ],
    ids=["not compressed", "cut off", "no number", "one number less", "binary"],
)
def test_a_damaged_potcar_does_no_harm(name: str, content: bytes, tmp_path: Path) -> None:
    write_chgcar(made_up("Na Cl", 8), tmp_path / "CHGCAR")
    (tmp_path / name).write_bytes(content)
    try:
        density = read_density(tmp_path / "CHGCAR")
    except EcdError as error:
        assert "POTCAR" in str(error)  # noqa: PT017 (either answer will do)
    else:
        assert recognize(density).electrons == {"Na": 1, "Cl": 7}


def cube(folder: Path, density: ChargeDensity, *charges: str) -> ChargeDensity:
    """The density read from a cube file with these numbers behind the atomic ones."""
    write_cube(density, folder / "d.cube")
    lines = (folder / "d.cube").read_text().splitlines()
    for i, charge in enumerate(charges, 6):
        number, _, *position = lines[i].split()
        lines[i] = " ".join([number, charge, *position])
    (folder / "d.cube").write_text("\n".join(lines) + "\n")
    return read_density(folder / "d.cube")


def test_the_header_of_a_cube_may_say_the_valence(tmp_path: Path) -> None:
    alloy = made_up("Ti Ni", 20)
    assert cube(tmp_path, alloy, "4.0", "16.0").valence == {"Ti": 4, "Ni": 16}
    assert recognize(cube(tmp_path, alloy, "10.0", "10.0")).electrons == {"Ti": 10, "Ni": 10}
    for charges in (
        ("0.0", "0.0"),
        ("22.0", "28.0"),
        ("4.0", "28.0"),
        ("3.6", "16.4"),
    ):  # unknown, atomic numbers, partial
        density = cube(tmp_path, alloy, *charges)
        assert density.valence is None
        with pytest.raises(EcdError, match="several valences"):
            recognize(density)
    with pytest.raises(EcdError, match=r"d\.cube: valence Ti=5: no set of whole shells"):
        recognize(cube(tmp_path, alloy, "5.0", "15.0"))


def test_the_valence_of_hydrogen_is_its_atomic_number(tmp_path: Path) -> None:
    assert cube(tmp_path, made_up("Ti H", 13), "12.0", "1.0").valence == {"Ti": 12, "H": 1}


@pytest.mark.parametrize(("number", "charge"), [("3", "inf"), ("3", "nan"), ("0", "1.0"), ("3", "many")])
def test_a_header_that_makes_no_sense_is_refused(number: str, charge: str, tmp_path: Path) -> None:
    write_cube(made_up("Li H", 2), tmp_path / "d.cube")
    lines = (tmp_path / "d.cube").read_text().splitlines()
    lines[6] = " ".join([number, charge, *lines[6].split()[2:]])
    (tmp_path / "d.cube").write_text("\n".join(lines) + "\n")
    with pytest.raises(EcdError, match=r"d\.cube: (is not a complete cube file|unknown species X)"):
        read_density(tmp_path / "d.cube")


# On the command line


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused in one line; gives that line."""

    def run(*given: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ecd", *map(str, given)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == ""
        assert re.fullmatch(r"ecd: .+: .+\. \S.+\n", printed.err), printed.err
        return printed.err

    return run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with densities whose valence cannot be known, or not without help."""
    for name, species, electrons in (
        ("TiNi", "Ti Ni", 20),
        ("ion", "Na Cl", 9),
        ("Am", "Am", 17),
        ("all", "Na Cl", 28),
    ):
        write_npz(made_up(species, electrons), tmp_path / f"{name}.npz")
    write_npz(to_convention(read_density(VASP / "CHGCAR.NaCl.gz")), tmp_path / "converted.npz")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("TiNi", [], "fits several valences"),
        ("TiNi", ["--valence", "Ti=4,Ni=10"], "not 14, as Ti=4, Ni=10 would be"),
        ("TiNi", ["--valence", "Ti=4"], "no valence is given for Ni"),
        ("TiNi", ["--valence", "Ti=5,Ni=15"], "Ti=5: no set of whole shells holds that many electrons"),
        ("TiNi", ["--valence", "Ti:4"], "is not element=electrons"),
        ("ion", [], "fits no known valence"),
        ("Am", [], "no valence shells are known for Am"),
        ("all", [], "an all-electron density"),
        ("converted", [], "has already been converted"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "predict"])
def test_the_command_line_says_in_one_line_why_a_valence_is_not_known(
    command: str, name: str, options: list[str], problem: str, files: Path, refused: Callable[..., str]
) -> None:
    before = sorted(files.iterdir())
    source = files / f"{name}.npz"
    if command == "convert":
        said = refused("convert", source, files / "out.npz", "--convention", "chemical", *options)
    else:
        said = refused("predict", source, "--model", "fusion-lightgbm", *options)
    assert problem in said
    assert sorted(files.iterdir()) == before


def test_the_command_line_converts_with_the_valence_that_is_given(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ecd", "convert", str(files / "TiNi.npz"), str(files / "out.npz"), "--convention", "chemical"]
    monkeypatch.setattr(sys, "argv", [*command, "--valence", "Ti=4,Ni=16"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "converted to chemical, smoothed 0.3 Å: Ni 16 to 10 (known from" in capsys.readouterr().out
    written = read_density(files / "out.npz")
    assert written.n_electrons == pytest.approx(14, abs=1e-3)
    assert written.convention == "chemical, smoothed 0.3 Å"


def test_the_command_line_calibrates_and_predicts_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sets of GPAW play another code's potentials, whose radial functions are not known."""
    pairs, table = load_densities("pairs"), tmp_path / "mine.csv"
    for name in ("Ir_225", "AlIr_221"):
        write_npz(replace(pairs[name], convention=None), tmp_path / f"{name}.npz")

    def run(*given: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ecd", *map(str, given)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        assert (stop.value.code or 0, printed.err) == (0, "")
        return printed.out

    out = run("calibrate", f"{tmp_path / 'Ir_225.npz'}=Ir_225", "-o", table, "--valence", "Ir=9")
    assert f"written: {table}" in out
    assert read_calibration(table, Valence({"Ir": 9}, False, ""))["Ir"][0] == pytest.approx(0.067, abs=0.002)

    def predicted(source: object, *options: object) -> tuple[float, float, str]:
        first = json.loads(run("predict", source, "--json", *options))[0]
        return first["value"], first["conversion_std"], first["conversion"]

    own, *_ = predicted("AlIr_221")
    rough, rough_std, _ = predicted(tmp_path / "AlIr_221.npz", "--valence", "Al=3,Ir=9")
    value, std, text = predicted(tmp_path / "AlIr_221.npz", "--valence", "Al=3,Ir=9", "--calibration", table)
    assert abs(value - own) < abs(rough - own)
    assert 0 < std < rough_std
    assert text.endswith("; calibrated: Ir; by whole shells: Al")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["{Ir}"], "is not FILE=NAME"),
        (["{Ir}=NaCl_225"], "is not the same cell with the same atoms"),
        (["{Ir}=Xy9_225"], "no such file|no bundled density of that name"),
        (["nowhere=Ir_225"], "no such file"),
        (["{Ir}=Ir_225", "--valence", "Ir=3"], "Ir=3: no set of whole shells"),
        (["{Ir}=Ir_225", "{Ir}=Ir_225"], "already calibrated"),
        (["{Ir}={Ir}"], "bundled|our recipe|convention"),
    ],
)
def test_calibrations_that_cannot_be_made(
    given: list[str], problem: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "Ir.npz"
    write_npz(replace(load_densities("pairs")["Ir_225"], convention=None), path)
    assert re.search(problem, refused("calibrate", *(g.format(Ir=path) for g in given), "-o", tmp_path / "out.csv"))
    assert list(tmp_path.iterdir()) == [path]
    assert "It must end in .csv." in refused("calibrate", f"{path}=Ir_225", "-o", tmp_path / "out.txt")


def test_a_calibration_of_other_potentials_is_not_for_densities_of_gpaw(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Even if their valence is the same."""
    density, predictors = load_densities("cubic")["AlIr_221"], load_predictors()
    write_calibration(tmp_path / "mine.csv", {"Ir": (15, 0.05, -0.001, "Ir_225")})
    plain, calibrated = (predict(density, predictors, c)[0] for c in (None, tmp_path / "mine.csv"))
    assert (calibrated["value"], calibrated["conversion"]) == (plain["value"], plain["conversion"])
