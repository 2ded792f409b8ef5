"""Sources of crystals: small samples of each format, what is wrong with them, the API on a local server."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymatgen.core import Lattice, Structure
from test_download import KEY, Server

from ecdlib.base.errors import EcdError
from ecdlib.crystals import databases, sources
from ecdlib.crystals import files as crystal_files
from ecdlib.crystals.candidate import RADIOACTIVE, Candidate, Failure, paper_filter
from ecdlib.crystals.sources import GRAMMAR, SOURCES, SOURCES_HELP, Options, Source, read_source
from ecdlib.data import structures
from ecdlib.data.tables import load_crystals


def salt(*species: Any, a: float = 4.0) -> Structure:
    return Structure(Lattice.cubic(a), species or ("Na", "Cl"), [[0, 0, 0], [0.5, 0.5, 0.5]])


CIF, POSCAR, JSON = salt().to(fmt="cif"), salt().to(fmt="poscar"), salt().to_json()


def read(source: str | Path, **options: Any) -> tuple[list[Candidate], list[Failure]]:
    good, bad = [], []
    for each in read_source(str(source), **options):
        good.append(each) if isinstance(each, Candidate) else bad.append(each)
    return good, bad


# Files


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "CONTCAR").write_text(salt("K", "Cl").to(fmt="poscar"))
    (tmp_path / "b" / "1.vasp").write_text(POSCAR)
    (tmp_path / "b" / "2.CIF").write_text(CIF)
    (tmp_path / "z.cif.gz").write_bytes(gzip.compress(CIF.encode()))
    (tmp_path / "POSCAR_1").write_text(POSCAR)
    (tmp_path / "POSCAR.gz").write_bytes(gzip.compress(POSCAR.encode()))
    (tmp_path / "x.poscar").write_text(POSCAR)
    (tmp_path / "cut.cif").write_text(CIF[:300])
    (tmp_path / "cut.cif.gz").write_bytes(gzip.compress(CIF.encode())[:-20])
    (tmp_path / "latin.cif").write_bytes(CIF.replace("pymatgen", "\xe5").encode("latin-1"))
    (tmp_path / "notes.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.cif")  # nobody writes: reading it would wait forever
    (tmp_path / "pointer.cif").symlink_to(tmp_path / "nowhere")
    good, bad = read(tmp_path)
    ids = ["POSCAR.gz", "POSCAR_1", "x.poscar", "z.cif.gz", "b/1.vasp", "b/2.CIF", "b/deep/CONTCAR"]
    assert [each.id for each in good] == ids
    assert {each.source for each in good} == {"files"}
    assert all(each.info == {"hypothetical": False} for each in good)
    assert [each.id for each in bad] == ["cut.cif", "cut.cif.gz", "latin.cif", "pipe.cif", "pointer.cif"]
    assert good == read(tmp_path)[0]


def test_a_folder_that_may_not_be_opened_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an administrator permissions mean nothing, so that the system's answer is made up."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "hidden.cif").write_text(CIF)
    (tmp_path / "salt.cif").write_text(CIF)
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (good,), (bad,) = read(tmp_path)
    assert good.id == "salt.cif"
    assert bad == Failure(str(tmp_path / "closed"), "cannot be opened (Permission denied)")
    with pytest.raises(EcdError, match=r"holds no crystal that can be used \(.*closed: cannot be opened \(Permission"):
        read(tmp_path / "closed")


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "salt.cif"
    path.write_text(CIF)
    ((only,), _) = read(path)
    assert only.id == "salt.cif"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.cif", CIF[:200], r"a\.cif: holds no crystal that can be used \(a\.cif: is not a complete CIF"),
        ("a.cif", "", "the file is empty"),
        ("a.txt", "x", r"a\.txt: is not a file that holds crystals\. Give a folder"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "id,name\n1,x\n", r"a\.csv: has no column structure, cif or poscar\. Its columns: id, name"),
        ("a.csv", "id,cif\n", "holds no crystal that can be used"),
        ("a.csv", '"\x00', "holds no crystal that can be used"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(EcdError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_empty_folder_and_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(EcdError, match=r"holds no crystal that can be used\. Give a folder"):
        read(tmp_path)
    for source in (tmp_path / "none", "", "nonsense", "gnome:", "labelled:3"):
        with pytest.raises(EcdError, match=r"no such file, folder or source\. Give a folder"):
            read_source(str(source) or "nothing")


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "TOO_LARGE", 1_000_000)
    (tmp_path / "bomb.cif.gz").write_bytes(gzip.compress(bytes(2_000_000)))
    (tmp_path / "salt.cif").write_text(CIF)
    _, (failure,) = read(tmp_path)
    assert failure == Failure("bomb.cif.gz", "is larger than 1 MB")


# Tables


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pandas as pd

    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("column", ["structure", "cif", "poscar"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_table(tmp_path: Path, column: str, suffix: str) -> None:
    rows = [
        {"material_id": "mp-1", column: CIF, "band_gap": 5.0},
        {"material_id": "mp-2", column: JSON, "band_gap": None},
        {"material_id": "mp-3", column: CIF[:200], "band_gap": 1.0},
        {"material_id": "", column: POSCAR, "band_gap": "none"},
    ]
    good, bad = read(table(tmp_path / f"t{suffix}", rows))
    assert [(each.id, each.info.get("band_gap")) for each in good] == [("mp-1", 5.0), ("mp-2", None), ("4", None)]
    assert [each.id for each in bad] == ["mp-3"]
    assert all(each.structure.formula == "Na1 Cl1" for each in good)


def test_table_without_ids_and_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crystal_files, "CHUNK", 2)
    good, _ = read(table(tmp_path / "t.csv", [{"poscar": POSCAR}] * 5))
    assert [each.id for each in good] == ["1", "2", "3", "4", "5"]


def test_damaged_end_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crystal_files, "CHUNK", 2)
    path = table(tmp_path / "t.csv", [{"id": i, "cif": CIF} for i in range(4)])
    path.write_text(path.read_text() + '7,"data_\n')  # an open quote
    good, (failure,) = read(path)
    assert [each.id for each in good] == ["0", "1", "2", "3"]
    assert failure.id == "t.csv"
    assert "cannot be read beyond row 4" in failure.message


# The paper's filter


def test_radioactive_elements() -> None:
    assert {"Tc", "Pm", "Po", "Rn", "Th", "U", "Pu"} <= RADIOACTIVE
    assert not RADIOACTIVE & {"Bi", "Pb", "Xe", "H", "Nd", "Ru"}


@pytest.mark.parametrize(
    ("species", "gap", "reason"),
    [
        (("Na", "Cl"), 1.0, ""),
        (("Na", "Cl"), 0.1, ""),
        (("Na", "Cl"), 3.0, ""),
        (("Na", "Cl"), None, ""),
        (("Na", "Cl"), 0.0, "band gap of 0 eV is outside 0.1 to 3 eV"),
        (("Na", "Cl"), 3.001, "band gap of 3.001 eV is outside 0.1 to 3 eV"),
        (("U", "N"), 1.0, "radioactive: U"),
        (("U", "Tc"), None, "radioactive: Tc, U"),
        (("Si", "Si"), 0.6, "a single element"),
    ],
)
def test_paper_filter(species: tuple[str, ...], gap: float | None, reason: str) -> None:
    assert paper_filter(salt(*species), gap) == reason


def test_filter_is_applied(tmp_path: Path) -> None:
    rows = [{"id": e, "cif": salt(e, "Cl").to(fmt="cif"), "band_gap": g} for e, g in (("Na", 5), ("K", 2), ("Th", 2))]
    path = table(tmp_path / "t.csv", rows)
    assert [each.id for each in read(path)[0]] == ["Na", "K", "Th"]
    assert [each.id for each in read(path, filter=True)[0]] == ["K"]
    path = table(path, rows[::2])
    with pytest.raises(EcdError, match=r"no crystal passes the filter \(Th: radioactive: Th\)\. Omit the filter"):
        read(path, filter=True)


# GNoME

GNOME = [  # Composition, MaterialId, Reduced Formula, Bandgap
    ("Cl1Na1", "aaa", "NaCl", "2.5"),
    ("Cl1K1", "bbb", "KCl", ""),
    ("Cl1Rb1", "ccc", "RbCl", "7"),
    ("Cl1Tc1", "ddd", "TcCl", "1"),
    ("Cl1Cs1", "eee", "CsCl", "1"),
]


def gnome(folder: Path, archive: str = "by_composition", prefix: str | None = None, suffix: str = ".CIF") -> Path:
    header = ",Composition,MaterialId,Reduced Formula,Elements,NSites,Volume,Density,Bandgap,Is Train\n"
    rows = [f"{i},{c},{m},{f},\"['Cl', '..']\",2,64.0,2.0,{g},True\n" for i, (c, m, f, g) in enumerate(GNOME)]
    (folder / "stable_materials_summary.csv").write_text(header + "".join(rows))
    column = {"by_composition": 0, "by_id": 1, "by_reduced_formula": 2}[archive]
    with zipfile.ZipFile(folder / f"{archive}.zip", "w", zipfile.ZIP_DEFLATED) as members:
        for row in GNOME[:-1]:  # the last one is missing
            element = re.sub(r"Cl1?|1", "", row[0])
            name = f"{archive + '/' if prefix is None else prefix}{row[column]}{suffix}"
            members.writestr(name, salt(element, "Cl").to(fmt="cif"))
        members.writestr("../../evil.CIF", "x")
    return folder


@pytest.mark.parametrize("archive", ["by_composition", "by_id", "by_reduced_formula"])
@pytest.mark.parametrize(("prefix", "suffix"), [(None, ".CIF"), (None, ".cif"), ("", ".CIF"), ("", ".cif")])
def test_gnome(tmp_path: Path, archive: str, prefix: str | None, suffix: str) -> None:
    source = f"gnome:{gnome(tmp_path, archive, prefix, suffix)}"
    before = sorted(tmp_path.rglob("*"))
    good, (failure,) = read(source)
    assert [(each.id, each.info.get("band_gap")) for each in good] == [
        ("aaa", 2.5),
        ("bbb", None),
        ("ccc", 7.0),
        ("ddd", 1.0),
    ]
    assert [each.structure.composition.reduced_formula for each in good] == ["NaCl", "KCl", "RbCl", "TcCl"]
    assert {each.source for each in good} == {"GNoME"}
    assert failure.id == "eee"
    assert failure.message.startswith(f"the archive has no {archive}/")
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked
    filtered, (failure,) = read(source, filter=True)
    assert [each.id for each in filtered] == ["aaa"]  # no gap, too wide, radioactive
    assert failure.id == "eee"


def test_gnome_prefers_unique_names(tmp_path: Path) -> None:
    gnome(tmp_path)
    (tmp_path / "by_id.zip").write_bytes(b"not looked at")
    assert len(read(f"gnome:{tmp_path}")[0]) == 4


def test_gnome_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(EcdError, match=r"holds no stable_materials_summary\.csv\. Download"):
        read(f"gnome:{tmp_path}")
    gnome(tmp_path)
    (tmp_path / "by_composition.zip").write_bytes(b"PK")
    with pytest.raises(EcdError, match="is not a sound zip archive"):
        read(f"gnome:{tmp_path}")
    (tmp_path / "by_composition.zip").unlink()
    with pytest.raises(EcdError, match=r"holds none of by_composition\.zip, by_id\.zip"):
        read(f"gnome:{tmp_path}")
    gnome(tmp_path)
    (tmp_path / "stable_materials_summary.csv").write_text("Composition,MaterialId\nx,y\n")
    with pytest.raises(EcdError, match=r"stable_materials_summary\.csv: has no column Bandgap"):
        read(f"gnome:{tmp_path}")


def test_gnome_damaged_and_large_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = gnome(tmp_path) / "by_composition.zip"
    with zipfile.ZipFile(archive) as members:
        info = members.getinfo("by_composition/Cl1K1.CIF")
        start = info.header_offset + 30 + len(info.filename)
    content = bytearray(archive.read_bytes())
    content[start + 40 : start + 60] = bytes(20)
    archive.write_bytes(content)
    good, bad = read(f"gnome:{tmp_path}")
    assert [each.id for each in good] == ["aaa", "ccc", "ddd"]
    assert [each.id for each in bad] == ["bbb", "eee"]
    monkeypatch.setattr(databases, "TOO_LARGE", 10)
    with pytest.raises(EcdError, match=r"\(aaa: is larger than 0 MB\)"):
        read(f"gnome:{tmp_path}")


# The Materials Project


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The API's summaries: five crystals, asked for by twos; mp-4 has no structure, mp-5 is radioactive."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MP_API_KEY", raising=False)
    monkeypatch.setattr(databases, "CHUNK", 2)
    running = Server()
    crystals = {
        "mp-10": ("Na", 2.0),
        "mp-2": ("K", 1.0),
        "mp-3": ("Rb", 3.0),
        "mp-4": ("Cs", 0.1),
        "mp-5": ("Th", 1.0),
    }

    def summary(query: dict[str, list[str]]) -> tuple[int, bytes]:
        fields = query["_fields"][0].split(",")
        wanted = query["material_ids"][0].split(",") if "material_ids" in query else list(crystals)
        if "material_ids" not in query:
            assert (query["band_gap_min"], query["band_gap_max"]) == (["0.1"], ["3.0"])
            assert "structure" not in fields
        documents = []
        for id in wanted:
            element, gap = crystals[id]
            if "structure" in fields and id == "mp-4":
                continue
            whole = {
                "material_id": id,
                "band_gap": gap,
                "elements": ["Cl", element],
                "structure": salt(element, "Cl").as_dict(),
            }
            documents.append({key: whole[key] for key in fields})
        skip, limit = int(query.get("_skip", ["0"])[0]), int(query["_limit"][0])
        total = len(documents)
        page = documents[skip : skip + limit]
        return 200, json.dumps({"data": page, "meta": {"total_doc": total}}).encode()

    heartbeat = {"version": "0.87.0", "db_version": "2026.1", "access_controlled_batch_ids": []}
    running.pages |= {"/heartbeat": (200, json.dumps(heartbeat).encode()), "/materials/summary/": summary}
    yield running
    running.stop()


@pytest.mark.slow
def test_materials_project(project: Server) -> None:
    good, bad = read("materials-project", api_key=KEY, endpoint=project.url)
    assert [(each.id, each.info["band_gap"]) for each in good] == [
        ("mp-2", 1.0),
        ("mp-3", 3.0),
        ("mp-5", 1.0),
        ("mp-10", 2.0),
    ]
    assert [each.structure.composition.reduced_formula for each in good] == ["KCl", "RbCl", "ThCl", "NaCl"]
    assert {each.source for each in good} == {"Materials Project"}
    assert [each.id for each in bad] == ["mp-4"]
    good, _ = read("materials-project", api_key=KEY, endpoint=project.url, filter=True)
    assert [each.id for each in good] == ["mp-2", "mp-3", "mp-10"]


@pytest.mark.slow
def test_materials_project_needs_a_key(project: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EcdError, match=r"^Materials Project: an API key is needed.*MP_API_KEY"):
        read_source("materials-project", endpoint=project.url)
    with pytest.raises(EcdError, match="valid API key"):
        read_source("materials-project", api_key="short", endpoint=project.url)
    monkeypatch.setenv("MP_API_KEY", KEY)
    assert len(read("materials-project", endpoint=project.url)[0]) == 4


@pytest.mark.slow
def test_materials_project_without_network(project: Server) -> None:
    project.stop()
    with pytest.raises(EcdError, match=r"^Materials Project: no answer from the API.*Check the connection") as error:
        read("materials-project", api_key=KEY, endpoint=project.url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("answer", [(401, b'{"detail": "Invalid credentials"}'), (500, b"oops"), (200, b"<html>")])
@pytest.mark.slow
def test_materials_project_answers_something_else(project: Server, answer: tuple[int, bytes]) -> None:
    project.pages["/materials/summary/"] = answer
    with pytest.raises(EcdError, match=r"^Materials Project: the API"):
        read("materials-project", api_key=KEY, endpoint=project.url)


# What ships here


def test_labelled() -> None:
    good, bad = read("labelled")
    table = load_crystals()
    assert [each.id for each in good] == list(table.index)
    assert not bad
    gaps = {each.id: each.info["band_gap"] for each in good if "band_gap" in each.info}
    assert gaps == table["band_gap"].dropna().to_dict()
    passing, _ = read("labelled", filter=True)
    assert 0 < len(passing) < len(good)
    assert all(0.1 <= each.info.get("band_gap", 1) <= 3 for each in passing)


def test_hypothetical() -> None:
    good, bad = read("hypothetical:20:3")
    assert [each.id for each in good] == [f"hyp-{i:07d}" for i in range(20)]
    assert all(each.info["hypothetical"] for each in good)
    assert not bad
    assert good != read("hypothetical:20")[0]


@pytest.mark.parametrize("source", ["hypothetical:", "hypothetical:x", "hypothetical:-1", "hypothetical:1:2:3"])
def test_hypothetical_is_misspelt(source: str) -> None:
    with pytest.raises(EcdError, match=r"cannot be parsed\. Write hypothetical, hypothetical:N"):
        read_source(source)


def test_hypothetical_zero() -> None:
    with pytest.raises(EcdError, match="at least one"):
        read_source("hypothetical:0")


def test_order_of_a_folder_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.cif").write_text(CIF)
    walk = os.walk

    def shuffled(top: Any, **more: Any) -> Iterator[Any]:
        for root, folders, files in walk(top, **more):
            yield root, folders, files[::-1]

    monkeypatch.setattr(os, "walk", shuffled)
    assert [each.id for each in read(tmp_path)[0]] == ["a.cif", "b.cif", "c.cif"]


# The registry


def test_a_source_is_a_reader_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def reader(source: str, options: Options) -> Iterator[Candidate]:
        given.append((source, options.filter))
        yield Candidate("salt", salt(), "salts")

    mine = Source("salts:EDGE", "rock salt of that edge", reader)
    monkeypatch.setattr(sources, "SOURCES", (*SOURCES, mine))
    assert [each.id for each in read("salts:4", filter=True)[0]] == ["salt"]
    assert given == [("salts:4", True)]
    for text in ("salts", "salts:", "saltsx:4"):
        with pytest.raises(EcdError, match="no such file, folder or source"):
            read(text)


def test_help_and_errors_name_every_source() -> None:
    for source in SOURCES:
        assert f"{source.syntax}: {source.help}" in SOURCES_HELP
        assert source.syntax in GRAMMAR
    with pytest.raises(EcdError, match="materials-project, gnome:FOLDER, labelled, hypothetical"):
        read("nonsense")
