#!/usr/bin/env python3
"""stream against mmap on one model, in turn and under one RAM cap: speed, reads, load, and whether the logits agree.

    python benchmarks/side_by_side.py /tmp/synth.gguf --cap 3 --rounds 3          # RAM capped at 3 GiB (needs root)
    python benchmarks/side_by_side.py /tmp/synth.gguf --warm                      # no cap, everything in the page cache

Every run is a `bench` in a fresh engine, after the file was dropped from the page cache (with --warm: read into it).
Ratios are stream over mmap, pair by pair; quote the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backends.gguf.file import read_gguf

HERE = Path(__file__).resolve().parent


def prepare(paths: tuple[str, ...], warm: bool) -> None:
    """Drops the files from the page cache, or reads them into it."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            if warm:
                while os.read(fd, 1 << 24):
                    pass
            else:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def bench(model: Path, cap: float | None, options: list[str]) -> dict[str, Any]:
    """One run; raises RuntimeError with what it said."""
    command = [sys.executable, "-m", "flashmoe.cli.main", "bench", str(model), "--json", *options]
    if cap:
        command = [str(HERE / "ramcap"), str(cap), *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:] or f"exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def show(name: str, r: dict[str, Any]) -> str:
    """One run as a line of a table."""

    def number(key: str, scale: float, form: str) -> str:
        return "-" if r.get(key) is None else format(r[key] / scale, form)

    cells = [
        name,
        number("decode_tok_s", 1, ".2f"),
        number("prefill_tok_s", 1, ".1f"),
        number("read_bytes_per_token", 1e6, ".0f"),
        number("hit_rate", 0.01, ".0f"),
        number("compute_s_per_token", 1e-3, ".0f"),
        number("stall_s_per_token", 1e-3, ".0f"),
        number("bound_share", 0.01, ".0f"),
        number("load_s", 1, ".2f"),
        number("load_read_bytes", 1e6, ".0f"),
        number("peak_rss_bytes", 2**30, ".2f"),
        r["store"] or "-",
        r["logits_sha256"][:8],
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cap", type=float, help="GiB of RAM, page cache included")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--mmap-tokens", type=int, default=0, help="fewer for mmap where it is very slow; 0: the same")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default="auto", choices=("auto", "pagecache", "pool"))
    parser.add_argument("--ram", help="--ram for stream, in GiB")
    args = parser.parse_args()
    files = read_gguf(args.model).files
    ratios: list[float] = []
    loads: list[float] = []
    equal = True
    print("| backend | tok/s | prefill | MB read/token | hit % | compute ms | stall ms | bound % | load s | load MB "
          "| RSS GiB | store | logits |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for _ in range(args.rounds):
        pair: dict[str, dict[str, Any]] = {}
        for backend in ("stream", "mmap"):
            prepare(files, args.warm)
            options = ["--backend", backend, "--seed", str(args.seed)]
            n = args.mmap_tokens if backend == "mmap" and args.mmap_tokens else args.tokens
            options += ["--tokens", str(n)]
            if backend == "stream":
                options += ["--store", args.store, *(["--ram", args.ram] if args.ram else [])]
            try:
                pair[backend] = bench(args.model, args.cap, options)
            except RuntimeError as e:
                print(f"| {backend} | failed: {e} |")
                continue
            print(show(backend, pair[backend]), flush=True)
        if len(pair) == 2:
            ratios.append(pair["stream"]["decode_tok_s"] / pair["mmap"]["decode_tok_s"])
            loads.append(pair["mmap"]["load_s"] / pair["stream"]["load_s"])
            if pair["stream"]["tokens"] == pair["mmap"]["tokens"]:
                equal = equal and pair["stream"]["logits_sha256"] == pair["mmap"]["logits_sha256"]
    if ratios:
        print(f"\ndecode, stream over mmap: median {statistics.median(ratios):.2f}x of {[round(r, 2) for r in ratios]}")
        print(f"load, mmap over stream: median {statistics.median(loads):.1f}x of {[round(r, 1) for r in loads]}")
        print(f"logits {'equal' if equal else 'DIFFER'}")
    return 0 if equal and ratios else 1


if __name__ == "__main__":
    sys.exit(main())
