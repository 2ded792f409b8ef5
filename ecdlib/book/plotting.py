"""Pictures of densities and results: matplotlib for static ones, plotly meshes for those one can turn.

Interactive figures are small (decimated isosurface meshes, never a volume) and need nothing from the network.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from IPython.core.getipython import get_ipython
from IPython.display import HTML
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib_inline.backend_inline import set_matplotlib_formats
from pymatgen.core import Element
from scipy.ndimage import zoom
from skimage.measure import marching_cubes

from ecdlib.data.tables import SYSTEMS
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.learn.evaluation import scores

if TYPE_CHECKING:
    import torch  # heavy, and only one figure needs it

BLUE, RED, GREY = "#2166ac", "#b2182b", "#6e7781"


#: Marks of one kind that a picture may have as vector graphics; more become one picture in it.
MANY = 300


def style() -> None:
    """Matplotlib settings of the book; in a notebook, figures are vector graphics."""
    mpl.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "image.origin": "lower",
            "image.cmap": "viridis",
            "svg.hashsalt": "ecdlib",  # the same file for the same figure
        }
    )
    shell = get_ipython()
    if shell is not None and shell.display_formatter is not None:
        set_matplotlib_formats("svg")
        shell.display_formatter.formatters["image/svg+xml"].for_type(Figure, svg)


def svg(figure: Figure) -> str:
    """A figure as SVG, in which marks by the hundred and meshes are pixels, so that files stay small."""

    def heavy(artist: Artist) -> bool:
        if isinstance(artist, Collection):
            return max(np.shape(artist.get_offsets())[0], len(artist.get_paths())) > MANY
        if isinstance(artist, Line2D) and artist.get_marker() not in ("None", "", None):
            return np.size(artist.get_xdata()) > MANY
        return False

    for artist in figure.findobj(heavy):
        artist.set_rasterized(True)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", dpi=200, metadata={"Date": None})
    return buffer.getvalue()


def _edges(lattice: Floats) -> Floats:
    """Points of the cell's 12 edges, separated by NaN rows."""
    corners = np.indices((2, 2, 2)).reshape(3, -1).T
    lines = []
    for a in corners:
        for axis in range(3):
            if a[axis] == 0:
                b = a.copy()
                b[axis] = 1
                lines += [a @ lattice, b @ lattice, [np.nan] * 3]
    return np.array(lines)


def mesh(values: Floats, level: float, lattice: Floats, origin: Floats, periodic: bool, budget: int = 26) -> Any:
    """Isosurface as vertices (Å) and triangles, on at most ``budget`` voxels along each axis.

    Args:
        periodic: values are one period without its endpoint, which is added; else both ends are in.
    """
    if periodic:
        values = np.pad(values, (0, 1), mode="wrap")
    if max(values.shape) > budget + 1:
        factors = [min(1.0, (budget + 1) / n) for n in values.shape]
        values = zoom(values.astype(float), factors, order=1, grid_mode=False)
    level = float(np.clip(level, values.min() + 1e-9, values.max() - 1e-9))
    vertices, faces, _, _ = marching_cubes(values, level)
    return origin + (vertices / (np.array(values.shape) - 1)) @ lattice, faces


def _surface(vertices: Floats, faces: Any, colour: str, opacity: float, name: str) -> go.Mesh3d:
    x, y, z = np.round(vertices, 2).T.astype(np.float32)
    i, j, k = faces.T.astype(np.int32)
    return go.Mesh3d(
        x=x, y=y, z=z, i=i, j=j, k=k, color=colour, opacity=opacity, name=name, showlegend=True, hoverinfo="name"
    )


def _scene(figure: go.Figure) -> go.Figure:
    axis = {"visible": False}
    camera = {"eye": {"x": 1.9, "y": 0.95, "z": 0.7}}
    return figure.update_layout(
        scene={"aspectmode": "data", "xaxis": axis, "yaxis": axis, "zaxis": axis, "camera": camera},
        margin={"l": 0, "r": 0, "t": 10, "b": 0},
        height=430,
        legend={"x": 0, "y": 1},
    )


def density_figure(density: ChargeDensity, levels: Sequence[float]) -> go.Figure:
    """Isosurfaces of a density with its atoms and cell, in true lattice vectors (Å); turn and zoom with the mouse.

    Args:
        levels: e/Å³, from the outer to the inner surface.
    """
    figure = go.Figure()
    for n, (level, colour) in enumerate(zip(levels, ("#9ecae1", "#4292c6", "#08306b"), strict=False)):
        vertices, faces = mesh(density.values, level, density.lattice, np.zeros(3), periodic=True)
        figure.add_trace(_surface(vertices, faces, colour, 0.25 + 0.25 * n, f"{level:g} e/Å³"))
    shown = np.array([p + s for p in density.positions % 1 for s in np.indices((2, 2, 2)).reshape(3, -1).T])
    symbols = [s for s in density.species for _ in range(8)]
    inside = (shown <= 1 + 1e-6).all(1)
    for symbol in dict.fromkeys(density.species):
        z = Element(symbol).Z
        points = shown[inside & (np.array(symbols) == symbol)] @ density.lattice
        red, green, blue = (int(255 * c) for c in jmol_colors[z])
        marker = {"size": 9 * covalent_radii[z], "color": f"rgb({red},{green},{blue})", "line": {"width": 1}}
        x, y, zz = points.T
        figure.add_trace(go.Scatter3d(x=x, y=y, z=zz, mode="markers", marker=marker, name=symbol))
    x, y, z = _edges(density.lattice).T
    figure.add_trace(
        go.Scatter3d(x=x, y=y, z=z, mode="lines", line={"color": GREY}, showlegend=False, hoverinfo="skip")
    )
    return _scene(figure)


def correlation_figure(features: Floats, voxel: float, levels: Sequence[float]) -> go.Figure:
    """Isosurfaces of an autocorrelation on its standard grid (Å), r = 0 in the centre."""
    size = features.shape[0]
    reach = voxel * (size // 2)
    box = 2 * reach * np.eye(3)
    figure = go.Figure()
    for n, (level, colour) in enumerate(zip(levels, ("#fdd0a2", "#f16913", "#7f2704"), strict=False)):
        vertices, faces = mesh(features, level, box, np.full(3, -reach), periodic=False, budget=40)
        figure.add_trace(_surface(vertices, faces, colour, 0.25 + 0.25 * n, f"{level:.3g} e/Å³"))
    x, y, z = (_edges(box) - reach).T
    figure.add_trace(
        go.Scatter3d(x=x, y=y, z=z, mode="lines", line={"color": GREY}, showlegend=False, hoverinfo="skip")
    )
    return _scene(figure)


def interactive(figure: go.Figure, alt: str) -> HTML | go.Figure:
    """The figure as HTML that uses the book's own copy of plotly.js; ``alt`` describes it to those who cannot see it.

    In a live Jupyter session, the figure itself.
    """
    if "ECD_RUN_FOLDER" not in os.environ:
        return figure
    body = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return HTML(f'<div class="ecd-interactive" role="img" aria-label="{html.escape(alt, quote=True)}">{body}</div>')


def network_diagram(ax: Axes, model: torch.nn.Module, x: torch.Tensor, average: bool = True) -> list[tuple[int, int]]:
    """Draw the convolutions of a network as blocks, from a forward pass of ``x (1, channels, n, n, n)``.

    Args:
        average: the network ends with an average over positions.

    Returns:
        Channels and grid edge of the input and of each convolution's output.
    """
    from torch import nn, no_grad

    shapes, labels = [(x.shape[1], x.shape[2])], ["input"]

    def note(module: Any, _inputs: Any, output: torch.Tensor) -> None:
        shapes.append((output.shape[1], output.shape[2]))
        size, stride = module.kernel_size[0], module.stride[0]
        labels.append(f"{size}×{size}×{size}" + (f"\nstride {stride}" if stride != 1 else ""))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv3d)]
    with no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    left = 0.0
    for (channels, edge), label in zip(shapes, labels, strict=True):
        width = 2 + 0.35 * channels
        ax.add_patch(Rectangle((left, -edge / 2), width, edge, facecolor=BLUE, alpha=0.35, edgecolor=BLUE))
        ax.text(left + width / 2, edge / 2 + 2, f"{edge}³×{channels}", ha="center", fontsize=8)
        ax.text(left + width / 2, -edge / 2 - 3, label, ha="center", va="top", fontsize=8)
        left += width + 9
    if average:
        ax.text(left, 0, f"average\n→ {shapes[-1][0]}", va="center", fontsize=9)
    tallest = max(edge for _, edge in shapes) / 2
    ax.set(xlim=(-4, left + 12), ylim=(-tallest - 17, tallest + 9))
    ax.axis("off")
    return shapes


def parity(ax: Axes, truth: Floats, prediction: Floats, label: str, std: Floats | None = None) -> None:
    """Predicted against true values with the diagonal, error bars where given, and the scores in the corner."""
    if std is not None:
        ax.errorbar(truth, prediction, std, fmt="none", ecolor=BLUE, alpha=0.15, lw=0.8)
    ax.scatter(truth, prediction, s=7, color=BLUE, alpha=0.6, lw=0)
    low, high = min(truth.min(), prediction.min()), max(truth.max(), prediction.max())
    ends = [low - 0.03 * (high - low), high + 0.03 * (high - low)]
    ax.plot(ends, ends, color=RED, lw=1)
    for axis in (ax.xaxis, ax.yaxis):  # the same ticks on both
        axis.set_major_locator(MaxNLocator(5))
    s = scores(truth, prediction)
    text = f"MAE {s['MAE']:.3g}\nRMSE {s['RMSE']:.3g}\n$R^2$ {s['R2']:.3f}\nNMAE {s['NMAE']:.1f} %"
    ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top")
    ax.set(xlabel=f"calculated {label}", ylabel=f"predicted {label}", aspect="equal", xlim=ends, ylim=ends)


def elements_map(ax: Axes, values: Mapping[str, float], form: str = "{:.0f}", **scale: Any) -> Any:
    """Periodic table coloured by a number of each element, with the number below the symbol; empty where there is none.

    Args:
        form: of the numbers.
        scale: of the colours: ``norm``, ``cmap``, ``vmin``, ``vmax``.

    Returns:
        What a colour bar is made from.
    """
    rows: list[float] = []
    columns: list[int] = []
    colours: list[float] = []
    for symbol, value in values.items():
        e = Element(symbol)
        column = e.Z - 54 if e.is_lanthanoid else e.group
        row = 7.5 if e.is_lanthanoid else e.row
        rows, columns, colours = [*rows, row], [*columns, column], [*colours, value]
        ax.text(column, row - 0.16, symbol, ha="center", va="center", fontsize=9)
        ax.text(column, row + 0.24, form.format(value), ha="center", va="center", fontsize=7)
    options = {"cmap": mpl.colormaps["Blues"].resampled(256)} | scale
    tiles = ax.scatter(columns, rows, c=colours, marker="s", s=0, **options)
    shades = 0.75 * np.asarray(tiles.norm(np.array(colours)), dtype=float)  # dark text stays legible
    for row, column, colour in zip(rows, columns, tiles.cmap(shades), strict=True):
        ax.add_patch(
            Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, edgecolor=GREY, lw=0.4, zorder=0)
        )
    ax.set(xlim=(0.4, 18.6), ylim=(max(rows) + 0.6, 0.4), aspect="equal")
    ax.axis("off")
    return tiles


_ENDS = np.array([0.5, 600.0])  # GPa


def _pugh_lines(ax: Axes) -> None:
    """K/G = 1.75 (dashed, Pugh's value) and 2/3 (dotted, Poisson ratio zero) in a picture of K against G."""
    ax.plot(_ENDS / 1.75, _ENDS, color="black", ls="--", lw=0.8)
    ax.plot(_ENDS * 1.5, _ENDS, color="black", ls=":", lw=0.8)
    ax.set(xscale="log", yscale="log", xlim=(0.8, 600), ylim=(2, 600))


def _system_colours() -> dict[str, Any]:
    return dict(zip(SYSTEMS, mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(SYSTEMS))), strict=True))


def moduli_map(data: pd.DataFrame, shown: int = 20_000) -> None:
    """K against G with marginal histograms, coloured by crystal system (CGCNN elasticity, Figs 6a and 7a).

    Args:
        data: columns K, G (GPa), system.
        shown: dots at most, drawn at random.
    """
    ratios: dict[str, Any] = {"width_ratios": [4, 1], "height_ratios": [1, 4]}
    fig, axes = plt.subplots(2, 2, figsize=(6.4, 5.6), sharex="col", sharey="row", **ratios)
    chosen, colours = data.sample(min(shown, len(data)), random_state=0), _system_colours()
    axes[1, 0].scatter(chosen["G"], chosen["K"], s=3, lw=0, alpha=0.5, color=[colours[s] for s in chosen["system"]])
    _pugh_lines(axes[1, 0])
    bins = np.geomspace(0.8, 600, 50).tolist()
    axes[0, 0].hist(data["G"], bins=bins, color=GREY)
    axes[1, 1].hist(data["K"], bins=bins, color=GREY, orientation="horizontal")
    axes[0, 1].axis("off")
    for system, colour in colours.items():
        axes[0, 1].scatter([], [], color=colour, s=12, label=system)
    axes[0, 1].legend(fontsize=7, frameon=False, loc="center")
    axes[1, 0].set(xlabel="G (GPa)", ylabel="K (GPa)")
    fig.tight_layout()


def moduli_by_system(data: pd.DataFrame, shown: int = 4000) -> None:
    """The same for each crystal system, with a cross at the medians (Figs 6b-h and 7b-h)."""
    fig, axes = plt.subplots(2, 4, figsize=(10, 5), sharex=True, sharey=True)
    for ax, (system, colour) in zip(axes.flat, _system_colours().items(), strict=False):
        own = data[data["system"] == system]
        chosen = own.sample(min(shown, len(own)), random_state=0)
        ax.scatter(chosen["G"], chosen["K"], s=3, lw=0, alpha=0.4, color=colour)
        ax.scatter(own["G"].median(), own["K"].median(), marker="+", s=120, color="black")
        _pugh_lines(ax)
        ax.set_title(f"{system} ({len(own):,})")
    axes.flat[-1].axis("off")
    for ax in axes[1]:
        ax.set_xlabel("G (GPa)")
    for ax in axes[:, 0]:
        ax.set_ylabel("K (GPa)")
    fig.tight_layout()
