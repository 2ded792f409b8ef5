"""Slides and handouts: every session has them, they read as text, and they fit their frame in a browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from ecdlib.book.runs import notebook_path
from ecdlib.course import pictures, slides
from ecdlib.course.data import SESSIONS
from ecdlib.course.pictures import PICTURES
from ecdlib.course.slides import PICTURE, VALUE, Chapters, chapters_of, deck, handout, load_slides, session_slides
from ecdlib.course.texts import load_sessions

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@lru_cache
def blank() -> str:
    """A picture of the size of a figure, as a notebook holds it."""
    buffer = io.BytesIO()
    Image.new("L", (900, 400), 200).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def chapters(tmp_path: Path) -> Chapters:
    """Chapters that were not executed: a blank picture for each figure, 1 for each value that the slides show."""
    values = {
        (c, n) for s in SESSIONS for slide in load_slides(s) for c, n, _ in VALUE.findall(slide.text + slide.notes)
    }

    def executed(chapter: str) -> Path:
        nb = nbformat.read(notebook_path(chapter), as_version=4)
        source = "\n".join(cell.source for cell in nb.cells)
        for cell in nb.cells:
            if "figure" in cell.metadata.get("mystnb", {}):
                cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": blank()})]
        for name in {name for c, name in values if c == chapter}:
            assert re.search(rf"\{{glue:text\}}`{name}[:`]", source), f"{chapter} shows no value {name}"
            data = {"application/papermill.record/text/plain": "1"}
            cell = next(cell for cell in nb.cells if cell.cell_type == "code")
            cell.outputs.append(nbformat.v4.new_output("display_data", data, metadata={"scrapbook": {"name": name}}))
        nbformat.write(nb, tmp_path / f"{chapter}.ipynb")
        return tmp_path / f"{chapter}.ipynb"

    return Chapters(executed)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of concepts are named and not drawn."""

    def source(name: str) -> str:
        assert name in PICTURES
        return f"data:image/png;base64,{blank()}"

    monkeypatch.setattr(pictures, "svg", source)


@pytest.mark.parametrize("session", load_sessions(), ids=SESSIONS)
def test_a_session_has_fifteen_to_twenty_five_slides(session: dict[str, Any]) -> None:
    found = session_slides(session)
    assert 15 <= len(found) <= 25
    written = load_slides(session["name"])
    assert sum("$$" in slide.text for slide in written) >= 6, "equations"
    assert sum("plot:" in slide.text for slide in written) >= 3, "pictures of concepts"
    assert sum("figure:" in slide.text for slide in written) >= 3, "figures of its chapters"
    assert all(len(PICTURE.findall(slide.text)) <= 1 for slide in written)
    assert set(chapters_of(session["name"])) <= {*session["pages"]}


@pytest.mark.parametrize("session", SESSIONS)
def test_notes_are_english_prose(session: str) -> None:
    for slide in load_slides(session):
        assert not re.search(r"[$\\{}]|\]\(|cite|`", VALUE.sub("", slide.notes)), slide.heading
        if slide.kind == "concept":
            assert len(slide.notes.split()) >= 40, slide.heading
            assert slide.notes.rstrip().endswith((".", "?")), slide.heading
            assert slide.text, slide.heading


@pytest.mark.parametrize("session", load_sessions(), ids=SESSIONS)
@pytest.mark.usefixtures("undrawn")
def test_slides_and_handout_hold_all_pictures_and_no_source(session: dict[str, Any], chapters: Chapters) -> None:
    for page in (deck(session, chapters), handout(session, chapters)):
        body = re.sub(r"<script.*?</script>|\\\[.*?\\\]|\\\(.*?\\\)", "", page, flags=re.DOTALL)
        assert not re.search(r"\$|\\[a-z]+|\{glue\}|\{term\}|\{cite\}|!\[|plot:|figure:", body.partition("<body>")[2])
        shown = [bool(PICTURE.search(slide.text)) for slide in session_slides(session)]
        assert page.count("<img ") == sum(shown)
        assert 'alt=""' not in page
        assert "https://" not in page


def test_every_picture_is_shown_once() -> None:
    shown = [
        name
        for s in SESSIONS
        for slide in load_slides(s)
        for _, kind, name in PICTURE.findall(slide.text)
        if kind == "plot"
    ]
    assert sorted(shown) == sorted(PICTURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PICTURES))
def test_pictures_are_drawn_as_vector_graphics(name: str) -> None:
    source = pictures.svg(name)
    head, _, body = source.partition(",")
    assert head == "data:image/svg+xml;base64"
    assert b"</svg>" in base64.b64decode(body)
    assert len(body) < 250_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


#: Walks through the slides: heading, what is wider or higher than the frame, whether formulas and pictures are there.
WALK = """() => { const found = [];
  for (let n = 0; n < 100; n++) {
    const s = Reveal.getCurrentSlide(), image = s.querySelector('img');
    found.push({heading: s.querySelector('h1, h2').innerText, height: s.scrollHeight, width: s.scrollWidth,
      picture: image ? image.getBoundingClientRect().height / Reveal.getScale() : null,
      raw: /\\\\\\(|\\\\\\[|\\$/.test(s.innerText), wrong: s.querySelectorAll('mjx-merror, [data-mjx-error]').length,
      wide: [...s.querySelectorAll('mjx-container')].some(
        e => e.getBoundingClientRect().right > s.getBoundingClientRect().right + 2)});
    if (Reveal.isLastSlide()) break;
    Reveal.next(); }
  return found; }"""


@pytest.mark.browser
@pytest.mark.parametrize("session", load_sessions(), ids=SESSIONS)
@pytest.mark.usefixtures("undrawn")
def test_slides_fit_their_frame(
    browser: Any, session: dict[str, Any], chapters: Chapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slides, "Chapters", lambda executed: chapters)
    shutil.copytree(slides.ROOT / "book" / "assets" / "mathjax", tmp_path / "mathjax")
    written = slides.write_slides(tmp_path / "slides", Path, [session["name"]])
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.goto(written[0].as_uri())
    page.wait_for_function(
        "window.Reveal && Reveal.isReady() && window.MathJax && MathJax.startup && MathJax.startup.promise"
    )
    page.evaluate("MathJax.startup.promise.then(() => true)")
    shown = page.evaluate(WALK)
    assert len(shown) == len(session_slides(session))
    assert [s for s in shown if s["height"] > 695 or s["width"] > 1005 or s["wide"]] == []
    assert [s for s in shown if s["raw"] or s["wrong"]] == []
    assert [s for s in shown if s["picture"] is not None and s["picture"] < 220] == []
    page.goto(written[1].as_uri())
    page.evaluate("MathJax.startup.promise.then(() => true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert not problems
    page.close()
