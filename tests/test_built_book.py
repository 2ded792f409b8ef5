"""The book that `make book` has built: its results, and its pages in a real browser, offline."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecdlib.base.resources import ROOT
from ecdlib.book.artifacts import VERDICTS, load_artifacts
from ecdlib.book.runs import covered_artifacts, current_scoreboard
from ecdlib.course.texts import load_questions

pytestmark = pytest.mark.browser

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def html() -> Path:
    """The built book."""
    folder = ROOT / "_build" / "html"
    assert (folder / "index.html").is_file(), "there is no book to test: `make book` builds it"
    return folder


@pytest.fixture(scope="module")
def pages(html: Path) -> list[Path]:
    """Every HTML page of the book."""
    return [html / "book" / "index.html", *sorted(p for p in (html / "book").rglob("*.html") if p.name != "index.html")]


def test_every_covered_artifact_has_a_finite_result(html: Path) -> None:
    covered = covered_artifacts()
    rows = {row["id"]: row for row in current_scoreboard()}
    assert set(rows) == set(load_artifacts())
    for artifact_id, notebook in covered.items():
        row = rows[artifact_id]
        assert row["verdict"] in VERDICTS, artifact_id
        assert row["provenance"]["notebook"] == notebook
        assert not row["stale"], f"{artifact_id}: `make book` makes it current"
        if isinstance(row["ours"], list):
            assert all(math.isfinite(v) for v in row["ours"])
    assert {i for i, row in rows.items() if row["provenance"]} == set(covered)


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


def test_no_table_shows_what_is_missing_as_nan_or_leaves_columns_out(pages: list[Path]) -> None:
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<td>NaN</td>" not in text, page.name
        assert " columns</p>" not in text, page.name


def test_questions_answer_without_any_script(browser: Any, html: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((html / "book/executed/features.html").as_uri())
    answers = page.locator(".ecd-question details")
    assert answers.count() == sum(len(q["answers"]) for q in load_questions()["features"])
    for i in range(answers.count()):
        reason = answers.nth(i).locator("p")
        assert not reason.is_visible()
        answers.nth(i).locator("summary").click()
        assert reason.is_visible()
    assert page.locator("details.ecd-right").count() == len(load_questions()["features"])
    context.close()


def test_slides_work_offline_and_fit_their_frame(browser: Any, html: Path) -> None:
    shots = ROOT / "_build" / "screenshots"
    for path in sorted((html / "_static/slides").glob("session_?.html")):
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
