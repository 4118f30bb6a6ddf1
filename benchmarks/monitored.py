#!/usr/bin/env python3
"""Runs a model under the monitor: what do the panes and the verdict say, and does its prediction come true?

    python benchmarks/monitored.py MODEL.gguf --backend stream --ram 2 --tokens 64 --record run.fmrec
    python benchmarks/monitored.py MODEL.gguf --ram 1,2,3,4 --follow

Several budgets are run one after the other, and each run's prediction for every larger budget is held against what
that budget gave; `--follow` also does what each verdict advises. Prompts are random token ids; answers are sampled
without any cut, so that routing spreads. Speeds are those of the panes: over the last 12 s of decoding.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backends.engine.client import EngineClient
from backends.interface import ExpertMap, Finished, GenerateRequest, LoadRequest, Sampling, Telemetry
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.frame import PHASE_WINDOW_S
from flashmoe.monitor.live import LiveMonitor
from flashmoe.monitor.prediction import predict_hit_rate, predict_total_s
from flashmoe.monitor.verdict import Verdict

GIB = 1 << 30


class Outcome(NamedTuple):
    """What the engine itself reported of the answers."""

    backend: str
    store: str | None
    tok_s: float
    tokens: int
    prefill_s: float
    hit_rate: float | None
    bytes_per_token: float | None


async def answers(
    client: EngineClient, args: argparse.Namespace, n_vocab: int, tokens: int, seed: int
) -> list[Finished]:
    """Draws tokens (temperature 1, nothing cut off) after random prompts until there are enough."""
    rng = np.random.default_rng(seed)
    done: list[Finished] = []
    left, number = tokens, 0
    while left > 0:
        number += 1
        request = GenerateRequest(
            id=f"run-{seed}-{number}",
            tokens=tuple(int(x) for x in rng.integers(0, n_vocab, args.prompt)),
            sampling=Sampling(
                temperature=args.temperature, top_p=1, top_k=0, min_p=0, seed=seed, max_tokens=min(left, 400)
            ),
        )
        async for event in client.generate(request):
            if isinstance(event, Finished):
                done.append(event)
                left -= max(1, event.usage.completion_tokens)
    return done


async def run(args: argparse.Namespace, ram: float | None) -> tuple[Outcome, MonitorFeed]:
    """One load and its answers under the monitor; returns what the engine said and the feed at the end."""
    feed = MonitorFeed()
    live = LiveMonitor(lambda sample: void(feed.push(sample)), watchable=args.watchable)

    client = EngineClient(log_path=Path(tempfile.gettempdir()) / "monitored-engine.log", on_event=relay(feed, live))
    await live.start()
    try:
        await client.start()
        live.engine_started(client.pid)
        info = await client.load(
            LoadRequest(
                path=str(args.model),
                backend=args.backend,
                store=args.store,
                ram_bytes=int(ram * GIB) if ram else None,
                n_threads=args.threads,
                n_ctx=args.ctx,
            )
        )
        live.model_loaded(info)
        if probed := await asyncio.to_thread(live.probe_disk):
            live.probed(probed)
        feed.set_model(live.model)
        if args.record:
            live.record(args.record if not ram else args.record.with_stem(f"{args.record.stem}-{ram:g}"))
        await client.watch(0.5, 2.0)
        for number in range(40 if ram else 0):  # until the budget is full: what is foretold is the steady state
            await answers(client, args, info.n_vocab, 16, args.seed + 100 + number)
            told = feed.frame
            if told is not None and (told.resident or 0) > 0.97 * (told.budget or 0):
                break
        # The window that the panes show starts anew when it is full, so that much is run, and then what was asked for.
        deadline, done = time.monotonic() + PHASE_WINDOW_S, []
        while time.monotonic() < deadline or sum(f.usage.completion_tokens for f in done) < args.tokens:
            args.seed += 1
            done += await answers(client, args, info.n_vocab, min(args.tokens, 64), args.seed)
        await asyncio.sleep(1.2)
    finally:
        await client.stop()
        await live.stop()
    usages = [finished.usage for finished in done]
    tokens, seconds = sum(u.completion_tokens or 0 for u in usages), sum(u.decode_s for u in usages)
    reads = [u.read_bytes for u in usages if u.read_bytes is not None]
    return (
        Outcome(
            info.backend,
            info.store,
            tokens / seconds if seconds else 0.0,
            tokens,
            sum(u.prefill_s for u in usages),
            usages[-1].hit_rate,
            sum(reads) / tokens if reads and tokens else None,
        ),
        feed,
    )


def relay(feed: MonitorFeed, live: LiveMonitor) -> Callable[[object], None]:
    """What an engine's client hands its news to: telemetry to the monitor, maps to its panes as well."""

    def event(news: object) -> None:
        if isinstance(news, Telemetry):
            live.telemetry(news)
        elif isinstance(news, ExpertMap):
            feed.push_map(news)
            live.expert_map(news)

    return event


def void(_: object) -> None:
    """Drops a value."""


def report(outcome: Outcome, feed: MonitorFeed) -> None:
    """Prints what the engine measured and what the monitor said."""
    frame = feed.frame
    assert frame is not None
    print(outcome)
    print(f"  verdict: {feed.verdict.line}")
    for name, work in (("decode", frame.decode), ("prefill", frame.prefill)):
        if work is not None:
            print(f"  {name}: {work.tok_s} tok/s, hit {work.hit_rate}, {work.bytes_per_token} bytes a token, {work}")


class Run(NamedTuple):
    """A budget in GiB, what the engine said, and the feed at the end."""

    ram: float
    outcome: Outcome
    feed: MonitorFeed

    @property
    def tok_s(self) -> float | None:
        """As the panes show it."""
        work = self.feed.frame.decode if self.feed.frame is not None else None
        return work.tok_s if work is not None else None

    @property
    def hit_rate(self) -> float | None:
        """Of the same stretch."""
        work = self.feed.frame.decode if self.feed.frame is not None else None
        return work.hit_rate if work is not None else None


def foretold(run: Run, ram: float) -> tuple[float | None, float | None]:
    """(tok/s, hit rate) that a run predicts for another budget."""
    frame = run.feed.frame
    if frame is None or frame.decode is None or not frame.reuse_hist or not frame.resident:
        return None, None
    change = (ram - run.ram) * GIB
    total = predict_total_s(frame, frame.decode, run.feed.model, change)
    hit = predict_hit_rate(frame.decode.hit_rate or 0.0, frame.reuse_hist, frame.resident, change)
    return (frame.decode.tokens / total if total else None), hit


def advised(said: Verdict) -> float | None:
    """GiB that the verdict would have more of."""
    return said.change_bytes / GIB if said.change_bytes is not None and said.change_bytes > 0 else None


def compare(runs: list[Run]) -> None:
    """Every run's prediction for every larger budget (a verdict never advises a smaller one) against what that gave."""
    heads = "from, GiB | to | said by the verdict | hit rate: now | predicted | measured"
    print(f"\n| {heads} | tok/s: now | predicted | measured | off |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for a in runs:
        for b in runs:
            speed, hit = foretold(a, b.ram)
            if b.ram <= a.ram or speed is None or not b.tok_s or not a.tok_s:
                continue
            said = advised(a.feed.verdict)
            word = a.feed.verdict.advice if said is not None and abs(a.ram + said - b.ram) < 0.01 else ""
            print(
                f"| {a.ram:g} | {b.ram:g} | {word} | {a.hit_rate or 0:.3f} | {hit or 0:.3f} | {b.hit_rate or 0:.3f} "
                f"| {a.tok_s:.2f} | {speed:.2f} | {b.tok_s:.2f} | {(speed / b.tok_s - 1) * 100:+.0f} % |"
            )


async def main_async(args: argparse.Namespace) -> None:
    """Runs every budget, and holds the predictions against what happened."""
    todo: list[float | None] = [float(x) for x in args.ram.split(",")] if args.ram else [None]
    runs: list[Run] = []
    while todo:
        ram = todo.pop(0)
        outcome, feed = await run(args, ram)
        print(f"\n== {ram:g} GiB" if ram else "\n== no limit", flush=True)
        report(outcome, feed)
        if ram is None:
            continue
        runs.append(Run(ram, outcome, feed))
        more = advised(feed.verdict)
        known = [r.ram for r in runs] + [x for x in todo if x]
        if args.follow and more and all(abs(ram + more - x) > 0.01 for x in known):
            todo.append(ram + more)
    if len(runs) > 1:
        compare(runs)


def main() -> None:
    """Parses the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--store", default="auto", choices=("auto", "pagecache", "pool"))
    parser.add_argument("--ram", help="GiB that experts may hold; several with commas: one run each, then compared")
    parser.add_argument("--follow", action="store_true", help="run each verdict's advice, too")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--watchable", action="store_true", help="open the socket for flashmoe-tui top")
    asyncio.run(main_async(parser.parse_args()))


if __name__ == "__main__":
    main()
