"""Lines that repaint one by one, and the parts that all panes are drawn from: frames, sparklines, bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.segment import Segment
from rich.style import Style as RichStyle
from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.style import Style

from tui.texts import whole_words
from tui.widgets.transcript.settled import Bare

MUTED = "$foreground-muted"
RULE = "$border"
TITLE = "bold $foreground"
READ = "$primary"
COMPUTE = "$secondary"
HOOK = "$warning"
ALARM = "bold $error"

_BLOCKS = "▁▂▃▄▅▆▇█"


class Lines(Bare):
    """A widget of whole lines that repaints only those that changed: over a slow connection each byte counts."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._shown: list[Content] = []
        self._strips: dict[int, Strip] = {}
        self._styles: dict[object, RichStyle] = {}
        self._look: tuple[object, ...] = ()
        """Width, style and theme that strips and styles were made for."""

    def make_lines(self, width: int, height: int) -> list[Content]:
        """The lines at this size, at most `height` of them. Here there are none: what is shown is up to the pane."""
        return []

    def update_view(self) -> None:
        """Looks at the state again; repaints what changed."""
        width, height = self.size
        if not width or not height:
            return
        lines = self.make_lines(width, height)[:height]
        old, self._shown = self._shown, lines
        for y in range(max(len(old), len(lines))):
            before = old[y] if y < len(old) else None
            after = lines[y] if y < len(lines) else None
            if before is after:
                continue
            if before is None or after is None or before.plain != after.plain or before.spans != after.spans:
                self._strips.pop(y, None)
                self.refresh(Region(0, y, width, 1))

    def on_resize(self) -> None:
        """Lays the lines out for the new size."""
        self._strips.clear()
        self._shown = []
        self.update_view()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line, kept until it or the theme changes."""
        width = self.size.width
        style = self.visual_style
        key = (width, style, self.app.theme)
        if key != self._look:
            self._look = key
            self._strips.clear()
            self._styles.clear()
        if y >= len(self._shown):
            return Strip.blank(width, style.rich_style)
        kept = self._strips.get(y)
        if kept is None:
            segments = list(self._segments(self._shown[y], style))
            kept = self._strips[y] = Strip(segments).adjust_cell_length(width, style.rich_style)
        return kept

    def _segments(self, content: Content, base: Style) -> Iterator[Segment]:
        """A line's text cut by its styles. Textual's own way does much more (wrapping, selections, links) at several
        times the cost, most of it for looking the same few styles up again."""
        spans, text = content.spans, content.plain
        if any(b.start < a.end for a, b in pairwise(spans)):  # styles within styles
            for part, nested in content.render(base, end="", parse_style=self._get_style):
                yield Segment(part, nested.rich_style)
            return
        at = 0
        for start, end, name in spans:
            if start > at:
                yield Segment(text[at:start], base.rich_style)
            style = self._styles.get(name)
            if style is None:
                style = self._styles[name] = (base + self._get_style(name)).rich_style
            if end > start:
                yield Segment(text[start:end], style)
            at = end
        if at < len(text):
            yield Segment(text[at:], base.rich_style)


Part = str | tuple[str, str] | Content


def line(*parts: Part) -> Content:
    """Parts joined: plain text, (text, style), or content."""
    return Content.assemble(*parts)


def fit(content: Content, width: int) -> Content:
    """Cut or padded to `width` cells."""
    length = content.cell_length
    if length > width:
        return content.truncate(width, ellipsis=True)
    return content.pad_right(width - length)


def spread(left: Content, right: Content, width: int) -> Content:
    """`left` at the left, `right` at the right; the left gives way."""
    room = width - right.cell_length
    if room < 1:
        return fit(right, width)
    return Content.assemble(fit(left, room), right)


def rule(title: str, width: int, *, first: bool = False, right: str = "") -> Content:
    """A section's headline inside the frame: ``├─ SSD ─────── 2 min ─┤``."""
    opening, closing = ("╭", "╮") if first else ("├", "┤")
    tail = f" {right} " if right and len(title) + len(right) + 10 <= width else ""
    fill = width - 2 - 3 - len(title) - len(tail) - (1 if tail else 0)
    return Content.assemble(
        (f"{opening}─", RULE),
        (f" {title} ", TITLE),
        ("─" * max(0, fill), RULE),
        (tail, MUTED),
        ("─" if tail else "", RULE),
        (closing, RULE),
    )


def framed(content: Content, width: int) -> Content:
    """A line of a section between the frame's sides."""
    return Content.assemble(("│ ", RULE), fit(content, width - 4), (" │", RULE))


def bottom(width: int) -> Content:
    """The frame's last line."""
    return Content.styled("╰" + "─" * (width - 2) + "╯", RULE)


def spark(values: Sequence[float | None], top: float) -> str:
    """A curve of one line; `top` is its scale. Nothing measured is blank, zero is the lowest block."""
    out = []
    for value in values:
        if value is None:
            out.append(" ")
        else:
            out.append(_BLOCKS[min(7, max(0, round(7 * value / top)))] if top > 0 else _BLOCKS[0])
    return "".join(out)


def shares(parts: Sequence[tuple[float, str, str]], width: int) -> Content:
    """A bar of `width` cells cut by (share, glyph, style); the rest of the bar goes to the largest part's rounding."""
    total = sum(max(0.0, share) for share, _, _ in parts)
    if total <= 0 or width <= 0:
        return Content.styled("·" * max(0, width), MUTED)
    exact = [max(0.0, share) / total * width for share, _, _ in parts]
    cells = [int(x) for x in exact]
    for index in sorted(range(len(parts)), key=lambda i: cells[i] - exact[i])[: width - sum(cells)]:
        cells[index] += 1
    return Content.assemble(*((glyph * n, style) for n, (_, glyph, style) in zip(cells, parts, strict=True) if n))


def meter(share: float | None, width: int, style: str = COMPUTE) -> Content:
    """A gauge: filled to `share`."""
    filled = 0 if share is None else round(min(1.0, max(0.0, share)) * width)
    return Content.assemble(("▰" * filled, style), ("▱" * (width - filled), MUTED))


def wrap(text: str, width: int, rows: int) -> list[str]:
    """`text` broken at blanks into at most `rows` lines, as few as it takes and all about as long; where it is too long
    the last loses whole words."""
    lines, left = _broken(text, width, rows)
    if not lines:
        return []
    if left:
        return [*lines[:-1], whole_words(" ".join([lines[-1], *left]), width - 1)]
    for narrower in range(width - 1, 0, -1):
        others, left = _broken(text, narrower, len(lines))
        if left or any(len(each) > narrower for each in others):
            break
        lines = others
    return lines


def _broken(text: str, width: int, rows: int) -> tuple[list[str], list[str]]:
    """(lines, the words that have no place in them)."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < rows:
        current = words.pop(0)
        while words and len(current) + 1 + len(words[0]) <= width:
            current += " " + words.pop(0)
        lines.append(current)
    return lines, words
