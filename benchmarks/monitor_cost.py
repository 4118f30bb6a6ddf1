#!/usr/bin/env python3
"""What the monitor costs, in CPU time, so that a busy machine doesn't disturb the figures.

    python benchmarks/monitor_cost.py

Prints milliseconds of CPU for each part on a made-up model of 48 x 128 experts, and the share of one core that the
whole takes at its usual rates (2 samples and 0.5 maps a second, 5 tokens a second).
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
from demo_samples import DemoEngine
from textual.app import App, ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from backends.engine.protocol import encoder, event_decoder
from backends.streaming.pace import Pace
from backends.streaming.reuse import ReuseMeter
from flashmoe.monitor.collector import Collector
from flashmoe.monitor.feed import MonitorFeed
from tui.screens.experts import ExpertMapView
from tui.widgets.monitor_column import MonitorColumn


def cpu_ms(work: Callable[[], object], repeat: int) -> float:
    """Milliseconds of this thread's CPU time per call."""
    work()
    started = time.thread_time()
    for _ in range(repeat):
        work()
    return (time.thread_time() - started) / repeat * 1e3


class PaneApp(App[None]):
    """The panes beside an empty chat, or beside the expert map."""

    CSS = "MonitorColumn { width: 40; } Static, ExpertMapView { width: 1fr; }"

    def __init__(self, feed: MonitorFeed, *, with_map: bool = False) -> None:
        super().__init__()
        self.feed, self.with_map = feed, with_map

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield ExpertMapView(self.feed) if self.with_map else Static("")
            yield MonitorColumn(self.feed)


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
    layers, count = engine.shape
    meter = ReuseMeter(layers, count, [engine.expert_bytes] * layers)
    pace = Pace()
    rng = np.random.default_rng(0)
    graphs = [[rng.permutation(count)[: engine.used] for _ in range(layers)] for _ in range(50)]
    turn = iter(range(10**9))

    def token() -> None:
        pace.begin(1)
        for row, ids in enumerate(graphs[next(turn) % len(graphs)]):
            pace.chosen(row)
            meter.observe(row, ids)

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
        "reuse distances and times of layers, a token": (cpu_ms(token, 200), 5.0),
    }
    total = 0.0
    for name, (cost, rate) in parts.items():
        total += cost * rate / 1e3
        print(f"{name:<48} {cost:7.3f} ms   {cost * rate / 10:6.3f} % of a core")
    print(f"{'together':<48} {'':10}   {total * 100:6.3f} % of a core")


if __name__ == "__main__":
    main()
