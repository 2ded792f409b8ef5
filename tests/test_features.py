"""From files to features: collections, in parallel, resumable, with bad files among them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from distributed import LocalCluster

from ecdlib import cli
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_folder
from ecdlib.density.cell import to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_density, write_npz
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_densities, load_density, write_store
from ecdlib.features import collection as features
from ecdlib.features.autocorrelation import density_quantiles, standardized_autocorrelation
from ecdlib.features.collection import (
    FeatureSettings,
    bundled_features,
    expand_sources,
    featurize,
    featurize_collection,
    load_features,
    statistics,
)

SMALL = FeatureSettings(size=5, voxel=1.0)
NAMES = ["LiH_225", "BeCu_221", "Al_225", "Be_194"]
LI = str(data_folder() / "vasp" / "CHGCAR.Li.gz")


@pytest.fixture
def quietly(tmp_path: Path) -> Callable[..., Any]:
    """Featurize in this process, without a progress bar."""

    def run(sources: Any, out: str = "f.h5", settings: FeatureSettings = SMALL, **options: Any) -> Any:
        return featurize_collection(sources, tmp_path / out, settings, **{"workers": 1, "progress": False, **options})

    return run


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The sources that were really computed."""
    done: list[str] = []
    compute = features._work

    def noted(sources: list[str], settings: FeatureSettings) -> Any:
        done.extend(sources)
        return compute(sources, settings)

    monkeypatch.setattr(features, "_work", noted)
    return done


def correlation(density: ChargeDensity, settings: FeatureSettings = SMALL) -> np.ndarray:
    return featurize(density, settings)[0]["autocorrelation"]


def content(path: Path) -> dict[str, Any]:
    with h5py.File(path) as h:
        return dict(zip(h["source"].asstr()[:], h["autocorrelation"][:], strict=True))


def test_the_steps_come_in_the_papers_order():
    density = load_density("Al_225")
    assert density.values.min() < 0
    values, row = featurize(density, SMALL)
    expected = redistribute_negative_charge(to_conventional(density))
    assert np.array_equal(values["autocorrelation"], standardized_autocorrelation(expected.density, 5, 1.0))
    assert np.array_equal(values["quantiles"], density_quantiles(expected.density))
    assert row["electrons"] == pytest.approx(row["electrons_after"], rel=1e-12)
    assert row["electrons"] == pytest.approx(load_densities("cubic").table["n_electrons"]["Al_225"], abs=3e-4)
    assert row["minimum"] < 0 < row["moved"]
    assert row["moved"] == pytest.approx(expected.moved / 4), "per primitive cell"
    assert (row["clusters"], row["layers"]) == (expected.clusters, expected.layers)
    assert row["a"] == pytest.approx(np.cbrt(4 * density.volume))
    assert json.loads(json.dumps(row)) == row


def test_features_are_reproducible(quietly, tmp_path):
    for out in ("a.h5", "b.h5"):
        quietly(NAMES[:2], out)
    a, b = content(tmp_path / "a.h5"), content(tmp_path / "b.h5")
    assert all(np.array_equal(a[name], b[name]) for name in NAMES[:2])


def test_a_collection_equals_direct_calls(quietly, tmp_path):
    table = quietly([*NAMES, LI])
    assert (table["error"] == "").all()
    values, report, settings = load_features(tmp_path / "f.h5")
    assert settings == SMALL
    assert values["autocorrelation"].dtype == np.float32
    assert list(report.index) == list(table.index)
    for source, stored in content(tmp_path / "f.h5").items():
        direct, row = featurize(read_density(source), SMALL)
        assert np.array_equal(stored, direct["autocorrelation"].astype(np.float32))
        assert np.array_equal(values["quantiles"][list(report.index).index(row["name"])], direct["quantiles"])
        assert table.loc[row["name"], "electrons"] == row["electrons"]
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]


@pytest.mark.cluster
@pytest.mark.parametrize("route", ["local", "address"])
def test_two_dask_workers_give_what_direct_calls_give(route, tmp_path):
    """Processes of this machine, and a scheduler that was started elsewhere; with one bad file."""
    bad = tmp_path / "CHGCAR.bad"
    bad.write_text("no density\n")
    sources = [*NAMES, str(bad)]
    if route == "local":
        table = featurize_collection(sources, tmp_path / "f.h5", SMALL, workers=2, progress=False)
    else:
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
            address = cluster.scheduler_address
            table = featurize_collection(sources, tmp_path / "f.h5", SMALL, scheduler=address, progress=False)
            assert len(cluster.scheduler_info["workers"]) == 2, "the workers of others are left running"
    stored = content(tmp_path / "f.h5")
    assert sorted(stored) == sorted(NAMES)
    for name in NAMES:
        assert np.array_equal(stored[name], correlation(load_density(name)).astype(np.float32))
    assert list(table.index[table["error"] != ""]) == [str(bad)]
    assert "not a complete CHGCAR" in table.loc[str(bad), "error"]


def test_no_scheduler_at_the_address(quietly, tmp_path, monkeypatch):
    import distributed

    def nobody(*args: Any, **options: Any) -> Any:
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", nobody)
    with pytest.raises(EcdError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers there\. Start one"):
        quietly(NAMES, scheduler="tcp://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_file_is_reported_and_the_others_are_written(quietly, tmp_path):
    (tmp_path / "CHGCAR.bad").write_text("no density\n")
    table = quietly(["LiH_225", str(tmp_path / "CHGCAR.bad"), "nowhere/CHGCAR", "BeCu_221"])
    errors = table["error"][table["error"] != ""]
    assert sorted(errors.index) == sorted([str(tmp_path / "CHGCAR.bad"), "nowhere/CHGCAR"])
    assert errors["nowhere/CHGCAR"] == "nowhere/CHGCAR: no such file. Check the path."
    assert sorted(content(tmp_path / "f.h5")) == ["BeCu_221", "LiH_225"]


def test_nothing_usable_is_an_error_that_says_why(quietly, tmp_path):
    with pytest.raises(EcdError, match="nowhere/CHGCAR: no such file"):
        quietly(["nowhere/CHGCAR"])
    with pytest.raises(EcdError, match="no usable density"):
        quietly([])
    assert list(tmp_path.iterdir()) == []


def test_files_of_one_name_in_two_folders_are_told_apart(quietly, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write_npz(
            load_density("LiH_225").step("scaled", values=load_density("LiH_225").values * 0.7),
            tmp_path / folder / "d.npz",
        )
    table = quietly(["LiH_225", *(str(tmp_path / f / "d.npz") for f in "ab")])
    errors = table["error"][table["error"] != ""]
    assert sorted(errors) == sorted(errors.index + errors.str.partition("d.npz")[2])
    assert errors.str.contains("electrons").all()


def test_an_interrupted_run_resumes(quietly, tmp_path, monkeypatch, worked):
    compute = features._work
    interrupt = iter([False, False, True])

    def interrupted(sources: list[str], settings: FeatureSettings) -> Any:
        if next(interrupt):
            raise KeyboardInterrupt
        return compute(sources, settings)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_work", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quietly(NAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5.parts"], "nothing under the final name yet"
    assert worked == NAMES[:2]
    worked.clear()
    table = quietly(NAMES)
    assert worked == NAMES[2:], "what was finished is not computed again"
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]
    assert list(table.index) == NAMES
    quietly(NAMES, "whole.h5")
    resumed, whole = content(tmp_path / "f.h5"), content(tmp_path / "whole.h5")
    assert all(np.array_equal(resumed[name], whole[name]) for name in NAMES)
    _, report, _ = load_features(tmp_path / "f.h5")
    assert report.equals(load_features(tmp_path / "whole.h5")[1])


@pytest.fixture
def parts(quietly: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run over the first two crystals leaves when it is interrupted after the first."""
    compute = features._work

    def interrupted(sources: list[str], settings: FeatureSettings) -> Any:
        if sources != NAMES[:1]:
            raise KeyboardInterrupt
        return compute(sources, settings)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_work", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quietly(NAMES[:2])
    return tmp_path / "f.h5.parts"


def test_what_another_run_has_left_is_not_mixed_in(quietly, parts):
    with pytest.raises(EcdError, match=r"f\.h5\.parts: holds an interrupted run with other parameters\. Remove it"):
        quietly(NAMES[:2], settings=FeatureSettings(size=7, voxel=1.0))
    with pytest.raises(EcdError, match=r"f\.h5\.parts: holds an interrupted run with other parameters\. Remove it"):
        quietly(NAMES[2:])
    assert (parts / "0.npz").is_file()


def test_a_finished_file_is_returned_and_one_of_other_sources_is_not_overwritten(quietly, tmp_path, worked):
    table = quietly(NAMES[:2])
    worked.clear()
    assert quietly(NAMES[:2]).equals(table)
    assert worked == []
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(EcdError, match=r"f\.h5: was made with other settings or sources"):
        quietly(NAMES[2:])
    with pytest.raises(EcdError, match=r"f\.h5: was made with other settings or sources"):
        quietly(NAMES[:2], settings=FeatureSettings(size=7, voxel=1.0))
    assert (tmp_path / "f.h5").read_bytes() == before
    (tmp_path / "g.h5").write_bytes(b"something else")
    with pytest.raises(EcdError, match=r"g\.h5: is not a readable feature file"):
        quietly(NAMES[:2], "g.h5")


def test_a_file_that_was_mended_is_taken_up(quietly, tmp_path, worked):
    source = tmp_path / "d.npz"
    source.write_bytes(b"cut off")
    assert list(quietly(["LiH_225", str(source)])["error"] != "") == [False, True]
    write_npz(load_density("BeCu_221"), source)
    assert list(quietly(["LiH_225", str(source)])["error"]) == ["", ""]
    write_npz(load_density("Al_225"), source)
    assert list(quietly(["LiH_225", str(source)])["formula"]) == ["LiH", "Al"]


@pytest.mark.parametrize("kill_at", np.random.default_rng(0).choice(np.arange(1, 17), 5, replace=False).tolist())
def test_a_kill_at_any_write_loses_at_most_one_chunk(kill_at, quietly, tmp_path, worked):
    """The process is killed at its k-th file operation (a file opened to write, or renamed)."""
    code = f"""
import os, sys
from ecdlib.features.collection import FeatureSettings, featurize_collection
count = 0
def watch(event, arguments):
    global count
    writing = event == "os.rename" or (event == "open" and str(arguments[0]).startswith({str(tmp_path)!r})
        and arguments[1] and set(arguments[1]) & set("wxa+"))
    count += bool(writing)
    if writing and count == {kill_at}:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
sys.addaudithook(watch)
featurize_collection({NAMES!r}, {str(tmp_path / "f.h5")!r}, FeatureSettings(5, 1.0), workers=1, progress=False)
"""
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False, capture_output=True)
    finished = len(list((tmp_path / "f.h5.parts").glob("[0-9].npz")))
    was_there = (tmp_path / "f.h5").exists()
    table = quietly(NAMES)
    assert list(table.index) == NAMES
    assert worked == ([] if was_there else NAMES[finished:])
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["f.h5"]
    for name, stored in content(tmp_path / "f.h5").items():
        assert np.array_equal(stored, correlation(load_density(name)).astype(np.float32))


def test_a_disk_that_fills_up_stops_the_run_and_keeps_what_is_done(quietly, tmp_path, monkeypatch, worked):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
        with pytest.raises(EcdError, match=r"f\.h5: no disk space left\. Free some and run the same command again"):
            quietly(NAMES[:2])
    quietly(NAMES[:2])
    assert worked == NAMES[:2]
    assert sorted(content(tmp_path / "f.h5")) == sorted(NAMES[:2])


def test_a_source_named_twice_is_computed_once(quietly, worked):
    assert list(quietly(["LiH_225", "LiH_225"]).index) == ["LiH_225"]
    assert worked == ["LiH_225"]


def test_a_store_stands_for_all_its_crystals(quietly, tmp_path):
    write_store(tmp_path / "s.h5", [load_density(name) for name in NAMES])
    expanded = expand_sources([LI, tmp_path / "s.h5"])
    assert expanded[0] == LI
    assert sorted(expanded[1:]) == sorted(f"{tmp_path / 's.h5'}::{name}" for name in NAMES)
    assert sorted(quietly([tmp_path / "s.h5"]).index) == sorted(NAMES)


def test_settings_change_the_features():
    density = load_density("LiH_225")
    standard = correlation(density)
    others: list[dict[str, Any]] = [{"field": "density"}, {"conversion": "trilinear"}]
    others += [{"convention": "gpaw"}, {"convention": "chemical"}]
    for other in (FeatureSettings(5, 1.0, **changes) for changes in others):
        assert np.abs(correlation(density, other) - standard).max() > 1e-4 * standard.max()


def test_features_of_others_are_not_taken_for_ours(tmp_path):
    (tmp_path / "f.h5").write_bytes(b"something")
    for path in (tmp_path / "f.h5", tmp_path / "nothing.h5", load_densities("pairs").path):
        with pytest.raises(EcdError, match="is not a readable feature file"):
            load_features(path)


def test_bundled_features_come_in_the_order_asked_for_and_from_the_cache(tmp_path, monkeypatch, worked):
    monkeypatch.setattr("ecdlib.base.cached.CACHE", tmp_path)
    values, report = bundled_features(SMALL, ["Be_194", "LiH_225"])
    assert list(report.index) == ["Be_194", "LiH_225"]
    assert sorted(s.split("::")[1] for s in worked) == ["Be_194", "LiH_225"]
    for i, name in enumerate(report.index):
        direct = statistics(load_density(name), SMALL)
        np.testing.assert_allclose(values["autocorrelation"][i], direct["autocorrelation"], rtol=1e-6)
        assert np.array_equal(values["quantiles"][i], direct["quantiles"])
    worked.clear()
    again, report_again = bundled_features(SMALL, ["Be_194", "LiH_225"])
    assert worked == []
    assert all(np.array_equal(again[block], values[block]) for block in features.FEATURES)
    assert report_again.equals(report)
    bundled_features(SMALL, ["LiH_225"])
    assert len(worked) == 1, "other names are another entry of the cache"


@pytest.mark.parametrize("bad", [False, True])
def test_featurize_on_the_command_line(bad, tmp_path, monkeypatch, capsys):
    sources = ["LiH_225", LI] + (["nowhere/CHGCAR"] if bad else [])
    out = tmp_path / "new folder" / "f.h5"
    command = ["ecd", "featurize", *sources, "-o", str(out), "--size", "5", "--voxel", "1", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert (stop.value.code or 0) == (2 if bad else 0)
    assert f"2 densities featurized: {out}" in printed.out
    assert ("skipped: nowhere/CHGCAR: no such file. Check the path." in printed.err) == bad
    stored = content(out)
    assert np.array_equal(stored[LI], correlation(read_density(LI)).astype(np.float32))
    assert sorted(stored) == sorted(["LiH_225", LI])


def test_featurize_converts_the_valence_first(tmp_path, monkeypatch, capsys):
    nacl, out = str(data_folder() / "vasp" / "CHGCAR.NaCl.gz"), tmp_path / "f.h5"
    command = ["ecd", "featurize", nacl, "-o", str(out), "--size", "5", "--voxel", "1", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--convention", "gpaw"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    _, report, settings = load_features(out)
    assert settings == FeatureSettings(5, 1.0, convention="gpaw")
    assert report["electrons"].tolist() == pytest.approx([14], abs=1e-3)
