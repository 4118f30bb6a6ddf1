#!/usr/bin/env python3
"""An engine on a machine that others use: alone, beside one busy program, and two engines at once, in one run.

    python benchmarks/busy_cores.py MODEL.gguf [--ram GIB] [--seconds S] [--repeat N] [--spin COUNT ...]

Each for how long llama.cpp's threads wait for each other before they sleep (GOMP_SPINCOUNT; `default` is OpenMP's own,
which the engine doesn't use). Prints tokens/s, prefill of a two-token prompt for every 64 tokens included.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backends.engine.client import EngineClient
from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling

OWN = "300000"
"""What GNU's OpenMP takes where nothing is set and there are no more threads than cores."""


async def engine(args: argparse.Namespace, spin: str, log: Path) -> float:
    """Tokens/s of one engine over `args.seconds`."""
    client = EngineClient(log_path=log, env={"GOMP_SPINCOUNT": OWN if spin == "default" else spin})
    ram = int(args.ram * (1 << 30)) if args.ram else None
    try:
        await client.load(LoadRequest(path=str(args.model.resolve()), backend="stream", n_ctx=1024, ram_bytes=ram))
        tokens, number, started = 0, 0, time.monotonic()
        while time.monotonic() - started < args.seconds:
            number += 1
            sampling = Sampling(temperature=1, top_p=1, top_k=0, min_p=0, seed=number, max_tokens=64)
            request = GenerateRequest(id=str(number), tokens=(number % 100 + 5,) * 2, sampling=sampling)
            async for event in client.generate(request):
                if isinstance(event, Finished):
                    tokens += event.usage.completion_tokens or 0
                elif time.monotonic() - started > args.seconds:
                    await client.cancel(request.id)
        return tokens / (time.monotonic() - started)
    finally:
        await client.stop()


async def measured(args: argparse.Namespace, spin: str, folder: Path) -> tuple[float, float, float]:
    """Tokens/s alone, beside one busy program, and of each of two engines."""
    alone = await engine(args, spin, folder / "alone.log")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # noqa: ASYNC220 - it returns at once
    try:
        beside = await engine(args, spin, folder / "beside.log")
    finally:
        busy.kill()
        busy.wait()
    both = await asyncio.gather(engine(args, spin, folder / "a.log"), engine(args, spin, folder / "b.log"))
    return alone, beside, statistics.mean(both)


def main() -> int:
    """Measures and prints a line for each count, medians over the repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", type=float, help="GiB that experts may hold")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--spin", nargs="+", default=["default", "1000"])
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {spin: [] for spin in args.spin}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeat):
            for spin in args.spin:
                found[spin].append(asyncio.run(measured(args, spin, Path(folder))))
    print("spin count    alone   beside one busy program   each of two engines   (tokens/s)")
    for spin, runs in found.items():
        alone, beside, two = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{spin:>10} {alone:8.1f} {beside:25.1f} {two:21.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
