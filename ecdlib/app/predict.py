"""The tab of predictions: files and crystals in; table, pictures and neighbours out."""

from __future__ import annotations

import asyncio
import html
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from ecdlib.app import uploads
from ecdlib.app.findings import Finding, examine_source, in_words, latent_database, to_csv
from ecdlib.app.pictures import draw_source, standing
from ecdlib.app.uploads import Source, check_size, dropper, safe_name
from ecdlib.app.widgets import box, off_loop, plot, table
from ecdlib.base.errors import EcdError
from ecdlib.density.valence import parse_valence
from ecdlib.learn.answer import AUTO, interval
from ecdlib.learn.predict import conversion_lines

MODEL_HELP = {
    AUTO: "chosen to fit the input; a structure is enough: all properties, with 95 % intervals",
    "fusion-lightgbm": "trees on the latent and the composition: elastic moduli, energies, Debye temperature",
    "fusion-attention": "a network with attention on the same inputs, for the same properties",
    "density-gpr-portable": "a Gaussian process on the density alone: bulk modulus and total energy of cubic crystals",
}
NEARNESS_HELP = (
    "auto compares your crystal with the training crystals of the model of structures, as the model does for the bulk "
    "modulus: a distance is counted in the length scales of its kernel. The other models compare latents. "
    "Latents are compared with those of the bundled crystals; the fusion models were trained on these, "
    "density-gpr-portable on the cubic ones. "
    "A distance has no unit: each component counts in its standard deviations over the database."
)


class PredictTab:
    """Files and crystals in; table, neighbours and pictures out."""

    def __init__(self, folder: Path, call: Callable[..., Any]) -> None:
        """``call(function, *arguments)`` computes in the session's process."""
        import panel as pn

        self.folder, self.call, self.lock = folder, call, asyncio.Lock()
        self.findings: dict[Source, dict[str, Finding | EcdError]] = {}
        self.found: dict[str, tuple[Source, Finding]] = {}
        self.drawn: Source | None = None
        self.files = dropper()
        self.files.refused = self.refuse
        names = list(latent_database().table.index)
        self.crystals = pn.widgets.MultiChoice(
            options=names, max_items=10, search_option_limit=30, option_limit=30, placeholder="Type a name: NaCl_225"
        )
        options = {f"{name}: {text}": name for name, text in MODEL_HELP.items()}
        self.model = pn.widgets.RadioBoxGroup(options=options, value=AUTO)
        self.valence = pn.widgets.TextInput(
            label="Valence electrons of your potentials, if the file does not say",
            placeholder="Na=1,Cl=7",
            max_width=420,
        )
        self.problems, self.warnings, self.conversions = pn.pane.HTML(), pn.pane.HTML(), pn.pane.HTML()
        self.table, self.neighbours = table(760), table(360)
        self.csv = pn.widgets.FileDownload(
            callback=self._csv, filename="ecd-predictions.csv", label="Download all results (CSV)", max_width=260
        )
        self.shown = pn.widgets.Select(label="Crystal to draw", max_width=360)
        self.words = pn.pane.HTML()
        self.captions = pn.pane.HTML(), pn.pane.HTML()
        self.pictures = pn.Column(min_height=430), pn.Column(min_height=430)
        self.stands = pn.Column()
        half = {"flex": "1 1 360px", "min-width": "0"}
        self.results = pn.Column(
            pn.pane.Markdown("## Predicted properties"),
            self.table,
            self.conversions,
            self.warnings,
            self.csv,
            self.shown,
            pn.FlexBox(
                pn.Column("### Density", self.captions[0], self.pictures[0], styles=half),
                pn.Column("### Autocorrelation", self.captions[1], self.pictures[1], styles=half),
            ),
            self.stands,
            pn.pane.Markdown("## How close it is to the training set\n" + NEARNESS_HELP),
            self.words,
            self.neighbours,
            visible=False,
        )
        self.busy = pn.pane.HTML()
        self.view = pn.Column(
            pn.FlexBox(
                pn.Column(
                    "### Your files\nCIF or POSCAR, or a density: CHGCAR or cube (also .gz, .bz2, .xz), or npz; "
                    f"at most {uploads.UPLOAD_LIMIT // 10**6} MB together.",
                    self.files,
                    styles=half,
                ),
                pn.Column(
                    "### Bundled crystals\nFormula and space group number; up to ten.", self.crystals, styles=half
                ),
            ),
            pn.Column("### Model", self.model, self.valence),
            self.busy,
            self.problems,
            self.results,
        )
        for widget in (self.files, self.crystals, self.model, self.valence):
            widget.param.watch(self.update, "value")
        self.shown.param.watch(self.draw, "value")

    def _csv(self) -> io.StringIO:
        return io.StringIO(to_csv([finding for _, finding in self.found.values()]))

    def refuse(self, name: str) -> None:
        """Say that a file is too large; it arrives in parts, the rest of which is not kept."""
        what = f"more than {uploads.UPLOAD_LIMIT / 1e6:.0f} MB on this page"
        what += f", or {uploads.ALL_UPLOADS / 1e6:.0f} MB on all pages"
        self.problems.object = box([str(EcdError(name, what, "Use `ecd predict` for large files."))], "#b2182b")

    def work(self, files: dict[str, bytes | str], crystals: list[str], model: str, valence: str = "") -> list[str]:
        """Read and predict whatever is new; returns what went wrong, in words."""
        problems: list[str] = []
        try:
            check_size(files)
            parse_valence(valence[:1000])
        except EcdError as error:
            files, problems = {}, [str(error)]
        before = {(source.kind, source.name): source for source in self.findings}
        findings: dict[Source, dict[str, Finding | EcdError]] = {}
        self.found = {}
        for kind, name, content in [("file", *f) for f in files.items()] + [("bundled", c, b"") for c in crystals]:
            last = before.get((kind, name))
            plain, taken = safe_name(name), {source.shown for source in findings}
            if last is not None and last.content is content and last.valence == valence and last.shown not in taken:
                source = last
            else:
                copies = (plain if n == 1 else f"{plain} ({n})" for n in itertools.count(1))
                shown = next(copy for copy in copies if copy not in taken)
                source = Source(kind, name, shown, content, valence if kind == "file" else "")
                if last is not None and last.content is not content:
                    problems.append(f"{plain}: was given twice; the newer one is used. Rename one to compare them.")
            outcomes = findings[source] = self.findings.get(source, {}) if source is last else {}
            if model not in outcomes:
                outcomes[model] = self.compute(source, examine_source, model)
            outcome = outcomes[model]
            if isinstance(outcome, EcdError):
                problems.append(str(outcome))
            else:
                self.found[source.shown] = source, outcome
        self.findings = findings
        return problems

    def compute(self, source: Source, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(source, *arguments, folder)`` in the session's process; an error is returned."""
        try:
            return self.call(function, source, *arguments, self.folder)
        except Exception as error:
            for path in self.folder.iterdir():  # what the process could not remove
                path.unlink()
            return in_words(source.shown, error)

    async def update(self, *_: Any) -> None:
        """After any change of files, crystals or model."""
        import panel as pn

        async with self.lock:
            self.busy.object = box(["Computing …"], "#2166ac")
            given = dict(self.files.value), list(self.crystals.value), self.model.value, self.valence.value or ""
            problems = await off_loop(self.work, *given)
            self.problems.object = box(problems, "#b2182b")
            records = [record for _, finding in self.found.values() for record in finding.records]
            self.table.object = pd.DataFrame(
                {
                    "file": [r["file"] for r in records],
                    "property": [r["property"].replace("youngs", "Young's").replace("debye", "Debye") for r in records],
                    "value": [f"{r['value']:.4g}" for r in records],
                    "95 %": [interval(r) for r in records],
                    "unit": [r["unit"] for r in records],
                }
            )
            warned = dict.fromkeys(f"{r['file']}: {text}" for r in records for text in r["warnings"])
            self.warnings.object = box(list(warned), "#b26b00")
            self.conversions.object = box(conversion_lines(records), "#2166ac")
            figure = standing(records)
            words = "## Where it stands\nGrey: labelled crystals; point at one for its name. Bars: 95 % intervals."
            self.stands[:] = [] if figure is None else [pn.pane.Markdown(words), plot(figure)]
            self.results.visible = bool(records)
            self.shown.options = list(self.found)
            self.busy.object = ""
        await self.draw()

    async def draw(self, *_: Any) -> None:
        """Pictures and neighbours of the chosen crystal."""
        async with self.lock:
            if self.shown.value not in self.found:
                self.drawn = None
                return
            source, finding = self.found[self.shown.value]
            self.words.object = f"<p>{html.escape(finding.words)}</p>"
            if finding.nearest is not None:
                distances = [f"{d:.2f}" for d in finding.nearest]
                self.neighbours.object = pd.DataFrame({"crystal": finding.nearest.index, "distance": distances})
            self.neighbours.visible = finding.nearest is not None
            if source is self.drawn:
                return
            self.results.loading = True
            try:
                pictures = await off_loop(self.compute, source, draw_source)
            finally:
                self.results.loading = False
            self.drawn = source
            if isinstance(pictures, EcdError):
                self.drawn, self.problems.object = None, box([str(pictures)], "#b2182b")
                self.captions[0].object = self.captions[1].object = ""
                pictures = None, None
            else:
                what, *pictures = pictures
                levels = "light, middle and dark: 60, 90 and 98 % of the volume with positive values lie below"
                self.captions[0].object = f"Surfaces of equal {what} of {source.shown} in its cell ({levels})."
                self.captions[1].object = "Surfaces of equal autocorrelation of √ρ; zero shift is in the centre."
            for place, picture in zip(self.pictures, pictures, strict=True):  # a new pane fits its place, a changed
                place[:] = [plot(picture)]  # figure may keep its old width
