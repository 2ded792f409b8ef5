"""Pictures of where predictions stand among the training crystals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecdlib.data.tables import load_crystals
from ecdlib.learn.any_crystal import LOGARITHMIC
from ecdlib.learn.explained import learned_values

BLUE, GREY, ORANGE = "#4292c6", "#9aa3ab", "#e6550d"


def moduli_figure(records: Sequence[dict[str, Any]]) -> Any:
    """Both moduli of all labelled crystals, and of those given with their 95 % intervals; None if nothing has both."""
    import plotly.graph_objects as go

    labels = load_crystals()
    grey = go.Scattergl(
        x=labels["bulk_modulus"],
        y=labels["shear_modulus"],
        text=labels.index,
        mode="markers",
        marker={"size": 3, "color": GREY},
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
    )
    return flat(figure) if len(figure.data) > 1 else None


def property_figure(records: Sequence[dict[str, Any]], chosen: str) -> Any:
    """One property of some files with 95 % intervals, above its distribution among the training crystals.

    Args:
        records: of the property, at most one a file.
        chosen: file that stands out. If it is a training crystal, its calculated value is shown, too.
    """
    from plotly.subplots import make_subplots

    values = learned_values(records[0])
    shown = [*(r["value"] for r in records), *(r[end] for r in records for end in ("low", "high"))]
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.03, row_heights=[0.45, 0.55])
    logarithmic = records[0]["property"].replace(" ", "_") in LOGARITHMIC
    if logarithmic:
        values, shown = values[values > 0], [x for x in shown if x > 0]
    if len(values):
        low, high = values.quantile([0.002, 0.998])
        low, high = (
            float(f(shown, initial=end, where=np.isfinite(shown))) for f, end in ((np.min, low), (np.max, high))
        )
        edges = np.geomspace(low, high, 61) if logarithmic else np.linspace(low, high, 61)
        counts = np.histogram(values, edges)[0]
        figure.add_scatter(
            x=edges,
            y=[*counts, counts[-1]],
            line={"shape": "hv", "color": GREY, "width": 1},
            fill="tozeroy",
            name=f"{len(values)} training crystals",
            row=2,
            col=1,
        )
    for r in records:
        mine = r["file"] == chosen
        bars = {"type": "data", "symmetric": False, "array": [r["high"] - r["value"]]}
        bars |= {"arrayminus": [r["value"] - r["low"]]}
        figure.add_scatter(
            x=[r["value"]],
            y=[r["file"]],
            error_x=bars,
            mode="markers",
            marker={"size": 10, "color": ORANGE if mine else BLUE},
            name=r["file"],
            showlegend=False,
            hovertemplate="%{x:.4g}<extra>%{y}</extra>",
            row=1,
            col=1,
        )
        if mine and r.get("seen") in values.index:
            label = {"symbol": "diamond-open", "size": 12, "color": ORANGE, "line": {"width": 2}}
            name = f"{r['seen']}, as calculated"
            figure.add_scatter(
                x=[values[r["seen"]]], y=[r["file"]], mode="markers", marker=label, name=name, row=1, col=1
            )
    unit = f" ({records[0]['unit']})" if records[0]["unit"] else ""
    figure.update_xaxes(type="log" if logarithmic else "linear")
    figure.update_xaxes(title=records[0]["property"] + unit, row=2, col=1)
    figure.update_yaxes(title="crystals", row=2, col=1)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    return flat(figure)


def flat(figure: Any) -> Any:
    """A figure in the plane in the page's style: its background shows, the legend stands above."""
    return figure.update_layout(
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
