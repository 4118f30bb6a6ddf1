#!/usr/bin/env python3
"""What the router hook takes of a token, by part; two versions of the code in turn.

    python benchmarks/hook_cost.py MODEL.gguf --ram 2.6 --threads 2
    python benchmarks/hook_cost.py MODEL.gguf --ram 2.6 --against ../before --rounds 3      # another checkout

A model with fewer layers than the one that is meant says as much: `--layers 60` scales the figures. Each round is a
load of its own: tokens until the pool is full and settled, then those that are measured, one random id a step. Parts
are timed by wrapping the functions that do them (a microsecond a call); a part's time is without that of the parts that
it calls, and without what was waited for reads, which is "waiting" (with their submission).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 2**30
PARTS = {
    "predictor": [("predictor", "Predictor", "seen")],
    "reading ahead": [("prefetch", "Prefetcher", "read")],
    "room": [("moves", "Moves", "make_room"), ("moves", "Moves", "drop")],
    "waiting": [("moves", "Moves", "fetch"), ("moves", "Moves", "wait")],
    "ledger": [("ledger", "Ledger", "missing")],
    "ids and nodes": [
        ("pool", "PoolStore", "translate"), ("pool", "PoolStore", "translate_one"), ("pool", "PoolStore", "patch"),
        ("pool", "PoolStore", "unpatch"), ("pool", "PoolStore", "go_on"), ("hook", "RouterHook", "_point"),
        ("hook", "RouterHook", "_point_later"), ("hook", "RouterHook", "_ask_product"),
    ],
    "pager": [("pager", "Pager", "chosen"), ("pager", "Pager", "finish")],
    "callback": [("hook", "RouterHook", "_on_node")],
    "once: tables": [("hook", "RouterHook", "_ask_rows")],
    "once: accounts": [
        ("ledger", "Ledger", "flush"), ("ledger", "Ledger", "begin"), ("reuse_distance", "ReuseMeter", "note"),
        ("pager", "Pager", "begin"), ("pager", "Pager", "end"), ("prefetch", "Prefetcher", "collect"),
        ("hook", "RouterHook", "begin"), ("hook", "RouterHook", "end"),
    ],
}  # fmt: skip
"""Parts whose time is that of layers, and those that a token takes once."""


class Clock:
    """Seconds and calls by part, each without those of the parts within it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.on, self._now = False, now
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.calls = dict.fromkeys(PARTS, 0)
        self._inner = [0.0]

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return function(*args, **kwargs)
            self._inner.append(0.0)
            started = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                took = self._now() - started
                self.seconds[part] += took - self._inner.pop()
                self._inner[-1] += took
                self.calls[part] += 1

        return timed

    def install(self) -> None:
        for part, functions in PARTS.items():
            for module, owner, name in functions:
                kind = getattr(importlib.import_module(f"backends.streaming.{module}"), owner)
                if name in kind.__dict__:  # the other version may not have it
                    setattr(kind, name, self.wrap(part, kind.__dict__[name]))


def measure(o: argparse.Namespace) -> dict[str, Any]:
    """One load in this process: ms a token by part."""
    sys.path.insert(0, str(o.tree))
    import numpy as np

    from backends.engine.launch import let_threads_sleep
    from backends.interface import LoadRequest
    from backends.llamacpp.context import Batch
    from backends.registry import load

    let_threads_sleep(os.environ)
    clock = Clock(time.thread_time if o.cpu else time.perf_counter)
    if not o.whole:
        clock.install()
    request = LoadRequest(
        path=o.model, backend="stream", store="pool", n_ctx=512, ram_bytes=int(o.ram * GIB), n_threads=o.threads
    )
    model: Any = load(request, lambda _: True)
    context, parts = model.context, model._parts
    ids = np.random.default_rng(o.seed).integers(0, context.n_vocab, o.settle + o.tokens).tolist()
    took: list[float] = []
    before: Any = None
    started = 0.0
    for i, token in enumerate(ids):
        if i == o.settle:
            before, clock.on, started = parts.counters(), not o.whole, time.perf_counter()
        batch = Batch()
        batch.add(token, i, 0, True)
        began = time.perf_counter()
        context.decode(batch)
        took.append(time.perf_counter() - began)
    elapsed, after = time.perf_counter() - started, parts.counters()
    n, layers = o.tokens, len(model.pager.layout.rows)
    scale = 1e3 / n * (o.layers / layers if o.layers else 1.0)
    hits, misses = after.expert_hits - before.expert_hits, after.expert_misses - before.expert_misses
    once = 1e3 / n
    hook = {
        part: round(s * (once if part.startswith("once") else scale), 3)
        for part, s in clock.seconds.items() if part != "waiting"
    }  # fmt: skip
    return {
        "layers": layers, "hits": round(hits / max(1, hits + misses), 4),
        "mb_a_token": round((after.read_bytes - before.read_bytes) / n / 1e6, 1),
        "ms_a_token": round(elapsed * scale, 2), "median_ms": round(statistics.median(took[o.settle :]) * scale * n, 2),
        "hook_told_ms": round((after.hook_s - before.hook_s) * scale, 2),
        "stall_told_ms": round((after.stall_s - before.stall_s) * scale, 2),
        "hook_ms": None if o.whole else round(sum(hook.values()), 2),
        "waiting_ms": None if o.whole else round(clock.seconds["waiting"] * scale, 2),
        "parts_ms": {} if o.whole else hook, "calls_a_token": {p: round(c / n, 1) for p, c in clock.calls.items()},
    }  # fmt: skip


def main() -> int:
    here = Path(__file__).resolve().parent.parent
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--ram", type=float, required=True, help="GiB for experts")
    a.add_argument("--threads", type=int)
    a.add_argument("--settle", type=int, default=96, help="tokens before those that are measured")
    a.add_argument("--tokens", type=int, default=48)
    a.add_argument("--layers", type=int, default=0, help="scale the figures to so many layers")
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--rounds", type=int, default=1)
    a.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    a.add_argument("--whole", action="store_true", help="don't time the parts: what a token takes altogether")
    a.add_argument("--cpu", action="store_true", help="processor time of the parts, for a machine that others use too")
    a.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    o = a.parse_args()
    if o.tree:
        print(json.dumps(measure(o)), flush=True)
        os._exit(0)
    trees = {"now": here} if o.against is None else {"before": o.against.resolve(), "now": here}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for round_ in range(o.rounds):
        for name in list(trees) if round_ % 2 == 0 else list(trees)[::-1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--tree", str(trees[name])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=trees[name])
            if done.returncode:
                return done.returncode
            row = json.loads(done.stdout.strip().splitlines()[-1])
            rows[name].append(row)
            print(json.dumps({"version": name, **row}), flush=True)
    for name, found in rows.items():
        middle = {
            key: round(statistics.median(r[key] for r in found), 2)
            for key in ("ms_a_token", "hook_ms", "waiting_ms", "hook_told_ms", "hits")
            if found[0][key] is not None
        }
        parts = {p: round(statistics.median(r["parts_ms"][p] for r in found), 2) for p in found[0]["parts_ms"]}
        print(f"{name}: medians {middle} parts {parts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
