"""The expert map's cells: heat by how dense a glyph is, residency by its family, so that it reads without colour too.

In RAM: ``░▒▓█``. On SSD: ``· : + #``. A layer in VRAM: ``■``. Colour says the same again: what is hot and yet on SSD
stands out.
"""

from __future__ import annotations

import numpy as np
from textual.content import Content, Span

from flashmoe.monitor.expert_stats import Cells
from flashmoe.monitor.feed import MonitorFeed
from tui.widgets.monitor.layer_rates import LayerRates
from tui.widgets.monitor.lines import MUTED, fit, line

IN_RAM = "░▒▓█"
ON_SSD = "·:+#"
IN_VRAM = "■"

_RAM_STYLES = ("$secondary", "$secondary", "$secondary", "bold $secondary")
_SSD_STYLES = (MUTED, MUTED, "$warning", "bold $error")
_VRAM_STYLE = "$success"
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


_KINDS = tuple(glyph(level, resident) for resident in (None, False, True) for level in (None, 0, 1, 2, 3))
"""What each code of `_codes` looks like."""


def _codes(cells: Cells, row: int) -> list[int]:
    """A number for each cell of a row: 0 for an unknown level, 1 to 4 for the levels, and 5 or 10 more for a cell that
    is known to be on SSD or in RAM."""
    codes = np.zeros(cells.columns, np.int64)
    if cells.level is not None:
        codes += cells.level[row] + 1
    if cells.resident is not None:
        codes += np.where(cells.resident[row], 10, 5)
    found: list[int] = codes.tolist()
    return found


def row_of_cells(cells: Cells, row: int, cursor: int | None = None, wide: int = 1) -> Content:
    """One row of cells, each `wide` columns; `cursor` is the cell that is shown reversed."""
    chars: list[str] = []
    spans: list[Span] = []
    start, before = 0, ""
    for column, code in enumerate(_codes(cells, row)):
        char, style = _KINDS[code]
        if column == cursor:
            style = "reverse bold $primary"
        if style != before:
            if before:
                spans.append(Span(start * wide, column * wide, before))
            start, before = column, style
        chars.append(char * wide)
    spans.append(Span(start * wide, cells.columns * wide, before))
    return Content("".join(chars), spans)


def legend() -> Content:
    """``in RAM ░▒▓█  on SSD ·:+#  cold → hot``."""
    return Content.assemble(
        "in RAM ",
        *((char, style) for char, style in zip(IN_RAM, _RAM_STYLES, strict=True)),
        "  on SSD ",
        *((char, style) for char, style in zip(ON_SSD, _SSD_STYLES, strict=True)),
        ("  cold→hot", MUTED),
    )


def row_in_vram(width: int, *, named: bool) -> Content:
    """The row of a layer whose experts are in VRAM: nobody sees which of them are used. `named`: it says so."""
    words = " in VRAM " if named and width >= 16 else ""
    return line((words, _VRAM_STYLE), (IN_VRAM * (width - len(words)), _VRAM_STYLE))


def vram_layers(feed: MonitorFeed) -> tuple[int, ...]:
    """The layers whose experts are in VRAM."""
    return feed.model.vram_expert_layers if feed.model is not None else ()


def layers_in_vram(feed: MonitorFeed) -> str:
    """The layers that have no cells because their experts are in VRAM, e.g. ``in VRAM: layers 16-23``; empty without
    any."""
    layers = vram_layers(feed)
    if not layers:
        return ""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return "in VRAM: layers " + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def no_map(feed: MonitorFeed) -> str:
    """Why there is no map, in a few words."""
    model = feed.model
    if model is None:
        return "no model loaded"
    if not model.n_experts:
        return "a dense model: nothing streams"
    if layers := layers_in_vram(feed):
        return layers
    return "no map from this backend yet"


def mini_map(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    """The map at the size of a pane, most used experts at the left, with its legend and scale; each row's hit rate and
    what of it is in RAM where the map leaves columns."""
    arrays = feed.arrays
    if arrays is None:
        return [line((no_map(feed), MUTED))]
    keys = 2 if rows >= 5 else 1
    cells = Cells(arrays, max(1, rows - keys), width, by_use=True)
    wide = 2 if 2 * cells.columns <= width else 1
    across, signs = wide * cells.columns, legend()
    rates = LayerRates(arrays, width - across if across >= signs.cell_length else 0)
    lines = [
        line(row_of_cells(cells, row, wide=wide), rates.row(row * cells.per_row, cells.per_row))
        for row in range(cells.rows)
    ]
    lines.append(line(fit(signs, across), rates.title()) if rates.width else signs)
    if keys == 2:
        words = layers_in_vram(feed) or f"{cells.scale}, most used first"
        lines.append(line((words if len(words) <= width else cells.scale, MUTED)))
    return lines[:rows]
