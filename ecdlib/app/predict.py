"""The tab of predictions: files and crystals in; table, pictures and neighbours out."""

from __future__ import annotations

import asyncio
import html
import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from ecdlib.app import uploads
from ecdlib.app.findings import (
    WITH_POTENTIAL,
    Finding,
    examine_source,
    in_title,
    in_words,
    latent_database,
    overview,
    to_csv,
)
from ecdlib.app.scene import SceneView, draw_source, structure_figure
from ecdlib.app.standing import moduli_figure, property_figure
from ecdlib.app.uploads import Source, check_size, dropper, safe_name
from ecdlib.app.widgets import HALF, Place, box, off_loop, sortable, table
from ecdlib.app.worker import Cancelled, has_potential
from ecdlib.base.errors import EcdError
from ecdlib.data.tables import load_crystals, load_structures
from ecdlib.density.valence import parse_valence
from ecdlib.learn.answer import AUTO, interval
from ecdlib.learn.explained import RESULT, TIMES, learned_values
from ecdlib.learn.predict import conversion_lines

MODEL_HELP = {
    AUTO: "chosen to fit the input; a structure is enough: all properties, with 95 % intervals",
    WITH_POTENTIAL: "the same with the elastic tensor by a foundation potential: seconds to minutes for each crystal",
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
PARTS_HELP = (
    "From top to bottom; deviations in quadrature add as the root of the sum of their squares. "
    "If errors were normal and the standard deviation right, 1.96 would make a 95 % interval of it. Calibration on "
    "crystals that a model has not seen says what does, for all crystals and for each group that this one belongs to."
)


class PredictTab:
    """Files and crystals in; table, neighbours and pictures out."""

    def __init__(self, folder: Path, call: Callable[..., Any]) -> None:
        """``call(function, *arguments)`` computes in the session's process; ``call.cancel()`` ends that."""
        import panel as pn

        self.folder, self.call, self.lock = folder, call, asyncio.Lock()
        self.findings: dict[Source, dict[str, Finding | EcdError]] = {}
        self.found: dict[str, tuple[Source, Finding]] = {}
        self.drawn: Source | None = None
        self.stopped = False  #: by the user
        self.doing = 0, 1, ""  #: crystals done, of how many, and the next one
        self.files = dropper()
        self.files.refused = self.refuse
        names = list(latent_database().table.index)
        self.crystals = pn.widgets.MultiChoice(
            options=names, max_items=10, search_option_limit=10, option_limit=10, placeholder="Type a name: NaCl_225"
        )
        models = {name: text for name, text in MODEL_HELP.items() if name != WITH_POTENTIAL or has_potential()}
        self.model = pn.widgets.RadioBoxGroup(options={f"{n}: {text}": n for n, text in models.items()}, value=AUTO)
        self.valence = pn.widgets.TextInput(
            label="Valence electrons of your potentials, if the file does not say",
            placeholder="Na=1,Cl=7",
            max_width=420,
        )
        self.problems, self.warnings, self.conversions = pn.pane.HTML(), pn.pane.HTML(), pn.pane.HTML()
        self.busy = pn.pane.HTML()
        self.cancel = pn.widgets.Button(label="Cancel the calculation", max_width=240, visible=False)
        self.resume = pn.widgets.Button(label="Resume the calculation", max_width=240, visible=False)
        self.overview = sortable(pd.DataFrame({"file": [], "formula": []}), page_size=10, frozen_columns=["file"])
        self.csv = pn.widgets.FileDownload(
            callback=self._csv, filename="ecd-predictions.csv", label="Download all results (CSV)", max_width=260
        )
        self.shown = pn.widgets.Select(label="Crystal shown", max_width=360)
        self.property = pn.widgets.Select(label="Property", max_width=360)
        self.table, self.parts, self.neighbours = table(640), table(520), table(520)
        self.above, self.moduli, self.atoms = Place(), Place(), Place()
        self.atoms_title = pn.pane.Str()
        self.stood: Any = None  #: what the figure above shows
        self.why = pn.Column("### What its uncertainty consists of\n" + PARTS_HELP, self.parts)
        self.scene = SceneView()
        self.words = pn.pane.HTML()
        self.neighbour = pn.widgets.RadioBoxGroup(label="Structure of a neighbour")
        self.near = pn.Column(
            self.neighbours, "Pick one to see its structure.", self.neighbour, self.atoms_title, self.atoms.view
        )
        self.results = pn.Column(
            "## All crystals\nOne a row: click on a title to sort, type below it to filter, click on a row to see that "
            "crystal. The download also holds intervals, warnings and conversions.",
            self.overview,
            self.csv,
            self.conversions,
            self.warnings,
            "## One crystal",
            self.shown,
            pn.FlexBox(
                pn.Column("### Predicted properties", self.table, styles=HALF),
                pn.Column(
                    "### Where it stands\nAbove: the crystals of this page, with 95 % intervals. Below: those that the "
                    "model has learned from.",
                    self.property,
                    self.above.view,
                    self.why,
                    styles=HALF,
                ),
            ),
            self.scene.view,
            "### Both moduli\nGrey: labelled crystals; point at one for its name. Bars: 95 % intervals.",
            self.moduli.view,
            "## Nearest training crystals\n" + NEARNESS_HELP,
            self.words,
            self.near,
            visible=False,
        )
        self.view = pn.Column(
            pn.FlexBox(
                pn.Column(
                    "## Drop a CHGCAR or a CIF\nOr a POSCAR, a cube file (also .gz, .bz2, .xz), an npz; several "
                    f"together, at most {uploads.UPLOAD_LIMIT // 10**6} MB.",
                    self.files,
                    styles=HALF,
                ),
                pn.Column(
                    "### Or look at bundled crystals\nFormula and space group number; up to ten.",
                    self.crystals,
                    styles=HALF,
                ),
            ),
            pn.Column("### Model", self.model, self.valence),
            self.busy,
            self.cancel,
            self.resume,
            self.problems,
            self.results,
        )
        for widget in (self.files, self.crystals, self.model, self.valence):
            widget.param.watch(self.update, "value")
        self.overview.param.watch(self._pick, "selection")
        self.shown.param.watch(self.draw, "value")
        self.property.param.watch(self._stand, "value")
        self.neighbour.param.watch(self._neighbour, "value")
        self.cancel.on_click(self._cancel)
        self.resume.on_click(self.update)

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
                self.doing = len(findings) - 1, len(files) + len(crystals), source.shown
                try:
                    if self.stopped:
                        raise Cancelled
                    outcomes[model] = self.compute(source, examine_source, model)
                except Cancelled:
                    problems.append(f"{source.shown}: cancelled.")
                    continue
            outcome = outcomes[model]
            if isinstance(outcome, EcdError):
                problems.append(str(outcome))
            else:
                self.found[source.shown] = source, outcome
        self.findings = findings
        return problems

    def compute(self, source: Source, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(source, *arguments, folder)`` in the session's process; an error is returned.

        Raises:
            Cancelled: by the user.
        """
        try:
            return self.call(function, source, *arguments, self.folder)
        except Exception as error:
            for path in self.folder.iterdir():  # what the process could not remove
                path.unlink()
            if isinstance(error, Cancelled):
                raise
            return in_words(source.shown, error)

    def _cancel(self, *_: Any) -> None:
        """End the calculation under way, and do not begin those that wait."""
        self.stopped, self.cancel.visible = True, False
        self.call.cancel()  # type: ignore[attr-defined]

    async def _working(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A result for which the page waits: it says what is computed and for how long, and lets its user cancel."""
        begun, self.stopped, self.resume.visible = time.monotonic(), False, False
        future = asyncio.ensure_future(off_loop(function, *arguments))
        self.cancel.visible = True
        try:
            while not future.done():
                done, total, name = self.doing
                told = f"Computing {html.escape(name)}" + (f" ({done + 1} of {total})" if total > 1 else "")
                bar = f'<progress max="{total}" value="{done}" aria-label="crystals done"></progress>'
                seconds = time.monotonic() - begun
                self.busy.object = f'<div><span role="status">{told}</span> {bar} {seconds:.0f} s</div>'
                await asyncio.wait([future], timeout=1)
            return future.result()
        finally:
            self.busy.object, self.cancel.visible, self.resume.visible = "", False, self.stopped

    async def update(self, *_: Any) -> None:
        """After any change of files, crystals or model."""
        async with self.lock:
            given = dict(self.files.value), list(self.crystals.value), self.model.value, self.valence.value or ""
            self.doing = 0, len(given[0]) + len(given[1]), ""
            self.problems.object = box(await self._working(self.work, *given), "#b2182b")
            findings = {file: finding for file, (_, finding) in self.found.items()}
            records = [record for finding in findings.values() for record in finding.records]
            rows = overview(findings)
            number, text = (
                {"type": "number", "func": ">=", "placeholder": "at least"},
                {"type": "input", "func": "like"},
            )
            words = ("file", "formula", "nearest")
            filters = {str(name): text if name in words else number for name in rows}
            self.overview.param.update(
                value=rows, selection=[], header_filters=filters, editors=dict.fromkeys(map(str, rows))
            )
            warned = dict.fromkeys(f"{r['file']}: {text}" for r in records for text in r["warnings"])
            self.warnings.object = box(list(warned), "#b26b00")
            self.conversions.object = box(conversion_lines(records), "#2166ac")
            self.moduli.show(moduli_figure(records))
            self.results.visible = bool(records)
            self.shown.options = list(self.found)
        await self.draw()

    def _pick(self, *_: Any) -> None:
        """Show the crystal of the selected row."""
        if self.overview.selection:
            self.shown.value = str(self.overview.value["file"].iloc[self.overview.selection[0]])

    async def draw(self, *_: Any) -> None:
        """Numbers, pictures and neighbours of the chosen crystal."""
        async with self.lock:
            if self.shown.value not in self.found:
                self.drawn = None
                return
            source, finding = self.found[self.shown.value]
            self.table.object = _properties(finding)
            last = self.property.value
            self.property.param.update(**_choice([in_title(r) for r in finding.records], self.property.value))
            if self.property.value == last:  # else it is on its way
                await self._stand()
            self.words.object = f"<p>{html.escape(finding.words)}</p>"
            self.near.visible = finding.nearest is not None
            if finding.nearest is not None:
                self.neighbours.object = _neighbours(finding.nearest)
                if list(finding.nearest.index) != self.neighbour.options:
                    self.neighbour.param.update(options=list(finding.nearest.index), value=None)
            if source is self.drawn:
                return
            self.doing = 0, 1, f"the pictures of {source.shown}"
            try:
                what = await self._working(self.compute, source, draw_source)
            except Cancelled:
                what = EcdError(source.shown, "has no pictures, which were cancelled", "")
            self.drawn = source
            if isinstance(what, EcdError):
                self.drawn, self.problems.object = None, box([str(what)], "#b2182b")
                what = None
            await self.scene.show(source.shown, what)

    async def _stand(self, *_: Any) -> None:
        """Where the crystals of the page stand with the chosen property, and what the interval consists of."""
        if self.shown.value not in self.found or self.property.value is None:
            return
        finding = self.found[self.shown.value][1]
        wanted = self.property.value, self.shown.value, [id(finding) for _, finding in self.found.values()]
        if wanted == self.stood:
            return
        self.stood = wanted
        name = next((r["property"] for r in finding.records if in_title(r) == self.property.value), "")
        mine = finding.parts[finding.parts["property"] == name]
        self.why.visible = len(mine) > 0
        rows = mine[["part", "value", "unit"]].itertuples(index=False)
        shown = [(part, *_part(part, value, unit)) for part, value, unit in rows]
        self.parts.object = pd.DataFrame(shown, columns=["part", "value", "unit"])
        every = [r for _, finding in self.found.values() for r in finding.records]
        if records := [r for r in every if in_title(r) == self.property.value]:
            self.above.show(await off_loop(property_figure, records, self.shown.value))

    async def _neighbour(self, *_: Any) -> None:
        """The structure of the chosen neighbour."""
        name = self.neighbour.value
        self.atoms_title.object = "Reading the structures …" if name else ""
        structure = (await off_loop(load_structures)).get(name) if name else None
        if structure is None:
            self.atoms_title.object = ""
            self.atoms.show(None)
            return
        group = load_crystals()["spacegroup"].get(name, "unknown")
        formula = structure.composition.reduced_formula
        self.atoms_title.object = f"{name}: {formula}, space group {group}, {structure.volume:.1f} Å³"
        self.atoms.show(structure_figure(structure))


def _choice(options: list[str], value: str | None) -> dict[str, Any]:
    """New options of a selection; its value stays if it can."""
    return {"options": options, "value": next((v for v in (value, "bulk modulus (GPa)") if v in options), options[0])}


def _part(part: str, value: float, unit: str) -> tuple[str, str]:
    """A part of an interval as the page shows it."""
    if unit == TIMES:
        return f"{TIMES} {value:.3f}", ""
    return f"{'+' if part == RESULT else ''}{value:.3g}", unit


def _properties(finding: Finding) -> pd.DataFrame:
    """Properties of one crystal, one a row; of a training crystal also what was calculated."""
    records = finding.records
    found = pd.DataFrame(
        {
            "property": [in_title(r).removesuffix(f" ({r['unit']})") for r in records],
            "value": [f"{r['value']:.4g}" for r in records],
            "95 %": [interval(r) for r in records],
            "unit": [r["unit"] for r in records],
        }
    )
    labels = [learned_values(r).get(r["seen"]) if r.get("seen") else None for r in records]
    known = ["" if label is None else f"{label:.4g}" for label in labels]
    return found.assign(calculated=known) if any(known) else found


def _neighbours(nearest: pd.Series) -> pd.DataFrame:
    """Names, distances and calculated moduli of the nearest crystals."""
    moduli = load_crystals()[["bulk_modulus", "shear_modulus"]].reindex(nearest.index)
    moduli.columns = pd.Index(["bulk modulus (GPa)", "shear modulus (GPa)"])
    found = moduli.map(lambda value: f"{value:.1f}" if value == value else "")
    found.insert(0, "distance", [f"{d:.2f}" for d in nearest])
    return found.rename_axis("crystal").reset_index()
