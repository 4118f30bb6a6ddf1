#!/usr/bin/env python3
"""The first tokens after a restart: hits and `ready`, warm and cold, against the steady rate.

    python benchmarks/synthetic.py skew.gguf --skew 1
    benchmarks/ramcap 3 python benchmarks/warm_start.py skew.gguf --quiet 30

Three loads in processes of their own: one decodes until its hits are steady and keeps the heat; then one without and
one with it, each with some seconds in which nobody asks, and 16 tokens. Ids are random, the same seed goes on in none.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backends.interface import LoadRequest

GIB = 2**30


def run(o: argparse.Namespace, kind: str) -> dict[str, Any]:
    """One load in this process."""
    import numpy as np

    from backends.engine.launch import let_threads_sleep
    from backends.llamacpp.context import Batch
    from backends.registry import load

    let_threads_sleep(os.environ)
    fd = os.open(o.model, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    request = LoadRequest(
        path=o.model, backend="stream", n_ctx=1024, n_threads=o.threads, heat_folder="" if kind == "cold" else o.folder,
        ram_bytes=int(o.ram * GIB) if o.ram else None,
    )  # fmt: skip
    began = time.perf_counter()
    model: Any = load(request, lambda _: True)
    ready = time.perf_counter() - began
    numbers = np.random.default_rng(1 if kind == "steady" else 2)
    context, counters, at = model.context, model._parts.counters, 0

    def decode(n: int) -> float:
        nonlocal at
        before = counters()
        for token in numbers.integers(0, context.n_vocab, n).tolist():
            batch = Batch()
            batch.add(token, at, 0, True)
            context.decode(batch)
            at += 1
        after = counters()
        hits, misses = after.expert_hits - before.expert_hits, after.expert_misses - before.expert_misses
        return round(hits / max(1, hits + misses), 4)

    row: dict[str, Any] = {"kind": kind, "ready_s": round(ready, 2), "store": model.info.store}
    if kind == "steady":
        row["first_16"] = decode(16)
        decode(o.settle)
        row["steady"] = decode(64)
    else:
        began, busy = time.perf_counter(), True
        while busy and time.perf_counter() - began < o.quiet:
            busy = model.idle()
            time.sleep(0.001)
        row |= {"filling_s": round(time.perf_counter() - began, 1), "filled": not busy}
        row["resident_mib"] = counters().resident_bytes >> 20
        row["first_16"] = decode(16)
    model.close()
    return row


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--ram", type=float, help="GiB for experts")
    a.add_argument("--threads", type=int)
    a.add_argument("--quiet", type=float, default=30, help="seconds in which nobody asks")
    a.add_argument("--settle", type=int, default=256)
    a.add_argument("--folder", help=argparse.SUPPRESS)
    a.add_argument("--kind", help=argparse.SUPPRESS)
    o = a.parse_args()
    if o.kind:
        print(json.dumps(run(o, o.kind)), flush=True)
        return 0
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("steady", "cold", "warm"):
            command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--kind", kind]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                return done.returncode
            rows[kind] = json.loads(done.stdout.strip().splitlines()[-1])
            print(json.dumps(rows[kind]), flush=True)
    steady = rows["steady"]["steady"]
    print(f"warm {rows['warm']['first_16'] / steady:.2f}x of the steady hit rate in the first 16 tokens, "
          f"cold {rows['cold']['first_16'] / steady:.2f}x")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
