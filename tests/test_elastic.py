"""Elastic constants: the way from known constants to energies and back, averages, symmetry, and each way to fail."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
from ase.units import GPa
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.elasticity import ElasticTensor
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.groups import PointGroup, SpaceGroup

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT
from ecdlib.data.tables import load_structures
from ecdlib.density.store import load_densities
from ecdlib.elastic.strain import (
    COMPONENTS,
    DEFORMATIONS,
    MODES,
    CubicConstants,
    cubic_constants,
    cubic_strains,
    general_strains,
    independent_constants,
    independent_deformations,
    load_strains,
    spacegroup_constants,
    strain_energies,
    strained_cell,
    voigt_reuss_hill,
)

#: The script that made the bundled calculations.
maker = run_path(str(ROOT / "data/make/elastic_strains.py"))
REPEATS, STRAINS, orthogonal_cell, primitive_cell, run_strains = (
    maker[name] for name in ("REPEATS", "STRAINS", "orthogonal_cell", "primitive_cell", "run_strains")
)

ROCKSALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.0), ["Li", "H"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.0), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
BCC = Structure.from_spacegroup("Im-3m", Lattice.cubic(3.3), ["Nb"], [[0, 0, 0]])
ZINCBLENDE = Structure.from_spacegroup("F-43m", Lattice.cubic(5.4), ["Zn", "S"], [[0, 0, 0], [0.25] * 3])
HEXAGONAL = Structure(Lattice.hexagonal(3.2, 5.2), ["Mg", "Mg"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])

constant = st.floats(20, 400)


def energy(C: np.ndarray[Any, Any], F: np.ndarray[Any, Any], volume: float) -> np.ndarray[Any, Any]:
    """½ V εCε in eV, ε = F - 1 in Voigt's order with engineering shears: F is symmetric."""
    e = F - np.eye(3)
    voigt = np.stack([*(e[..., i, i] for i in range(3)), 2 * e[..., 1, 2], 2 * e[..., 0, 2], 2 * e[..., 0, 1]], axis=-1)
    return 0.5 * volume * GPa * np.einsum("...i,ij,...j", voigt, C, voigt)


@given(shear=constant, difference=constant, bulk=constant, volume=st.floats(10, 500), pressure=st.floats(-5, 5))
def test_known_constants_come_back(shear: float, difference: float, bulk: float, volume: float, pressure: float):
    known = CubicConstants(bulk + 2 * difference / 3, bulk - difference / 3, shear, pressure, {})
    d = np.linspace(-1e-3, 1e-3, 7)
    energies = {
        mode: -50
        - pressure * GPa * volume * (np.linalg.det(F) - 1)
        + energy(known.stiffness, F if mode != "volume" else np.eye(3) * (1 + d)[:, None, None], volume)
        for mode in MODES
        for F in [cubic_strains(mode, d)]
    }
    for degree in (2, 4):
        found = cubic_constants(d, energies, volume, degree)
        expected = [known.c11, known.c12, known.c44, pressure, known.zener]
        assert np.allclose(
            [found.c11, found.c12, found.c44, found.pressure, found.zener], expected, rtol=2e-3, atol=0.05
        )
        assert max(found.residual.values()) < 1e-4


def test_residual_is_the_noise_that_the_polynomial_leaves():
    noise = np.array([1.0, -1, 1, -1, 1, -1, 1]) * 1e-3
    energies = dict.fromkeys(MODES, np.array(STRAINS) ** 2) | {"shear": np.array(STRAINS) ** 2 + noise}
    found = cubic_constants(STRAINS, energies, 50.0)
    assert found.residual["volume"] < 1e-12
    assert found.residual["shear"] == pytest.approx(9.2e-4, rel=0.1)


def test_two_deformations_keep_the_volume_and_all_keep_the_orthogonal_cell():
    d = np.linspace(-0.1, 0.1, 9)
    assert np.allclose(np.linalg.det(cubic_strains("tetragonal", d)), 1)
    assert np.allclose(np.linalg.det(cubic_strains("shear", d)), 1)
    assert np.allclose(np.linalg.det(cubic_strains("volume", d)), 1 + 3 * d)
    for structure, atoms in ((ROCKSALT, 4), (CSCL, 4), (BCC, 4)):
        cell = orthogonal_cell(structure)
        assert len(cell) == atoms
        assert cell.density == pytest.approx(structure.density)
        shells = [np.sort([n.nn_distance for n in c.get_neighbors(c[0], 5.0)]) for c in (cell, structure)]
        assert np.allclose(*shells)
        for mode in MODES:
            strained = strained_cell(cell.lattice.matrix, mode, d)
            products = strained @ np.swapaxes(strained, 1, 2)
            assert strained.shape == (9, 3, 3)
            assert np.allclose(products * (1 - np.eye(3)), 0, atol=1e-9)


def stable(seed: int, n: int = 1) -> np.ndarray[Any, Any]:
    """Random stiffnesses that are symmetric and positive definite, (n, 6, 6), GPa."""
    a = np.random.default_rng(seed).normal(size=(n, 6, 6))
    return 30 * a @ np.swapaxes(a, 1, 2) + 40 * np.eye(6)


@pytest.mark.parametrize("seed", range(3))
def test_averages_against_pymatgen(seed: int):
    C = stable(seed, 4)
    found = voigt_reuss_hill(C)
    for i, matrix in enumerate(C):
        other = ElasticTensor.from_voigt(matrix)
        pairs = {
            "K_voigt": other.k_voigt,
            "K_reuss": other.k_reuss,
            "K": other.k_vrh,
            "G_voigt": other.g_voigt,
            "G_reuss": other.g_reuss,
            "G": other.g_vrh,
            "nu": other.homogeneous_poisson,
            "E": other.y_mod / 1e9,
        }
        assert set(pairs) == set(found)
        for name, value in pairs.items():
            assert found[name][i] == pytest.approx(value, rel=1e-9), name
        assert found["K_voigt"][i] >= found["K_reuss"][i]
        assert found["G_voigt"][i] >= found["G_reuss"][i]


@given(bulk=constant, shear=constant)
def test_an_isotropic_crystal_has_no_bounds_apart(bulk: float, shear: float):
    crystal = CubicConstants(bulk + 4 * shear / 3, bulk - 2 * shear / 3, shear, 0.0, {})
    found = voigt_reuss_hill(crystal.stiffness)
    assert crystal.zener == pytest.approx(1)
    assert [found["K_voigt"], found["K_reuss"]] == pytest.approx([bulk, bulk])
    assert [found["G_voigt"], found["G_reuss"]] == pytest.approx([shear, shear])


def test_constants_of_each_point_group():
    systems = {(1, 2): {21}, (3, 15): {13}, (16, 74): {9}, (75, 142): {6, 7}, (143, 167): {6, 7}, (168, 194): {5}}
    systems[195, 230] = {3}
    for (first, last), counts in systems.items():
        assert {spacegroup_constants(n) for n in range(first, last + 1)} == counts


def test_the_21_deformations_determine_any_stiffness():
    assert len(DEFORMATIONS) == spacegroup_constants(2) == 21
    volume, d = 42.0, 0.01
    for C in stable(3, 3):
        second = {m: 2 * float(energy(C, general_strains(m, d), volume)) / (volume * GPa * d**2) for m in DEFORMATIONS}
        found = np.diag([second[m] for m in COMPONENTS])
        for mode in DEFORMATIONS[6:]:
            i, j = (COMPONENTS.index(component) for component in mode.split("+"))
            found[i, j] = found[j, i] = (second[mode] - found[i, i] - found[j, j]) / 2
        assert np.allclose(found, C)


@pytest.mark.parametrize("number", [1, 2, 3, 8, 14, 62, 88, 139, 205, 225])
def test_as_many_deformations_as_constants_and_they_determine_all(number: int):
    group = SpaceGroup.from_int_number(number)
    R = np.array([o.rotation_matrix for o in PointGroup(group.point_group).symmetry_ops])  # axes at right angles
    modes = independent_deformations(R)
    assert len(set(modes)) == spacegroup_constants(number)
    # A stiffness with the crystal's symmetry and no energy in these deformations has none in any.
    e = {m: general_strains(m, 1e-3) - np.eye(3) for m in DEFORMATIONS}
    turned = {m: R @ x @ np.swapaxes(R, 1, 2) for m, x in e.items()}
    parts = {m: np.einsum("nij,nkl->ijkl", x, x).ravel() for m, x in turned.items()}
    basis = np.array([parts[m] for m in modes]).T
    for mode in DEFORMATIONS:
        rest = parts[mode] - basis @ np.linalg.lstsq(basis, parts[mode], rcond=None)[0]
        assert abs(rest).max() < 1e-9 * abs(parts[mode]).max()


def test_small_strains_of_both_kinds_agree():
    cell = np.diag([3.0, 4.0, 5.0])
    d = 1e-6
    assert np.allclose(strained_cell(cell, "xy", 2 * d), strained_cell(cell, "shear", d), atol=1e-10)
    assert np.linalg.det(general_strains("xx+yy", d)) == pytest.approx(1 + 2 * d)
    assert np.linalg.det(general_strains("yz+xz", d)) == pytest.approx(1)


def calculated(**changes: Any) -> dict[str, Any]:
    """A record as the script writes it, of a crystal that does not exist."""
    calculations = [{"mode": "none", "strain": 0.0, "energy": -1.0}]
    calculations += [{"mode": m, "strain": d, "energy": -1.0 + d * d} for m in MODES for d in STRAINS if d]
    return {"settings": {"crystal": "Xx_225", "strains": [*STRAINS]}, "calculations": calculations} | changes


def test_energies_of_a_record_share_the_unstrained_cell():
    strains, energies = strain_energies(calculated())
    assert [*strains] == [*STRAINS]
    assert all(np.allclose(energies[mode], -1 + strains**2) for mode in MODES)


#: A mirror and its product with the inversion, in axes that are not at right angles.
SHEARED = [np.array([[1, 1, 0], [0, -1, 0], [0, 0, 1]]), -np.array([[1, 1, 0], [0, -1, 0], [0, 0, 1]])]

FAILURES = {
    "mode": (lambda: cubic_strains("twist", 0.1), "twist"),  # type: ignore[arg-type]
    "inside out": (lambda: cubic_strains("volume", -0.4), "strain"),
    "no strain": (lambda: cubic_strains("shear", np.nan), "strain"),
    "component": (lambda: general_strains("xw", 0.1), "xw"),
    "too much": (lambda: general_strains("xx", [0.0, np.nan]), "strain"),
    "crystal axes": (lambda: independent_deformations([np.eye(3), -np.eye(3), *SHEARED]), "Cartesian"),
    "flat cell": (lambda: strained_cell(np.ones((3, 3)), "shear", 0.1), "cell"),
    "missing": (lambda: cubic_constants(STRAINS, {"shear": STRAINS}, 1.0), "volume, tetragonal"),
    "shapes": (lambda: cubic_constants(STRAINS, dict.fromkeys(MODES, np.ones(1)), 1.0), "energies"),
    "infinite": (lambda: cubic_constants([0, 1, np.inf], dict.fromkeys(MODES, np.ones(3)), 1.0), "finite"),
    "volume": (lambda: cubic_constants(STRAINS, dict.fromkeys(MODES, STRAINS), 0.0), "volume"),
    "degree": (lambda: cubic_constants([0, 0.1], dict.fromkeys(MODES, np.ones(2)), 1.0), "degree"),
    "no matrix": (lambda: voigt_reuss_hill(np.eye(3)), "6 × 6"),
    "not finite": (lambda: voigt_reuss_hill(np.full((6, 6), np.nan)), "6 × 6"),
    "unstable": (lambda: voigt_reuss_hill(-np.eye(6)), "positive definite"),
    "not symmetric": (lambda: voigt_reuss_hill(np.eye(6) + np.eye(6, k=1) / 2), "symmetric"),
    "rotations": (lambda: independent_constants(np.eye(3)), "rotations"),
    "no group": (lambda: independent_constants([np.eye(3), np.eye(3)[[1, 0, 2]], np.eye(3)[[2, 1, 0]]]), "group"),
    "space group": (lambda: spacegroup_constants(231), "231"),
    "hexagonal": (lambda: orthogonal_cell(HEXAGONAL), "not cubic"),
    "free atoms": (lambda: orthogonal_cell(ZINCBLENDE), "inversion"),
    "unfinished": (lambda: strain_energies(calculated(calculations=[])), "Finish it"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_bad_input_is_explained(case: str):
    call, word = FAILURES[case]
    with pytest.raises(EcdError, match=word):
        call()


FAKE = """#!/bin/sh
if [ "$1" = -c ]; then exit 0; fi
echo x >> {log}
if grep -q poscar "$2"; then more=', "gpaw": "0", "setups": "gpaw-0"'; fi
echo '{{"done": {{"energy": -1.5, "start_seconds": 0.1, "cpu_seconds": 0.2'"$more"'}}}}'
"""


def test_a_run_is_resumed_and_not_mixed_with_another(tmp_path: Path):
    python, log, out = tmp_path / "python", tmp_path / "log", tmp_path / "LiH.json"
    python.write_text(FAKE.format(log=log))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    said: list[str] = []
    total = REPEATS + 1 + 3 * 6

    def stop(line: str) -> None:
        said.append(line)
        if len(said) == total - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_strains(ROCKSALT, "LiH", out, python=str(python), progress=stop)
    with pytest.raises(EcdError, match="interrupted run with other parameters"):
        run_strains(ROCKSALT, "LiH", out, strains=(-0.01, 0, 0.01), python=str(python))
    run_strains(ROCKSALT, "LiH", out, python=str(python), progress=said.append)
    record = json.loads(out.read_text())
    assert len(record["calculations"]) == len(said) == len(log.read_text().split()) == total
    assert record["provenance"]["gpaw"] == "0"
    assert {name.name for name in tmp_path.iterdir()} == {"python", "log", "LiH.json"}
    strains, energies = strain_energies(record)
    assert energies["volume"].shape == strains.shape == (7,)
    nickel = ROCKSALT.copy()
    nickel.replace_species({"H": "Ni"})
    with pytest.raises(EcdError, match="spin-polarized"):
        run_strains(nickel, "LiNi", tmp_path / "new.json", python=str(python))


def test_the_grid_carries_the_cutoff_at_the_largest_stretch():
    cell = orthogonal_cell(ROCKSALT)
    spacing = np.array(cell.lattice.abc) * 1.015 / maker["_grid"](cell.lattice.abc, 0.015)
    assert (spacing < 0.2045).all()  # GPAW's spacing for 450 eV, Å


FAKE_RELAXED = """#!/bin/sh
if [ "$1" = -c ]; then exit 0; fi
cat "$2" >> {log}; echo >> {log}
if grep -q poscar "$2"; then more=', "gpaw": "0", "setups": "gpaw-0"'; fi
if grep -q fmax "$2"; then more=', "positions": [[0.1, 0, 0], [0.4, 0.5, 0.5]]'; fi
echo '{{"done": {{"energy": -1.5, "start_seconds": 0.1, "cpu_seconds": 0.2'"$more"'}}}}'
"""


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")  # of spglib
def test_a_crystal_that_is_not_cubic_is_strained_in_its_primitive_cell_and_relaxed(tmp_path: Path):
    python, log, out = tmp_path / "python", tmp_path / "log", tmp_path / "LiH.json"
    python.write_text(FAKE_RELAXED.format(log=log))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    triclinic = Structure(Lattice.from_parameters(3, 4, 5, 80, 85, 95), ["Li", "H"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    run_strains(triclinic, "LiH", out, python=str(python), progress=lambda line: None)
    record = json.loads(out.read_text())
    modes = [c["mode"] for c in record["calculations"]]
    assert sorted(modes) == sorted(["none", *["density"] * 3, *COMPONENTS])
    assert abs(np.linalg.det(record["settings"]["cell"])) == pytest.approx(triclinic.volume)
    tasks = [json.loads(line) for line in log.read_text().splitlines()]
    strained = [t for t in tasks if "fmax" not in t and "cell" in t]
    assert all(t["positions"] == record["settings"]["positions"] for t in strained)  # held fixed
    first, second = (t for t in tasks if "fmax" in t)
    assert first["cell"] == record["settings"]["cell"]
    assert first["positions"] == record["settings"]["positions"]
    assert second["positions"] == record["relaxations"][0]["positions"] == [[0.1, 0, 0], [0.4, 0.5, 0.5]]
    assert np.allclose(second["cell"], strained_cell(first["cell"], "zz", 0.01))


def test_the_bundled_crystal_of_low_symmetry():
    record = load_strains("LiN3_12")
    settings, name = record["settings"], record["settings"]["crystal"]
    store = load_densities("general").table
    assert "uncommitted" not in record["provenance"]["commit"]
    assert spacegroup_constants(store.loc[name, "spacegroup"]) == 13
    assert store[store["spacegroup"] < 16]["n_electrons"].idxmin() == name
    volume = abs(np.linalg.det(settings["cell"]))
    assert volume == pytest.approx(store.loc[name, "volume"], rel=1e-6)
    assert volume / len(settings["symbols"]) == pytest.approx(
        load_structures()[name].volume / len(load_structures()[name]), rel=1e-6
    )
    energies = {(c["mode"], c["strain"]): c["energy"] for c in record["calculations"]}
    density = [c for c in record["calculations"] if c["mode"] == "density"]
    # The unstrained cell is that of the density, and so is its energy.
    for c in density:
        assert c["energy"] == pytest.approx(energies["none", 0.0], abs=1e-4)
    assert store.loc[name, "energy"] == pytest.approx(energies["none", 0.0], abs=1e-4)
    counts = {c["mode"]: c.get("irreducible_kpoints") for c in record["calculations"]}
    assert counts["none"] == counts["xx"] == counts["yy"] == counts["zz"] == counts["xz"] < counts["yz"] == counts["xy"]
    # Atoms that move gain energy, and from the same place as those that were held.
    assert [r["mode"] for r in record["relaxations"]] == ["none", "zz"]
    for r in record["relaxations"]:
        assert r["energy"] < r["unrelaxed"]
        assert r["largest_force"] > settings["fmax"]
        assert r["cpu_seconds"] > r["first_seconds"] > r["start_seconds"]
        assert np.allclose(np.array(r["positions"])[1:3, 0], np.array(r["positions"])[1:3, 1], atol=1e-4)  # the axis
    assert record["relaxations"][0]["unrelaxed"] == pytest.approx(energies["none", 0.0], abs=1e-5)
