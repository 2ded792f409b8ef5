"""Screening: the table, what it says of a crystal, interruptions, clusters, sources that cannot be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster
from pymatgen.core import Structure
from pymatgen.io.vasp import Poscar
from typer.testing import CliRunner

from ecdlib.base.errors import EcdError
from ecdlib.base.pieces import in_pieces
from ecdlib.cli import app
from ecdlib.crystals import screening
from ecdlib.crystals.hypothetical import hypothetical_crystals
from ecdlib.crystals.screening import COLUMNS, KEPT, compact, load_screened, screen
from ecdlib.data.tables import load_structures
from ecdlib.elastic.moduli import elastic_quantities
from ecdlib.learn.answer import predictions
from ecdlib.learn.model_file import load_model

NAMES = ["NaCl_225", "Fe3SnC_221", "CaMg2_194", "BaTiO3_221", "MgO_225", "K3BiTe3_198", "PbS_225"]


@pytest.fixture(scope="module")
def model(tiny_ensemble: Path) -> str:
    """A tiny trained ensemble."""
    return str(tiny_ensemble / "model.npz")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of crystals, one of them as a supercell, and a file that is none."""
    folder = tmp_path / "crystals"
    folder.mkdir()
    for name in NAMES:
        Poscar(load_structures()[name]).write_file(folder / f"{name}.vasp", significant_figures=12)
    large = load_structures()["MgO_225"].copy()
    large.make_supercell([2, 1, 1])
    Poscar(large).write_file(folder / "MgO-twice.vasp", significant_figures=12)
    (folder / "broken.cif").write_text("data_x\n_cell_length_a 4")
    return folder


def run(*sources: str, out: Path, model: str, **more: object) -> tuple[pd.DataFrame, screening.Screened]:
    done = screen([*sources], out, model=model, workers=1, progress=False, **more)  # type: ignore[arg-type]
    return load_screened(out)[0], done


def test_the_table_says_of_a_crystal_what_is_true_of_it(files: Path, tmp_path: Path, model: str) -> None:
    table, done = run(str(files), out=tmp_path / "t.parquet", model=model)
    assert list(table.columns) == list(COLUMNS)
    assert done.predicted == len(table) == len(NAMES) + 1
    assert len(done.failed) == 1
    assert done.failed[0].startswith("broken.cif: ")
    assert not list(tmp_path.glob("*.parts"))
    rows = table.set_index("id")
    salt = rows.loc["NaCl_225.vasp"]
    assert (salt["formula"], salt["spacegroup"], salt["crystal_system"], salt["n_atoms"]) == ("NaCl", 225, "cubic", 2)
    assert abs(salt["mass"] - 58.44) < 0.01
    assert abs(salt["density"] - 1.66054 * salt["mass"] / salt["volume"]) < 1e-3
    one, twice = rows.loc["MgO_225.vasp"], rows.loc["MgO-twice.vasp"]
    numbers = [c for c in COLUMNS if c not in ("formula", "source", "prototype", "crystal_system", "unseen_elements")]
    for column in numbers[2:]:
        if column != "band_gap":
            assert np.isclose(float(one[column]), float(twice[column]), rtol=1e-3), f"{column} depends on the cell"


def test_what_follows_from_the_moduli_follows(files: Path, tmp_path: Path, model: str) -> None:
    table, _ = run(str(files), out=tmp_path / "t.parquet", model=model)
    K, G = table["bulk_modulus"], table["shear_modulus"]
    logs = [table[f"{m}_std"] / table[m] / np.log(10) for m in ("bulk_modulus", "shear_modulus")]
    r = load_model(model).correlation
    assert abs(r) > 0.01
    expected = elastic_quantities(K, G, table["density"], table["n_atoms"], table["volume"], *logs, r)
    for column in expected:
        assert np.allclose(table[column], expected[column], rtol=1e-3), column


def test_an_interrupted_screening_goes_on(files: Path, tmp_path: Path, model: str, monkeypatch) -> None:
    whole, _ = run(str(files), out=tmp_path / "whole.parquet", model=model)
    monkeypatch.setattr(screening, "CHUNK", 3)
    work, calls = screening._work, []

    def interrupted(chunk, *model):
        calls.append(chunk[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(chunk, *model)

    monkeypatch.setattr(screening, "_work", interrupted)
    out = tmp_path / "t.parquet"
    with pytest.raises(KeyboardInterrupt):
        run(str(files), out=out, model=model)
    assert not out.exists()
    with pytest.raises(EcdError, match="interrupted run with other parameters"):
        run(str(files), "labelled", out=out, model=model)
    table, done = run(str(files), out=out, model=model)
    assert calls == [0, 1, 1, 2]
    assert len(done.failed) == 1
    pd.testing.assert_frame_equal(table, whole, rtol=1e-4)


def test_a_finished_table_is_not_made_again(files: Path, tmp_path: Path, model: str, monkeypatch) -> None:
    out = tmp_path / "t.parquet"
    table, done = run(str(files), out=out, model=model)
    monkeypatch.setattr(screening, "_work", None)
    again, before = run(str(files), out=out, model=model)
    pd.testing.assert_frame_equal(again, table)
    assert before == screening.Screened(done.predicted, done.failed, before=True)
    with pytest.raises(EcdError, match="was made with other parameters"):
        run(str(files), out=out, model=model, paper_filter=True)


def test_two_screenings_of_one_file_do_not_meet(files: Path, tmp_path: Path, model: str) -> None:
    with (
        in_pieces(tmp_path / "t.parquet", "ecd screen", {}),
        pytest.raises(EcdError, match="being written by another run"),
    ):
        run(str(files), out=tmp_path / "t.parquet", model=model)


def test_a_source_that_changed_meanwhile_is_noticed(files: Path, tmp_path: Path, model: str, monkeypatch) -> None:
    monkeypatch.setattr(screening, "CHUNK", 3)
    work = screening._work

    def interrupted(chunk, *model):
        if chunk[0] == 1:
            raise KeyboardInterrupt
        return work(chunk, *model)

    with monkeypatch.context() as patch:
        patch.setattr(screening, "_work", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(str(files), out=tmp_path / "t.parquet", model=model)
    (files / f"{sorted(NAMES)[0]}.vasp").rename(files / "zz.vasp")
    with pytest.raises(EcdError, match="holds other crystals: a source has changed"):
        run(str(files), out=tmp_path / "t.parquet", model=model)


@pytest.mark.cluster
def test_a_cluster_gives_the_same(files: Path, tmp_path: Path, model: str, monkeypatch) -> None:
    here, _ = run(str(files), out=tmp_path / "here.parquet", model=model)
    monkeypatch.setattr(screening, "CHUNK", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
            there, _ = run(str(files), out=tmp_path / "there.parquet", model=model, scheduler=cluster.scheduler_address)
    pd.testing.assert_frame_equal(there, here, rtol=1e-4)


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_resumes(files: Path, tmp_path: Path, model: str) -> None:
    """Ctrl-C reaches the workers too, which had 67 lines to say about it."""
    text = (files / "NaCl_225.vasp").read_text()
    for n in range(100):
        (files / f"{n}.vasp").write_text(text)
    program = "from ecdlib import cli; from ecdlib.crystals import screening; screening.CHUNK = 1; cli.main()"
    command = ["screen", str(files), "-o", str(tmp_path / "t.parquet"), "--model", model, "--workers", "2"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *command],
            stderr=said,
            stdout=said,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
        )
        deadline = time.monotonic() + 300
        while not list((tmp_path / "t.parquet.parts").glob("[!.]*.npz")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 130
    lines = [line for line in (tmp_path / "said").read_text().splitlines() if line.strip()]
    assert [line for line in lines if "Screening:" not in line] == ["ecd: interrupted; the same command resumes"]
    done = len(list((tmp_path / "t.parquet.parts").glob("[!.]*.npz")))
    assert 0 < done < 100


def test_the_paper_s_filter(files: Path, tmp_path: Path, model: str) -> None:
    Poscar(Structure(load_structures()["MgO_225"].lattice, ["Po"], [[0, 0, 0]])).write_file(files / "Po.vasp")
    everything, _ = run(str(files), out=tmp_path / "a.parquet", model=model)
    filtered, _ = run(str(files), out=tmp_path / "b.parquet", model=model, paper_filter=True)
    assert set(everything["id"]) - set(filtered["id"]) == {"Po.vasp"}
    known = load_model(model).elements
    assert everything.set_index("id").loc["Po.vasp", "unseen_elements"] == ("" if 84 in known else "Po")


@pytest.mark.slow
def test_hypothetical_crystals_are_called_that(tmp_path: Path, model: str) -> None:
    table, done = run("hypothetical:40", out=tmp_path / "t.parquet", model=model)
    assert done.predicted + len(done.failed) == 40
    assert table["hypothetical"].all()
    assert (table["prototype"] != "").all()
    compact(tmp_path / "t.parquet", tmp_path / "small.parquet")
    small, made_by = load_screened(tmp_path / "small.parquet")
    assert list(small.columns) == list(KEPT)
    assert np.allclose(small["bulk_modulus"], table["bulk_modulus"], rtol=1e-3)
    assert made_by["parameters"]["sources"] == ["hypothetical:40"]


def test_nothing_usable_leaves_nothing(tmp_path: Path, model: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EcdError):
        run(str(empty), out=tmp_path / "t.parquet", model=model)
    with pytest.raises(EcdError, match="no such file, folder or source"):
        run("nonsense", out=tmp_path / "t.parquet", model=model)
    Poscar(Structure(np.eye(3) * 30, ["Xe", "Xe"], [[0, 0, 0], [0.5, 0.5, 0.5]])).write_file(empty / "far.vasp")
    with pytest.raises(EcdError, match="no usable crystal"):
        run(str(empty), out=tmp_path / "t.parquet", model=model)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_training_crystals_are_marked(tmp_path: Path, model: str) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    trained_on = load_model(model).trained_on
    inside = next(name for name in load_structures() if name in trained_on)
    for name in (inside, "K3BiTe3_198"):
        Poscar(load_structures()[name]).write_file(folder / f"{name}.vasp", significant_figures=12)
    table, _ = run(str(folder), out=tmp_path / "t.parquet", model=model)
    marked = table.set_index("id")["in_training"]
    assert marked[f"{inside}.vasp"]
    assert marked["K3BiTe3_198.vasp"] == ("K3BiTe3_198" in trained_on)


def test_crystals_of_one_id_are_not_mixed_up(files: Path, tmp_path: Path, model: str) -> None:
    table, done = run(str(files), str(files), out=tmp_path / "t.parquet", model=model)
    assert table["id"].is_unique
    assert sum("an earlier crystal has this id" in line for line in done.failed) == len(table)


def test_files_that_lie_in_the_way_stay(files: Path, tmp_path: Path, model: str) -> None:
    own = tmp_path / "t.parquet.parts"
    own.mkdir()
    (own / "mine.txt").write_text("mine")
    with pytest.raises(EcdError, match="holds files that do not belong to this run"):
        run(str(files), out=tmp_path / "t.parquet", model=model)
    assert (own / "mine.txt").read_text() == "mine"
    with pytest.raises(EcdError, match="is a folder"):
        run(str(files), out=own, model=model)


def test_a_worker_with_another_model_says_so(model: str) -> None:
    with pytest.raises(EcdError, match="differs from the model on a worker"):
        screening._work((0, []), model, "0" * 64)


def test_bad_names_and_files_on_the_command_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["screen", "labelled", "-o", str(tmp_path / "t.csv")])
    assert isinstance(done.exception, EcdError)
    assert "It must end in .parquet" in str(done.exception)
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    with pytest.raises(EcdError, match="is not a table of `ecd screen`"):
        load_screened(tmp_path / "no.parquet")
    done = CliRunner().invoke(app, ["screen", "x", "-o", str(tmp_path / "t.parquet"), "--model", "no.npz"])
    assert isinstance(done.exception, EcdError)
    done = CliRunner().invoke(app, ["screen", "x", "-o", str(tmp_path / "t.parquet"), "--workers", "-1"])
    assert done.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["no.parquet"]


def test_a_screening_answers_as_a_prediction_does(tmp_path: Path) -> None:
    table, _ = run("hypothetical:5", out=tmp_path / "t.parquet", model="crystal")
    for row, candidate in zip(table.itertuples(), hypothetical_crystals(5), strict=True):
        known = predictions(candidate.structure).set_index("property")
        value, std = (known.loc[["bulk modulus", "shear modulus"], column].to_numpy() for column in ("value", "std"))
        assert [row.bulk_modulus, row.shear_modulus] == pytest.approx(value, rel=1e-6)
        assert row.youngs_modulus == pytest.approx(known.loc["youngs modulus", "value"], rel=1e-6)
        if (known.loc[["bulk modulus", "shear modulus"], "low"] > 0).all():  # not cut off
            assert [row.bulk_modulus_std, row.shear_modulus_std] == pytest.approx(std, rel=1e-6)


def test_the_network_takes_no_element_beyond_fermium(model: str) -> None:
    with pytest.raises(EcdError, match="element beyond fermium"):
        load_model(model).prepare(Structure(4 * np.eye(3), ["Md"], [[0, 0, 0]]), None)


def test_the_model_of_all_properties_screens_too(files: Path, tmp_path: Path) -> None:
    table, done = run(str(files), out=tmp_path / "t.parquet", model="crystal")
    assert done.predicted == len(table) == len(NAMES) + 1
    known = load_model("crystal").predict([load_structures()["MgO_225"]], ["bulk_modulus", "debye_temperature"]).iloc[0]
    row = table.set_index("id").loc["MgO_225.vasp"]
    assert row["bulk_modulus"] == pytest.approx(known["bulk_modulus", "value"], rel=1e-3)
    assert row["debye_temperature"] == pytest.approx(known["debye_temperature", "value"], rel=1e-2)
    width = known["bulk_modulus", "high"] - known["bulk_modulus", "low"]
    assert 2 * 1.96 * row["bulk_modulus_std"] == pytest.approx(width, rel=1e-2)
    assert row["in_training"]
    with pytest.raises(EcdError, match="not a model of structures"):
        run(str(files), out=tmp_path / "u.parquet", model="fusion-lightgbm")
