"""What each budget would hit, as a chart: this session's reuse distances, and where the budget stands now."""

from __future__ import annotations

import numpy as np
from textual.content import Content

from flashmoe import figures
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.prediction import curve_at, hit_curve
from tui.widgets.monitor.lines import COMPUTE, MUTED, TITLE, line, spread

LEAST_ROWS = 6
MOST_ROWS = 13
_LABEL = 6
_BLOCKS = " ▁▂▃▄▅▆▇█"


def has_curve(feed: MonitorFeed) -> bool:
    """Whether there is anything to draw one from."""
    frame, model = feed.frame, feed.model
    if frame is None or model is None or not model.expert_bytes or not (frame.resident or frame.budget):
        return False
    return frame.reuse_hist is not None and any(frame.reuse_hist)


def budget_curve(feed: MonitorFeed, width: int, rows: int, *, titled: bool = True) -> list[Content]:
    """The chart in at most `rows` lines; [] where there is no curve, or no room for one."""
    frame, model = feed.frame, feed.model
    held = (frame.resident or frame.budget) if frame is not None else None
    columns = width - _LABEL - 2
    if frame is None or model is None or not held or not frame.reuse_hist or not model.expert_bytes:
        return []
    if rows < LEAST_ROWS or columns < 30:
        return []
    hist, total = frame.reuse_hist, model.expert_bytes
    held = min(held, total)  # whole pages can come to more than the experts in them
    measured = frame.decode.hit_rate if frame.decode is not None else None
    if measured is None:
        measured = curve_at(hist, held)
    if measured is None:
        return []
    rates = hit_curve(measured, hist, held, total * np.arange(1, columns + 1) / columns)
    if rates is None:
        return []
    at = min(columns - 1, max(0, round(held / total * columns) - 1))
    high = min(rows, MOST_ROWS) - 2 - titled
    title = spread(line(("hit rate by budget", TITLE)), line(("from this session's choices", MUTED)), width)
    lines = [title] if titled else []
    eighths = np.rint(8 * high * rates).astype(int)
    for row in range(high, 0, -1):
        label = "100 %" if row == high else "50 %" if row == (high + 1) // 2 else ""
        text = "".join(_BLOCKS[n] for n in np.clip(eighths - 8 * (row - 1), 0, 8).tolist())
        inside, beyond = text[: at + 1], text[at + 1 :]
        lines.append(line((f"{label:>{_LABEL - 1}} ", MUTED), (inside, COMPUTE), (beyond, MUTED)))
    now = f"now {figures.size(held, total)}, hit {figures.percent(measured).strip()}"
    left = max(0, min(columns - len(now) - 2, at - 1))
    mark = line(" " * _LABEL, ("─" * at, MUTED), ("▲", "bold $primary"), ("─" * (columns - at - 1), MUTED))
    whole = figures.size(total)
    if left + len(now) + len(whole) + 2 > columns:
        whole = ""
        left = min(left, columns - len(now))
    words = line(" " * (_LABEL + left), (now, "bold"))
    gap = columns + _LABEL - words.cell_length - len(whole)
    return [*lines, mark, line(words, " " * max(0, gap), (whole, MUTED))]
