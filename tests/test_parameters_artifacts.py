"""Parameters of the notebooks, the list of artifacts, verdicts and the scoreboard."""

from __future__ import annotations

import ast
import csv
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from ecdlib import cli
from ecdlib.base import cached
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT, data_file, load_manifest
from ecdlib.book import artifacts, runs
from ecdlib.book.artifacts import (
    COLOURS,
    Artifact,
    Comparison,
    judge,
    load_artifacts,
    mean_with_error,
    paired,
    r2_with_error,
    read_payloads,
    scoreboard,
    weigh,
    write_payload,
)
from ecdlib.book.parameters import NOTEBOOKS, changed, parameter_rows, resolve, run_name, schema, title
from ecdlib.book.scoreboard import FINDINGS, front_findings, scoreboard_page


@pytest.fixture(autouse=True)
def fresh_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is the first cell of a kernel."""
    monkeypatch.setattr(runs, "_ASSIGNED", {})


MADE_BY = {"notebook": "features", "parameters": {"profile": "quick"}}


# Parameters


@pytest.mark.parametrize(
    ("given_values", "problem"),
    [
        ({"sizze": 3}, r"unknown parameter 'sizze'\. Parameters are: .*size"),
        ({"size": "abc"}, r"parameter size = 'abc': .*integer.* odd number of voxels.*\(default 51\)"),
        ({"size": "51.5"}, "parameter size = '51.5'"),
        ({"size": ""}, "parameter size = ''"),
        ({"size": 1}, "parameter size = 1: .*greater than or equal to 3"),
        ({"size": 50}, "parameter size = 50: must be odd"),
        ({"example": "Xy9_225"}, "parameter example = 'Xy9_225': is not a bundled crystal"),
        ({"voxel": -0.2}, r"parameter voxel = -0\.2: .*greater than 0"),
        ({"voxel": "nan"}, "parameter voxel = 'nan'"),
        ({"voxel": "inf"}, "parameter voxel = 'inf'"),
        ({"voxel": [0.2]}, "parameter voxel"),
        ({"device": "tpu"}, "parameter device = 'tpu': .*'auto', 'cpu' or 'cuda'"),
        ({"profile": "fast"}, "parameter profile = 'fast'"),
        ({"seed": -1}, "parameter seed = -1"),
        ({"example": 5}, "parameter example = 5: .*string"),
    ],
)
def test_a_parameter_that_cannot_be_is_named_with_its_meaning(given_values, problem):
    with pytest.raises(EcdError, match=problem) as caught:
        resolve("features", given_values)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("notebook 'features': ")


def test_an_unknown_notebook_is_refused_with_the_list_of_known_ones():
    for call in (schema, parameter_rows, title, runs.notebook_path):
        with pytest.raises(EcdError, match=r"nonsense: no such notebook\. Choose one of: .*features"):
            call("nonsense")


def test_text_from_the_command_line_becomes_numbers():
    values = resolve("features", {"size": "21", "voxel": "0.5"})
    assert (values.size, values.voxel) == (21, 0.5)
    assert changed("features", values) == {"size": 21, "voxel": 0.5}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_presets_are_valid_and_start_from_the_defaults(notebook):
    kind = schema(notebook)
    quick = resolve(notebook, {})
    assert quick.model_dump() == {name: field.default for name, field in kind.model_fields.items()}
    for profile in ("quick", "full", "tiny"):
        values = resolve(notebook, {}, profile)
        assert values.profile == profile
        assert changed(notebook, values) == {}, "a profile is not a change"
    assert resolve(notebook, {}, "full").model_dump() == {**quick.model_dump(), "profile": "full", **kind.full}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_description_tells_all_of_the_schema(notebook):
    rows = {row["name"]: row for row in parameter_rows(notebook)}
    assert list(rows) == list(schema(notebook).model_fields)
    assert all(row["meaning"] for row in rows.values())
    assert rows["device"]["type"] == "auto | cpu | cuda"
    assert rows["seed"] == {
        "name": "seed",
        "type": "int",
        "quick": "0",
        "full": "0",
        "meaning": "random seed",
    }
    assert title(notebook).endswith(".")


def test_each_run_has_a_name_of_its_own():
    """Quick and full, and every changed parameter: no run overwrites another."""
    runs_ = [
        *(resolve("baseline", {}, profile) for profile in ("tiny", "quick", "full")),
        *(resolve("baseline", {"folds": folds}) for folds in (5, 6)),
        resolve("baseline", {"folds": 5}, "full"),
        resolve("baseline", {"folds": 5, "voxel": 0.25}),
        resolve("baseline", {"voxel": 0.25}),
        resolve("baseline", {"seed": 5}),
    ]
    names = [run_name("baseline", values) for values in runs_]
    assert len(set(names)) == len(names)
    assert run_name("baseline", resolve("baseline", {})) == "baseline"
    assert run_name("baseline", resolve("baseline", {"folds": "10"})) == "baseline", "the default, spelled out"
    assert run_name("baseline", resolve("baseline", {"folds": 5}, "full")) == "baseline--full--folds-5"


@given(st.text(max_size=20))
def test_names_of_runs_are_names_of_files(text):
    name = run_name("features", resolve("features", {}).model_copy(update={"example": text}))
    assert "/" not in name
    assert name.isascii()
    assert " " not in name


# Notebooks


def notebook(name: str) -> Any:
    return nbformat.read(runs.notebook_path(name), as_version=4)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_parameters_cell_holds_the_quick_preset(name):
    """Opened in Jupyter and run as it stands, a notebook is the quick run: papermill replaces this cell."""
    tagged = [cell for cell in notebook(name).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assigned = {}
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign)
        assert isinstance(statement.targets[0], ast.Name)
        assigned[statement.targets[0].id] = ast.literal_eval(statement.value)
    assert assigned == resolve(name, {}).model_dump()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_sources_hold_no_outputs(name):
    for cell in notebook(name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_every_notebook_has_a_schema_and_every_schema_a_notebook():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)


def test_begin_takes_the_notebooks_variables_for_parameters(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ECD_RUN_FOLDER", str(tmp_path))
    namespace = {
        "size": 21,
        "voxel": 0.5,
        "profile": "quick",
        "_i": "hidden",
        "In": [],
        "begin": runs.begin,
        "np": math,
    }
    run = runs.begin("features", namespace)
    assert (run.parameters.size, run.parameters.voxel) == (21, 0.5)
    assert run.folder == tmp_path / "results"
    assert runs.begin("features", namespace | {"result": 5.0}).parameters == run.parameters, "run a second time, later"
    with pytest.raises(EcdError, match="unknown parameter 'binz'"):
        runs.begin("dataset", {"binz": 3})


def test_a_changed_parameter_is_another_cache_key():
    keys = [runs.cache_key("features", resolve("features", given_values)) for given_values in ({}, {}, {"size": 21})]
    assert keys[0] == keys[1] != keys[2]
    assert runs.cache_key("dataset", resolve("dataset", {})) not in keys
    assert runs.cache_key("features", resolve("features", {}), kernel="gpu") not in keys


def test_a_notebook_is_stale_when_what_it_imports_or_reads_changes(tmp_path, monkeypatch):
    """Code of its import closure, and reported values, count; the app and comments do not."""
    for folder in ("ecdlib", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "exercises"))
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(cached, "ROOT", tmp_path)
    values = resolve("features", {})

    def keys_after(part, text):
        with open(tmp_path / part, "a") as f:
            f.write(text)
        return [runs.cache_key(name, resolve(name, {})) for name in ("features", "elastic_quantities")]

    before = keys_after("ecdlib/app/server.py", "")
    assert keys_after("ecdlib/app/server.py", "NEW = 1\n") == before
    assert keys_after("ecdlib/features/autocorrelation.py", "# a comment\n") == before
    correlation, elastic = keys_after("ecdlib/features/autocorrelation.py", "NEW = 1\n")
    assert (correlation, elastic) != before
    assert elastic == before[1]
    assert keys_after("ecdlib/elastic/moduli.py", "NEW = 1\n")[1] != before[1]
    monkeypatch.setattr(cached, "package_versions", lambda packages: {"numpy": "0"})
    assert runs.cache_key("features", values) != correlation


# The list of artifacts


def test_the_list_is_sound():
    with open(ROOT / "book" / "artifacts.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len({row["id"] for row in rows}) == len(rows) >= 76
    assert {row["paper"] for row in rows} == set(artifacts.PAPERS)
    kinds = {"figure", "table", "number", "claim", "equation", "system", "text"}
    assert {row["kind"] for row in rows} <= kinds
    for row in rows:
        assert None not in row, f"{row['id']}: more fields than columns"
        assert all(row[field].strip() for field in ("id", "where", "what", "reported")), row["id"]


def test_every_number_to_compare_with_is_a_number():
    for artifact in load_artifacts().values():
        if artifact.tolerance:
            assert artifact.numbers, f"{artifact.id} has a tolerance but no numbers"
            assert all(math.isfinite(number) for number in artifact.numbers)
            assert len(artifact.tolerances) == len(artifact.numbers)
            assert artifact.why, f"{artifact.id}: why this tolerance?"
        elif artifact.kind in ("number", "table"):
            assert artifact.numbers is None, f"{artifact.id} has numbers but no tolerance"


def test_what_the_paper_reports_is_reproduced_by_itself():
    for artifact in load_artifacts().values():
        if artifact.tolerance and artifact.numbers:
            assert judge(weigh(artifact, artifact.numbers)) == "reproduced", artifact.id
            if all(t.kind not in ("at most", "at least") for t in artifact.tolerances):
                far = [10 * abs(number) + 1 for number in artifact.numbers]
                assert judge(weigh(artifact, far)) == "differs", artifact.id


def test_a_tolerance_tells_apart_what_the_papers_compare():
    table = load_artifacts()["fusion-table1-lightgbm"]
    worse = [0.893, *table.numbers[1:]]
    assert weigh(table, worse)[0]["outcome"] == "fails", "0.94 is not 0.893"
    assert judge(weigh(table, [0.935, *table.numbers[1:]])) == "reproduced"


# Verdicts


def reported(text: str, tolerance: str = "exact") -> Artifact:
    return Artifact("x", "lean_cnn", "number", "here", "something", text, "", tolerance, "because", "")


@pytest.mark.parametrize(
    ("text", "tolerance", "ours", "verdict"),
    [
        ("10", "10 %", [10.9], "reproduced"),
        ("10", "10 %", [11.1], "differs"),
        ("-10", "10 %", [-10.9], "reproduced"),
        ("1410", "exact", [1410], "reproduced"),
        ("1410", "exact", [1411], "differs"),  # a count is exact
        ("0.0712", "exact", [0.07124], "reproduced"),  # half a unit of the last printed digit
        ("0.0712", "exact", [0.0713], "differs"),
        ("7.70", "exact", [7.704], "reproduced"),
        ("7.70", "exact", [7.72], "differs"),
        ("7.7", "exact", [7.72], "reproduced"),
        ("1.5e3", "exact", [1540], "reproduced"),
        ("1.5e3", "exact", [1560], "differs"),
        ("0.0", "10 %", [0.04], "reproduced"),
        ("7.5", "± 0.2", [7.69], "reproduced"),
        ("7.5", "± 0.2", [7.71], "differs"),
        ("0.94", "25 % of 1-R2", [0.926], "reproduced"),
        ("0.94", "25 % of 1-R2", [0.924], "differs"),
        ("0.94", "25 % of 1-R2", [0.956], "differs"),  # better is not as printed
        ("13", "at most", [9], "reproduced"),
        ("13", "at most", [13.1], "differs"),
        ("25", "at least", [26], "reproduced"),
        ("25", "at least", [24], "differs"),
        ("1; 2; 3", "exact", [1, 2, 3], "reproduced"),
        ("1; 2; 3", "exact", [1, 2, 4], "mixed"),
        ("1; 2; 3", "exact", [3, 1, 2], "differs"),
        ("1; 2; 3", "10 %; -; at most", [1.05, 7, 2], "reproduced"),
    ],
)
def test_a_number_holds_within_the_tolerance_or_half_the_last_digit(text, tolerance, ours, verdict):
    assert judge(weigh(reported(text, tolerance), ours)) == verdict


@pytest.mark.parametrize(
    ("ours", "error", "verdict"),
    [(10.2, 0.3, "reproduced"), (10.2, 0.5, "undecided"), (12.0, 0.6, "undecided"), (12.0, 0.4, "differs")],
)
def test_an_estimate_counts_beyond_two_standard_errors(ours, error, verdict):
    assert judge(weigh(reported("10", "10 %"), [ours], standard_errors=[error])) == verdict


def test_a_tolerance_that_cannot_be_read_is_refused():
    with pytest.raises(EcdError, match=r"x: '10' is not a tolerance"):
        weigh(reported("5", "10"), [5])
    with pytest.raises(EcdError, match="2 tolerances for 3 numbers"):
        weigh(reported("5; 6; 7", "exact; 5 %"), [5, 6, 7])


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ({"a": True, "b": True}, "reproduced"),
        ({"a": True, "b": False}, "mixed"),
        ({"a": False, "b": False}, "differs"),
    ],
)
def test_checks_count_each(checks, verdict):
    assert judge(weigh(reported("picture", ""), "a picture", checks=checks)) == verdict


def test_a_check_cannot_rescue_a_number_but_can_lower_it():
    assert judge(weigh(reported("5; 6"), [7, 8], checks={"a": True, "b": True})) == "differs"
    assert judge(weigh(reported("5; 6"), [5, 8], checks={"a": True})) == "mixed"
    assert judge(weigh(reported("5"), [5], checks={"a": False})) == "mixed"


@pytest.mark.parametrize(
    ("difference", "error", "outcome"),
    [
        (2.1, 1.0, "holds"),
        (2.0, 1.0, "undecided"),
        (0.0, 0.0, "undecided"),
        (-2.0, 1.0, "undecided"),
        (-2.1, 1.0, "fails"),
    ],
)
def test_a_comparison_holds_beyond_two_standard_errors(difference, error, outcome):
    assert Comparison("A is better", difference, error).outcome == outcome
    verdict = {"holds": "reproduced", "undecided": "undecided", "fails": "differs"}[outcome]
    evidence = weigh(reported("claim", ""), "words", comparisons=[Comparison("A is better", difference, error)])
    assert judge(evidence) == verdict
    also = weigh(
        reported("claim", ""), "words", checks={"true": True}, comparisons=[Comparison("A", difference, error)]
    )
    assert judge(also) == ("mixed" if outcome == "fails" else verdict)


def test_on_other_data_numbers_are_not_compared():
    far, near = weigh(reported("5"), [99], compared=False), weigh(reported("5"), [5], compared=False)
    assert [e["outcome"] for e in far + near] == ["not compared"] * 2
    assert judge(near, other_data=True) is None, "a number alone says nothing about other data"
    held = weigh(reported("5"), [99], checks={"a": True}, compared=False)
    assert judge(held, other_data=True) == "holds on other data"
    failed = weigh(reported("5"), [5], checks={"a": False}, compared=False)
    assert judge(failed, other_data=True) == "differs"


def test_the_paired_difference_is_that_of_the_same_crystals():
    rng = np.random.default_rng(0)
    hard = rng.exponential(10, 400)  # some crystals are hard for both models
    a, b = hard + rng.normal(0, 1, 400), hard + 0.5 + rng.normal(0, 1, 400)
    found = paired("a is better", a, b)
    assert found.difference == pytest.approx((b - a).mean())
    repeated = [(b - a)[rng.integers(0, 400, 400)].mean() for _ in range(2000)]
    assert found.standard_error == pytest.approx(np.std(repeated), rel=0.1)
    assert found.outcome == "holds"
    assert paired("b is better", b, a).outcome == "fails"
    alone = math.hypot(mean_with_error(a)[1], mean_with_error(b)[1])
    assert alone > 5 * found.standard_error, "unpaired errors could not tell"
    for bad in (b[:-1], [*b[:-1], math.nan]):
        with pytest.raises(EcdError, match="Give finite ones for the same crystals"):
            paired("x", a, bad)


def test_the_standard_error_of_r2_is_that_of_drawing_other_crystals():
    rng = np.random.default_rng(1)
    truth = rng.normal(100, 30, 5000)
    guess = truth + rng.normal(0, 9, 5000)
    r2, error = r2_with_error(truth[:200], guess[:200])
    assert r2 == pytest.approx(r2_score(truth[:200], guess[:200]))
    draws = rng.integers(0, 5000, (1000, 200))
    assert error == pytest.approx(np.std([r2_score(truth[d], guess[d]) for d in draws]), rel=0.25)
    by_hand = [r2_score(np.delete(truth[:200], i), np.delete(guess[:200], i)) for i in range(200)]
    assert error == pytest.approx(math.sqrt(199 / 200 * ((by_hand - np.mean(by_hand)) ** 2).sum()))


@pytest.mark.parametrize(
    ("artifact", "ours", "problem"),
    [
        (reported("5"), [math.nan], "not finite"),
        (reported("5"), [math.inf], "not finite"),
        (reported("picture", ""), [math.nan], "not finite"),
        (reported("5; 6"), [5], "1 numbers for 2 reported"),
        (reported("5"), [5, 6], "2 numbers for 1 reported"),
    ],
)
def test_what_cannot_be_weighed_is_refused(artifact, ours, problem):
    with pytest.raises(EcdError, match=problem):
        weigh(artifact, ours, checks={"a": True})
    with pytest.raises(EcdError, match="'b' is not finite"):
        weigh(reported("5"), [5], comparisons=[Comparison("b", math.nan, 1.0)])


@pytest.mark.parametrize(
    ("artifact", "ours"),
    [(reported("5"), "about five"), (reported("5", ""), [5]), (reported("picture", ""), "a picture")],
)
def test_without_evidence_there_is_no_verdict(artifact, ours):
    assert judge(weigh(artifact, ours)) is None


# Payloads and scoreboard


@pytest.fixture
def one() -> str:
    """Id of an artifact whose one number is compared and is no bound."""
    kinds = ("relative", "absolute")
    return next(a.id for a in load_artifacts().values() if len(a.tolerances) == 1 and a.tolerances[0].kind in kinds)


def test_a_payload_says_what_came_out_and_how(one, tmp_path):
    number = load_artifacts()[one].numbers[0]
    payload = write_payload(tmp_path, one, [number], made_by=MADE_BY)
    assert json.loads((tmp_path / f"{one}.json").read_text()) == payload
    (evidence,) = payload.pop("evidence")
    assert (evidence["kind"], evidence["outcome"]) == ("number", "holds")
    assert payload == {
        "id": one, "ours": [number], "verdict": "reproduced", "other_data": "", "not_possible": "", "reason": "",
        "finding": "", "provenance": MADE_BY,
    }  # fmt: skip
    assert read_payloads([tmp_path])[one]["ours"] == [number]


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, "reproduced"),
        ({"other_data": "ours", "checks": {"a": True}}, "holds on other data"),
        ({"other_data": "ours", "checks": {"a": True, "b": False}}, "mixed"),
        ({"other_data": "ours", "comparisons": [Comparison("a", 1, 1)]}, "undecided"),
        ({"checks": {"a": False}}, "mixed"),
        ({"not_possible": "no data"}, "not possible here"),
        ({"not_possible": "no data", "checks": {"a": True}}, "not possible here"),
    ],
)
def test_the_verdict_of_a_payload(options, verdict, one, tmp_path):
    payload = write_payload(tmp_path, one, load_artifacts()[one].numbers, made_by=MADE_BY, **options)
    assert payload["verdict"] == verdict
    explained = artifacts.explain(payload)
    assert explained.startswith("Fails: ") == (verdict == "mixed")
    for words in ("other_data", "not_possible"):
        assert str(options.get(words, "")) in explained


def test_a_number_that_fails_needs_a_reason_and_other_data_a_check(one, tmp_path):
    ours = [load_artifacts()[one].numbers[0] + 1e6]
    with pytest.raises(EcdError, match="verdict 'differs' without a reason"):
        write_payload(tmp_path, one, ours, made_by=MADE_BY)
    with pytest.raises(EcdError, match="nothing to judge by"):
        write_payload(tmp_path, one, ours, other_data="other crystals", made_by=MADE_BY)
    assert list(tmp_path.iterdir()) == []
    assert write_payload(tmp_path, one, ours, reason="too few", made_by=MADE_BY)["verdict"] == "differs"


def test_results_for_unlisted_artifacts_are_refused(one, tmp_path):
    with pytest.raises(EcdError, match=r"no-such-thing: is not in book/artifacts\.csv"):
        write_payload(tmp_path, "no-such-thing", [1.0], made_by=MADE_BY)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "orphan.json").write_text(json.dumps({"id": "orphan"}))
    with pytest.raises(EcdError, match="not a result for a listed artifact"):
        read_payloads([tmp_path])
    (tmp_path / "orphan.json").write_text(json.dumps({"id": one, "verdict": "partly"}))
    assert read_payloads([tmp_path]) == {}, "judged by older rules: as if it had not run"
    (tmp_path / "orphan.json").write_text("{half a")
    with pytest.raises(EcdError, match="is not valid JSON"):
        read_payloads([tmp_path])


def test_the_later_folder_wins(one, tmp_path):
    number = load_artifacts()[one].numbers[0]
    write_payload(tmp_path / "quick", one, [number + 1e6], reason="too few", made_by=MADE_BY)
    write_payload(tmp_path / "full", one, [number], made_by=MADE_BY)
    folders = [tmp_path / "quick", tmp_path / "full"]
    assert read_payloads(folders)[one]["verdict"] == "reproduced"
    assert read_payloads(folders[::-1])[one]["verdict"] == "differs"


def test_the_scoreboard_lists_every_artifact_once_and_marks_what_is_not_there(one, tmp_path):
    write_payload(tmp_path, one, load_artifacts()[one].numbers, made_by=MADE_BY)
    waiting = next(name for name in load_artifacts() if name != one)
    rows = scoreboard([tmp_path], {one: "features", waiting: "features"})
    assert [row["id"] for row in rows] == list(load_artifacts())
    verdicts = {row["id"]: row["verdict"] for row in rows}
    assert verdicts.pop(one) == "reproduced"
    assert verdicts.pop(waiting) == "not run yet"
    assert set(verdicts.values()) == {"not built yet"}
    assert next(row for row in rows if row["id"] == one)["provenance"] == MADE_BY


def test_notebooks_record_only_listed_artifacts():
    covered = runs.covered_artifacts()
    assert set(covered) <= set(load_artifacts())
    assert set(covered.values()) <= set(NOTEBOOKS)
    assert len(covered) >= 10


def test_without_any_run_the_scoreboard_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "BUILD", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ecd", "scoreboard", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == list(load_artifacts())
    covered = runs.covered_artifacts()
    for row in rows:
        assert row["verdict"] == ("not run yet" if row["id"] in covered else "not built yet")
        assert row["reported"]


def finished(build: Path, name: str, values: Any, one: str, ours: list[float]) -> None:
    """A finished run as the command line leaves it."""
    folder = build / "runs" / run_name(name, values)
    made_by = {"notebook": name, "parameters": values.model_dump()}
    write_payload(folder / "results", one, ours, reason="made up", made_by=made_by)
    meta = {"notebook": name, "parameters": values.model_dump(), "key": runs.cache_key(name, values)} | {"reads": {}}
    (folder / "key.json").write_text(json.dumps(meta))


def test_full_counts_before_quick_and_variants_do_not_count(one, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BUILD", tmp_path)
    number = load_artifacts()[one].numbers[0]

    def ours() -> Any:
        return next(row for row in runs.current_scoreboard() if row["id"] == one)["ours"]

    finished(tmp_path, "features", resolve("features", {"size": 21}), one, [number + 3])
    assert ours() is None, "a run with changed parameters is a page of its own, not a result"
    finished(tmp_path, "features", resolve("features", {}), one, [number + 1])
    assert ours() == [number + 1]
    finished(tmp_path, "features", resolve("features", {}, "full"), one, [number + 2])
    assert ours() == [number + 2]
    assert not next(row for row in runs.current_scoreboard() if row["id"] == one)["stale"]
    monkeypatch.setattr(runs, "cache_key", lambda *_: "other sources")
    assert next(row for row in runs.current_scoreboard() if row["id"] == one)["stale"]


def test_a_recorded_result_carries_its_provenance(one, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ECD_RUN_FOLDER", str(tmp_path))
    run = runs.begin("features", {"seed": 3})
    run.record(one, load_artifacts()[one].numbers, checks={"finite": True})
    made = json.loads((tmp_path / "results" / f"{one}.json").read_text())["provenance"]
    assert made["notebook"] == "features"
    assert made["parameters"] == {**resolve("features", {}).model_dump(), "seed": 3}
    data_file("mp_crystals.csv")
    again = runs.begin("features", {"seed": 3}).record(one, load_artifacts()[one].numbers, checks={"finite": True})
    assert again is None
    made = json.loads((tmp_path / "results" / f"{one}.json").read_text())["provenance"]
    assert made["data"]["mp_crystals.csv"] == load_manifest()["mp_crystals.csv"]["sha256"][:12]
    assert {"python", "numpy", "scipy", "scikit-learn", "torch"} <= set(made["versions"])
    assert made["commit"]
    assert made["device"]
    assert made["seconds"] >= 0


def test_a_verdict_is_shown_as_text_without_markup_of_the_source(one, tmp_path):
    artifact = replace(load_artifacts()[one], what="a < b & c")
    payload = write_payload(tmp_path, one, [1.5], checks={"x < y": False}, reason="few", made_by=MADE_BY)
    shown = runs.verdict_html(artifact, payload)
    assert "a &lt; b &amp; c" in shown
    assert "Fails: " in shown
    assert "<li><b>fails</b>: x &lt; y</li>" in shown


def test_the_page_leads_with_counts_and_findings_and_every_row_opens(one, tmp_path):
    made = MADE_BY | {"parameters": {"profile": "quick", "seed": 0}, "data": {}, "versions": {}, "device": "a CPU"}
    made |= {"seconds": 1, "date": "today", "commit": "abc"}
    finding = FINDINGS[0]
    options = {"comparisons": [Comparison("A < B", -3.0, 1.0)], "other_data": "ours", "finding": "What was found."}
    write_payload(tmp_path, finding, "words", made_by=made, **options)
    write_payload(tmp_path, one, load_artifacts()[one].numbers, made_by=made)
    rows = scoreboard([tmp_path], {})
    front = front_findings(rows)
    assert "What was found." in front
    assert f"executed/scoreboard.html#{finding}" in front
    assert f"executed/{MADE_BY['notebook']}.html" in front
    page = scoreboard_page(rows)
    counts, found, table = (page.index(text) for text in ("ecd-counts", "What was found.", "ecd-scoreboard"))
    assert counts < found < table
    for artifact in load_artifacts().values():
        assert page.count(f"<tr id='{artifact.id}'") == 1
    row = page[page.index(f"<tr id='{finding}'") :].split("</tr>")[0]
    assert "ecd-is-differs" in row
    assert "<details>" in row
    assert "<b>fails</b>: A &lt; B (difference -3 ± 1)" in row
    style = (ROOT / "book" / "assets" / "ecd.css").read_text()
    for verdict in artifacts.VERDICTS:
        assert f".ecd-show-{verdict.replace(' ', '-')}:not(:checked)" in style, f"{verdict} cannot be filtered"
        assert verdict in COLOURS or verdict == "not possible here"


def test_the_findings_are_in_the_list():
    assert len(FINDINGS) == 5
    assert set(FINDINGS) <= set(load_artifacts())
