"""The expert map's cells: heat by how dense a glyph is, residency by its family, so that it reads without colour too.

In RAM: ``░▒▓█``. On SSD: ``· : + #``. Colour says the same again: what is hot and yet on SSD stands out.
"""

from __future__ import annotations

from textual.content import Content

from flashmoe.monitor.expert_stats import Cells
from flashmoe.monitor.feed import MonitorFeed
from tui.widgets.monitor_lines import MUTED, line

IN_RAM = "░▒▓█"
ON_SSD = "·:+#"

_RAM_STYLES = ("$secondary 60%", "$secondary", "$secondary", "bold $secondary")
_SSD_STYLES = (MUTED, MUTED, "$warning", "bold $error")
_UNKNOWN = "?"


def glyph(level: int | None, resident: bool | None) -> tuple[str, str]:
    """(character, style) of a cell; `level` or `resident` None where the backend doesn't know."""
    if level is None and resident is None:
        return _UNKNOWN, MUTED
    if resident is None:
        assert level is not None
        return IN_RAM[level], "$foreground"
    if level is None:
        return (IN_RAM[3], _RAM_STYLES[1]) if resident else (ON_SSD[0], MUTED)
    return (IN_RAM[level], _RAM_STYLES[level]) if resident else (ON_SSD[level], _SSD_STYLES[level])


def row_of_cells(cells: Cells, row: int, cursor: int | None = None, wide: int = 1) -> Content:
    """One row of cells, each `wide` columns; `cursor` is the cell that is shown reversed."""
    parts: list[tuple[str, str]] = []
    for column in range(cells.columns):
        level = int(cells.level[row, column]) if cells.level is not None else None
        resident = bool(cells.resident[row, column]) if cells.resident is not None else None
        char, style = glyph(level, resident)
        char *= wide
        if column == cursor:
            style = "reverse bold $primary"
        if parts and parts[-1][1] == style:
            parts[-1] = (parts[-1][0] + char, style)
        else:
            parts.append((char, style))
    return Content.assemble(*parts)


def legend() -> Content:
    """``in RAM ░▒▓█  on SSD ·:+#  cold → hot``."""
    return Content.assemble(
        "in RAM ",
        *((char, style) for char, style in zip(IN_RAM, _RAM_STYLES, strict=True)),
        "  on SSD ",
        *((char, style) for char, style in zip(ON_SSD, _SSD_STYLES, strict=True)),
        ("  cold→hot", MUTED),
    )


def no_map(feed: MonitorFeed) -> str:
    """Why there is no map, in a few words."""
    model = feed.model
    if model is None:
        return "no model loaded"
    if not model.n_experts:
        return "a dense model: nothing streams"
    return "no map from this backend yet"


def mini_map(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    """The map at the size of a pane, most used experts at the left, with its legend and scale."""
    arrays = feed.arrays
    if arrays is None:
        return [line((no_map(feed), MUTED))]
    keys = 2 if rows >= 5 else 1
    cells = Cells(arrays, max(1, rows - keys), width, by_use=True)
    wide = 2 if 2 * cells.columns <= width else 1
    lines = [row_of_cells(cells, row, wide=wide) for row in range(cells.rows)]
    lines.append(legend())
    if keys == 2:
        words = f"{cells.scale}, most used left"
        lines.append(line((words if len(words) <= width else cells.scale, MUTED)))
    return lines[:rows]
