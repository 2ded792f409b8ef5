"""Pictures of the page: densities in space, and where predictions stand among the training crystals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecdlib.app.findings import in_words
from ecdlib.app.uploads import Source
from ecdlib.base.errors import EcdError
from ecdlib.data.tables import load_crystals
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.superpose import superpose
from ecdlib.features.collection import FeatureSettings, featurize

if TYPE_CHECKING:
    from pymatgen.core import Structure


def draw_source(source: Source, folder: Path) -> tuple[str, Any, Any] | EcdError:
    """What is drawn, surfaces of equal density and of equal autocorrelation; an error is returned."""
    try:
        return _pictures(source.read(folder))
    except Exception as error:
        return in_words(source.shown, error)


def _pictures(crystal: ChargeDensity | Structure) -> tuple[str, Any, Any]:
    from ecdlib.book.plotting import correlation_figure, density_figure

    given = isinstance(crystal, ChargeDensity)
    density = crystal if isinstance(crystal, ChargeDensity) else superpose(crystal)
    correlation = featurize(density)[0]["autocorrelation"]
    first = density_figure(density, _levels(density.values, (0.6, 0.9, 0.98)))
    second = correlation_figure(correlation, FeatureSettings().voxel, _levels(correlation, (0.8, 0.95, 0.995)))
    return "density" if given else "density of superposed free atoms", first, second


def _levels(values: Floats, quantiles: tuple[float, ...]) -> list[float]:
    """Isosurface levels: quantiles of the positive values, to three digits."""
    return [float(f"{level:.3g}") for level in np.quantile(values[values > 0], quantiles)]


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
