"""ecd density --with gpaw: a real calculation, against the bundled density of the crystal, and each way to fail."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Structure

from ecdlib import cli
from ecdlib.base.errors import EcdError
from ecdlib.data.structures import parse_structure
from ecdlib.density.io import read_density
from ecdlib.density.store import load_densities
from ecdlib.density.valence import Valence, recognize
from ecdlib.dft import compute, gpaw_script
from ecdlib.dft.compute import compute_density

A = 4.018125  # Å, as the bundled LiH_225
LIH = f"""LiH, conventional cell
{A}
1 0 0
0 1 0
0 0 1
Li H
4 4
Direct
0 0 0
0 .5 .5
.5 0 .5
.5 .5 0
.5 .5 .5
.5 0 0
0 .5 0
0 0 .5
"""


def poscar(folder: Path, text: str) -> Path:
    path = folder / "POSCAR"
    path.write_text(text)
    return path


def one_atom(symbol: str, a: float) -> str:
    return f"{symbol}\n{a}\n-.5 .5 .5\n.5 -.5 .5\n.5 .5 -.5\n{symbol}\n1\nDirect\n0 0 0\n"


def fake_python(folder: Path, body: str) -> Path:
    """An interpreter that can import everything and then does ``body`` (a shell script) instead of the script."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then exit 0; fi\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.slow
def test_density_is_the_bundled_one(gpaw: str, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "results" / "LiH.npz"
    density = compute_density(parse_structure(LIH), out, python=gpaw, progress=said.append)
    assert density.n_electrons == pytest.approx(2, abs=1e-4)
    assert sorted(density.species) == ["H", "Li"]  # the primitive cell
    assert density.name == "LiH_225"
    assert len(density.history) == 1
    assert density.history[0].startswith("GPAW ")
    assert "450 eV" in density.history[0]
    assert said[0] == "iteration 1 of at most 120"
    assert len(said) > 5
    np.testing.assert_allclose(density.values, density.values.transpose(1, 2, 0), atol=1e-5)  # threefold axis
    np.testing.assert_allclose(density.values, density.values.transpose(1, 0, 2), atol=1e-5)  # mirror

    bundled = load_densities("cubic")["LiH_225"]
    if density.convention == bundled.convention:  # the same PAW sets
        assert density.shape == bundled.shape
        np.testing.assert_allclose(density.lattice, bundled.lattice, atol=1e-6)
        np.testing.assert_allclose(density.values, bundled.values, atol=1e-4 * bundled.values.max())
    assert (density.convention or "").startswith("gpaw")

    again = read_density(out)
    np.testing.assert_array_equal(again.values, density.values)
    assert again.convention == density.convention
    assert os.listdir(out.parent) == ["LiH.npz"]
    with np.load(out) as npz:
        assert npz["n_electrons"] == 2
        assert npz["spacegroup"] == 225
        assert npz["energy"] == pytest.approx(load_densities("cubic").table.loc["LiH_225", "energy"], abs=1e-3)


@pytest.mark.slow
def test_another_set_gives_the_density_of_the_pair(
    gpaw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = load_densities("pairs"), tmp_path / "V.npz"
    path, a = poscar(tmp_path, one_atom("V", float(2 * pairs.table["volume"]["V_229"]) ** (1 / 3))), str(out)
    options = ["--with", "gpaw", "-o", a, "--set", "V=5", "--python", gpaw]
    monkeypatch.setattr(sys, "argv", ["ecd", "density", str(path), *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "5.000 electrons" in capsys.readouterr().out
    density, bundled = read_density(out), pairs["V_229"]
    assert (density.convention or "").endswith("(alternative sets)")
    assert recognize(density) == Valence({"V": 5}, True, "its convention")
    if density.convention == bundled.convention:
        assert np.abs(density.values - bundled.values).max() < 1e-4 * bundled.values.max()


@pytest.mark.slow
def test_a_set_that_is_not_there(gpaw: str, tmp_path: Path) -> None:
    with pytest.raises(EcdError, match=r"LiH: GPAW has no PAW set H\.7 in "):
        compute_density(parse_structure(LIH), sets={"H": "7"}, python=gpaw)


@pytest.mark.parametrize("text", ["V", "V=", "=5", "=", ""])
def test_a_set_that_is_no_name(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ecd", "density", poscar(tmp_path, LIH), "--with", "gpaw", "--set", text]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"ecd: --set {text}: is not element=name. For example: --set Na=1\n"


@pytest.mark.slow
def test_element_without_paw_set(gpaw: str, tmp_path: Path) -> None:
    with pytest.raises(EcdError, match=r"U: GPAW has no PAW set U in .*gpaw-data") as error:
        compute_density(parse_structure(one_atom("U", 3.5)), tmp_path / "out.npz", python=gpaw)
    assert "cube file of another calculation" in error.value.remedy
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_no_convergence(gpaw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = tmp_path / "impatient.py"
    recipe = Path(gpaw_script.__file__).read_text(encoding="utf-8")
    impatient.write_text(recipe.replace("MAX_ITERATIONS = 120", "MAX_ITERATIONS = 3"), encoding="utf-8")
    monkeypatch.setattr(gpaw_script, "__file__", str(impatient))
    with pytest.raises(EcdError, match="LiH: the calculation did not converge within 3 iterations"):
        compute_density(parse_structure(LIH), tmp_path / "out.npz", python=gpaw)
    assert sorted(os.listdir(tmp_path)) == ["impatient.py"]


@pytest.mark.slow
def test_two_atoms_on_one_site(gpaw: str, tmp_path: Path) -> None:
    twice = Structure(A * np.eye(3), ["Li", "H"], [[0, 0, 0], [0, 0, 0]])
    with pytest.raises(EcdError, match="LiH: Atoms are too close") as error:
        compute_density(twice, tmp_path / "out.npz", python=gpaw)
    assert error.value.remedy
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        LIH[: LIH.index("0 0 .5")],
        LIH.replace("Li H", "Xx H"),
        LIH.replace("0 0 1\n", "0 0 0\n"),
        LIH.replace("4 4", "0 0"),
    ],
    ids=["empty", "cut off", "unknown element", "flat cell", "no atoms"],
)
def test_poscar_is_refused_before_gpaw_starts(tmp_path: Path, text: str) -> None:
    with pytest.raises(gpaw_script.Failure, match="is not a readable POSCAR"):
        gpaw_script.compute(str(poscar(tmp_path, text)), str(tmp_path / "out.npz"))


def test_no_gpaw_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def no_gpaw(python: str) -> str:
        tried.append(python)
        return "no"

    monkeypatch.setattr(compute, "_import_error", no_gpaw)
    with pytest.raises(EcdError, match=r"^GPAW: none of ") as error:
        compute_density(parse_structure(LIH))
    assert "conda-forge: gpaw; Debian: apt-get install gpaw gpaw-data" in error.value.remedy
    assert tried[0] == sys.executable
    assert tried[-1] == "/usr/bin/python3"
    assert len(tried) == len(set(tried))
    assert all(os.path.dirname(python) != os.path.dirname(sys.executable) for python in tried[1:])


def test_named_python_without_gpaw(tmp_path: Path) -> None:
    without = fake_python(tmp_path, "")
    without.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'gpaw'\" >&2; exit 1\n")
    for python in (without, tmp_path / "nowhere"):
        with pytest.raises(EcdError, match=rf"^{python}: cannot run GPAW \(.+\)\. Install it"):
            compute_density(parse_structure(LIH), python=python)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "echo 'Traceback'  >&2; echo 'RuntimeError: libxc is broken' >&2; exit 1",
            r"\(RuntimeError: libxc is broken\)",
        ),
        ("exit 3", r"\(no message\)"),
        ("kill -9 $$", "the calculation was killed by signal 9. If memory ran out"),
        ('echo noise; echo \'{"error": {"problem": "is odd", "remedy": "Do."}}\'; exit 1', r"LiH: is odd\. Do\.$"),
    ],
)
def test_script_that_fails_otherwise(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(EcdError, match=message):
        compute_density(parse_structure(LIH), tmp_path / "out.npz", python=fake_python(tmp_path, body))
    assert sorted(os.listdir(tmp_path)) == ["python"]


def test_interrupted_calculation_is_stopped(tmp_path: Path) -> None:
    def stop(message: str) -> None:
        raise KeyboardInterrupt

    python = fake_python(tmp_path, 'echo \'{"iteration": 1, "of": 120}\'; exec sleep 60')
    with pytest.raises(KeyboardInterrupt):  # at once, not after a minute
        compute_density(parse_structure(LIH), python=python, progress=stop)


def test_script_needs_nothing_of_ecdlib_and_one_thread(tmp_path: Path) -> None:
    """It runs away from this package's folder, whose modules (io, ...) would shadow others' there."""
    python = fake_python(tmp_path, 'echo "threads $OMP_NUM_THREADS" >&2; exit 1')
    with pytest.raises(EcdError, match="threads 1"):
        compute_density(parse_structure(LIH), python=python)
    probe = "import sys; sys.modules['ecdlib'] = None; import runpy; runpy.run_path(sys.argv[1])"
    subprocess.run([sys.executable, "-c", probe, gpaw_script.__file__], check=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/home/me/gpaw-setups-0.9.20000/Li.PBE.gz", "0.9.20000"),
        ("/opt/gpaw-setups-24.11.0/Li.PBE.gz", "24.11.0"),
        ("/opt/sets/Li.PBE.gz", ""),
    ],
)
def test_dataset_version_from_the_path(path: str, version: str) -> None:
    assert gpaw_script.dataset_version(path) == version


def test_dataset_version_of_conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conda-meta").mkdir()
    (tmp_path / "conda-meta" / "gpaw-data-0.9.20000-h1_0.json").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert gpaw_script.dataset_version(str(tmp_path / "share" / "gpaw" / "Li.PBE.gz")) == "0.9.20000"
