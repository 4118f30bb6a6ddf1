#!/usr/bin/env python3
"""How long a request that is refused waits for its 4xx while the engine computes batches of several seconds.

    python benchmarks/refusals.py                         # makes a model whose batches take seconds on two cores
    python benchmarks/refusals.py MODEL --seconds 60

One client sends long prompts, each of its own, so that the engine always computes one. Another sends requests that are
refused, one kind after the other: what the HTTP side refuses by itself, and what only the engine can know (a prompt
that is too long once it is tokenised, a schema that can't be held, a token that the vocabulary hasn't).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parent))
from served import served

LONG = [{"role": "user", "content": "word " * 8_000}]
HUGE = [{"role": "user", "content": "word " * 200_000}]
SHORT = [{"role": "user", "content": "hello"}]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "no messages": ("chat/completions", {"model": "any"}),
    "a value out of bounds": ("chat/completions", {"messages": SHORT, "temperature": -3}),
    "an image": ("messages", {"model": "any", "max_tokens": 4, "messages": [
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": ""}}]}]}),
    "a token that isn't there": ("completions", {"prompt": [99_999_999], "max_tokens": 4}),
    "a prompt that is too long": ("chat/completions", {"messages": LONG, "max_tokens": 4}),
    "a megabyte of prompt": ("chat/completions", {"messages": HUGE, "max_tokens": 4}),
    "a schema that can't be held": ("chat/completions", {"messages": SHORT, "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "(?=a)b"}}}}),
}  # fmt: skip


def make_model(folder: Path) -> Path:
    """Some 340 MiB that take seconds a batch of 2,048 tokens on two cores."""
    from tests.gguf_factory import make_gguf

    return make_gguf(
        folder / "slow.gguf", quant="q8_0", n_ctx_train=16384, endless=True, n_layer=8, n_embd=1024, n_ff_exp=1024,
        n_expert=16, n_expert_used=4,
    )  # fmt: skip


def measure(url: str, seconds: float, ctx: int) -> None:
    """Prints a line a kind."""
    stop, passes = threading.Event(), []

    def work() -> None:
        rng = random.Random(1)
        with httpx2.Client(base_url=url, timeout=600) as client:
            while not stop.is_set():
                tokens = [rng.randrange(300) for _ in range(ctx - 64)]
                began = time.perf_counter()
                client.post("/v1/completions", json={"prompt": tokens, "max_tokens": 1}).raise_for_status()
                passes.append(time.perf_counter() - began)

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(2)
    took: dict[str, list[float]] = {name: [] for name in KINDS}
    end = time.monotonic() + seconds
    with httpx2.Client(base_url=url, timeout=600) as client:
        while time.monotonic() < end:
            for name, (route, body) in KINDS.items():
                began = time.perf_counter()
                response = client.post(f"/v1/{route}", json=body)
                took[name].append(time.perf_counter() - began)
                assert 400 <= response.status_code < 500, (name, response.status_code, response.text[:300])
                time.sleep(0.05)
    stop.set()
    worker.join()
    print(f"long prompts of {ctx - 64} tokens meanwhile: {len(passes)}, median {statistics.median(passes):.1f} s each")
    print("| refused | requests | the first, ms | median | 95th percentile | longest |\n|---|---|---|---|---|---|")
    for name, seconds_each in [*took.items(), ("all", [x for each in took.values() for x in each])]:
        ms = sorted(1e3 * x for x in seconds_each)
        print(f"| {name} | {len(ms)} | {1e3 * seconds_each[0]:.0f} | {statistics.median(ms):.0f} | "
              f"{ms[int(len(ms) * 0.95)]:.0f} | {ms[-1]:.0f} |")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: one that is made for this")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--backend", default="mmap")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(make_model(Path(folder)))
        extra = ["--kv-dir", "none", "--ctx", str(args.ctx), "--ubatch", "2048", "--backend", args.backend]
        with served(model, extra) as (_, url):
            measure(url, args.seconds, args.ctx)
    return 0


if __name__ == "__main__":
    sys.exit(main())
