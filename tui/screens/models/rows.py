"""Lines of the model list."""

from __future__ import annotations

from textual.content import Content

from flashmoe import figures
from flashmoe.plans.model_list import FIT_WORDS, Row
from flashmoe.text_safety import visible_line

FIT_STYLES = {
    "fits": "$text-success",
    "streams": "$text-primary",
    "no_memory": "$text-error",
    "no_disk": "$text-error",
    "unsupported": "$text-error",
    "incomplete": "$text-warning",
}
_SHORT = {"fits": "fits", "no_memory": "low RAM", "no_disk": "no room", "unsupported": "can't", "incomplete": "parts"}


def section_line(title: str, note: str, width: int) -> Content:
    """A heading with what there is to say about the section at its right."""
    note = visible_line(note, max(0, width - len(title) - 4))
    gap = max(2, width - len(title) - Content(note).cell_length - 1)
    return Content.assemble((title, "bold $accent"), " " * gap, (note, "$foreground-muted"))


def row_line(row: Row, width: int, *, loaded: bool = False, busy: str = "") -> Content:
    """Name, quant, size, fit and tokens a second; what is narrow loses the quant, then the speed."""
    wide, medium = width >= 86, width >= 56
    right: list[tuple[str, str]] = []
    if busy:
        right.append((f"{busy:>14}", "$text-primary"))
    elif row.detail:
        right.append((f"{row.detail:>18}", "$text-warning" if row.detail == "gated" else "$foreground-muted"))
    else:
        if row.size is not None:
            right.append((f"{figures.size(row.size):>9}", "$foreground-muted"))
        words = FIT_WORDS.get(row.fit, "") if wide else _SHORT.get(row.fit, FIT_WORDS.get(row.fit, ""))
        right.append((f"  {words:<14}" if wide else f"  {words:<8}", FIT_STYLES.get(row.fit, "$foreground-muted")))
        if medium:
            right.append((_speed(row), "bold" if row.measured else ""))
    length = sum(len(text) for text, _ in right)
    quant = f"{visible_line(row.quant, 12):<13}" if width >= 68 and not row.detail and not busy else ""
    room = max(8, width - length - len(quant) - 3)
    name = visible_line(row.name, room)
    pad = " " * max(1, room + 1 - Content(name).cell_length)
    mark = ("● ", "$text-success") if loaded else ("  ", "")
    return Content.assemble(mark, (name, "bold"), pad, (quant, "$foreground-muted"), *right)


def _speed(row: Row) -> str:
    if row.tok_s is None:
        return " " * 11
    return f"{'' if row.measured else '~'}{figures.speed(row.tok_s)} tok/s".rjust(11)
