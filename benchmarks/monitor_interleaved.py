#!/usr/bin/env python3
"""Decoding with the monitor on against decoding with it off, in one run: stretches in turn, so that noise cancels.

    python benchmarks/monitor_interleaved.py MODEL.gguf [--ram GIB] [--stretch TOKENS] [--pairs N]

Two comparisons. *Panes*: telemetry, expert maps, the kernel's counters and the painting of all panes, the map among
them, at 120x36 (no terminal is written to), against none of it, through the engine's child; both stretches of a pair
compute the same tokens. *Always on*: the reuse distances and the times of layers that the hook keeps, against a hook
without them, in this process. Each pair of stretches gives one ratio; the median is printed with the range that holds
the true one with 95 % (from the binomial distribution).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from monitor_cost import PaneApp
from monitored import relay
from textual.pilot import Pilot

from backends.engine.client import EngineClient
from backends.engine.launch import let_threads_sleep
from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling
from flashmoe.monitor.collector import Sampler
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.live import LiveMonitor
from flashmoe.monitor.sample import Sample
from tui.monitor.redraws import Redraws
from tui.screens.experts import ExpertMapView
from tui.widgets.monitor.column import MonitorColumn

GIB = 1 << 30


def request(number: int, tokens: int) -> GenerateRequest:
    """An answer whose tokens are drawn from all of the vocabulary, so that routing spreads."""
    sampling = Sampling(temperature=1, top_p=1, top_k=0, min_p=0, seed=number, max_tokens=tokens)
    return GenerateRequest(id=f"stretch-{number}", tokens=(number % 200 + 5,) * 2, sampling=sampling)


def report(name: str, ratios: list[float]) -> None:
    """Prints the median ratio and its range."""
    ordered = sorted(ratios)
    n, skip = len(ordered), 0
    while sum(comb(n, i) for i in range(skip + 1)) / 2**n < 0.025:
        skip += 1
    low, high = ordered[max(0, skip - 1)], ordered[n - max(1, skip)]
    print(f"{name}: {statistics.median(ordered):.4f}x of the speed without ({low:.4f} to {high:.4f}, {n} pairs)")


class Spent:
    """CPU time of this process, and of those threads of the engine's that don't compute."""

    def __init__(self, engine: int | None) -> None:
        self._engine = engine
        self.seconds = self.own = self.beside = 0.0
        self._before: tuple[float, float, dict[str, float]] = (0.0, 0.0, {})

    def _now(self) -> tuple[float, float, dict[str, float]]:
        threads = {}
        for task in Path(f"/proc/{self._engine}/task").iterdir():
            with contextlib.suppress(OSError):
                threads[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        return time.monotonic(), time.process_time(), threads

    def start(self) -> None:
        """A stretch begins."""
        self._before = self._now()

    def stop(self) -> None:
        """It ended; a thread that took more than a fifth of it computes."""
        t, own, threads = self._now()
        before_t, before_own, before = self._before
        took = [threads[name] - before.get(name, 0.0) for name in threads]
        self.seconds += t - before_t
        self.own += own - before_own
        self.beside += sum(s for s in took if s < 0.2 * (t - before_t))

    def __str__(self) -> str:
        own, beside = (x / self.seconds * 1e3 for x in (self.own, self.beside))
        return f"{own:.1f} ms of CPU a second here, {beside:.1f} in the engine's threads beside those that compute"


async def panes(args: argparse.Namespace) -> list[float]:
    """Ratios of speed with all panes to speed without."""
    feed = MonitorFeed()
    app = PaneApp(feed, with_map=args.full_map)
    views: list[Any] = []

    redraws = Redraws()

    def arrived(sample: Sample) -> None:
        frame = feed.push(sample)
        if redraws.due(sample.t, frame.phase, busy=True):
            for view in views:
                view.update_view()

    live = LiveMonitor(arrived, watchable=False)

    client = EngineClient(log_path=Path(tempfile.gettempdir()) / "interleaved-engine.log", on_event=relay(feed, live))
    sampler: Sampler | None = None

    async def switch(on: bool) -> None:
        nonlocal sampler
        await client.watch(0.5 if on else 0.0, 2.0 if on else 0.0)
        if sampler is not None:
            await asyncio.to_thread(sampler.stop)
            sampler = None
        if on:
            sampler = Sampler(live._collector, live._from_thread, 0.5)
            sampler.start()

    async def stretch(number: int) -> float:
        async for news in client.generate(request(number, args.stretch)):
            if isinstance(news, Finished) and news.usage.completion_tokens is not None:
                return news.usage.completion_tokens / news.usage.decode_s
        raise AssertionError

    async def run(pilot: Pilot[int]) -> list[float]:
        views.extend([*pilot.app.query(MonitorColumn), *pilot.app.query(ExpertMapView)])
        await client.start()
        info = await client.load(load_request(args))
        live._loop = asyncio.get_running_loop()
        live.engine_started(client.pid)
        live.model_loaded(info)
        feed.set_model(live.model)
        for number in range(args.warm):
            await stretch(1000 + number)
        ratios = []
        spent = {True: Spent(client.pid), False: Spent(client.pid)}
        for pair in range(args.pairs):
            speed: dict[bool, float] = {}
            for on in (True, False) if pair % 2 else (False, True):
                await switch(on)
                spent[on].start()
                speed[on] = await stretch(pair)
                spent[on].stop()
            ratios.append(speed[True] / speed[False])
        await switch(False)
        for on, what in ((True, "with all panes"), (False, "without")):
            print(f"{what}: {spent[on]}")
        print(f"with all panes {speed[True]:.2f} tok/s in the last pair, {speed[False]:.2f} without")
        return ratios

    try:
        async with app.run_test(size=(120, 36)) as pilot:
            return await run(pilot)
    finally:
        await client.stop()
        live._collector.close()


def load_request(args: argparse.Namespace) -> LoadRequest:
    """What both comparisons load."""
    ram = int(args.ram * GIB) if args.ram else None
    return LoadRequest(path=str(args.model), backend="stream", ram_bytes=ram, n_ctx=1024, n_threads=args.threads)


def always_on(args: argparse.Namespace) -> list[float]:
    """Ratios of speed with what the hook keeps for the monitor to speed without."""
    from backends.streaming.backend import StreamBackend

    let_threads_sleep(os.environ)  # as in the engine's child
    model = StreamBackend().load(load_request(args), lambda _: True)
    pager: Any = model.pager  # type: ignore[attr-defined]
    kept: dict[str, Callable[..., Any]] = {
        "note": pager.meter.note, "begin": pager.pace.begin, "chosen": pager.pace.chosen,
    }  # fmt: skip

    def nothing(*_: object, **__: object) -> None:
        return None

    def switch(on: bool) -> None:
        pager.meter.note = kept["note"] if on else nothing
        pager.pace.begin, pager.pace.chosen = (kept["begin"], kept["chosen"]) if on else (nothing, nothing)

    due = [0.0]

    def stretch(number: int) -> float:
        model.submit(request(number, args.stretch))
        usage = None
        while model.busy():
            for news in model.step():
                usage = news.usage if isinstance(news, Finished) else usage
            if time.monotonic() >= due[0]:  # an engine's child is asked twice a second, by its other thread
                due[0] = time.monotonic() + 0.5
                pager.meter.digest()
        assert usage is not None
        assert usage.completion_tokens is not None
        return usage.completion_tokens / usage.decode_s

    try:
        for number in range(args.warm):
            stretch(1000 + number)
        ratios = []
        for pair in range(args.pairs):
            speed: dict[bool, float] = {}
            for on in (True, False) if pair % 2 else (False, True):
                switch(on)
                speed[on] = stretch(pair)
            ratios.append(speed[True] / speed[False])
        return ratios
    finally:
        with contextlib.suppress(Exception):
            model.close()


def main() -> None:
    """Parses the flags and runs."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # llama.cpp's log
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", type=float, help="GiB that experts may hold")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--stretch", type=int, default=32, help="tokens of a stretch")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--warm", type=int, default=4, help="stretches before the first that counts")
    parser.add_argument("--full-map", action="store_true", help="paint the map's own screen too, beside all panes")
    parser.add_argument("--only", choices=("panes", "always"))
    args = parser.parse_args()
    if args.only != "always":
        report("panes", asyncio.run(panes(args)))
    if args.only != "panes":
        report("always on", always_on(args))


if __name__ == "__main__":
    main()
