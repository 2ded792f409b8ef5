"""The app: what it makes of uploads, and the whole of it in a real browser, offline."""

from __future__ import annotations

import gzip
import http.client
import io
import lzma
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from pymatgen.core import Structure

from ecdlib import cli
from ecdlib.app import database as database_tab
from ecdlib.app import findings, scene, server, standing, uploads, widgets
from ecdlib.app.predict import PredictTab
from ecdlib.app.worker import Cancelled, Worker
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT, data_folder
from ecdlib.base.workers import Bounded
from ecdlib.data.tables import load_structures
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_density, write_density
from ecdlib.density.store import load_density
from ecdlib.features.common_grid import common_cell
from ecdlib.learn.answer import answer, interval
from ecdlib.learn.latents import LatentDatabase, load_latents
from ecdlib.learn.predict import conversion_lines, load_predictors, predict

NACL = data_folder() / "vasp" / "CHGCAR.NaCl.gz"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"]


def here(function: Any, *arguments: Any) -> Any:
    """Instead of a process of the session: this one."""
    return function(*arguments)


@pytest.fixture(scope="module")
def database() -> LatentDatabase:
    return load_latents()


def problem(name: str, content: bytes, folder: Path) -> str:
    """What the user reads about a file that cannot be used; nothing of it may stay behind."""
    with pytest.raises(EcdError) as raised:
        uploads.read_upload(name, content, folder)
    assert list(folder.iterdir()) == []
    assert str(folder) not in str(raised.value)
    return str(raised.value)


def test_a_name_keeps_only_what_is_harmless() -> None:
    names = {
        "CHGCAR.NaCl.gz": "CHGCAR.NaCl.gz",
        "../../etc/passwd": "passwd",
        "C:\\Users\\me\\CHGCAR": "CHGCAR",
        "..": "file",
        "": "file",
        ".bashrc": "bashrc",
        "<img src=x onerror=alert(1)>.cube": "_img_src_x_onerror_alert(1)_.cube",
        "=HYPERLINK(1)": "_HYPERLINK(1)",
        "a\x00b\n::c": "a_b___c",
        "x" * 300 + ".npz": "x" * 76 + ".npz",
    }
    assert {name: uploads.safe_name(name) for name in names} == names


@pytest.mark.parametrize("name", ["CHGCAR.NaCl.gz", "../../CHGCAR.gz", "/tmp/CHGCAR.GZ", "NaCl_225::a+b.gz"])
def test_an_upload_is_read_whatever_its_name_is(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    density = uploads.read_upload(name, NACL.read_bytes(), folder)
    assert isinstance(density, ChargeDensity)
    assert density.name == uploads.safe_name(name)
    assert np.array_equal(density.values, read_density(NACL).values)
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize("suffix", [".cube", ".npz", ".vasp", ".npz.xz"])
def test_every_format_is_read(suffix: str, tmp_path: Path) -> None:
    original = load_density("LiH_225")
    path = tmp_path / f"density{suffix.removesuffix('.xz')}"
    write_density(original, path)
    content = path.read_bytes()
    path.unlink()
    density = uploads.read_upload(
        f"density{suffix}", lzma.compress(content) if suffix.endswith("xz") else content, tmp_path
    )
    assert (density.formula, density.shape) == (original.formula, original.shape)
    assert density.n_electrons == pytest.approx(original.n_electrons, rel=1e-5)


@pytest.mark.parametrize("name", ["rutile.cif", "POSCAR", "POSCAR.rutile.vasp", "CONTCAR.gz", "../a.CIF.gz"])
def test_a_structure_is_enough(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    rutile = load_structures()["GeO2_136"]
    text = rutile.to(fmt="cif" if "cif" in name.lower() else "poscar").encode()
    content = gzip.compress(text) if name.endswith("gz") else text
    crystal = uploads.read_upload(name, content, folder)
    assert isinstance(crystal, Structure)
    assert crystal.composition == rutile.composition
    assert list(folder.iterdir()) == []
    tab = PredictTab(folder, here)
    assert tab.work({name: content}, [], "auto") == []
    ((source, finding),) = tab.found.values()
    found = {r["property"]: r for r in finding.records}
    assert found["bulk modulus"]["file"] == source.shown == uploads.safe_name(name)
    assert found["bulk modulus"]["low"] < found["bulk modulus"]["value"] < found["bulk modulus"]["high"]
    assert finding.nearest is not None
    assert finding.nearest.index[0] == "GeO2_136"
    assert finding.nearest.iloc[0] < 0.1 < finding.nearest.iloc[1]
    drawn = scene.draw_source(source, folder)
    assert isinstance(drawn, scene.Drawing)
    assert (drawn.what, drawn.electrons) == ("density of superposed free atoms", None)
    (problem,) = tab.work({name: content}, [], "fusion-lightgbm")
    assert "holds no density, which fusion-lightgbm needs" in problem


def test_a_plane_through_the_density_and_its_atoms() -> None:
    density = load_density("NaCl_225")
    drawn = scene.drawing(density)
    assert drawn.electrons is not None
    assert drawn.electrons["valence electrons"].sum() == pytest.approx(density.n_electrons)
    assert (len(drawn.levels), drawn.levels) == (len(set(drawn.levels)), sorted(drawn.levels))
    for axis in range(3):
        points, values = scene.plane(density, axis, 0.25)
        n = density.shape[axis]
        fractional = np.tensordot(np.linalg.inv(density.lattice).T, points, axes=1)
        assert fractional[axis] == pytest.approx(np.full(values.shape, round(0.25 * n) / n))
        assert np.array_equal(values[:-1, :-1], np.take(density.values, round(0.25 * n), axis=axis))
        assert np.array_equal(values[0], values[-1])  # one period, with both ends
    figure = scene.scene_figure(drawn.density, drawn.levels[30], 2, 1.0, ["Cl"])
    assert {t.name: t.visible for t in figure.data if t.name in ("Na", "Cl")} == {"Na": False, "Cl": True}
    assert [t.type for t in figure.data[-2:]] == ["mesh3d", "surface"]
    assert len(figure.to_json()) < 2_000_000
    assert not {"mesh3d", "surface"} & {t.type for t in scene.scene_figure(drawn.density, None, None, 0, []).data}
    atoms = scene.structure_figure(load_structures()["GeO2_136"])
    assert {t.name for t in atoms.data if t.name} == {"Ge", "O"}


def test_where_crystals_stand_among_all() -> None:
    records = [
        {"file": "a", "property": name, "value": value, "low": value - 5, "high": value + 9}
        for name, value in (("bulk modulus", 80.0), ("shear modulus", 30.0), ("band gap", 1.0))
    ]
    figure = standing.moduli_figure([*records, {**records[0], "file": "b"}])
    assert [trace.name for trace in figure.data] == ["labelled crystals", "a"]
    assert len(figure.data[0].x) == 6059
    assert (figure.data[1].error_y.array[0], figure.data[1].error_y.arrayminus[0]) == (9, 5)
    assert standing.moduli_figure(records[2:]) is None


def test_too_large_files_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "UPLOAD_LIMIT", 2_000_000)
    assert "CHGCAR: 2 MB are more than the limit of 2 MB" in problem("CHGCAR", bytes(2_000_001), tmp_path)
    uploads.check_size({"a": bytes(1_000_000), "b": bytes(1_000_000)})
    with pytest.raises(EcdError, match="a, b: 3 MB are more than the limit"):
        uploads.check_size({"a": bytes(1_500_000), "b": bytes(1_500_000)})


def test_a_decompression_bomb_stops_where_it_fits_no_header(tmp_path: Path) -> None:
    zeros = bytes(10_000_000)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("rho.npy", zeros)
    bombs = {
        "CHGCAR.gz": gzip.compress(zeros),
        "a.cube.xz": lzma.compress(zeros),
        "a.npz": archive.getvalue(),
        "b.npz.gz": gzip.compress(archive.getvalue()),
    }
    for name, content in bombs.items():
        assert len(content) < 100_000
        assert problem(name, content, tmp_path).startswith(f"{name}: is not a ")


def test_files_that_cannot_be_read_are_answered_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = NACL.read_bytes()
    text = gzip.decompress(raw)
    pickled = io.BytesIO()
    np.savez(pickled, rho=np.array([{}], dtype=object), cell=np.eye(3), positions=np.zeros((1, 3)), numbers=[1])
    cases = {
        "cut.gz": (raw[:20000], "the compressed file is damaged or cut off"),
        "other.gz": (text, "the compressed file is damaged or cut off"),
        "CHGCAR": (text[:50000], "is not a complete CHGCAR"),
        "CHGCAR.Z": (raw, "is not a complete CHGCAR"),
        "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is not a complete CHGCAR"),
        "empty": (b"", "the file is empty"),
        "a.cube": (b"comment\n\n3 x", "is not a complete cube file"),
        "a.npz": (b"PK\x03\x04nothing", "is not a density .npz"),
        "pickle.npz": (pickled.getvalue(), "is not a density .npz"),
        "ecd.h5": (b"\x89HDF\r\n", "is a store of several crystals"),
    }
    for name, (content, words) in cases.items():
        message = problem(name, content, tmp_path)
        assert message.startswith(f"{name}: ")
        assert words in message

    def broken(_: Any) -> Any:
        raise RuntimeError("inside a parser")

    monkeypatch.setattr(uploads, "read_crystal", broken)
    assert problem("CHGCAR", text, tmp_path).startswith("CHGCAR: could not be read.")


def test_nearness_of_a_crystal_of_the_database_and_of_a_strange_one(database: LatentDatabase) -> None:
    latent = database.latents[database.row("NaCl_225")].astype(np.float32)
    nearest, percentile = findings.nearness(database, latent)
    assert len(nearest) == 5
    assert (nearest.index[0], percentile) == ("NaCl_225", 0)
    assert "this is one of them" in findings.nearness_text(nearest, percentile)
    nearest, percentile = findings.nearness(database, latent + 100)
    assert percentile == 100
    assert "do not rely on the prediction" in findings.nearness_text(nearest, percentile)
    middle = pd.Series([1.0], index=["NaCl_225"])
    assert "as close as" in findings.nearness_text(middle, 50)
    assert "rather far" in findings.nearness_text(middle, 90)


def test_search_by_name_formula_and_elements(database: LatentDatabase) -> None:
    assert list(database_tab.search_table(database.table, "fe3snc").index) == ["Fe3SnC_221"]
    assert "Fe3SnC_221" in database_tab.search_table(database.table, "C, Fe").index
    assert not database_tab.search_table(database.table, "F")["formula"].str.contains("Fe3SnC").any()
    assert len(database_tab.search_table(database.table, "  ")) == len(database.table)
    assert len(database_tab.search_table(database.table, "(*[")) == 0


def test_comparison_with_the_reconstruction(database: LatentDatabase) -> None:
    for name in ("Fe3SnC_221", next(n for n in database.table.index if n.endswith("_194"))):
        original = common_cell(load_density(name), None)
        decoded, table = database_tab.compare(original, database, name)
        value = table.set_index("quantity")["value"]
        assert decoded.shape == original.shape
        assert float(value["Electrons after scaling"]) == pytest.approx(float(value["Electrons of the original"]))
        difference = decoded.values - original.values
        assert float(value["Mean absolute error (MAE)"]) == pytest.approx(np.abs(difference).mean(), rel=6e-3)
        figure = database_tab.slice_figure(original, decoded, 0.25)
        assert [ax.get_aspect() for ax in figure.axes[:3]] == [1, 1, 1]


def test_files_of_one_name_are_told_apart_and_results_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tab, raw, other = PredictTab(tmp_path, here), NACL.read_bytes(), NACL.with_name("CHGCAR.Li.gz").read_bytes()
    assert tab.work({"a b.gz": raw, "a_b.gz": other}, ["NaCl_225"], "density-gpr-portable") == []
    assert list(tab.found) == ["a_b.gz", "a_b.gz (2)", "NaCl_225"]
    table = pd.read_csv(tab.csv.callback())
    assert list(table) == findings.CSV_COLUMNS
    assert table["file"].nunique() == 3
    kept = tab.found["NaCl_225"][1]
    assert "was given twice" in tab.work({"a b.gz": other}, ["NaCl_225"], "density-gpr-portable")[0]
    assert [source.read(tmp_path).formula for source, _ in tab.found.values()] == ["Li", "NaCl"]
    assert tab.found["NaCl_225"][1] is kept
    text = gzip.decompress(raw).decode()  # what Panel makes of a file that the browser calls text
    assert tab.work({"CHGCAR.txt": text, "cut.gz": raw[:999]}, [], "density-gpr-portable") == [
        "cut.gz: the compressed file is damaged or cut off. Copy it again."
    ]
    monkeypatch.setattr(uploads, "UPLOAD_LIMIT", 10)
    assert "more than the limit" in tab.work({"CHGCAR.txt": text}, [], "density-gpr-portable")[0]
    assert tab.found == {}


def test_a_valence_that_the_user_gives_is_for_the_files(tmp_path: Path) -> None:
    tab, model = PredictTab(tmp_path, here), "density-gpr-portable"
    files: dict[str, bytes | str] = {"CHGCAR.NaCl.gz": NACL.read_bytes()}
    assert tab.work(files, ["NaH_225"], model) == []
    counted, bundled = tab.found["CHGCAR.NaCl.gz"][1].records, tab.found["NaH_225"][1].records
    assert tab.work(files, ["NaH_225"], model, "Na=1, Cl=7") == []
    given = tab.found["CHGCAR.NaCl.gz"][1].records
    assert [r["value"] for r in given] == [r["value"] for r in counted]
    assert "known from its POTCAR, header or --valence" in given[0]["conversion"]
    assert tab.found["NaH_225"][1].records == bundled
    (problem,) = tab.work(files, ["NaH_225"], model, "Na=7,Cl=7")
    assert "holds 8 electrons, not 14" in problem
    assert list(tab.found) == ["NaH_225"]
    for text, words in (
        ("Na=3", "Na=3: no set of whole shells holds that many"),
        ("garbage", "is not element=electrons"),
    ):
        (problem,) = tab.work(files, [], model, text)
        assert words in problem
        assert tab.found == {}
    assert tab.work(files, [], model, "") == []
    table = pd.read_csv(tab.csv.callback())
    assert table["conversion"].str.contains("Na 1 to 7 electrons").all()
    assert (table["conversion_std"] > 0).all()
    assert (table["conversion_std"] < table["std"]).all()


def test_all_crystals_in_one_table(tmp_path: Path) -> None:
    tab = PredictTab(tmp_path, here)
    cif = load_structures()["GeO2_136"].to(fmt="cif").encode()
    assert tab.work({"a.cif": cif, "CHGCAR.gz": NACL.read_bytes()}, [], "auto") == []
    findings_of = {name: finding for name, (_, finding) in tab.found.items()}
    rows = findings.overview(findings_of).set_index("file")
    assert list(rows["formula"]) == ["GeO2", "NaCl"]
    assert rows["warnings"].tolist() == [0, 0]
    for name, finding in findings_of.items():
        for record in finding.records:
            assert rows.loc[name, findings.in_title(record)] == pytest.approx(record["value"], rel=1e-3)
    energies = [name for name in rows if name.startswith("total energy")]
    assert len(energies) == 2  # of two kinds of atoms: not in one column
    assert rows[energies].notna().sum().tolist() == [1, 1]
    parts = findings_of["CHGCAR.gz"].parts
    assert {"bulk modulus", "band gap"} <= set(parts["property"])
    records = [r for finding in findings_of.values() for r in finding.records if r["property"] == "bulk modulus"]
    figure = standing.property_figure(records, "a.cif")
    assert [t.name for t in figure.data] == ["6059 training crystals", "a.cif", "GeO2_136, as calculated", "CHGCAR.gz"]
    assert figure.data[2].x[0] == pytest.approx(202.9, abs=0.1)
    (index,) = (r for r in findings_of["a.cif"].records if r["property"] == "anisotropy index")
    assert standing.property_figure([index], "").layout.xaxis2.type == "log"


def test_a_calculation_is_cancelled_and_resumed(tmp_path: Path) -> None:
    worker = Worker()
    try:
        assert worker(len, "abc") == 3
        threading.Timer(1, worker.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            worker(time.sleep, 60)
        assert time.monotonic() - started < 30
        assert worker(len, "ab") == 2
        with pytest.raises(ChildProcessError):
            worker(os.abort)
    finally:
        worker.end()

    def call(function: Any, source: uploads.Source, *rest: Any) -> Any:
        if source.name == "slow.gz" and not tab.stopped:
            tab.stopped = True
            raise Cancelled
        return function(source, *rest)

    tab = PredictTab(tmp_path, call)
    files: dict[str, bytes | str] = {name: NACL.read_bytes() for name in ("first.gz", "slow.gz", "last.gz")}
    assert tab.work(files, [], "density-gpr-portable") == ["slow.gz: cancelled.", "last.gz: cancelled."]
    assert list(tab.found) == ["first.gz"]
    first = tab.found["first.gz"][1]
    tab.stopped = False
    tab.call = here
    assert tab.work(files, [], "density-gpr-portable") == []
    assert list(tab.found) == list(files)
    assert tab.found["first.gz"][1] is first


def test_what_nobody_foresaw_becomes_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("inside a model")

    source = uploads.Source("bundled", "LiH_225", "LiH_225", b"", "")
    monkeypatch.setattr(findings, "examine", broken)
    outcome = findings.examine_source(source, "density-gpr-portable", tmp_path)
    assert str(outcome).startswith("LiH_225: could not be evaluated.")
    assert "&lt;b&gt;" in widgets.box(["<b>"], "#000000")


@pytest.mark.parametrize(
    ("error", "words"),
    [(TimeoutError("took longer than 120 s"), "took longer than 120 s"), (ChildProcessError(), "too much memory")],
)
def test_a_file_that_is_too_much_does_not_stop_the_others(error: Exception, words: str, tmp_path: Path) -> None:
    (tmp_path / "CHGCAR").write_text("what a process left that was ended")

    def call(function: Any, source: uploads.Source, *rest: Any) -> Any:
        if source.name == "bad":
            raise error
        return function(source, *rest)

    tab = PredictTab(tmp_path, call)
    (problem,) = tab.work({"bad": b"", "good.gz": NACL.read_bytes()}, [], "density-gpr-portable")
    assert problem.startswith("bad: ")
    assert words in problem
    assert list(tab.found) == ["good.gz"]
    assert list(tmp_path.iterdir()) == []


# A hostile client


def event(name: str, size: int, chunk: int, chunks: int) -> Any:
    data = {"name": name, "data": bytes(size), "chunk": chunk, "total_chunks": chunks, "type": "x"}
    return SimpleNamespace(event_name="upload_event", data=data)


def kept(files: Any) -> int:
    waiting = sum(len(part) for parts in files._file_buffer.values() for part in parts)
    return waiting + sum(map(len, files.value.values()))


def test_limits_hold_while_files_are_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of files that never end were kept without limit."""
    monkeypatch.setattr(uploads, "UPLOAD_LIMIT", 1_000_000)
    monkeypatch.setattr(uploads, "ALL_UPLOADS", 1_500_000)
    first, second = PredictTab(tmp_path, here), PredictTab(tmp_path, here)
    for n in range(100):
        for chunk in (1, 2, 3):
            first.files._process_event(event(f"f{n}", 100_000, chunk, 4))
        assert kept(first.files) <= 1_000_000
    assert "more than 1 MB on this page" in first.problems.object
    for chunk in range(1, 20):
        second.files._process_event(event("g", 100_000, chunk, 50))
    assert kept(first.files) + kept(second.files) <= 1_500_000
    first.files._process_event(event("f0", 10, 1, 1))  # begins anew, what it had before is gone
    assert first.files.value["f0"] == bytes(10)


@dataclass
class Server:
    """``ecd app`` in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def status(self, host: str, path: str = "/", **headers: str) -> int:
        """HTTP status of a request that names a host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest("GET", path, skip_host=True)
        for name, value in ({"Host": host} | headers).items():
            connection.putheader(name, value)
        connection.endheaders()
        status = connection.getresponse().status
        connection.close()
        return status


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "ecdlib.cli", "app", "--port", "0", "--no-browser"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http://" in line)
        yield Server(process, int(re.findall(r":(\d+)/", line)[0]))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_session_that_begins_with_the_socket_asks_no_cdn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that takes long to load finds its first session expired; Panel then named its CDN for style sheets."""
    import panel as pn
    from bokeh.document import Document
    from bokeh.models import ImportedStyleSheet

    monkeypatch.setattr(server.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    pn.extension("plotly", "tabulator", "filedropper")
    document = Document()
    with pn.io.server.set_curdoc(document):
        server.page().server_doc(document)
    addresses = {sheet.url for sheet in document.models if isinstance(sheet, ImportedStyleSheet)}
    assert len(addresses) > 5
    assert all(address.startswith("static/extensions/panel/") for address in addresses)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_hosts_and_signals(how: signal.Signals, tmp_path: Path) -> None:
    """A foreign name is refused even where the origin agrees with it; a signal ends a server that computes."""
    import panel.models.file_dropper
    import panel.models.plotly
    import panel.models.tabulator  # noqa: F401  what the page is made of
    from bokeh.client import pull_session

    with serving(tmp_path) as server:
        own, foreign = f"127.0.0.1:{server.port}", f"evil.example:{server.port}"
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        upgrade |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "bokeh, x"}
        assert server.status(own) == server.status(f"localhost:{server.port}") == 200
        for host in (foreign, "evil.example", "127.0.0.1", f"127.0.0.1:{server.port + 1}", "", f"{own}, {foreign}"):
            assert server.status(host) == 403
            assert server.status(host, "/ws", Origin=f"http://{host}", **upgrade) == 403
        assert server.status(own, "/ws", Origin=f"http://{foreign}", **upgrade) == 403
        session = pull_session(url=f"http://{own}/")
        try:
            model = next(m for m in session.document.models if type(m).__name__ == "MultiChoice")
            model.value = ["NaCl_225"]
            deadline = time.monotonic() + 300
            while len(psutil.Process(server.process.pid).children(recursive=True)) < 3:
                assert time.monotonic() < deadline  # until the session's process is there
                session.force_roundtrip()
                time.sleep(0.1)
            server.process.send_signal(how)
            assert server.process.wait(30) == 0
        finally:
            with suppress(Exception):
                session.close()
    assert list(tmp_path.glob("ecd-app-*")) == []
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.browser
def test_a_foreign_page_that_leads_its_name_here_gets_nothing(tmp_path: Path) -> None:
    """DNS rebinding, in a browser whose resolver sends a foreign name to this machine."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the package 'chromium' to test the app in a browser")
    from playwright.sync_api import sync_playwright

    talk = """host => new Promise(resolve => {
        const socket = new WebSocket(`ws://${host}/ws`, ["bokeh", "x"]);
        socket.onopen = () => resolve("open");
        socket.onerror = () => resolve("refused");
    })"""
    with serving(tmp_path) as server, sync_playwright() as playwright:
        rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, rules])
        page = chromium.new_page()
        page.set_default_timeout(300_000)
        own, foreign = f"127.0.0.1:{server.port}", f"evil.example:{server.port}"
        answer = page.goto(f"http://{foreign}/")
        assert answer is not None
        assert answer.status == 403
        assert page.evaluate("() => location.host") == foreign
        assert page.evaluate(talk, foreign) == page.evaluate(talk, own) == "refused"
        answer = page.goto(f"http://{own}/")  # by its own name all of it works
        assert answer is not None
        assert answer.status == 200
        assert page.evaluate(talk, foreign) == "refused"
        page.get_by_text("Latent database", exact=True).wait_for()
        chromium.close()


def test_a_process_with_limits_is_replaced_where_it_exceeds_them() -> None:
    call = Bounded(5, 2 * 2**30)
    try:
        assert call(len, "abc") == 3
        first = call(os.getpid)
        with pytest.raises(ZeroDivisionError):
            call(divmod, 1, 0)
        with pytest.raises(MemoryError):
            call(bytes, 2**32)
        assert call(os.getpid) == first
        with pytest.raises(ChildProcessError):
            call(os.abort)
        assert call(os.getpid) != first
        call.seconds = 0.5
        with pytest.raises(TimeoutError, match=r"took longer than 0\.5 s"):
            call(time.sleep, 60)
        call.seconds = 60
        threading.Timer(1, call.end).start()
        started = time.monotonic()
        with pytest.raises(ChildProcessError):
            call(time.sleep, 60)
        assert time.monotonic() - started < 20
        with pytest.raises(ChildProcessError):
            call(len, "abc")
    finally:
        call.end()


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((server.ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["ecd", "app", "--port", str(port), "--no-browser"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ecd: --port {port}: cannot be used")
    assert len(error.splitlines()) == 1


@dataclass
class Running:
    """The app in a process of its own, and a page of it."""

    page: Any
    temporary: Path
    problems: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the package 'chromium' to test the app in a browser")
    from playwright.sync_api import sync_playwright

    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "ecdlib.cli", "app", "--port", "0", "--no-browser"]
    server = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = next(word for line in server.stdout for word in line.split() if word.startswith("http://127.0.0.1:"))
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = chromium.new_page(viewport={"width": 1200, "height": 900})
            page.set_default_timeout(300_000)
            state = Running(page, temporary)
            note, local = state.problems.append, (address, "data:", "blob:", address.replace("http:", "ws:"))
            page.on("console", lambda m: note(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda e: note(str(e)))
            page.on("request", lambda r: note(r.url) if not r.url.startswith(local) else None)
            page.on("websocket", lambda w: note(w.url) if not w.url.startswith(local) else None)
            page.goto(address)
            yield state
            chromium.close()
    finally:
        server.terminate()
        assert server.wait(30) == 0
        assert server.stdout is not None
        server.stdout.close()
    assert list(temporary.glob("ecd-app-*")) == []


def shown(table: Any) -> list[list[str]]:
    """Texts of a table's body."""
    return [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]


FOCUS = """() => {
    let element = document.activeElement;
    while (element.shadowRoot && element.shadowRoot.activeElement) element = element.shadowRoot.activeElement;
    return [element.innerText || element.placeholder || element.type || "", getComputedStyle(element).outlineWidth];
}"""


@pytest.mark.browser
def test_the_keyboard_small_screens_and_the_dark(running: Running) -> None:
    page = running.page
    page.get_by_text("Browse", exact=True).wait_for()
    reached, frames = [], []
    for _ in range(10):
        page.keyboard.press("Tab")
        name, frame = page.evaluate(FOCUS)
        reached.append(name)
        frames.append(frame)
    wanted = ["Predict", "Latent database", "Browse", "Type a name: NaCl_225", "radio", "Na=1,Cl=7"]
    assert [name for name in reached if name in wanted][:6] == wanted
    assert {frame for name, frame in zip(reached, frames, strict=True) if name in wanted} == {"3px"}
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[1] == "rgb(33, 37, 41)" != colours[0]
    for width in (400, 600, 1200):  # 600 is 1200 at 200 %
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(color_scheme="light")
    assert running.problems == []


@pytest.mark.browser
def test_predictions_in_a_browser(running: Running, tmp_path: Path) -> None:
    page = running.page
    cut = tmp_path / "CHGCAR.cut.gz"
    cut.write_bytes(NACL.read_bytes()[:20000])
    large = tmp_path / "CHGCAR.large"
    with open(large, "wb") as f:
        f.truncate(uploads.UPLOAD_LIMIT + 1_000_000)  # sparse, and the page does not even send it
    page.locator("input[type=file]").set_input_files([NACL, cut, large])
    page.get_by_text("File is too large", exact=True).wait_for()
    page.get_by_text("CHGCAR.cut.gz: the compressed file is damaged or cut off. Copy it again.").wait_for()
    page.get_by_text("The nearest training crystal is").wait_for()
    assert list(running.temporary.glob("ecd-app-*/*")) == []  # nothing of the upload stays on disk
    page.get_by_role("radio").nth(1).click()
    page.get_by_text("The nearest crystal is").wait_for()
    expected = answer(read_density(NACL), "fusion-lightgbm").records
    rows = shown(page.locator("table").first)
    assert [row[3] for row in rows] == [r["unit"] for r in expected]
    assert [float(row[1]) for row in rows] == pytest.approx([r["value"] for r in expected], rel=1e-3)
    assert [row[2] for row in rows] == [interval(r) for r in expected]
    page.locator(".tabulator-row", has_text="CHGCAR.NaCl.gz").wait_for()
    page.get_by_text(conversion_lines(expected)[0]).wait_for()
    assert "Na 1 to 7 electrons" in expected[0]["conversion"]
    for n in range(2):
        page.locator(".js-plotly-plot canvas").nth(n).wait_for()
    for width in (800, 1200):  # nothing is cut off
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(1000)
        for plot in page.locator(".js-plotly-plot canvas").all()[:2]:
            box = plot.bounding_box()
            assert box is not None
            assert 200 < box["width"] < width / 2
            assert box["x"] + box["width"] <= width
    page.get_by_text("Position of the plane").wait_for()
    page.locator(".noUi-handle").nth(1).press("ArrowRight")
    page.get_by_text("0.52", exact=True).first.wait_for()
    page.get_by_role("radio").last.click()
    page.get_by_text(", space group ").wait_for()
    page.get_by_role("radio").nth(3).click()
    page.get_by_role("cell", name="total energy").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download all results (CSV)").click()
    table = pd.read_csv(download.value.path())
    assert list(table) == findings.CSV_COLUMNS
    expected = predict(read_density(NACL), load_predictors("density-gpr-portable"))
    assert table["value"].tolist() == pytest.approx([r["value"] for r in expected])
    assert running.problems == []


@pytest.mark.browser
def test_the_database_in_a_browser(running: Running, tmp_path: Path) -> None:
    page = running.page
    page.get_by_text("Latent database", exact=True).click()
    page.get_by_text("988 of 988 crystals").wait_for()
    for _ in range(20):  # the tab is drawn once more after it is shown, and what was typed before is lost
        page.get_by_placeholder("Fe3SnC").fill("Fe3SnC")
        page.wait_for_timeout(3000)
        if page.get_by_text("1 of 988 crystals", exact=True).is_visible():
            break
    page.locator(".tabulator-row", has_text="Fe3SnC_221").click()
    picture = page.locator("img[alt^='Fe3SnC_221']")
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 1000
    with page.expect_download() as download:
        page.get_by_text("Download the reconstruction (CHGCAR)").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    decoded, original = read_density(path), common_cell(load_density("Fe3SnC_221"), None)
    assert path.name == "CHGCAR_Fe3SnC_221"
    assert (decoded.formula, decoded.shape) == (original.formula, original.shape)
    assert decoded.n_electrons == pytest.approx(original.n_electrons, rel=1e-4)
    assert running.problems == []
