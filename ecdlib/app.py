"""The graphical interface, ``ecd app``: predictions for densities and structures that you drop, the latent database.

It serves this machine only, needs no network, and writes nothing but the upload that is being read. What reads a file
or computes runs in a process of the session (see :class:`ecdlib.base.workers.Bounded`): whatever a file does there,
the page, the other sessions and the end of the program are not held up.
"""

from __future__ import annotations

import asyncio
import base64
import html
import io
import itertools
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import pandas as pd

from ecdlib.base.errors import EcdError
from ecdlib.base.workers import ONE_THREAD, Bounded
from ecdlib.data.structures import is_crystal_file
from ecdlib.data.tables import load_crystals
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.io import packing, write_density
from ecdlib.density.store import load_density
from ecdlib.density.superpose import structure_of, superpose
from ecdlib.density.valence import parse_valence, to_ours
from ecdlib.features.collection import FeatureSettings, featurize
from ecdlib.features.common_grid import common_cell
from ecdlib.learn.answer import AUTO, answer, interval, named, read_crystal, structure_model
from ecdlib.learn.latents import LatentDatabase, load_latents
from ecdlib.learn.predict import conversion_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pymatgen.core import Structure

ADDRESS = "127.0.0.1"
UPLOAD_LIMIT = 200_000_000  #: bytes of all files of a page together: they stay in memory while it is open
ALL_UPLOADS = 1_000_000_000  #: bytes of the files of all pages
SECONDS = 120  #: that the computation for one file and model may take
MEMORY = 4 * 2**30  #: bytes that it may need
PRELOAD = ("ecdlib.app", "ecdlib.book.plotting", "ecdlib.learn.fusion", "torch", "lightgbm", "plotly.graph_objects")
CHUNK = 5_000_000  #: bytes of one message from the browser: files come in parts, Bokeh's limit (20 MB) need not grow
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
SLICE_HELP = (
    "The reconstruction is scaled to the electrons of the original; both share one logarithmic colour scale. "
    "The difference is reconstruction minus original."
)
CSV_COLUMNS = [
    "file",
    "model",
    "property",
    "value",
    "low",
    "high",
    "std",
    "unit",
    "conversion",
    "conversion_std",
    "warnings",
    "nearest",
    "distance",
]
_SESSIONS: WeakSet[Bounded] = WeakSet()  # processes of the open pages
_FOLDERS: set[Path] = set()  # of the open pages, for their files
_HELD: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # bytes of the files of each page


def safe_name(name: str) -> str:
    """The last part of a path, harmless in a table, a page and a spreadsheet: letters, digits and ``._()-`` only."""
    kept = re.sub(r"[^A-Za-z0-9._()-]", "_", re.split(r"[/\\]", name)[-1])
    return kept.lstrip(".-")[-80:] or "file"


def read_upload(name: str, content: bytes, folder: Path) -> ChargeDensity | Structure:
    """Read an uploaded density or structure: CHGCAR or cube (plain, ``.gz``, ``.bz2``, ``.xz``), npz, CIF, POSCAR.

    The content is written into ``folder`` under a name that does not come from the user, and removed again.

    Raises:
        EcdError: too large (also when unpacked), damaged, or of another format; nothing else is raised.
    """
    shown = safe_name(name)
    packed = packing(shown)
    kind = os.path.splitext(shown.lower().removesuffix(packed))[1]
    check_size({shown: content})
    if kind in (".h5", ".hdf5"):
        raise EcdError(shown, "is a store of several crystals", "Write one of them to a file with `ecd convert`.")
    usual = "POSCAR" if is_crystal_file(shown) else "CHGCAR"
    stem = {".npz": "density.npz", ".cube": "density.cube", ".cub": "density.cube", ".cif": "a.cif"}.get(kind, usual)
    path = folder / f"{stem}{packed}"
    try:
        path.write_bytes(content)
        crystal = read_crystal(path)
        if isinstance(crystal, ChargeDensity):
            crystal = replace(crystal, name=shown, history=(f"read {shown}",))
        return crystal
    except EcdError as error:
        problem, remedy = (text.replace(f"{folder}{os.sep}", "") for text in (error.problem, error.remedy))
        raise EcdError(shown, problem, remedy) from error
    except Exception as error:  # whatever a parser meets in a strange file: words
        remedy = "Give a CHGCAR, a cube file, an npz of this project, a CIF or a POSCAR."
        raise EcdError(shown, "could not be read", remedy) from error
    finally:
        path.unlink(missing_ok=True)


def check_size(files: Mapping[str, bytes | str]) -> None:
    """Refuse more than :data:`UPLOAD_LIMIT` bytes.

    Raises:
        EcdError: naming the files' size.
    """
    total = sum(map(len, files.values()))
    if total > UPLOAD_LIMIT:
        what = f"{total / 1e6:.0f} MB are more than the limit of {UPLOAD_LIMIT / 1e6:.0f} MB"
        raise EcdError(", ".join(map(safe_name, files)), what, "Use `ecd predict` for large files.")


def nearness(database: LatentDatabase, latent: Floats) -> tuple[pd.Series, float]:
    """The five nearest crystals of the database with their distances, and how usual the smallest distance is.

    Returns:
        Names and distances, and the percentage of database crystals whose nearest neighbour is nearer than that.
    """
    nearest = database.nearest(latent)
    closer = np.searchsorted(database.spacing, float(nearest.iloc[0]))
    return nearest, 100 * float(closer) / len(database.spacing)


def nearness_text(nearest: pd.Series, percentile: float) -> str:
    """The result of :func:`nearness` in words."""
    head = f"The nearest crystal is {nearest.index[0]}, at a distance of {nearest.iloc[0]:.2f}."
    if percentile == 0:
        return (
            f"{head} No two crystals of the database are this close to each other: this is one of them, or nearly so."
        )
    if percentile <= 75:
        verdict = "The density is as close as the crystals of the database usually are."
    elif percentile <= 95:
        verdict = "The density is rather far from the database."
    else:
        verdict = "The density is far from the database: do not rely on the prediction."
    return f"{head} In the database, {percentile:.0f} % of the crystals have a neighbour closer than that. {verdict}"


def search_table(table: pd.DataFrame, text: str) -> pd.DataFrame:
    """Rows of a database's table that match each word: an element symbol (``Fe``), or a part of the name.

    Example:
        >>> table = pd.DataFrame({"formula": ["NaCl", "CsF", "CO2"]}, index=["NaCl_225", "CsF_225", "CO2_205"])
        >>> [list(search_table(table, text).index) for text in ("F", "C O", "nacl", "225 Cs")]
        [['CsF_225'], ['CO2_205'], ['NaCl_225'], ['CsF_225']]
    """
    from pymatgen.core import Element

    kept = np.ones(len(table), dtype=bool)
    for word in re.split(r"[\s,;-]+", text.strip()):
        if Element.is_valid_symbol(word):
            kept &= np.array([word in re.findall("[A-Z][a-z]?", formula) for formula in table["formula"]], dtype=bool)
        elif word:
            kept &= table.index.str.contains(word, case=False, regex=False)
    return table[kept]


def compare(original: ChargeDensity, database: LatentDatabase, name: str) -> tuple[ChargeDensity, pd.DataFrame]:
    """What the latent of a crystal gives back, and in which numbers it differs from the original.

    Args:
        original: in the cell and origin of the database (see :func:`ecdlib.features.common_grid.common_cell`).

    Returns:
        The decoded density, scaled to its electrons, on the original's voxels; and a table of quantity, value, unit.
    """
    raw, decoded = database.decode(name, exact_electrons=False), database.decode(name)
    decoded = decoded.step("on the original's voxels", values=resample(decoded.values, original.shape))
    difference = decoded.values - original.values
    rows = [
        ("Mean squared error (MSE)", f"{(difference**2).mean():.3g}", "(e/Å³)²"),
        ("Mean absolute error (MAE)", f"{np.abs(difference).mean():.3g}", "e/Å³"),
        ("MAE, share of the mean density", f"{100 * np.abs(difference).mean() / original.values.mean():.1f}", "%"),
        ("Electrons of the original", f"{original.n_electrons:.3f}", "per cell"),
        ("Electrons as decoded", f"{raw.n_electrons:.3f}", "per cell"),
        ("Electrons after scaling", f"{decoded.n_electrons:.3f}", "per cell"),
    ]
    return decoded, pd.DataFrame(rows, columns=["quantity", "value", "unit"])


def slice_figure(original: ChargeDensity, decoded: ChargeDensity, height: float) -> Figure:
    """The same plane of both densities at a fraction ``height`` of c, and their difference, in true proportions."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    nx, ny, nz = original.shape
    k = round(height * nz) % nz
    a, b = original.lattice[:2]
    i, j = np.meshgrid(np.arange(nx + 1) / nx, np.arange(ny + 1) / ny, indexing="ij")
    along = b @ a / np.linalg.norm(a)
    x, y = i * np.linalg.norm(a) + j * along, j * np.sqrt(b @ b - along**2)
    first, second = original.values[:, :, k], decoded.values[:, :, k]
    top = max(float(first.max()), 1e-3)
    bottom = min(max(float(min(first.min(), second.min())), top / 1000), top / 2)
    shades: dict[str, Any] = {"norm": LogNorm(bottom, top), "cmap": "viridis"}
    limit = float(np.abs(second - first).max()) + 1e-9
    difference: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    ratio = np.ptp(x) / np.ptp(y)
    width = float(np.clip(2.8 * ratio, 1.9, 3))
    figure = Figure(figsize=(3 * width + 2.2, min(2.8, width / ratio) + 0.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    titles = ("Original", "Reconstruction", "Difference")
    for ax, title, values, look in zip(
        axes, titles, (first, second, second - first), (shades, shades, difference), strict=True
    ):
        drawn = ax.pcolormesh(x, y, np.maximum(values, bottom) if look is shades else values, **look)
        ax.set_title(title, fontsize=10)
        ax.set(aspect="equal", xlabel="Å")
        if ax is not axes[0]:
            figure.colorbar(drawn, ax=ax).ax.set_title("e/Å³", fontsize=9)
    axes[0].set_ylabel("Å")
    return figure


def _levels(values: Floats, quantiles: tuple[float, ...]) -> list[float]:
    """Isosurface levels: quantiles of the positive values, to three digits."""
    return [float(f"{level:.3g}") for level in np.quantile(values[values > 0], quantiles)]


@lru_cache(maxsize=1)
def _database() -> LatentDatabase:
    return load_latents()


@dataclass(frozen=True)
class Finding:
    """What one crystal and one model gave."""

    records: list[dict[str, Any]]  #: see :class:`ecdlib.learn.answer.Answer`, with ``nearest`` and ``distance``
    nearest: pd.Series | None  #: None where no latent could be made
    words: str  #: how near the database it is, or why that is unknown


def examine(crystal: ChargeDensity | Structure, name: str, model: str) -> Finding:
    """Predict, and look for neighbours: of the model of structures in its training set, else in the latent database.

    Raises:
        EcdError: a crystal that the model cannot take.
    """
    nearest, words = None, ""
    if model == AUTO:
        structure = structure_of(crystal) if isinstance(crystal, ChargeDensity) else crystal
        done = answer(crystal)
        nearest = structure_model().nearest(structure)
        words = f"The nearest training crystal is {nearest.index[0]}, at a distance of {nearest.iloc[0]:.2f}."
    elif not isinstance(crystal, ChargeDensity):
        raise EcdError(name, f"holds no density, which {model} needs", f"Choose {AUTO}, or give a CHGCAR.")
    else:
        done = answer(crystal, model)
        try:
            nearest, percentile = nearness(_database(), _database().autoencoder.latent(to_ours(crystal)))
            words = nearness_text(nearest, percentile)
        except EcdError as error:
            words = str(error)
    first, distance = (nearest.index[0], float(nearest.iloc[0])) if nearest is not None else ("", np.nan)
    records = [{**r, "nearest": first, "distance": distance} for r in named(done, name).records]
    return Finding(records, nearest, words)


@dataclass(frozen=True)
class Source:
    """A file or a bundled crystal on the page."""

    kind: str  #: ``"file"`` or ``"bundled"``
    name: str  #: as the user gives it
    shown: str  #: as tables and messages call it
    content: bytes | str  #: of a file, as it came: Panel decodes what the browser calls text
    valence: str  #: that the user states for files

    def read(self, folder: Path) -> ChargeDensity | Structure:
        """The density, or the structure of a file without one.

        Raises:
            EcdError: a file that cannot be used.
        """
        if self.kind == "bundled":
            return replace(load_density(self.name), name=self.shown)
        raw = self.content.encode() if isinstance(self.content, str) else self.content
        crystal = read_upload(self.name, raw, folder)
        if isinstance(crystal, ChargeDensity):
            crystal = replace(crystal, name=self.shown, valence=parse_valence(self.valence) or crystal.valence)
        return crystal


# In the process of a session


def examine_source(source: Source, model: str, folder: Path) -> Finding | EcdError:
    """What a model says of a file or crystal; an error is returned."""
    try:
        return examine(source.read(folder), source.shown, model)
    except Exception as error:
        return _in_words(source.shown, error)


def draw_source(source: Source, folder: Path) -> tuple[str, Any, Any] | EcdError:
    """What is drawn, surfaces of equal density and of equal autocorrelation; an error is returned."""
    try:
        return _pictures(source.read(folder))
    except Exception as error:
        return _in_words(source.shown, error)


def _pictures(crystal: ChargeDensity | Structure) -> tuple[str, Any, Any]:
    from ecdlib.book.plotting import correlation_figure, density_figure

    given = isinstance(crystal, ChargeDensity)
    density = crystal if isinstance(crystal, ChargeDensity) else superpose(crystal)
    correlation = featurize(density)[0]["autocorrelation"]
    first = density_figure(density, _levels(density.values, (0.6, 0.9, 0.98)))
    second = correlation_figure(correlation, FeatureSettings().voxel, _levels(correlation, (0.8, 0.95, 0.995)))
    return "density" if given else "density of superposed free atoms", first, second


@lru_cache(maxsize=2)
def _compared(name: str) -> tuple[ChargeDensity, ChargeDensity, pd.DataFrame]:
    """Original and reconstruction of a crystal of the database, and how they differ."""
    original = common_cell(load_density(name), None)
    return original, *compare(original, _database(), name)


def compare_in_tables(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How a crystal of the database differs from its reconstruction, and its neighbours."""
    database = _database()
    nearest = database.nearest(database.latents[database.row(name)].astype(np.float32), k=6).drop(name)[:5]
    return _compared(name)[2], pd.DataFrame({"crystal": nearest.index, "distance": [f"{d:.2f}" for d in nearest]})


def slice_png(name: str, height: float) -> bytes:
    """The picture of :func:`slice_figure` of a crystal of the database."""
    stream = io.BytesIO()
    slice_figure(*_compared(name)[:2], height).savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def reconstruction(name: str, folder: Path) -> bytes:
    """CHGCAR of what the latent of a crystal of the database gives back."""
    path = folder / "reconstruction"
    try:
        write_density(_database().decode(name), path)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


# In the process of the server


def _in_words(name: str, error: Exception) -> EcdError:
    """What to tell the user; what nobody foresaw goes to the terminal."""
    if isinstance(error, EcdError):
        return error
    if isinstance(error, TimeoutError | ChildProcessError | MemoryError):
        why = str(error) if isinstance(error, TimeoutError) else "needs too much memory"
        return EcdError(name, why, "Use `ecd predict`, which has no limits.")
    logging.getLogger(__name__).error("%s", name, exc_info=error)
    return EcdError(name, "could not be evaluated", "See the terminal for what went wrong.")


def to_csv(findings: list[Finding]) -> str:
    """All results as CSV, one row for each file and property."""
    rows = [{**r, "warnings": "; ".join(r["warnings"])} for finding in findings for r in finding.records]
    return pd.DataFrame(rows, columns=CSV_COLUMNS).to_csv(index=False)


def standing(records: Sequence[dict[str, Any]]) -> Any:
    """Both moduli of all labelled crystals, and of those given with their 95 % intervals; None if nothing has both."""
    import plotly.graph_objects as go

    labels = load_crystals()
    grey = go.Scattergl(
        x=labels["bulk_modulus"],
        y=labels["shear_modulus"],
        text=labels.index,
        mode="markers",
        marker={"size": 3, "color": "#9aa3ab"},
        name="labelled crystals",
        hovertemplate="%{text}: K %{x:.0f}, G %{y:.0f} GPa<extra></extra>",
    )
    figure = go.Figure([grey])
    for file in dict.fromkeys(r["file"] for r in records):
        mine = {r["property"]: r for r in records if r["file"] == file}
        K, G = (mine.get(name) for name in ("bulk modulus", "shear modulus"))
        if K is None or G is None:
            continue
        bars = (
            {
                "type": "data",
                "symmetric": False,
                "array": [r["high"] - r["value"]],
                "arrayminus": [r["value"] - r["low"]],
            }
            for r in (K, G)
        )
        x, y = bars
        figure.add_scatter(x=[K["value"]], y=[G["value"]], error_x=x, error_y=y, name=file, marker={"size": 10})
    figure.update_layout(
        xaxis_title="bulk modulus (GPa)",
        yaxis_title="shear modulus (GPa)",
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        template="plotly_white",
    )
    return figure if len(figure.data) > 1 else None


def _box(messages: list[str], colour: str) -> str:
    """Messages in a box; they hold words from files, so they are escaped."""
    items = "".join(f"<div>{html.escape(message)}</div>" for message in messages)
    style = f"border-left: 4px solid {colour}; background: {colour}18; padding: 8px 12px; margin: 4px 0"
    return f'<div role="alert" style="{style}">{items}</div>' if messages else ""


def _table(width: int) -> Any:
    import panel as pn

    left = "table.panel-df th, table.panel-df td { text-align: left !important; }"
    return pn.pane.DataFrame(index=False, stylesheets=[left], max_width=width)


def _plot(figure: Any) -> Any:
    import panel as pn

    return pn.pane.Plotly(figure, config={"responsive": True, "displaylogo": False}, height=430)


async def _off_loop(function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of a call in a thread for which the end of the program does not wait."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def work() -> None:
        try:
            done, outcome = future.set_result, function(*arguments)
        except Exception as error:
            done, outcome = future.set_exception, error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: future.done() or done(outcome))

    threading.Thread(target=work, daemon=True).start()
    return await future


def _dropper() -> Any:
    """Panel's widget for files, which keeps no more than the limits while it receives them."""
    import panel as pn

    class Dropper(pn.widgets.FileDropper):
        def _process_event(self, event: Any) -> None:
            name, part = event.data.get("name"), event.data.get("data", b"")
            parts = {key: value for key, value in self._file_buffer.items() if key != name or event.data["chunk"] != 1}
            mine = sum(len(each) for each in self.value.values()) + sum(len(p) for ps in parts.values() for p in ps)
            others = sum(size for page, size in _HELD.items() if page is not self)
            if event.event_name == "upload_event":
                if mine + len(part) > UPLOAD_LIMIT or others + mine + len(part) > ALL_UPLOADS:
                    self._file_buffer.pop(name, None)
                    self.refused(safe_name(str(name)))
                    return
                if event.data["chunk"] != 1 and name not in self._file_buffer:  # refused before
                    return
                mine += len(part)
            _HELD[self] = mine
            super()._process_event(event)

        def refused(self, name: str) -> None:
            """Called with the name of a file that is too large."""

    limit = f"{UPLOAD_LIMIT // 10**6}MB"
    return Dropper(
        multiple=True, max_file_size=limit, chunk_size=CHUNK, previews=[], sizing_mode="stretch_width"
    )  # it reports by itself that a single file is too large


class PredictTab:
    """Files and crystals in; table, neighbours and pictures out."""

    def __init__(self, folder: Path, call: Callable[..., Any]) -> None:
        """``call(function, *arguments)`` computes in the session's process."""
        import panel as pn

        self.folder, self.call, self.lock = folder, call, asyncio.Lock()
        self.findings: dict[Source, dict[str, Finding | EcdError]] = {}
        self.found: dict[str, tuple[Source, Finding]] = {}
        self.drawn: Source | None = None
        self.files = _dropper()
        self.files.refused = self.refuse
        names = list(_database().table.index)
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
        self.table, self.neighbours = _table(760), _table(360)
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
                    f"at most {UPLOAD_LIMIT // 10**6} MB together.",
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
        what = f"more than {UPLOAD_LIMIT / 1e6:.0f} MB on this page, or {ALL_UPLOADS / 1e6:.0f} MB on all pages"
        self.problems.object = _box([str(EcdError(name, what, "Use `ecd predict` for large files."))], "#b2182b")

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
            return _in_words(source.shown, error)

    async def update(self, *_: Any) -> None:
        """After any change of files, crystals or model."""
        import panel as pn

        async with self.lock:
            self.busy.object = _box(["Computing …"], "#2166ac")
            given = dict(self.files.value), list(self.crystals.value), self.model.value, self.valence.value or ""
            problems = await _off_loop(self.work, *given)
            self.problems.object = _box(problems, "#b2182b")
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
            self.warnings.object = _box(list(warned), "#b26b00")
            self.conversions.object = _box(conversion_lines(records), "#2166ac")
            figure = standing(records)
            words = "## Where it stands\nGrey: labelled crystals; point at one for its name. Bars: 95 % intervals."
            self.stands[:] = [] if figure is None else [pn.pane.Markdown(words), _plot(figure)]
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
                pictures = await _off_loop(self.compute, source, draw_source)
            finally:
                self.results.loading = False
            self.drawn = source
            if isinstance(pictures, EcdError):
                self.drawn, self.problems.object = None, _box([str(pictures)], "#b2182b")
                self.captions[0].object = self.captions[1].object = ""
                pictures = None, None
            else:
                what, *pictures = pictures
                levels = "light, middle and dark: 60, 90 and 98 % of the volume with positive values lie below"
                self.captions[0].object = f"Surfaces of equal {what} of {source.shown} in its cell ({levels})."
                self.captions[1].object = "Surfaces of equal autocorrelation of √ρ; zero shift is in the centre."
            for place, picture in zip(self.pictures, pictures, strict=True):  # a new pane fits its place, a changed
                place[:] = [_plot(picture)]  # figure may keep its old width


class DatabaseTab:
    """Search the latent database, compare a crystal with its reconstruction, download that."""

    def __init__(self, folder: Path, call: Callable[..., Any]) -> None:
        """``call(function, *arguments)`` computes in the session's process."""
        import panel as pn

        self.folder, self.call, self.lock = folder, call, asyncio.Lock()
        self.name = ""
        self.all = _database().table[["formula", "n_atoms", "volume", "electrons"]].reset_index()
        self.search = pn.widgets.TextInput(placeholder="Fe3SnC, or elements: Fe C", label="Search", max_width=360)
        titles = {"n_atoms": "atoms", "volume": "volume (Å³)"}
        self.table = pn.widgets.Tabulator(
            self.all,
            titles=titles,
            text_align={"n_atoms": "right", "volume": "right", "electrons": "right"},
            formatters={"volume": {"type": "money", "precision": 1}, "electrons": {"type": "money", "precision": 0}},
            selectable=1,
            disabled=True,
            show_index=False,
            pagination="local",
            page_size=8,
            layout="fit_columns",
        )
        self.count, self.title = pn.pane.HTML(), pn.pane.Markdown()
        self.numbers, self.neighbours = _table(520), _table(360)
        self.height = pn.widgets.FloatSlider(label="Height of the plane, fraction of c", end=0.95, step=0.05)
        self.height.max_width = 360
        self.picture = pn.pane.HTML()
        self.save = pn.widgets.FileDownload(
            callback=self._chgcar, filename="CHGCAR", label="Download the reconstruction (CHGCAR)", max_width=320
        )
        half = {"flex": "1 1 340px", "min-width": "0"}
        self.details = pn.Column(
            self.title,
            self.height,
            self.picture,
            self.save,
            pn.FlexBox(
                pn.Column("### Original and reconstruction", self.numbers, styles=half),
                pn.Column("### Nearest neighbours", self.neighbours, styles=half),
            ),
            visible=False,
        )
        self.view = pn.Column(
            "Each crystal is kept as a small latent, from which the density is decoded. Pick a row to see how well.",
            self.search,
            self.count,
            self.table,
            self.details,
        )
        self.filter()
        self.search.param.watch(self.filter, "value_input")
        self.table.param.watch(self.pick, "selection")
        self.height.param.watch(self.draw, "value")

    def filter(self, *_: Any) -> None:
        """Show the rows that match the search."""
        found = search_table(_database().table, (self.search.value_input or "")[:200])
        self.table.param.update(value=found.reset_index()[list(self.all)], selection=[])
        self.count.object = f"{len(found)} of {len(self.all)} crystals"

    async def pick(self, *_: Any) -> None:
        """Show the crystal of the selected row."""
        if not self.table.selection:
            return
        async with self.lock:
            name = str(self.table.value["name"].iloc[self.table.selection[0]])
            if name != self.name:
                self.details.loading = True
                try:
                    numbers, nearest = await _off_loop(self.call, compare_in_tables, name)
                finally:
                    self.details.loading = False
                self.name, self.numbers.object, self.neighbours.object = name, numbers, nearest
                self.title.object = f"## {name}\n{SLICE_HELP}"
                self.save.filename = f"CHGCAR_{name}"
                self.details.visible = True
        await self.draw()

    async def draw(self, *_: Any) -> None:
        """Draw the plane."""
        if not self.name:
            return
        async with self.lock:
            height = self.height.value
            png = base64.b64encode(await _off_loop(self.call, slice_png, self.name, height)).decode()
            alt = f"{self.name}, plane at {height:.2f} c: the original density, its reconstruction, their difference"
            self.picture.object = f'<img alt="{alt}" src="data:image/png;base64,{png}" style="max-width: 100%">'

    def _chgcar(self) -> io.BytesIO:
        return io.BytesIO(self.call(reconstruction, self.name, self.folder))


def page() -> Any:
    """The page of one session, with a folder and a process that end with the session."""
    import panel as pn

    folder, session = Path(tempfile.mkdtemp(prefix="ecd-app-")), Bounded(SECONDS, MEMORY, PRELOAD)
    _SESSIONS.add(session)
    _FOLDERS.add(folder)

    def end(_: Any) -> None:
        session.end()
        shutil.rmtree(folder, ignore_errors=True)
        _FOLDERS.discard(folder)

    pn.state.on_session_destroyed(end)
    return pn.Column(
        "# Crystal properties from electron densities",
        pn.Tabs(
            ("Predict", PredictTab(folder, session).view),
            ("Latent database", DatabaseTab(folder, session).view),
            dynamic=False,
        ),
        max_width=1200,
        styles={"margin": "0 auto", "padding": "0 16px"},
    )


def guard(application: Any, hosts: set[str]) -> Any:
    """A tornado application that answers only requests for these hosts.

    A foreign page can make its own name lead to this machine (DNS rebinding); its requests then have its name as their
    host, and an origin of that name, which the check of origins would take for the server's own.
    """
    from tornado import httputil

    class Guarded(httputil.HTTPMessageDelegate):
        def __init__(self, answer: Any, connection: Any):
            self.answer, self.connection = answer, connection

        def headers_received(self, start_line: Any, headers: Any) -> Any:
            if headers.get_list("Host") in [[host] for host in hosts]:
                return self.answer.headers_received(start_line, headers)
            self.answer, body = httputil.HTTPMessageDelegate(), b"This address serves its own machine only.\n"
            about = httputil.HTTPHeaders({"Content-Length": str(len(body)), "Connection": "close"})
            self.connection.write_headers(httputil.ResponseStartLine("HTTP/1.1", 403, "Forbidden"), about, body)
            self.connection.finish()
            return None

        def data_received(self, chunk: bytes) -> Any:
            return self.answer.data_received(chunk)

        def finish(self) -> None:
            self.answer.finish()

        def on_connection_close(self) -> None:
            self.answer.on_connection_close()

    class Guard(httputil.HTTPServerConnectionDelegate):
        def start_request(self, server_conn: Any, request_conn: Any) -> Any:
            return Guarded(application.start_request(server_conn, request_conn), request_conn)

        def on_close(self, server_conn: Any) -> None:
            application.on_close(server_conn)

    return Guard()


def serve(port: int, show: bool) -> None:
    """Serve the app to this machine until Ctrl-C; prints the address.

    Args:
        port: 0 takes a free one.
        show: open it in the browser.

    Raises:
        EcdError: the port is in use, data are missing.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ADDRESS, port))
            port = probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise EcdError(f"--port {port}", f"cannot be used ({error})", "Choose another one, or 0 for any.") from error
    _database()
    import panel as pn

    logging.basicConfig(level=logging.WARNING)
    os.environ.update(ONE_THREAD)  # sessions share the cores
    pn.extension("plotly", "tabulator", "filedropper", sizing_mode="stretch_width")
    address = f"{ADDRESS}:{port}"
    origins = [address, f"localhost:{port}"]  # no other page may talk to the server
    server = pn.io.server.get_server(
        page,
        port=port,
        address=ADDRESS,
        websocket_origin=origins,
        title="ecdlib",
        show=show,
        http_server_kwargs={"max_body_size": CHUNK},
    )
    server._http.request_callback = guard(server._http.request_callback, set(origins))
    print(f"open http://{address}/ (Ctrl-C ends it)", flush=True)
    try:
        server.run_until_shutdown()
    finally:
        for session in list(_SESSIONS):
            session.end()
        for folder in _FOLDERS:
            shutil.rmtree(folder, ignore_errors=True)
