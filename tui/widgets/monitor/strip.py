"""The monitor folded under the title of a narrow screen: two lines at 80 columns, one at 60."""

from __future__ import annotations

from textual.content import Content

from flashmoe import figures
from flashmoe.monitor.feed import MonitorFeed
from tui.widgets.monitor.lines import COMPUTE, MUTED, READ, Lines, fit, line, spark
from tui.widgets.monitor.sections import anatomy_bar, is_remote

TWO_LINES_FROM = 72
"""Columns from which the strip has two lines."""


class MonitorStrip(Lines):
    """Memory, SSD, hit rate, speed; and the anatomy and the verdict where there is a second line."""

    DEFAULT_CSS = """
    MonitorStrip { height: 2; padding: 0 1; color: $foreground; }
    MonitorStrip.-one { height: 1; }
    """

    def __init__(self, feed: MonitorFeed, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.feed = feed

    def on_mount(self) -> None:
        """One line where the screen is narrow, from the first paint on."""
        self.set_class(self.app.size.width < TWO_LINES_FROM, "-one")

    def on_resize(self) -> None:
        """Folds to one line where the screen is narrow."""
        self.set_class(self.app.size.width < TWO_LINES_FROM, "-one")
        super().on_resize()

    def make_lines(self, width: int, height: int) -> list[Content]:
        """The figures that fit, most important first."""
        first = _figures(self.feed, width)
        return [first] if height < 2 else [first, _words(self.feed, width)]


def _figures(feed: MonitorFeed, width: int) -> Content:
    frame = feed.frame
    if frame is None or frame.ram_total is None:
        return fit(line(("no figures yet", MUTED)), width)
    curve = 6 if width >= 76 else 0
    total = frame.ram_total
    parts: list[Content] = []

    def add(label: str, name: str, top: float, value: str, style: str) -> None:
        drawn = spark(feed.curve(name, curve), top) + " " if curve else ""
        parts.append(line((label + " ", "bold"), (drawn, style), value))

    whole = figures.size(total)
    used = figures.size(frame.ram_used, total, unit=False).rjust(len(whole.split()[0]))
    add("RAM", "ram", total, f"{used}/{whole if width >= 70 else whole.split()[0]}", COMPUTE)
    scale, _ = feed.disk_scale()
    reads = figures.rate(frame.read_s, scale, unit=False)
    ceiling = figures.rate(scale)
    if not is_remote(feed) and frame.read_s is not None:  # else there is no engine whose reads could be shown
        add("SSD", "read", scale, f"{reads.rjust(len(ceiling.split()[0]))}/{ceiling}", READ)
    loaded = feed.model is not None  # else what is known is of an engine that is gone
    work = frame.decode if loaded else None
    speed = line((f"{figures.speed(frame.tok_s if loaded else None):>4} tok/s", "bold"))
    hit = (
        line(("hit ", "bold"), figures.percent(work.hit_rate))
        if work is not None and work.hit_rate is not None
        else None
    )
    vram = None
    if frame.gpus:
        gpu_used, gpu_total = sum(g.used for g in frame.gpus), sum(g.total for g in frame.gpus)
        vram = line(("VRAM ", "bold"), f"{figures.size(gpu_used, gpu_total, unit=False)}/{figures.size(gpu_total)}")
    result = parts[0]
    for part in (*parts[1:], hit, speed, vram):
        if part is not None and result.cell_length + part.cell_length + 2 <= width:
            result = line(result, "  ", part)
    return fit(result, width)


def _words(feed: MonitorFeed, width: int) -> Content:
    frame = feed.frame
    said = feed.verdict
    left = Content("")
    if frame is not None and feed.model is not None:
        work = frame.prefill if frame.phase == "prefill" and frame.prefill else frame.decode
        if work is not None and work.stall_s is not None and work.total_s:
            share = figures.percent(min(1.0, work.stall_s / work.total_s))
            left = line(anatomy_bar(work, 10), f" read {share.strip()} · ")
    words = line((said.headline, "bold $primary"))
    for part in (said.advice, said.detail):
        if part and left.cell_length + words.cell_length + len(part) + 3 <= width:
            words = line(words, " · ", (part, "$success" if part is said.advice else ""))
    return fit(line(left, words), width)
