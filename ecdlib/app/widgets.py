"""Parts of the page that its tabs share."""

from __future__ import annotations

import asyncio
import html
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: Two columns, one where there is no room for two.
HALF = {"flex": "1 1 320px", "min-width": "0"}


def box(messages: list[str], colour: str) -> str:
    """Messages in a box; they hold words from files, so they are escaped."""
    items = "".join(f"<div>{html.escape(message)}</div>" for message in messages)
    style = f"border-left: 4px solid {colour}; background: {colour}18; padding: 8px 12px; margin: 4px 0"
    return f'<div role="alert" style="{style}">{items}</div>' if messages else ""


def table(width: int) -> Any:
    """A plain table, at most this wide (px)."""
    import panel as pn

    left = "table.panel-df th, table.panel-df td { text-align: left !important; }"
    left += ":host { overflow-x: auto; }"
    return pn.pane.DataFrame(index=False, stylesheets=[left], max_width=width)


def sortable(frame: Any, **options: Any) -> Any:
    """A table that is sorted and filtered in the browser, and a row of which can be picked."""
    import panel as pn

    return pn.widgets.Tabulator(
        frame,
        selectable=1,
        disabled=True,
        editors=dict.fromkeys(frame),  # cells with an editor take the keyboard's focus and lose it
        show_index=False,
        pagination="local",
        **{"layout": "fit_data_table"} | options,
    )


def plot(figure: Any) -> Any:
    """An interactive figure that fits its place."""
    import panel as pn

    return pn.pane.Plotly(figure, config={"responsive": True, "displaylogo": False}, height=430)


class Place:
    """Where a figure is shown. Its pane stays when the figure changes: nothing is drawn twice, and the view is kept."""

    def __init__(self) -> None:
        import panel as pn

        self.view = pn.Column(visible=False)
        self.pane: Any = None

    def show(self, figure: Any) -> None:
        """Show a figure; None: nothing."""
        self.view.visible = figure is not None
        if figure is None:
            return
        if self.pane is None:
            self.pane = plot(figure)
            self.view[:] = [self.pane]
        else:
            self.pane.object = figure


async def off_loop(function: Callable[..., Any], *arguments: Any) -> Any:
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
