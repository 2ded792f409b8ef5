"""The book: notebooks at the tiny profile in a copy of the checkout, the HTML in a real browser, offline."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ecdlib.base.resources import ROOT
from ecdlib.book import build as book
from ecdlib.book.artifacts import load_artifacts
from ecdlib.book.parameters import NOTEBOOKS
from ecdlib.book.runs import covered_artifacts
from ecdlib.course.pages import load_questions

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"]


def ecd(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line on a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "ecdlib.cli", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree with the book built from it at the tiny profile."""
    target = tmp_path_factory.mktemp("checkout")
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    cache = ROOT / "_build" / "cache"  # named after the content of all that it depends on
    cache.mkdir(parents=True, exist_ok=True)
    (target / "_build").mkdir()
    (target / "_build" / "cache").symlink_to(cache)
    done = ecd(target, "book", "--profile", "tiny")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return target


@pytest.fixture(scope="module")
def pages(checkout: Path) -> list[Path]:
    """Every HTML page of the book."""
    html = checkout / "_build" / "html"
    return [html / "book" / "index.html", *sorted(p for p in (html / "book").rglob("*.html") if p.name != "index.html")]


def test_every_covered_artifact_has_a_finite_result(checkout: Path) -> None:
    covered = covered_artifacts()
    rows = {row["id"]: row for row in json.loads(ecd(checkout, "scoreboard", "--json").stdout)}
    assert set(rows) == set(load_artifacts())
    for artifact_id, notebook in covered.items():
        row = rows[artifact_id]
        assert row["verdict"] in ("reproduced", "partly", "differs", "not possible here"), artifact_id
        assert row["provenance"]["notebook"] == notebook
        assert not row["stale"]
        if isinstance(row["ours"], list):
            assert all(math.isfinite(v) for v in row["ours"])
    assert {i for i, row in rows.items() if row["provenance"]} == set(covered)


def test_scoreboard_page_lists_every_artifact(checkout: Path) -> None:
    page = (checkout / "_build/html/book/executed/scoreboard.html").read_text()
    missing = [i for i in load_artifacts() if f'id="{i}"' not in page and f"id='{i}'" not in page]
    assert not missing


def test_a_second_build_executes_nothing_and_a_variant_stands_beside_the_original(checkout: Path) -> None:
    original = checkout / "_build/runs/baseline--tiny/executed.ipynb"
    before = original.read_bytes()
    varied = ecd(checkout, "run", "baseline", "--profile", "tiny", "-p", "folds=2", "-p", "crystals=50")
    assert varied.returncode == 0, varied.stderr[-2000:]
    assert ecd(checkout, "run", "dataset").returncode == 0  # an original of another profile
    again = ecd(checkout, "book", "--profile", "tiny")
    assert again.returncode == 0, again.stdout[-2000:]
    assert again.stdout.count("unchanged") == len(NOTEBOOKS)
    assert original.read_bytes() == before
    names = [p.name for p in (checkout / "_build/html/book/executed").glob("baseline*.html")]
    assert "baseline.html" in names
    assert any("folds-2" in name for name in names)
    assert (checkout / "_build/html/book/executed/dataset--quick.html").is_file()


def test_a_variant_page_keeps_its_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prose = "# Title\n\nA sentence\n(with a bracket) goes on.\n\n(label)=\n## Section"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose)])
    nbformat.write(nb, tmp_path / "executed.ipynb")
    monkeypatch.setattr(book, "PAGES", tmp_path)
    book._page(tmp_path, "page--folds-2", variant="folds-2")
    text = nbformat.read(tmp_path / "page--folds-2.ipynb", as_version=4).cells[0].source
    assert text == "# Title — folds-2\n\nA sentence\n(with a bracket) goes on.\n\n\n## Section"


def test_a_changed_library_makes_a_run_stale(checkout: Path) -> None:
    module = checkout / "ecdlib" / "evaluation.py"
    text = module.read_text()
    module.write_text(text + "\n# changed\n")
    try:
        rows = json.loads(ecd(checkout, "scoreboard", "--json").stdout)
        assert all(row["stale"] for row in rows if row["provenance"])
    finally:
        module.write_text(text)


def test_a_wrong_parameter_is_one_line_and_leaves_no_run(checkout: Path) -> None:
    before = sorted(p.name for p in (checkout / "_build/runs").iterdir())
    for argument, word in (
        ("fold=3", "unknown parameter 'fold'"),
        ("folds=many", "folds = 'many'"),
        ("folds=1", "folds = "),
    ):
        done = ecd(checkout, "run", "baseline", "-p", argument)
        assert done.returncode == 2
        assert word in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(p.name for p in (checkout / "_build/runs").iterdir()) == before


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the package 'chromium' to test the pages in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def test_pages_work_offline_in_a_browser(browser: Any, pages: list[Path]) -> None:
    """No console error, no request leaving the machine, all pictures loaded and described, all 3-D views drawn."""
    shots = ROOT / "_build" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    views = 0
    for path in pages:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        problems: list[str] = []
        page.on("console", lambda m, p=problems: p.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e, p=problems: p.append(str(e)))
        page.on(
            "request",
            lambda r, p=problems: p.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None,
        )
        page.goto(path.as_uri(), wait_until="load")
        figures = page.locator(".ecd-interactive")
        for i in range(figures.count()):
            figures.nth(i).scroll_into_view_if_needed()
            figures.nth(i).locator("canvas").first.wait_for(state="visible", timeout=30_000)
            box = figures.nth(i).locator("canvas").first.bounding_box()
            assert box, f"{path.name}: figure {i} is not visible"
            assert min(box["width"], box["height"]) > 200, f"{path.name}: figure {i} is {box}"
            assert figures.nth(i).get_attribute("aria-label")
            views += 1
        broken = page.evaluate(
            "[...document.querySelectorAll('main img')]"
            ".filter(i => !i.complete || !i.naturalWidth || !i.alt).map(i => i.src)"
        )
        assert not broken, f"{path.name}: pictures that do not load or have no alt text: {broken[:3]}"
        assert not problems, f"{path.name}: {problems[:3]}"
        page.screenshot(path=shots / f"{path.stem}.png", full_page=True)
        page.close()
    assert views >= 5


def test_questions_answer_without_any_script(browser: Any, checkout: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((checkout / "_build/html/book/executed/features.html").as_uri())
    answers = page.locator(".ecd-question details")
    assert answers.count() == sum(len(q["answers"]) for q in load_questions()["features"])
    for i in range(answers.count()):
        reason = answers.nth(i).locator("p")
        assert not reason.is_visible()
        answers.nth(i).locator("summary").click()
        assert reason.is_visible()
    assert page.locator("details.ecd-right").count() == len(load_questions()["features"])
    context.close()


def test_slides_work_offline_and_fit_their_frame(browser: Any, checkout: Path) -> None:
    shots = ROOT / "_build" / "screenshots"
    for path in sorted((checkout / "_build/html/_static/slides").glob("*.html")):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        problems: list[str] = []
        page.on("console", lambda m, p=problems: p.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e, p=problems: p.append(str(e)))
        page.on("request", lambda r, p=problems: None if r.url.startswith(("file:", "data:")) else p.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        shown = page.evaluate(
            """() => { const found = []; let last = '';
              for (let n = 0; n < 400; n++) {
                const s = Reveal.getCurrentSlide();
                found.push([s.innerText.trim().slice(0, 40), s.scrollHeight, s.scrollWidth]);
                if (Reveal.isLastSlide()) break;
                Reveal.next(); }
              return found; }"""
        )
        assert len(shown) > 15, path.name
        assert [words for words, height, width in shown if not words or height > 720 or width > 1010] == []
        broken = page.evaluate(
            "[...document.querySelectorAll('img')].filter(i => !i.naturalWidth || !i.alt).map(i => i.src.slice(0, 80))"
        )
        assert not broken, f"{path.name}: pictures that do not load or have no alt text"
        assert not problems, f"{path.name}: {problems[:3]}"
        page.screenshot(path=shots / f"slides-{path.stem}.png")
        page.close()


RESULT = re.compile(r"(?<![\w`{.:])[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?\s*(?:GPa|eV/atom|%|eV per atom)")

LAYOUT = re.compile(r"^:\w+:.*$|\{[^}]*width=[^}]*\}", re.MULTILINE)  # options of directives and images


def test_no_result_is_typed_by_hand() -> None:
    """In prose, a number with a unit of a result must be glued from a run."""
    prose = [*(ROOT / "book").rglob("*.md"), *(ROOT / "book" / "course").glob("*.yml")]
    texts = {path: path.read_text() for path in sorted(prose) if "executed" not in path.parts}
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        texts[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        if "exercises" in path.parts:  # tasks say what interval is wanted, rubrics quote what is printed in a paper
            texts[path] = re.sub(r"=== BEGIN MARK.*?=== END MARK|[\d.]+ %", "", texts[path], flags=re.DOTALL)
    typed = {path.name: found for path, text in texts.items() if (found := RESULT.findall(LAYOUT.sub("", text)))}
    assert not typed
