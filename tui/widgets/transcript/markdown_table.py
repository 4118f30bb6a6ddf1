"""A table of Markdown as lines: columns as wide as what is in them, as far as the width allows."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

Cell = tuple[Content, str]
"""Text and the style that markdown-it gives for the alignment: ``text-align:right`` or nothing."""


def table_lines(rows: Sequence[Sequence[Cell]], width: int) -> list[Content]:
    """The table within `width` cells; its first row is the head. Rows as text where not even one cell a column fits."""
    n_columns = max(map(len, rows), default=0)
    room = width - 3 * n_columns - 1  # a rule left of each column and behind the last, and a blank on both sides
    if not n_columns or room < n_columns:
        return [line for row in rows for line in Content(" · ").join([cell for cell, _ in row]).wrap(width)]
    widths = _widths(rows, n_columns, room)
    lines = [_rule(widths, *"┌┬┐")]
    for number, row in enumerate(rows):
        if number:
            lines.append(_rule(widths, *"├┼┤"))
        lines += _row(row, widths, head=number == 0)
    return [*lines, _rule(widths, *"└┴┘")]


def _widths(rows: Sequence[Sequence[Cell]], n_columns: int, room: int) -> list[int]:
    """What each column needs; where that is too much, the widest ones give."""
    widths = [1] * n_columns
    for row in rows:
        for column, (cell, _) in enumerate(row):
            longest = max((line.cell_length for line in cell.split(allow_blank=True)), default=0)
            widths[column] = min(max(widths[column], longest), room)
    while sum(widths) > room:
        widest = widths.index(max(widths))
        others = max((width for width in widths if width < widths[widest]), default=0)
        widths[widest] -= max(1, min(sum(widths) - room, widths[widest] - others) // widths.count(widths[widest]))
    return widths


def _rule(widths: list[int], left: str, middle: str, right: str) -> Content:
    return Content.styled(left + middle.join("─" * (width + 2) for width in widths) + right, ".line")


def _row(row: Sequence[Cell], widths: list[int], *, head: bool) -> list[Content]:
    cells = [cell.stylize_before(".table_head") if head else cell for cell, _ in row]
    wrapped = [cell.wrap(width) for cell, width in zip(cells, widths, strict=False)]
    wrapped += [[] for _ in widths[len(wrapped) :]]
    styles = [style for _, style in row] + [""] * (len(widths) - len(row))
    bar = Content.styled("│", ".line")
    lines = []
    for number in range(max(map(len, wrapped))):
        parts = [bar]
        for cell_lines, width, style in zip(wrapped, widths, styles, strict=True):
            text = cell_lines[number] if number < len(cell_lines) else Content()
            free = max(width - text.cell_length, 0)
            left = free if "right" in style else free // 2 if "center" in style else 0
            parts += [text.pad(left + 1, free - left + 1), bar]
        lines.append(Content("").join(parts))
    return lines
