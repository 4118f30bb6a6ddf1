"""What each budget would hit, as a chart: this session's reuse distances, and where the budget stands now."""

from __future__ import annotations

from textual.content import Content

from flashmoe.monitor import units
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.prediction import predict_hit_rate
from tui.widgets.monitor_lines import COMPUTE, MUTED, TITLE, line, spread

LEAST_ROWS = 6
MOST_ROWS = 13
_LABEL = 6
_BLOCKS = " ▁▂▃▄▅▆▇█"


def budget_curve(feed: MonitorFeed, width: int, rows: int, *, titled: bool = True) -> list[Content]:
    """The chart in at most `rows` lines; [] where there is no curve, or no room for one."""
    frame, model = feed.frame, feed.model
    held = (frame.resident or frame.budget) if frame is not None else None
    columns = width - _LABEL - 2
    if frame is None or model is None or not held or not frame.reuse_hist or not model.expert_bytes:
        return []
    if rows < LEAST_ROWS or columns < 30:
        return []
    from backends.streaming.reuse import hit_rate_at

    hist, total = frame.reuse_hist, model.expert_bytes
    held = min(held, total)  # whole pages can come to more than the experts in them
    here = hit_rate_at(hist, held)
    measured = frame.decode.hit_rate if frame.decode is not None else None
    if here is None:
        return []
    if measured is None:
        measured = here
    rates = []
    for column in range(columns):
        budget = total * (column + 1) / columns
        rate = predict_hit_rate(measured, hist, held, budget - held) if budget > held else None
        if rate is None:  # below the budget of now the curve itself, drawn so that it meets what is measured
            rate = (hit_rate_at(hist, budget) or 0.0) * (measured / here if here > 0 else 1.0)
        rates.append(min(1.0, max(0.0, rate)))
    at = min(columns - 1, max(0, round(held / total * columns) - 1))
    high = min(rows, MOST_ROWS) - 2 - titled
    title = spread(line(("hit rate by budget", TITLE)), line(("from this session's choices", MUTED)), width)
    lines = [title] if titled else []
    for row in range(high, 0, -1):
        label = "100 %" if row == high else "50 %" if row == (high + 1) // 2 else ""
        text = "".join(_BLOCKS[min(8, max(0, round(8 * (rate * high - row + 1))))] for rate in rates)
        inside, beyond = text[: at + 1], text[at + 1 :]
        lines.append(line((f"{label:>{_LABEL - 1}} ", MUTED), (inside, COMPUTE), (beyond, MUTED)))
    now = f"now {units.size(held, total)}, hit {units.percent(measured).strip()}"
    left = max(0, min(columns - len(now) - 2, at - 1))
    mark = line(" " * _LABEL, ("─" * at, MUTED), ("▲", "bold $primary"), ("─" * (columns - at - 1), MUTED))
    whole = units.size(total)
    if left + len(now) + len(whole) + 2 > columns:
        whole = ""
        left = min(left, columns - len(now))
    words = line(" " * (_LABEL + left), (now, "bold"))
    gap = columns + _LABEL - words.cell_length - len(whole)
    return [*lines, mark, line(words, " " * max(0, gap), (whole, MUTED))]
