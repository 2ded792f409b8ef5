"""One crystal: each format, what is wrong with some, what is odd about others, and its density on the command line."""

from __future__ import annotations

import gzip
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure

from ecdlib import cli
from ecdlib.base.errors import EcdError
from ecdlib.data.structures import parse_structure, read_structure, structure_warnings
from ecdlib.data.tables import load_structures
from ecdlib.density import charge3net
from ecdlib.density.io import read_density
from ecdlib.density.superpose import superpose


def salt(*species: Any, a: float = 4.0) -> Structure:
    return Structure(Lattice.cubic(a), species or ("Na", "Cl"), [[0, 0, 0], [0.5, 0.5, 0.5]])


CIF, POSCAR, JSON = salt().to(fmt="cif"), salt().to(fmt="poscar"), salt().to_json()


@pytest.mark.parametrize("text", [CIF, POSCAR, JSON, POSCAR.replace("Na1 Cl1", "", 1), "# a remark\n" + CIF])
def test_formats_are_told_from_the_text(text: str) -> None:
    structure = parse_structure(text)
    assert [site.specie.symbol for site in structure] == ["Na", "Cl"]
    assert structure.volume == pytest.approx(64)


@pytest.mark.parametrize("fmt", ["cif", "json"])
def test_oxidation_states_are_dropped(fmt: str) -> None:
    charged = salt()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert [str(site.specie) for site in parse_structure(charged.to(fmt=fmt))] == ["Na", "Cl"]


BAD = {
    "truncated in an atom": (CIF[:-60], "not a complete CIF"),
    "truncated after an atom": (CIF[: CIF.index("  Cl  Cl1")], "not those of its formula"),
    "truncated before the atoms": (CIF[:200], "not a complete CIF"),
    "NaN in CIF": (CIF.replace("0.50000000", "nan", 1), "not a complete CIF"),
    "NaN in POSCAR": (POSCAR.replace("0.5000000000000000", "nan", 1), "not finite"),
    "NaN in JSON": (JSON.replace("0.5", "NaN", 1), "not finite"),
    "two elements on a site": (salt({"Na": 0.5, "K": 0.5}, "Cl").to(fmt="cif"), "is disordered"),
    "site in part empty": (salt({"Na": 0.5}, "Cl").to(fmt="cif"), "is disordered"),
    "flat POSCAR": (re.sub(r"4\.0+", "0.0", POSCAR, count=1), "span no volume"),
    "flat JSON": (JSON.replace("[0.0, 0.0, 4.0]", "[0.0, 4.0, 0.0]"), "span no volume"),
    "thin cell": (JSON.replace("[0.0, 0.0, 4.0]", "[0.0, 400.0, 0.01]"), "span no volume"),
    "flat CIF": (CIF.replace("90.0", "0.0"), "not a complete CIF"),
    "no element": (salt("X", "Cl").to(fmt="cif"), "not an element"),
    "overlap": (JSON.replace("0.5", "0.01"), "0.07 Å apart"),
    "no elements named": ("x\n1.0\n4 0 0\n0 4 0\n0 0 4\n1 1\ndirect\n0 0 0\n.5 .5 .5\n", "names no elements"),
    "empty": ("", "not a complete CIF"),
    "prose": ("hello", "not a complete CIF"),
    "other JSON": ('{"a": 1}', "not a complete CIF"),
    "half JSON": (JSON[:80], "not a complete CIF"),
    "deep JSON": ('{"a":' * 100_000, "too deeply"),
    "two crystals": (CIF + CIF.replace("data_", "data_x"), "holds 2 crystals"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_crystals(case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        parse_structure(text)
    assert "\n" not in str(error.value)


def test_json_executes_nothing(tmp_path: Path) -> None:
    data = salt().as_dict()
    target = tmp_path / "made"
    evil = {"@module": "os", "@class": "mkdir", "@callable": "mkdir", "path": str(target)}
    data["properties"] = evil
    data["sites"][0]["properties"] = {"magmom": evil}
    data["lattice"] |= {"@module": "no_such_module", "@class": "Lattice"}
    assert parse_structure(json.dumps(data)).formula == "Na1 Cl1"
    assert not target.exists()
    assert "no_such_module" not in sys.modules


# From whatever holds one


def test_every_kind_of_source_gives_the_same_crystal(tmp_path: Path) -> None:
    crystal, atoms = salt(), Atoms("NaCl", cell=4 * np.eye(3), scaled_positions=[[0, 0, 0], [0.5] * 3], pbc=True)
    for name, text in (("a.cif", CIF), ("POSCAR", POSCAR), ("b.json", JSON), ("cif.txt", CIF), ("some", POSCAR)):
        (tmp_path / name).write_text(text)
    (tmp_path / "c.cif.gz").write_bytes(gzip.compress(CIF.encode()))
    crystal.to(str(tmp_path / "d.xsf"))  # pymatgen reads it
    for name in ("e.xyz", "f.traj", "g.res"):  # ASE does
        ase.io.write(tmp_path / name, atoms)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for source in (*files, *map(str, files), crystal, atoms):
        structure = read_structure(source)
        assert [site.specie.symbol for site in structure] == ["Na", "Cl"], source
        assert np.allclose(structure.distance_matrix, crystal.distance_matrix, atol=1e-5), source
        assert structure_warnings(structure) == []
    assert read_structure("NaCl_225") == load_structures()["NaCl_225"]


def test_charges_and_isotopes_are_those_of_the_element() -> None:
    charged = salt("D+", "Cl-", a=5)
    assert [site.specie.symbol for site in read_structure(charged)] == ["H", "Cl"]


NOTHING: list[Any] = []
BAD_SOURCES: dict[str, tuple[Any, str]] = {
    "part empty": (salt({"Na": 0.5}, "Cl"), "Structure: is disordered (sites occupied partly or by several elements)"),
    "mixed": (salt({"Na": 0.5, "K": 0.5}, "Cl"), "Structure: is disordered"),
    "overlap": (salt(a=0.4), "Structure: has atoms only 0.35 Å apart"),
    "no atoms": (Structure(4 * np.eye(3), NOTHING, NOTHING), "Structure: holds no atoms"),
    "no element": (salt("X", "Cl"), "Structure: holds something that is not an element"),
    "no element of ASE": (Atoms("X", cell=4 * np.eye(3), pbc=True), "Atoms: holds something that is not an element"),
    "no cell": (Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]]), "Atoms: its cell vectors span no volume"),
    "10,000 atoms": (
        Structure(80 * np.eye(3), ["Cu"] * 10648, np.indices((22, 22, 22)).reshape(3, -1).T / 22),
        "Structure: has 10,648 atoms; the limit is 2,000. Give its primitive cell.",
    ),
    "no name": ("NaCl_999", "NaCl_999: no such file, and no labelled crystal of that name."),
    "no structure": (3.5, "float: is neither a structure nor the name of one"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_what_is_no_crystal_is_refused_in_one_line(case: str) -> None:
    source, message = BAD_SOURCES[case]
    with pytest.raises(EcdError, match=re.escape(message)) as error:
        read_structure(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.cif", "POSCAR", "x.xyz", "x", "x.traj", "x.json"])
@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256)) * 40])
def test_files_that_hold_no_crystal(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EcdError, match=re.escape(str(tmp_path / name))) as error:
        read_structure(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(EcdError, match="is a folder"):
        read_structure(tmp_path)


# What is odd


def test_vacuum_is_noticed_and_a_layered_crystal_is_none() -> None:
    graphene = Structure(Lattice.hexagonal(2.46, 15), ["C", "C"], [[1 / 3, 2 / 3, 0.02], [2 / 3, 1 / 3, 0.02]])
    assert structure_warnings(graphene) == [
        "looks like a slab (vacuum of 15 Å along c): the models know only bulk crystals"
    ]
    tube = Structure(np.diag([3.0, 12, 12]), ["C", "C"], [[0, 0.5, 0.5], [0.5, 0.55, 0.5]])
    assert structure_warnings(tube)[0].startswith("looks like a wire (vacuum of 11 Å along b, 12 Å along c)")
    water = Structure(10 * np.eye(3), ["O", "H", "H"], [[0, 0, 0], [0.076, 0.059, 0], [-0.076, 0.059, 0]])
    assert structure_warnings(water)[0].startswith("looks like a molecule in a box")
    layers = [[0, 0, 0.25], [1 / 3, 2 / 3, 0.25], [0, 0, 0.75], [2 / 3, 1 / 3, 0.75]]
    graphite = Structure(Lattice.hexagonal(2.46, 6.7), ["C"] * 4, layers)
    for bulk in (graphite, salt(a=4.1), load_structures()["Fe3SnC_221"]):
        assert structure_warnings(bulk) == []


def test_atoms_too_near_each_other_are_noticed() -> None:
    (said,) = structure_warnings(salt("Na", "Na", a=2))
    assert said == "has atoms suspiciously close to each other (Na-Na 1.73 Å)"


def test_no_labelled_crystal_is_odd() -> None:
    structures = load_structures()
    assert not [name for name in list(structures)[:6059:50] if structure_warnings(structures[name])]


# On the command line


@pytest.fixture
def ecd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*given: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ecd", *map(str, given)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.parametrize("name", ["d.npz", "d.cube", "CHGCAR"])
def test_a_superposed_density_is_written_and_known_for_one(name: str, tmp_path: Path, ecd: Callable[..., Any]) -> None:
    code, out, err = ecd("density", "LiH_225", "--convention", "chemical", "-o", tmp_path / name)
    assert (code, err) == (0, "")
    assert "8.000 electrons" in out
    expected, density = superpose(load_structures()["LiH_225"], "chemical"), read_density(tmp_path / name)
    assert np.allclose(density.values, expected.values, atol=1e-5 * expected.values.max())
    assert density.convention == expected.convention
    code, out, err = ecd("predict", tmp_path / name)
    assert code == 0
    assert "superposed atoms say no more than the structure" in out
    code, out, err = ecd("predict", tmp_path / name, "--model", "density-gpr-portable")
    assert code == 2
    assert "converted" in err


def test_a_slab_is_answered_with_a_warning(tmp_path: Path, ecd: Callable[..., Any]) -> None:
    Structure(np.diag([2.5, 2.5, 20]), ["C"], [[0, 0, 0]]).to(str(tmp_path / "slab.cif"))
    code, out, err = ecd("density", tmp_path / "slab.cif", "-o", tmp_path / "d.npz")
    assert code == 0
    assert "4.000 electrons" in out
    assert re.fullmatch(r"warning: \S+slab\.cif looks like a slab \(vacuum of 20 Å along c\): .*\n", err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing.cif"], "nothing.cif: no such file, and no labelled crystal of that name."),
        (["LiH_225", "--set", "Li=1"], "--set: applies only to a calculation. Add: --with gpaw"),
        (["LiH_225", "--python", "p"], "--python: applies only to a calculation. Add: --with gpaw"),
        (
            ["LiH_225", "--with", "gpaw", "--convention", "chemical"],
            "--convention: applies only to superposed atoms. Convert",
        ),
        (["LiH_225", "-o", "d.h5"], "d.h5: is the name of a store"),
    ],
)
def test_what_cannot_be_asked_for(options: list[str], message: str, ecd: Callable[..., Any]) -> None:
    code, out, err = ecd("density", *options)
    assert (code, out) == (2, "")
    assert err.startswith(f"ecd: {message}")
    assert err.count("\n") == 1


def test_a_network_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, ecd: Callable[..., Any]) -> None:
    monkeypatch.setattr(charge3net, "REQUIRES", ("no_such_package",))
    code, out, err = ecd("density", "LiH_225", "--with", "charge3net")
    assert (code, out) == (2, "")
    assert err == 'ecd: charge3net: needs no_such_package. pip install "ecdlib[charge3net]"\n'


def test_json_and_yaml_cannot_name_code_that_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("open('called', 'w')\nclass Evil:\n    def __init__(self, **_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    salt = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    found = json.loads(salt.to_json())
    found["sites"][0]["properties"] = {"x": {"@module": "evil", "@class": "Evil"}}
    (tmp_path / "salt.json").write_text(json.dumps(found))
    (tmp_path / "salt.yaml").write_text(json.dumps(found))
    assert read_structure(tmp_path / "salt.json") == salt
    with pytest.raises(EcdError, match="is YAML, which is not read"):
        read_structure(tmp_path / "salt.yaml")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    "text",
    [
        "x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n300000000\nDirect\n0 0 0\n",
        "x\n1\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n1\nDirect\n0 0 0\n",
        "\n" * 40_000,
        "x\n1\n1e9 0 0\n0 1e9 0\n0 0 1e9\nNa\n1\nDirect\n0 0 0\n",
    ],
)
def test_what_takes_too_long_or_too_much_is_refused_at_once(text: str) -> None:
    """40,000 empty lines took 42 s, an absurd cell all memory."""
    started = time.process_time()
    with pytest.raises(ValueError, match=r"\w"):
        parse_structure(text)
    assert time.process_time() - started < 2
