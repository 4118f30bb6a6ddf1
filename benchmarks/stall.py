#!/usr/bin/env python3
"""How long an answer stalls while `serve` reads somebody else's long prompt: the gaps between its tokens.

    python benchmarks/stall.py MODEL.gguf --ram 1.5 --prompt 8000
    benchmarks/ramcap 3 benchmarks/diskcap 500 MODEL.gguf python benchmarks/stall.py MODEL.gguf --ram 1.5 --limit 300
    python benchmarks/stall.py MODEL.gguf --ram 1.5 --readers 3    # several such prompts together

One client streams an answer. When it has had `--tokens` of them, others send prompts (random ids, each its own). The
first one's gaps are measured until the first of the others has an answer, or for `--limit` seconds. To compare with:
`max_stall` (2 s, `--max-stall` for another), and what a token of the answer took before. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from served import served


class Reader(threading.Thread):
    """Streams a completion; when each of its tokens came, and how far its prompt is."""

    def __init__(self, url: str, ids: list[int], tokens: int) -> None:
        super().__init__(daemon=True)
        self._url, self._tokens, self._ids = url, tokens, ids
        self.came: list[float] = []
        self.read = 0
        self.comments: list[float] = []
        self.failed = ""
        self.stop = threading.Event()

    def run(self) -> None:
        body = {"prompt": self._ids, "max_tokens": self._tokens, "temperature": 1, "seed": 1, "stream": True}
        try:
            with httpx2.stream("POST", self._url + "/v1/completions", json=body, timeout=3600) as response:
                if response.status_code != 200:
                    self.failed = response.read().decode()[:300]
                    return
                for line in response.iter_lines():
                    if self.stop.is_set():
                        return
                    if found := re.match(r": prompt: (\d+) of", line):
                        self.read = int(found[1])
                        self.comments.append(time.monotonic())
                    elif line.startswith("data: {"):
                        self.came += [time.monotonic()] * any(c.get("text") for c in json.loads(line[6:])["choices"])
        except httpx2.HTTPError as e:
            self.failed = f"{type(e).__name__}: {e}"


def gaps(times: list[float]) -> list[float]:
    """Seconds between each of them and the next."""
    return [b - a for a, b in itertools.pairwise(times)]


def flags(o: argparse.Namespace) -> list[str]:
    """The server's."""
    flags = ["--kv-dir", "none", "--parallel", str(1 + o.readers)]
    flags += ["--ctx", str(o.readers * (o.prompt + 64) + o.answer + 256)]
    for name in ("ram", "ubatch", "threads"):
        if getattr(o, name) is not None:
            flags += [f"--{name}", str(getattr(o, name))]
    return flags


def measure(o: argparse.Namespace, url: str) -> dict[str, Any]:
    """The answer's gaps before the prompts and beside them."""
    rng = np.random.default_rng(7)

    def ids(n: int) -> list[int]:
        return [int(i) for i in rng.integers(300, o.vocab, n)]

    answer = Reader(url, ids(16), o.answer)
    answer.start()
    while len(answer.came) < o.tokens and answer.is_alive():
        time.sleep(0.05)
    before, asked = list(answer.came), time.monotonic()
    others = [Reader(url, ids(o.prompt), 1) for _ in range(o.readers)]
    for other in others:
        other.start()
    end = asked + o.limit
    while time.monotonic() < end and answer.is_alive() and not any(b.came or b.failed for b in others):
        time.sleep(0.05)
    ended = time.monotonic()
    beside = gaps([t for t in answer.came if t >= asked - 1e-9 or t == before[-1]])
    beside.append(ended - max(answer.came))  # a stall that goes on
    comments = gaps([asked, *others[0].comments])
    row = {
        "max_stall": o.max_stall, "prompt": o.prompt, "readers": o.readers, "ram": o.ram, "ubatch": o.ubatch,
        "median_gap_before": round(float(np.median(gaps(before))), 3),
        "longest_gap_before": round(max(gaps(before)), 3),
        "longest_gaps_beside": [round(g, 3) for g in sorted(beside)[-5:]],
        "median_gap_beside": round(float(np.median(beside)), 3), "tokens_beside": len(beside),
        "seconds": round(ended - asked, 1), "prompts_read": [b.read if not b.came else o.prompt for b in others],
        "longest_without_progress": round(max(comments, default=0.0), 2),
        "failed": [r.failed for r in (answer, *others) if r.failed],
    }  # fmt: skip
    for reader in (answer, *others):
        reader.stop.set()
    return row


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--ram", type=float, help="GiB for experts")
    a.add_argument("--ubatch", type=int)
    a.add_argument("--threads", type=int)
    a.add_argument("--prompt", type=int, default=8000)
    a.add_argument("--readers", type=int, default=1, help="clients that send prompts")
    a.add_argument("--tokens", type=int, default=24, help="of the answer before they do")
    a.add_argument("--answer", type=int, default=4000, help="tokens of the answer at most")
    a.add_argument("--limit", type=float, default=600, help="seconds")
    a.add_argument("--max-stall", type=float, default=2.0)
    a.add_argument("--vocab", type=int, default=31000, help="ids are below it")
    o = a.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {"FLASHMOE_HOME": folder, "FLASHMOE_BACKEND__MAX_STALL": str(o.max_stall)}
        with served(o.model, flags(o), environment) as (_, url):
            print(json.dumps(measure(o, url)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
