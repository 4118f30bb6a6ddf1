"""The monitor beside the chat: memory, SSD, token, verdict and the expert map in one frame, fitted to any height."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content

from flashmoe.monitor.feed import MonitorFeed
from tui.widgets.monitor import sections as sections
from tui.widgets.monitor.budget_curve import LEAST_ROWS, MOST_ROWS, budget_curve, has_curve
from tui.widgets.monitor.expert_map import mini_map
from tui.widgets.monitor.graphs import graph_rows, graphs
from tui.widgets.monitor.lines import Lines, bottom, framed, rule

_Section = Callable[[MonitorFeed, int, int], list[Content]]


def _curve(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    return budget_curve(feed, width, rows, titled=False)


# (title, its lines, rows at least, rows at most), in the order of the screen
_SECTIONS: tuple[tuple[str, _Section, int, int], ...] = (
    ("server", sections.server, 2, 2),
    ("memory", sections.memory, 3, 6),
    ("SSD", sections.disk, 2, 4),
    ("token", sections.token, 2, 3),
    ("verdict", sections.verdict, 2, 5),
    ("experts", mini_map, 4, 26),
    ("hit rate by budget", _curve, LEAST_ROWS, MOST_ROWS - 1),
    ("over time", graphs, 0, 0),
)
# Which sections go first where there is no room, and which get spare rows first.
_DROP = ("over time", "hit rate by budget", "experts", "SSD", "memory", "token")
_GROW = ("server", "memory", "verdict", "SSD", "token", "memory", "verdict", "experts", "hit rate by budget")
_LAST = ("over time",)
"""What takes the room that is left when all others have theirs."""

_TALL = 30
"""Lines from which on the verdict has rows of its own."""
_EMPTY = Content("")


class MonitorColumn(Lines):
    """All panes in a column of 30 columns or more. Owner: whoever holds the feed calls `update_view` after a push."""

    DEFAULT_CSS = """
    MonitorColumn { width: 40; height: 1fr; color: $foreground; }
    """

    def __init__(
        self, feed: MonitorFeed, *, with_map: bool = True, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.feed = feed
        self.with_map = with_map
        self._inner = 0
        """Columns within the frame."""
        self._map_key: tuple[object, ...] = ()
        self._map_lines: list[Content] = []
        self._frames: dict[int, tuple[int, Content, Content]] = {}

    def cycle_span(self, step: int = 1) -> str:
        """Shows the next stretch of history; returns its name."""
        name = self.feed.cycle_span(step)
        self.update_view()
        return name

    def make_lines(self, width: int, height: int) -> list[Content]:
        """Every section at the height that `plan_rows` gives it."""
        inner = self._inner = width - 4
        if inner < 8 or height < 4:
            return []
        needs = self._needs()
        if height >= _TALL and "verdict" in needs:
            needs["verdict"] = (4, 5)  # its advice whole, with what that brings: before curves that only look back
        rows = plan_rows(height, needs)
        made_map = self._section("experts", mini_map, inner, rows["experts"]) if "experts" in rows else []
        if "over time" in rows:  # cells stand for whole layers: the map may need fewer lines than it could have
            rows["over time"] += rows.get("experts", 0) - len(made_map)
            rows["experts"] = len(made_map)
        lines: list[Content] = []
        for title, make, _, _ in _SECTIONS:
            given = rows.get(title, 0)
            if not given:
                continue
            right = self.feed.span[0] if not lines else self._right(title)
            lines.append(rule(title, width, first=not lines, right=right))
            made = self._section(title, make, inner, given)
            made += [_EMPTY] * (given - len(made))
            lines += [self._framed(len(lines) + i, content, width) for i, content in enumerate(made)]
        lines += [framed(_EMPTY, width)] * (height - 1 - len(lines))
        lines.append(bottom(width))
        return lines

    def _framed(self, y: int, content: Content, width: int) -> Content:
        """A line between the frame's sides; the one that was there before where it says the same."""
        kept = self._frames.get(y)
        if kept is not None and kept[0] == width:
            old = kept[1]
            if old is content or (old.plain == content.plain and old.spans == content.spans):
                return kept[2]
        made = framed(content, width)
        self._frames[y] = (width, content, made)
        return made

    def _section(self, title: str, make: _Section, width: int, rows: int) -> list[Content]:
        """A section's lines; the map's are kept until there is another map."""
        if title != "experts":
            return make(self.feed, width, rows)[:rows]
        key = (self.feed.arrays, self.feed.model, width, rows)
        if self._map_key != key or self.feed.arrays is None:
            self._map_key, self._map_lines = key, make(self.feed, width, rows)[:rows]
        return list(self._map_lines)

    def _needs(self) -> dict[str, tuple[int, int]]:
        needs = {title: (least, most) for title, _, least, most in _SECTIONS}
        arrays = self.feed.arrays
        needs["experts"] = (4, arrays.rows + 2) if arrays is not None else (1, 1)
        if not self.with_map:
            del needs["experts"]
        if self.with_map or not has_curve(self.feed):
            del needs["hit rate by budget"]
        if sections.is_remote(self.feed):  # nothing is known of its disk and its experts
            for unknown in ("SSD", "experts", "hit rate by budget"):
                needs.pop(unknown, None)
        else:
            del needs["server"]
        needs["over time"] = graph_rows(self.feed, self._inner)
        if not needs["over time"][0]:
            del needs["over time"]
        frame = self.feed.frame
        if frame is not None and frame.gpus:
            needs["memory"] = (3, 5 + sections.vram_rows(len(frame.gpus)))
        return needs

    def _right(self, title: str) -> str:
        model, frame = self.feed.model, self.feed.frame
        if title == "experts" and model is not None and model.n_experts:
            return f"{self.feed.map.n_layers if self.feed.map else model.n_layers} × {model.n_experts}"
        if title == "token" and frame is not None and frame.phase == "prefill":
            return "prompt"
        if title == "over time":
            return self.feed.span[0]
        if title == "SSD" and frame is not None and frame.disk:
            return frame.disk
        return ""


def plan_rows(height: int, needs: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Rows of each section (headlines not counted) that fill `height` lines with the frame's bottom.

    `needs`: (least, most) rows per section. Sections that don't fit are left out; spare rows go round, the map last.
    """
    rows = {title: least for title, (least, _) in needs.items()}
    for title in _DROP:
        if sum(rows.values()) + len(rows) + 1 <= height:
            break
        rows.pop(title, None)
    spare = height - 1 - sum(rows.values()) - len(rows)
    grown = True
    while spare > 0 and grown:
        grown = False
        for title in _GROW:
            if title in rows and rows[title] < needs[title][1] and spare > 0:
                rows[title] += 1
                spare -= 1
                grown = True
    for title in _LAST:
        if title in rows:
            more = max(0, min(spare, needs[title][1] - rows[title]))
            rows[title] += more
            spare -= more
    return rows
