"""The downloaders against a local HTTP server: jarvis-tools' and mp-api's own code runs, the internet does not."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from monty.json import jsanitize
from pymatgen.io.vasp.outputs import Chgcar

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_folder
from ecdlib.crystals import download
from ecdlib.crystals.download import fetch_jarvis, fetch_materials_project
from ecdlib.density.io import read_density

KEY = "0" * 32
CHGCAR = gzip.decompress((data_folder() / "vasp" / "CHGCAR.Li.gz").read_bytes())


class Server:
    """``pages`` maps a path to what it answers: (status, body), or a function of the query that returns that."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}
        self.asked: list[str] = []
        self.promise = 0  # bytes that each answer announces but does not send
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                split = urlsplit(self.path)
                server.asked.append(split.path)
                page = server.pages.get(split.path, (404, b"no such page"))
                status, body = page(parse_qs(split.query)) if callable(page) else page
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) + server.promise))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
            self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.stop()


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def manifest(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["files"]
    return files


# JARVIS-DFT


@pytest.fixture
def jarvis(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """figshare with an index as jarvis-tools knows it: JVASP-1 and -2 have a CHGCAR, JVASP-3 has none."""
    from jarvis.db import figshare

    archives = {
        "/files/11": zipped(POSCAR=b"x", INCAR=b"x"),
        "/files/12": zipped(INCAR=b"x", run__CHGCAR=CHGCAR),
        "/files/21": zipped(CHGCAR=CHGCAR),
        "/files/31": zipped(POSCAR=b"x"),
    }
    server.pages.update({path: (200, body) for path, body in archives.items()})

    def entry(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "download_url": server.url + path, "size": len(archives[path])}

    index = {
        "FD-ELAST": [
            entry("JVASP-1.zip", "/files/11"),
            entry("JVASP-2.zip", "/files/21") | {"computed_md5": hashlib.md5(archives["/files/21"]).hexdigest()},
            entry("JVASP-3.zip", "/files/31"),
            "a remark",
        ],
        "TBMBJ": [entry("JVASP-1.zip", "/files/12")],
        "STM": [{"name": "JVASP-3_Positive.zip", "download_url": server.url + "/files/never"}],
    }
    server.pages["/index"] = (200, zipped(**{"figshare_data-10-28-2020.json": json.dumps(index).encode()}))
    known = figshare.get_db_info()["raw_files"]
    assert known[0].startswith("https://")  # this data set is where we take the address from
    monkeypatch.setattr(figshare, "get_db_info", lambda: {"raw_files": [f"{server.url}/index", *known[1:]]})
    return server


def test_jarvis_chgcar_is_found_in_the_archives_and_recorded(jarvis: Server, tmp_path: Path) -> None:
    (path,) = fetch_jarvis("JVASP-1", tmp_path / "new", progress=False)
    assert path == tmp_path / "new" / "CHGCAR.JVASP-1.gz"
    assert gzip.decompress(path.read_bytes()) == CHGCAR
    assert read_density(path).n_electrons == pytest.approx(1, abs=1e-3)
    entry = manifest(path.parent)[path.name]
    assert entry["source"] == "JARVIS-DFT"
    assert entry["id"] == "JVASP-1"
    assert entry["url"] == f"{jarvis.url}/files/12"
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["bytes"] == path.stat().st_size
    assert entry["download_sha256"] == hashlib.sha256(jarvis.pages["/files/12"][1]).hexdigest()
    assert entry["date"].startswith("20")
    assert sorted(os.listdir(path.parent)) == [path.name, "jarvis-raw-files.zip", "manifest.json"]


def test_jarvis_second_run_downloads_nothing(jarvis: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = fetch_jarvis(["JVASP-2", "JVASP-1"], tmp_path)
    assert "100%" in capfd.readouterr().err  # the progress bar
    asked = list(jarvis.asked)
    assert asked.count("/index") == 1
    jarvis.stop()
    assert fetch_jarvis(["JVASP-2", "JVASP-1"], tmp_path) == first
    assert jarvis.asked == asked
    assert capfd.readouterr() == ("", "")


def test_jarvis_resumes_with_the_list_it_has(jarvis: Server, tmp_path: Path) -> None:
    fetch_jarvis("JVASP-2", tmp_path, progress=False)
    fetch_jarvis(["JVASP-2", "JVASP-1"], tmp_path, progress=False)
    assert jarvis.asked == ["/index", "/files/21", "/files/11", "/files/12"]


def test_jarvis_ids_without_chgcar_do_not_stop_the_others(jarvis: Server, tmp_path: Path) -> None:
    del jarvis.pages["/files/21"]
    with pytest.raises(EcdError, match="no charge density for 3 of 4 ids") as error:
        fetch_jarvis(["JVASP-3", "JVASP-4", "JVASP-2", "JVASP-1"], tmp_path, progress=False)
    assert "JVASP-3 (no CHGCAR in its 1 archives)" in str(error.value)
    assert "JVASP-4 (no CHGCAR in its 0 archives)" in str(error.value)
    assert f"JVASP-2 ({jarvis.url}/files/21 answers 404)" in str(error.value)
    assert "ecd density" in error.value.remedy
    assert sorted(os.listdir(tmp_path)) == ["CHGCAR.JVASP-1.gz", "jarvis-raw-files.zip", "manifest.json"]


def test_jarvis_changed_file_is_reported_not_used(jarvis: Server, tmp_path: Path) -> None:
    (path,) = fetch_jarvis("JVASP-2", tmp_path, progress=False)
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    with pytest.raises(EcdError, match=r"has changed since it was downloaded .*Delete it, then download again"):
        fetch_jarvis("JVASP-2", tmp_path, progress=False)
    path.unlink()
    fetch_jarvis("JVASP-2", tmp_path, progress=False)
    assert path.read_bytes() == content


def test_jarvis_changed_source_is_reported_not_used(jarvis: Server, tmp_path: Path) -> None:
    (path,) = fetch_jarvis("JVASP-1", tmp_path, progress=False)
    path.unlink()
    jarvis.pages["/files/12"] = (200, zipped(CHGCAR=b"other"))
    with pytest.raises(EcdError, match="sends a file other than the one recorded") as error:
        fetch_jarvis("JVASP-1", tmp_path, progress=False)
    assert "manifest.json" in error.value.remedy
    jarvis.pages["/files/21"] = (200, zipped(CHGCAR=b"other"))  # its md5 stands in the list
    with pytest.raises(EcdError, match=r"sends a file other than the one recorded \(expected md5:"):
        fetch_jarvis("JVASP-2", tmp_path, progress=False)
    assert sorted(os.listdir(tmp_path)) == ["jarvis-raw-files.zip", "manifest.json"]


@pytest.mark.parametrize("status", [404, 500])
def test_jarvis_without_list(jarvis: Server, tmp_path: Path, status: int) -> None:
    jarvis.pages["/index"] = (status, b"gone")
    with pytest.raises(EcdError, match=rf"^JARVIS-DFT: {jarvis.url}/index answers {status}"):
        fetch_jarvis("JVASP-1", tmp_path, progress=False)
    assert os.listdir(tmp_path) == []


def test_jarvis_offline(jarvis: Server, tmp_path: Path) -> None:
    jarvis.stop()
    with pytest.raises(EcdError, match=r"^JARVIS-DFT: no \(complete\) answer from .* \(ConnectionError\)") as error:
        fetch_jarvis("JVASP-1", tmp_path, progress=False)
    assert "Check the connection" in error.value.remedy
    assert os.listdir(tmp_path) == []


def test_jarvis_cut_off_transfer(jarvis: Server, tmp_path: Path) -> None:
    jarvis.promise = 10
    with pytest.raises(EcdError, match=r"no \(complete\) answer"):
        fetch_jarvis("JVASP-1", tmp_path, progress=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>are you human?</html>", "does not send a sound zip archive"),
        (zipped(README=b"x"), "is not the list of raw files"),
        (zipped(**{"a.json": b"[1]"}), "is not the list of raw files"),
        (zipped(**{"a.json": b"{broken"}), "is not the list of raw files"),
    ],
)
def test_jarvis_list_is_something_else(server: Server, tmp_path: Path, body: bytes, message: str) -> None:
    server.pages["/list"] = (200, body)
    with pytest.raises(EcdError, match=message):
        fetch_jarvis("JVASP-1", tmp_path, index_url=f"{server.url}/list", progress=False)
    assert os.listdir(tmp_path) == []


def test_jarvis_damaged_archive_leaves_nothing(jarvis: Server, tmp_path: Path) -> None:
    body = bytearray(jarvis.pages["/files/12"][1])
    body[len(body) // 2] ^= 0xFF
    jarvis.pages["/files/12"] = (200, bytes(body))
    with pytest.raises(EcdError, match="does not send a sound zip archive"):
        fetch_jarvis("JVASP-1", tmp_path, progress=False)
    assert sorted(os.listdir(tmp_path)) == ["jarvis-raw-files.zip", "manifest.json"]


def test_jarvis_gzipped_member_is_kept_as_it_is(jarvis: Server, tmp_path: Path) -> None:
    packed = gzip.compress(CHGCAR)
    jarvis.pages["/files/12"] = (200, zipped(**{"CHGCAR.gz": packed}))
    (path,) = fetch_jarvis("JVASP-1", tmp_path, progress=False)
    assert path.read_bytes() == packed


def test_bad_ids_and_folders(tmp_path: Path) -> None:
    with pytest.raises(EcdError, match=r"mp-149: is not an id of this source\. Ids look like JVASP-1002"):
        fetch_jarvis("mp-149", tmp_path)
    with pytest.raises(EcdError, match=r"\.\./x: is not an id of this source. Ids look like mp-149"):
        fetch_materials_project(["mp-149", "../x"], tmp_path, KEY)
    (tmp_path / "CHGCAR.JVASP-1.gz").write_bytes(b"mine")
    with pytest.raises(EcdError, match=r"is not listed in the manifest\.json beside it\. Move or delete it"):
        fetch_jarvis("JVASP-1", tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(EcdError, match="is not a manifest of downloaded files"):
        fetch_jarvis("JVASP-1", tmp_path)
    assert (tmp_path / "CHGCAR.JVASP-1.gz").read_bytes() == b"mine"


def test_folder_that_cannot_be_written(jarvis: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EcdError, match="cannot be written"):
        fetch_jarvis("JVASP-1", tmp_path / "file" / "folder", progress=False)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jarvis.db.figshare", None)
    monkeypatch.setitem(sys.modules, "mp_api.client", None)
    with pytest.raises(EcdError, match=r"jarvis-tools is not installed.*pip install 'ecdlib\[download\]'"):
        fetch_jarvis("JVASP-1", tmp_path)
    with pytest.raises(EcdError, match=r"mp-api is not installed.*pip install 'ecdlib\[download\]'"):
        fetch_materials_project("mp-135", tmp_path, KEY)


# Materials Project


@pytest.fixture
def project(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The API and the bucket, with one material: mp-135 and its tasks, of which mp-2000 is the latest static one."""
    monkeypatch.delenv("MP_API_KEY", raising=False)
    (tmp_path / "CHGCAR").write_bytes(CHGCAR)
    chgcar = Chgcar.from_file(str(tmp_path / "CHGCAR"))
    (tmp_path / "CHGCAR").unlink()
    body = gzip.compress(json.dumps({"data": jsanitize(chgcar.as_dict(), strict=True)}).encode())

    def answer(*documents: dict[str, Any]) -> tuple[int, bytes]:
        return 200, json.dumps({"data": documents, "meta": {"total_doc": len(documents)}}).encode()

    def materials(query: dict[str, list[str]]) -> tuple[int, bytes]:
        types = {"mp-1000": "GGA Static", "mp-2000": "GGA Static", "mp-3000": "GGA Structure Optimization"}
        known = "mp-135" in query["material_ids"][0]
        return answer(*([{"material_id": "mp-135", "calc_types": types}] if known else []))

    def tasks(query: dict[str, list[str]]) -> tuple[int, bytes]:
        dates = {"mp-1000": "2020-01-01T00:00:00", "mp-2000": "2022-01-01T00:00:00", "mp-3000": "2024-01-01T00:00:00"}
        wanted = query["task_ids"][0].split(",")
        return answer(*({"task_id": t, "last_updated": d} for t, d in dates.items() if t in wanted))

    heartbeat = {"version": "0.87.0", "db_version": "2026.1", "access_controlled_batch_ids": []}
    server.pages.update(
        {
            "/heartbeat": (200, json.dumps(heartbeat).encode()),
            "/materials/core/": materials,
            "/materials/tasks/": tasks,
            "/chgcars/mp-2000.json.gz": (200, body),
        }
    )
    return server


def fetch(project: Server, ids: str | list[str], folder: Path, key: str | None = KEY) -> list[Path]:
    return fetch_materials_project(
        ids, folder, key, endpoint=project.url, chgcars_url=f"{project.url}/chgcars", progress=False
    )


def test_mp_chgcar_is_fetched_and_recorded(project: Server, tmp_path: Path) -> None:
    (path,) = fetch(project, "mp-135", tmp_path)
    theirs, ours = Chgcar.from_file(str(data_folder() / "vasp" / "CHGCAR.Li.gz")), Chgcar.from_file(str(path))
    np.testing.assert_allclose(ours.data["total"], theirs.data["total"], rtol=1e-10)
    assert read_density(path).n_electrons == pytest.approx(1, abs=1e-3)
    entry = manifest(tmp_path)[path.name]
    assert (entry["source"], entry["id"], entry["task_id"]) == ("Materials Project", "mp-135", "mp-2000")
    assert entry["url"] == f"{project.url}/chgcars/mp-2000.json.gz"
    assert entry["download_sha256"] == hashlib.sha256(project.pages["/chgcars/mp-2000.json.gz"][1]).hexdigest()
    assert sorted(os.listdir(tmp_path)) == [path.name, "manifest.json"]

    asked = len(project.asked)
    assert fetch(project, ["mp-135", "mp-135"], tmp_path, key=None) == [path, path]  # neither key nor network
    assert len(project.asked) == asked


def test_mp_same_file_as_mp_api_itself_reads(project: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from mp_api.client import MPRester
    from mp_api.client.core.client import BaseRester

    asked = []

    def record(self: Any, bucket: str, key: str, decoder: Any = None) -> Any:
        asked.append(f"https://{bucket}.s3.amazonaws.com/{key}")
        return [{"data": None}], 1

    monkeypatch.setattr(BaseRester, "_query_open_data", record)
    with MPRester(KEY, endpoint=project.url, mute_progress_bars=True) as rester:
        rester.get_charge_density_from_material_id("mp-135")
        task_id = download._latest_static_task(rester, "mp-135")
    assert asked == [f"{download.CHGCARS_URL}/{task_id}.json.gz"]


def test_mp_unpacked_on_the_way(project: Server, tmp_path: Path) -> None:
    status, body = project.pages["/chgcars/mp-2000.json.gz"]
    project.pages["/chgcars/mp-2000.json.gz"] = (status, gzip.decompress(body))
    (path,) = fetch(project, "mp-135", tmp_path)
    assert read_density(path).formula == "Li"


def test_mp_needs_a_key(project: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        EcdError, match=r"^Materials Project: an API key is needed.*materialsproject.org/api.*MP_API_KEY"
    ):
        fetch(project, "mp-135", tmp_path, key=None)
    with pytest.raises(EcdError, match="valid API key") as error:
        fetch(project, "mp-135", tmp_path, key="short")
    assert "Check the API key" in error.value.remedy
    monkeypatch.setenv("MP_API_KEY", KEY)
    assert len(fetch(project, "mp-135", tmp_path, key=None)) == 1


def test_mp_refused_key(project: Server, tmp_path: Path) -> None:
    project.pages["/materials/core/"] = (401, b'{"detail": "Invalid authentication credentials"}')
    with pytest.raises(EcdError, match=r"gives no answer \(.*401.*Check the API key"):
        fetch(project, "mp-135", tmp_path)
    assert not list(tmp_path.iterdir())


def test_mp_material_without_density(project: Server, tmp_path: Path) -> None:
    with pytest.raises(EcdError, match=r"no charge density for 1 of 2 ids: mp-1 \(unknown material, or no static"):
        fetch(project, ["mp-1", "mp-135"], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["CHGCAR.mp-135.gz", "manifest.json"]
    del project.pages["/chgcars/mp-2000.json.gz"]
    with pytest.raises(EcdError, match=r"1 of 1 ids: mp-135 \(.*/chgcars/mp-2000.json.gz answers 404\)"):
        fetch(project, "mp-135", tmp_path / "other")


@pytest.mark.parametrize("where", ["whole", "values", "structure"])
def test_mp_file_cannot_name_code_that_is_run(
    project: Server, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """monty's decoder imports and calls the class that a file names."""
    (tmp_path / "evil.py").write_text("open('called', 'w')\nclass Evil:\n    def __init__(self, **_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    evil = {"@module": "evil", "@class": "Evil"}
    found = json.loads(gzip.decompress(project.pages["/chgcars/mp-2000.json.gz"][1]))
    if where == "whole":
        found["data"] = evil
    elif where == "values":
        found["data"]["data"]["total"] = evil
    else:
        found["data"]["poscar"]["structure"]["sites"][0]["properties"] = {"x": evil}
    project.pages["/chgcars/mp-2000.json.gz"] = (200, json.dumps(found).encode())
    out = tmp_path / "out"
    if where == "structure":  # what is not needed is not looked at
        assert len(fetch(project, "mp-135", out)) == 1
    else:
        with pytest.raises(EcdError, match=r"cannot be decoded|holds no charge density"):
            fetch(project, "mp-135", out)
    assert not (tmp_path / "called").exists()


def test_mp_changed_source(project: Server, tmp_path: Path) -> None:
    (path,) = fetch(project, "mp-135", tmp_path)
    path.unlink()
    project.pages["/chgcars/mp-2000.json.gz"] = (200, b"other")
    with pytest.raises(EcdError, match="sends a file other than the one recorded"):
        fetch(project, "mp-135", tmp_path)


@pytest.mark.parametrize("body", [b"<html>", b'{"data": 1}', b"{}", gzip.compress(b"{}", mtime=0)[:-9]])
def test_mp_file_is_something_else(project: Server, tmp_path: Path, body: bytes) -> None:
    project.pages["/chgcars/mp-2000.json.gz"] = (200, body)
    with pytest.raises(EcdError, match=r"mp-2000.json.gz (cannot be decoded|holds no charge density)"):
        fetch(project, "mp-135", tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("first", ["request", "material"])
def test_mp_offline(project: Server, tmp_path: Path, first: str) -> None:
    """mp-api asks for the version of an address once in a process, and names a failure there differently."""
    if first == "material":
        fetch(project, "mp-135", tmp_path / "before")
    project.stop()
    with pytest.raises(EcdError, match=r"^Materials Project: no answer from the API.*Check the connection"):
        fetch(project, "mp-135", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mp_bucket_is_offline(project: Server, tmp_path: Path) -> None:
    bucket = Server()
    bucket.stop()
    with pytest.raises(EcdError, match=r"no \(complete\) answer from .*/mp-2000.json.gz"):
        fetch_materials_project("mp-135", tmp_path, KEY, endpoint=project.url, chgcars_url=bucket.url, progress=False)
    assert os.listdir(tmp_path) == []


def test_mp_endpoint_is_something_else(project: Server, tmp_path: Path) -> None:
    project.pages["/heartbeat"] = (200, b"{}")
    with pytest.raises(EcdError, match="not what mp-api expects"):
        fetch(project, "mp-135", tmp_path)
