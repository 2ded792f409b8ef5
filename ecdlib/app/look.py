"""How the page looks: light or dark as the system is, with a frame around what the keyboard has reached."""

from __future__ import annotations

from typing import Any

#: Of every part of the page: parts do not share style sheets. A list that scrolls would trap the Tab key.
PARTS = """
:focus-visible, .bk-tab:focus-visible, .noUi-handle:focus-visible { outline: 3px solid #2f81f7 !important;
  outline-offset: 2px; }
:host, :root { color-scheme: light dark; }
progress { width: 120px; }
.choices__list--dropdown .choices__list { max-height: none !important; overflow: visible !important; }
label, label span { white-space: normal !important; }
@media (prefers-color-scheme: dark) {
  :host, .bk-input, .bk-input-group, .bk-tab, label, a { color: var(--panel-on-background-color); }
  .bk-tab.bk-active { background: var(--panel-surface-color); color: var(--panel-on-background-color); }
  .bk-btn.bk-active { background: #2166ac; color: #ffffff; }
  .main-svg text, .main-svg .infolayer text { fill: #e8e8e8 !important; }
  .gridlayer path, .zerolinelayer path { stroke: #50565c !important; }
  .tabulator, .tabulator-header, .tabulator-col, .tabulator-row, .tabulator-cell, .tabulator-footer, .tabulator-page,
  .tabulator-tableholder, .tabulator input, table.panel-df, table.panel-df tr, table.panel-df td, table.panel-df th,
  .choices__inner, .choices__list--dropdown, .choices__item, .choices__input {
    background-color: var(--panel-background-color) !important; color: var(--panel-on-background-color) !important;
    border-color: #50565c !important; }
  table.panel-df tr:nth-child(odd) td, .choices__item.is-highlighted { background-color: #2b3035 !important; }
  .tabulator-row.tabulator-selected, .tabulator-row.tabulator-selected .tabulator-cell {
    background-color: #0b3d66 !important; }
  .filepond--panel-root { background-color: var(--panel-surface-color) !important; }
  .noUi-target { background: #50565c; }
  img { background: #ffffff; }
}
"""
#: Of the page itself.
PAGE = "body { background: var(--panel-background-color); color: var(--panel-on-background-color); margin: 0; }"


def design() -> tuple[Any, str]:
    """Panel's design with these styles, and the style sheet of the page around its parts."""
    from panel.io.resources import CDN_DIST
    from panel.theme.base import THEME_CSS, Inherit
    from panel.theme.native import Native
    from panel.viewable import Viewable

    dark = f"@media (prefers-color-scheme: dark) {{ {(THEME_CSS / 'dark.css').read_text()} }}\n"

    class Look(Native):
        # Panel puts its own address in place of that of its CDN
        modifiers = {Viewable: {"stylesheets": [Inherit, f"{CDN_DIST}bundled/theme/native.css", dark + PARTS]}}  # noqa: RUF012

    return Look, dark + PAGE
