"""Density and structure together in space: surfaces, a plane that moves, elements that can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ecdlib.app.findings import in_words
from ecdlib.app.uploads import Source
from ecdlib.app.widgets import HALF, Place, off_loop, table
from ecdlib.base.errors import EcdError
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.superpose import superpose
from ecdlib.density.voronoi import electrons_by_element
from ecdlib.features.collection import FeatureSettings, featurize

if TYPE_CHECKING:
    from pymatgen.core import Structure

VOXELS = 96  #: along each axis that the page keeps of a density, at most: a plane moves without its file
SURFACE = 40  #: voxels along each axis that a surface is made of, at most
LEVELS = 60  #: between which the slider of the surface chooses
CELLS_HELP = (
    "Each voxel counts for the atom that is nearest to it. The plane halfway between two atoms takes no account of "
    "their sizes: numbers to compare crystals with, not charges of ions."
)


@dataclass(frozen=True)
class Drawing:
    """What the page keeps of a crystal to draw it."""

    what: str  #: is drawn, in words
    density: ChargeDensity  #: on at most :data:`VOXELS` voxels along each axis
    levels: list[float]  #: of surfaces, e/Å³
    electrons: pd.DataFrame | None  #: by element; None if a structure alone was given
    correlation: Any  #: its figure


# In the process of a session


def draw_source(source: Source, folder: Path) -> Drawing | EcdError:
    """What is drawn of a file or crystal; an error is returned."""
    try:
        return drawing(source.read(folder))
    except Exception as error:
        return in_words(source.shown, error)


def drawing(crystal: ChargeDensity | Structure) -> Drawing:
    """What is drawn of a density, or of superposed free atoms where only a structure is given."""
    from ecdlib.book.plotting import correlation_figure

    given = isinstance(crystal, ChargeDensity)
    density = crystal if isinstance(crystal, ChargeDensity) else superpose(crystal)
    correlation = featurize(density)[0]["autocorrelation"]
    steps = [float(f"{level:.3g}") for level in np.quantile(correlation[correlation > 0], (0.8, 0.95, 0.995))]
    shape = tuple(min(n, VOXELS) for n in density.shape)
    values = density.values if shape == density.shape else resample(density.values, shape)
    small = density.step("for the page", values=values.astype(np.float32))
    low, high = (float(x) for x in np.quantile(values[values > 0], (0.3, 0.9995)))
    return Drawing(
        "density" if given else "density of superposed free atoms",
        small,
        list(dict.fromkeys(float(f"{level:.3g}") for level in np.geomspace(low, high, LEVELS))),
        electrons_by_element(density) if given else None,
        correlation_figure(correlation, FeatureSettings().voxel, steps),
    )


# In the process of the server


def structure_figure(structure: Structure) -> Any:
    """The atoms of a crystal in its cell."""
    from ecdlib.book.plotting import density_figure

    density = ChargeDensity(
        np.ones((2, 2, 2)),
        structure.lattice.matrix,
        tuple(site.specie.symbol for site in structure),
        structure.frac_coords,
    )
    return _see_through(density_figure(density, []))


def scene_figure(
    density: ChargeDensity, level: float | None, axis: int | None, position: float, elements: Sequence[str]
) -> Any:
    """A surface of equal density and a plane through it, with the atoms and the cell.

    Args:
        level: of the surface, e/Å³; None: no surface.
        axis: of the cell vector that the plane moves along; it is spanned by the other two. None: no plane.
        position: of the plane, fraction of that vector.
        elements: whose atoms are shown.
    """
    import plotly.graph_objects as go

    from ecdlib.book.plotting import density_figure, mesh

    figure = density_figure(density, [])
    figure.for_each_trace(
        lambda trace: trace.update(visible=trace.name in elements), lambda trace: trace.mode == "markers"
    )
    if level is not None:
        vertices, faces = mesh(density.values, level, density.lattice, np.zeros(3), periodic=True, budget=SURFACE)
        x, y, z = np.round(vertices, 2).T.astype(np.float32)
        i, j, k = faces.T.astype(np.int32)
        look = {"color": "#4292c6", "opacity": 0.45, "name": f"{level:g} e/Å³", "showlegend": True, "hoverinfo": "name"}
        figure.add_trace(go.Mesh3d(x=x, y=y, z=z, i=i, j=j, k=k, **look))
    if axis is not None:
        points, values = plane(density, axis, position)
        x, y, z = np.round(points, 3).astype(np.float32)
        colours, bar = _logarithmic(values, density.values)
        figure.add_trace(
            go.Surface(
                x=x,
                y=y,
                z=z,
                surfacecolor=colours,
                cmin=bar["tickvals"][0],
                cmax=bar["tickvals"][-1],
                colorscale="Viridis",
                colorbar={**bar, "title": "e/Å³", "thickness": 12, "len": 0.6, "x": 1},
                customdata=values,
                hovertemplate="%{customdata:.3g} e/Å³<extra></extra>",
                contours={side: {"highlight": False} for side in "xyz"},
            )
        )
    return _see_through(figure)


def plane(density: ChargeDensity, axis: int, position: float) -> tuple[Floats, Floats]:
    """Points ``(3, n, m)`` (Å) and density ``(n, m)`` on the voxels' plane nearest to a fraction of a cell vector."""
    n = density.shape[axis]
    at = round(position * n)
    values = np.pad(np.take(density.values, at % n, axis=axis), (0, 1), mode="wrap")
    others = [a for a in range(3) if a != axis]
    first, second = np.meshgrid(*(np.arange(density.shape[a] + 1) / density.shape[a] for a in others), indexing="ij")
    fractional = np.empty((3, *values.shape))
    fractional[axis], fractional[others[0]], fractional[others[1]] = at / n, first, second
    return np.tensordot(density.lattice.T, fractional, axes=1), values


def _logarithmic(values: Floats, every: Floats) -> tuple[Floats, dict[str, Any]]:
    """Logarithms for the colours, cut off where hardly anything is; and a colour bar of the whole density."""
    bottom, top = (float(np.log10(x)) for x in np.quantile(every[every > 0], (0.01, 1)))
    bottom = max(bottom, top - 4)
    ticks = np.linspace(bottom, top, 5)
    bar = {"tickvals": ticks.tolist(), "ticktext": [f"{10**t:.2g}" for t in ticks]}
    return np.log10(np.maximum(values, 10**bottom)).astype(np.float32), bar


def _see_through(figure: Any) -> Any:
    """The page's background shows, and the view stays as the user has turned it."""
    return figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        uirevision="kept",
        scene={"uirevision": "kept", "bgcolor": "rgba(0,0,0,0)"},
        legend={"bgcolor": "rgba(0,0,0,0)"},
    )


class SceneView:
    """The picture with its controls."""

    def __init__(self) -> None:
        import panel as pn

        self.drawing: Drawing | None = None
        self.drawn = 0
        self.caption, self.cells = pn.pane.HTML(), table(460)
        self.level = pn.widgets.DiscreteSlider(label="Surface of equal density (e/Å³)", options=[1.0], value=1.0)
        self.surface = pn.widgets.Checkbox(label="Show the surface", value=True)
        self.axis = pn.widgets.RadioButtonGroup(
            label="Plane", options={"no plane": None, "along a": 0, "along b": 1, "along c": 2}, value=2
        )
        self.position = pn.widgets.FloatSlider(
            label="Position of the plane, fraction of the cell vector", start=0, end=1, step=0.02, value=0.5
        )
        self.elements = pn.widgets.CheckBoxGroup(label="Elements", inline=True)
        self.picture, self.correlation = Place(), Place()
        self.of_cells = pn.Column("### Electrons by element\n" + CELLS_HELP, self.cells)
        self.view = pn.FlexBox(
            pn.Column(
                "### Density and structure",
                self.caption,
                self.picture.view,
                self.surface,
                self.level,
                "Plane",
                self.axis,
                self.position,
                "Atoms shown",
                self.elements,
                self.of_cells,
                styles=HALF,
            ),
            pn.Column(
                "### Autocorrelation\nSurfaces of equal autocorrelation of √ρ; zero shift is in the centre.",
                self.correlation.view,
                styles=HALF,
            ),
        )
        for widget, what in (
            (self.level, "value_throttled"),
            (self.position, "value_throttled"),
            (self.surface, "value"),
            (self.axis, "value"),
            (self.elements, "value"),
        ):
            widget.param.watch(self.draw, what)

    async def show(self, name: str, what: Drawing | None) -> None:
        """Show another crystal; None: nothing."""
        self.drawing = None  # controls that change meanwhile draw nothing
        self.view.visible = what is not None
        if what is None:
            return
        self.caption.object = f"The {what.what} of {name} in its cell; drag to turn, scroll to zoom."
        elements = list(dict.fromkeys(what.density.species))
        middle = what.levels[int(0.6 * len(what.levels))]
        self.level.param.update(options=what.levels, value=middle)
        self.elements.param.update(options=elements, value=elements)
        self.of_cells.visible = what.electrons is not None
        if what.electrons is not None:
            shares = what.electrons.reset_index()
            shares["electrons per atom"] = (shares["valence electrons"] / shares["atoms"]).map("{:.3f}".format)
            shares["volume per atom (Å³)"] = (shares["volume"] / shares["atoms"]).map("{:.2f}".format)
            self.cells.object = shares.drop(columns=["valence electrons", "volume"])
        self.correlation.show(_see_through(what.correlation))
        self.drawing = what
        await self.draw()

    async def draw(self, *_: Any) -> None:
        """After a control has moved; what has moved again meanwhile is drawn once."""
        if self.drawing is None:
            return
        self.drawn += 1
        mine = self.drawn
        level = self.level.value if self.surface.value else None
        figure = await off_loop(
            scene_figure, self.drawing.density, level, self.axis.value, self.position.value, self.elements.value
        )
        if mine == self.drawn:
            self.picture.show(figure)
