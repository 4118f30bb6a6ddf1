"""Curves with height, where a terminal has room for them: memory, reads, hit rate and speed over the chosen time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from textual.content import Content

from flashmoe import figures
from flashmoe.monitor.feed import MonitorFeed
from tui.widgets.monitor.lines import COMPUTE, MUTED, READ, TITLE, fit, line, spread
from tui.widgets.monitor.sections import is_remote

LEAST_ROWS = 5
LEAST_COLUMNS = 26
MOST_ROWS = 16
BESIDE = 70
"""Columns from which on two graphs stand beside each other."""
_BLOCKS = " ▁▂▃▄▅▆▇█"
_GAP = 3


class _Graph(NamedTuple):
    title: str
    name: str
    """Of the history."""
    top: float
    scale: str
    """The top, as it is written."""
    style: str


def _graphs(feed: MonitorFeed) -> list[_Graph]:
    """Those of which something was measured."""
    frame, found = feed.frame, []
    if frame is not None and frame.ram_total:
        found.append(_Graph("RAM in use", "ram", frame.ram_total, figures.size(frame.ram_total), COMPUTE))
    if frame is not None and frame.read_s is not None and not is_remote(feed):
        scale, _ = feed.disk_scale()
        found.append(_Graph("read from SSD", "read", scale, figures.rate(scale), READ))
    if frame is not None and frame.decode is not None and frame.decode.hit_rate is not None:
        found.append(_Graph("hit rate", "hit", 1.0, "100 %", COMPUTE))
    if frame is not None and frame.tok_s is not None:
        top = feed.speed_scale()
        found.append(_Graph("speed", "tok_s", top, f"{figures.number(top)} tok/s", READ))
    return found


def graph_rows(feed: MonitorFeed, width: int) -> tuple[int, int]:
    """(least, most) rows that all graphs together take; (0, 0) where there is nothing to draw."""
    n = len(_graphs(feed)) if width >= LEAST_COLUMNS else 0
    stacked = -(-n // 2) if width >= BESIDE else n
    return (LEAST_ROWS * stacked, MOST_ROWS * stacked) if n else (0, 0)


def graphs(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    """All of them in `rows` lines, side by side where there is room."""
    shown = _graphs(feed)
    if not shown:
        return []
    beside = 2 if width >= BESIDE and len(shown) > 1 else 1
    lines = -(-len(shown) // beside)
    each, room = rows // lines, (width - _GAP * (beside - 1)) // beside
    made: list[Content] = []
    for first in range(0, len(shown), beside):
        parts = [_drawn(feed, graph, room, each) for graph in shown[first : first + beside]]
        made += [Content(" " * _GAP).join(fit(part[row], room) for part in parts) for row in range(each)]
    return made


def _drawn(feed: MonitorFeed, graph: _Graph, width: int, rows: int) -> list[Content]:
    head = spread(line((graph.title, TITLE)), line((graph.scale, MUTED)), width)
    values = feed.curve(graph.name, width)
    body = [line((text, graph.style)) for text in columns(values, graph.top, rows - 1)]
    return [head, *body]


def columns(values: Sequence[float | None], top: float, rows: int) -> list[str]:
    """`values` as columns of eighths, `rows` lines high, the top line first. What wasn't measured is blank, and a zero
    is the lowest eighth."""
    heights = [
        0 if value is None else max(1, min(8 * rows, round(8 * rows * value / top))) if top > 0 else 1
        for value in values
    ]
    return ["".join(_BLOCKS[max(0, min(8, height - 8 * row))] for height in heights) for row in range(rows - 1, -1, -1)]
