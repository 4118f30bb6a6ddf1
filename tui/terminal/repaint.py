"""What the terminal already shows is not sent to it again.

Textual repaints regions: a chat that is one line longer resizes every container around that line, and each goes to the
terminal with all of its lines, though most of them look as before; a line that gains a word is sent from its beginning.
Here the app remembers, cell by cell, what it has written, and sends only the cells that differ.

Only text whose width every terminal agrees on is compared by cells. A piece with anything else (CJK, emoji, combining
characters, right-to-left) is compared and sent as a whole, and what stands to its right is sent again with it, since a
terminal may have drawn it wider or narrower than Textual believes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from textual._compositor import ChopsUpdate, Compositor, CompositorUpdate, LayoutUpdate
from textual.app import App, ScreenStackError
from textual.geometry import Region, Size
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

# Latin, Greek, Cyrillic, punctuation, arrows, mathematics, box drawing, blocks, shapes (but for the two wide ones) and
# Braille: one cell each in every terminal. No soft hyphen, no joiners, no variation selectors.
_ODD = re.compile(
    "[^\x20-\x7e\u00a0-\u00ac\u00ae-\u02ff\u0370-\u03ff\u0400-\u0482\u048a-\u052f\u1e00-\u1eff\u2010-\u2027\u2030-\u205e"
    "\u2070-\u20b9\u2100-\u2138\u2150-\u2199\u2200-\u22ff\u2500-\u25fc\u25ff\u2800-\u28ff]"
)
GAP = 24
"""Equal cells between two changed ones that are cheaper to send again than to jump over: a jump costs a position (up to
8 bytes) and the colours anew (up to 40)."""


FEW = 64
"""Dirty regions, beyond which looking for the widgets that they touch isn't worth it."""
UNKNOWN = ""
WHOLE = "\x1b"
"""Begins the drawing of what can't be taken apart."""


class _Cells:
    """A stretch of a line, cell by cell: two lists of strings, which cost Python's garbage collector nothing."""

    __slots__ = ("chars", "colours")

    def __init__(self, chars: list[str], colours: list[str]) -> None:
        self.chars = chars
        """The character; ``UNKNOWN``; or, in each cell of what can't be taken apart, all of its drawing."""
        self.colours = colours
        """SGR codes; the column in what can't be taken apart."""

    @classmethod
    def unknown(cls, width: int) -> _Cells:
        """What stands there isn't known, so it never equals what is wanted."""
        return cls([UNKNOWN] * width, [""] * width)

    @classmethod
    def of(cls, strip: Strip, console: Console) -> _Cells:
        """What a piece of Textual's drawing puts there."""
        chars: list[str] = []
        colours: list[str] = []
        for text, style, control in strip._segments:
            if control or _ODD.search(text) or (style is not None and style._link):
                break
            ansi = "" if style is None else style._ansi
            if ansi is None:
                assert style is not None
                ansi = Strip.render_ansi(style, console._color_system or ColorSystem.TRUECOLOR)
            chars += text
            colours += [ansi] * len(text)
        else:
            if len(chars) == strip.cell_length:
                return cls(chars, colours)
        width = strip.cell_length
        return cls([WHOLE + strip.render(console)] * width, [str(column) for column in range(width)])

    def whole(self) -> bool:
        """Whether a part of it can't be taken apart."""
        return any(len(char) > 1 for char in self.chars)

    def cut(self, first: int, last: int) -> _Cells:
        """The cells from `first` to before `last`."""
        return _Cells(self.chars[first:last], self.colours[first:last])

    def put(self, first: int, cells: _Cells) -> None:
        """Takes `cells` in at `first`."""
        last = first + len(cells.chars)
        self.chars[first:last] = cells.chars
        self.colours[first:last] = cells.colours

    def runs(self, wanted: _Cells) -> Iterator[tuple[int, int]]:
        """(first, behind last) of each stretch that has to be sent to make this `wanted`."""
        first = last = -1
        pairs = zip(self.chars, wanted.chars, self.colours, wanted.colours, strict=True)
        for index, (old, new, old_colour, new_colour) in enumerate(pairs):
            if old == new and old_colour == new_colour:
                continue
            if first < 0:
                first = index
            elif index - last > GAP:
                yield first, last + 1
                first = index
            last = index
        if first >= 0:
            yield first, last + 1

    def drawn(self) -> Iterator[str]:
        """The characters with their colours, which end with the last of them."""
        current = ""
        for char, ansi in zip(self.chars, self.colours, strict=True):
            if ansi != current:
                yield f"\x1b[0;{ansi}m" if ansi else "\x1b[0m"
                current = ansi
            yield char
        if current:
            yield "\x1b[0m"


class Shown:
    """What the terminal shows, as far as it was written through this."""

    def __init__(self) -> None:
        self._size = Size(0, 0)
        self._rows: list[_Cells] = []

    def forget(self) -> None:
        """Everything is sent again once it is repainted: the terminal was used by others or has another size."""
        self._rows = [_Cells.unknown(self._size.width) for _ in range(self._size.height)]

    def _resize(self, size: Size) -> None:
        if size != self._size:
            self._size = size
            self.forget()

    def whole(self, update: LayoutUpdate, console: Console) -> str:
        """All of a full repaint, remembered."""
        self._resize(update.region.size)
        for y, strips in enumerate(update.strips, update.region.y):
            x = update.region.x
            for strip in strips:
                cells = _Cells.of(strip, console)
                self._rows[y].put(x, cells)
                x += len(cells.chars)
            self._rows[y] = self._rows[y].cut(0, self._size.width)
        return update.render_segments(console)

    def changes(self, update: ChopsUpdate, console: Console) -> str:
        """What of a partial repaint differs from what is shown; empty where nothing does."""
        width = update.chop_ends[0][-1]
        self._resize(Size(width, len(update.chops)))
        sent: list[str] = []
        for y, pieces in _by_line(update):
            row = self._rows[y]
            for x, strip in pieces:
                wanted = _Cells.of(strip, console).cut(0, width - x)
                end = x + len(wanted.chars)
                shown = row.cut(x, end)
                if shown.chars == wanted.chars and shown.colours == wanted.colours:
                    continue
                row.put(x, wanted)
                if shown.whole() or wanted.whole():
                    sent += [f"\x1b[{y + 1};{x + 1}H", strip.render(console)]
                    row.put(end, _Cells.unknown(width - end))
                else:
                    for first, last in shown.runs(wanted):
                        sent += [f"\x1b[{y + 1};{x + first + 1}H", *wanted.cut(first, last).drawn()]
        return "".join(sent)


class SparingCompositor(Compositor):
    """Draws only the widgets that a repaint touches.

    Textual draws every widget within the rectangle around all that changed: a key in the composer and a figure in the
    monitor make that the whole screen, and the drawing of a chat of some fifty widgets takes most of a repaint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._touched: list[Region] = []

    def render_partial_update(self) -> ChopsUpdate | None:
        """The repaint of what is dirty."""
        _ = self.cuts  # worked out from all that is visible, and kept
        if len(self._dirty_regions) <= FEW:
            self._touched = list(self._dirty_regions)
        try:
            return super().render_partial_update()
        finally:
            self._touched = []

    @property
    def visible_widgets(self) -> dict[Widget, tuple[Region, Region]]:
        """Widgets by what is seen of them (region, clip); while a part is repainted, those that it touches."""
        visible = super().visible_widgets
        if not self._touched:
            return visible
        return {
            widget: (region, clip)
            for widget, (region, clip) in visible.items()
            if any(map(region.intersection(clip).overlaps, self._touched))
        }


def _by_line(update: ChopsUpdate) -> Iterator[tuple[int, list[tuple[int, Strip]]]]:
    """For each line to be repainted its pieces (column, strip) from left to right, each once and whole."""
    touched: dict[int, dict[int, Strip]] = {}
    for y, x1, x2 in update.spans:
        line = touched.setdefault(y, {})
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is not None and x < x2 and end > x1:
                line[x] = strip
    for y, line in touched.items():
        yield y, sorted(line.items())


class _Changes(CompositorUpdate):
    """A repaint that is worked out already."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Nothing: the app writes `render_segments`."""
        yield from ()

    def render_segments(self, console: Console) -> str:
        """What is sent."""
        return self._text


class SparingApp(App[int]):
    """Sends the terminal what it doesn't show yet. Its driver calls `redraw` when the terminal begins anew."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shown = Shown()

    def redraw(self) -> None:
        """Sends all of the screen once more: something else may have written on it."""
        self.shown.forget()
        with contextlib.suppress(ScreenStackError):  # it is ending, or has hardly begun
            self.screen.refresh()

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        written = self._running and not self._closed and not self._batch_count and not self.is_headless
        if written and self._driver is not None and isinstance(renderable, ChopsUpdate | LayoutUpdate):
            if isinstance(renderable, LayoutUpdate):
                renderable = _Changes(self.shown.whole(renderable, self.console))
            else:
                text = self.shown.changes(renderable, self.console)
                cursor = self.screen.outer_size.clamp_offset(self.cursor_position)
                renderable = _Changes(text) if text or cursor != self._previous_cursor_position else None
        super()._display(screen, renderable)
