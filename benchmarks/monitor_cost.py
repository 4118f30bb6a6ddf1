#!/usr/bin/env python3
"""What the monitor costs, in CPU time, so that a busy machine doesn't disturb the figures.

    python benchmarks/monitor_cost.py

Prints milliseconds of CPU for each part on a made-up model of 48 x 128 experts, and the share of one core that the
whole takes at its usual rates (2 samples and 0.5 maps a second, 5 tokens a second); then what the router hook keeps, in
microseconds of a token, for a model of that shape and for the guide.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import numpy.typing as npt
from demo_samples import DemoEngine
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import Static

from backends.engine.protocol import encoder, event_decoder
from backends.streaming.layer_times import LayerTimes
from backends.streaming.reuse_distance import SPEND, ReuseMeter
from flashmoe.monitor.collector import Collector
from flashmoe.monitor.feed import MonitorFeed
from tui.screens.experts import ExpertMapView
from tui.terminal.repaint import SparingApp, SparingCompositor
from tui.widgets.monitor.column import MonitorColumn

I64 = npt.NDArray[np.int64]


def cpu_ms(work: Callable[[], object], repeat: int) -> float:
    """Milliseconds of this thread's CPU time per call."""
    work()
    started = time.thread_time()
    for _ in range(repeat):
        work()
    return (time.thread_time() - started) / repeat * 1e3


class PaneApp(SparingApp):
    """The panes beside an empty chat, or beside the expert map."""

    CSS = "MonitorColumn { width: 40; } Static, ExpertMapView { width: 1fr; }"

    def __init__(self, feed: MonitorFeed, *, with_map: bool = False) -> None:
        super().__init__()
        self.feed, self.with_map = feed, with_map

    def get_default_screen(self) -> Screen[None]:
        """A screen that repaints as the app's own do."""
        screen: Screen[None] = Screen(id="_default")
        screen._compositor = SparingCompositor()
        return screen

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield ExpertMapView(self.feed) if self.with_map else Static("")
            yield MonitorColumn(self.feed)


def graphs_of(layers: int, experts: int, used: int) -> list[I64]:
    """Uses of some tokens, row * experts + expert."""
    rng = np.random.default_rng(0)
    rows = np.arange(layers)[:, None] * experts
    return [(rows + np.stack([rng.permutation(experts)[:used] for _ in range(layers)])).reshape(-1) for _ in range(64)]


def noted_us(layers: int, experts: int, used: int) -> tuple[float, float]:
    """Microseconds that the hook's thread spends on what it keeps for the monitor: (a token, a layer of it)."""
    meter, pace = ReuseMeter(layers, experts, [60_000] * layers, spend=SPEND), LayerTimes()
    graphs = graphs_of(layers, experts, used)
    tokens = 2000
    spent = layer_s = 0.0
    for number in range(tokens):
        started = time.perf_counter()
        pace.begin(1)
        for row in range(layers):
            pace.chosen(row)
        between = time.perf_counter()
        meter.note([graphs[number % len(graphs)]])
        spent += time.perf_counter() - started
        layer_s += between - started
        if number % 100 == 99:
            meter.digest()  # another thread does that
    return spent / tokens * 1e6, layer_s / tokens / layers * 1e6


def digested_ms(layers: int, experts: int, used: int, speed: float) -> float:
    """Milliseconds that the thread of the telemetry spends on the distances of half a second's tokens."""
    now = [0.0]
    meter = ReuseMeter(layers, experts, [60_000] * layers, spend=SPEND, clock=lambda: now[0] + time.thread_time())
    graphs = graphs_of(layers, experts, used)
    spent = carried = 0.0
    number = 0
    for sample in range(60):
        now[0] += 0.5
        carried += speed / 2
        while carried >= 1:
            meter.note([graphs[number % len(graphs)]])
            number, carried = number + 1, carried - 1
        started = time.thread_time()
        meter.histogram()
        meter.next_token_reuse()
        if sample >= 20:  # what a session counts at its beginning whatever it costs is over
            spent += time.thread_time() - started
    return spent / 40 * 1e3


async def painted(engine: DemoEngine, feed: MonitorFeed, samples: list[object]) -> float:
    """Milliseconds of CPU for one sample to be pushed, laid out and painted."""
    app = PaneApp(feed)
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.pause()
        column = app.query_one(MonitorColumn)
        started = time.thread_time()
        for sample in samples:
            feed.push(sample)  # type: ignore[arg-type]
            column.update_view()
            await asyncio.sleep(0.03)  # the compositor's turn
        return (time.thread_time() - started) / len(samples) * 1e3


def main() -> None:
    """Measures and prints."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    engine = DemoEngine("capped")
    feed = MonitorFeed()
    feed.set_model(engine.info)
    for _ in range(40):
        feed.push(engine.step())
    experts = engine.map()
    feed.push_map(experts)
    collector = Collector(os.getpid(), Path(__file__))
    telemetry = engine.step().telemetry
    parts = {
        "reading the kernel's counters, a sample": (cpu_ms(collector.sample, 200), 2.0),
        "panes: frame, verdict, layout, paint, a sample": (
            asyncio.run(painted(engine, feed, [engine.step() for _ in range(60)])),
            2.0,
        ),
        "telemetry over the pipe, both ends": (
            cpu_ms(lambda: event_decoder.decode(encoder.encode(telemetry)), 500),
            2.0,
        ),
        "a map over the pipe, both ends": (cpu_ms(lambda: event_decoder.decode(encoder.encode(experts)), 100), 0.5),
        "what the hook notes, a token": (noted_us(*engine.shape, engine.used)[0] / 1e3, 5.0),
        "reuse distances of half a second of tokens": (digested_ms(*engine.shape, engine.used, 5.0), 2.0),
    }
    total = 0.0
    for name, (cost, rate) in parts.items():
        total += cost * rate / 1e3
        print(f"{name:<48} {cost:7.3f} ms   {cost * rate / 10:6.3f} % of a core")
    print(f"{'together':<48} {'':10}   {total * 100:6.3f} % of a core")
    print()
    for name, shape, speed in (("the guide", (8, 32, 4), 350.0), ("48 x 128", (48, 128, 8), 5.0)):
        took, layer = noted_us(*shape)
        digest = digested_ms(*shape, speed)
        print(
            f"{name} at {speed:g} tok/s: the hook notes {took:.1f} us a token ({layer:.2f} a layer), "
            f"{took * speed / 1e4:.3f} % of a core; distances {digest:.2f} ms twice a second, {digest / 5:.3f} %"
        )


if __name__ == "__main__":
    main()
