"""The tab of the latent database: search it, compare a crystal with its reconstruction, download that."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ecdlib.app.findings import latent_database
from ecdlib.app.widgets import off_loop, sortable, table
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import write_density
from ecdlib.density.store import load_density
from ecdlib.features.common_grid import common_cell
from ecdlib.learn.latents import LatentDatabase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLICE_HELP = (
    "The reconstruction is scaled to the electrons of the original; both share one logarithmic colour scale. "
    "The difference is reconstruction minus original."
)


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


@lru_cache(maxsize=2)
def _compared(name: str) -> tuple[ChargeDensity, ChargeDensity, pd.DataFrame]:
    """Original and reconstruction of a crystal of the database, and how they differ."""
    original = common_cell(load_density(name), None)
    return original, *compare(original, latent_database(), name)


def compare_in_tables(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How a crystal of the database differs from its reconstruction, and its neighbours."""
    database = latent_database()
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
        write_density(latent_database().decode(name), path)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


class DatabaseTab:
    """Search the latent database, compare a crystal with its reconstruction, download that."""

    def __init__(self, folder: Path, call: Callable[..., Any]) -> None:
        """``call(function, *arguments)`` computes in the session's process."""
        import panel as pn

        self.folder, self.call, self.lock = folder, call, asyncio.Lock()
        self.name = ""
        self.all = latent_database().table[["formula", "n_atoms", "volume", "electrons"]].reset_index()
        self.search = pn.widgets.TextInput(placeholder="Fe3SnC, or elements: Fe C", label="Search", max_width=360)
        titles = {"n_atoms": "atoms", "volume": "volume (Å³)"}
        self.table = sortable(
            self.all,
            titles=titles,
            text_align={"n_atoms": "right", "volume": "right", "electrons": "right"},
            formatters={"volume": {"type": "money", "precision": 1}, "electrons": {"type": "money", "precision": 0}},
            page_size=8,
            layout="fit_columns",
        )
        self.count, self.title = pn.pane.HTML(), pn.pane.Markdown()
        self.numbers, self.neighbours = table(520), table(360)
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
            "Each crystal is kept as a small latent, from which the density is decoded. Pick a row to see how well, or "
            "press Enter in the search for the first one.",
            self.search,
            self.count,
            self.table,
            self.details,
        )
        self.filter()
        self.search.param.watch(self.filter, "value_input")
        self.search.param.watch(self._first, "value")
        self.table.param.watch(self.pick, "selection")
        self.height.param.watch(self.draw, "value")

    def filter(self, *_: Any) -> None:
        """Show the rows that match the search."""
        found = search_table(latent_database().table, (self.search.value_input or "")[:200])
        self.table.param.update(value=found.reset_index()[list(self.all)], selection=[])
        self.count.object = f"{len(found)} of {len(self.all)} crystals"

    def _first(self, *_: Any) -> None:
        """Select the first row, for those without a mouse."""
        if len(self.table.value):
            self.table.selection = [0]

    async def pick(self, *_: Any) -> None:
        """Show the crystal of the selected row."""
        if not self.table.selection:
            return
        async with self.lock:
            name = str(self.table.value["name"].iloc[self.table.selection[0]])
            if name != self.name:
                self.details.loading = True
                try:
                    numbers, nearest = await off_loop(self.call, compare_in_tables, name)
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
            png = base64.b64encode(await off_loop(self.call, slice_png, self.name, height)).decode()
            alt = f"{self.name}, plane at {height:.2f} c: the original density, its reconstruction, their difference"
            self.picture.object = f'<img alt="{alt}" src="data:image/png;base64,{png}" style="max-width: 100%">'

    def _chgcar(self) -> io.BytesIO:
        return io.BytesIO(self.call(reconstruction, self.name, self.folder))
