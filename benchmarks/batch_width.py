#!/usr/bin/env python3
"""Tokens per second and bytes read per token over the number of sequences decoded together.

    benchmarks/ramcap 3 python benchmarks/batch_width.py synth.gguf --widths 1,2,4,8,16,32 [--skew 1] [--backend stream]

Run it under the RAM cap: every width is a `bench` of its own in a fresh engine. Beside each figure stands what the
union of the sequences' experts predicts where routing is uniform: N sequences need E (1 - (1 - k/E)^N) experts of a
layer, of which the resident share (the pool's budget over all experts) needn't be read. `--skew` draws the token ids by
a Zipf law: sequences then often share tokens, and no formula is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backends.gguf.file import read_gguf


def drop_cache(path: Path) -> None:
    """Forgets the file's pages, so that every width begins as cold as the first."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--widths", default="1,2,4,8,16,32,64,128")
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--backend", default="stream")
    parser.add_argument("--store", default="auto")
    parser.add_argument("--ram", type=float)
    parser.add_argument(
        "--steps", type=int, default=0, help="steps of decode; 0: 160 tokens' worth, from 5 to 32 steps"
    )
    parser.add_argument("--prompt-tokens", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the raw results here, a line each")
    args = parser.parse_args()
    gguf = read_gguf(args.model)
    experts, used, layers = gguf.n_experts, gguf.n_expert_used, gguf.n_layers
    one = gguf.bytes.experts / (experts * layers)
    print(f"{args.model.name}: {layers} layers x {experts} experts, {used} used, {one / 2**20:.2f} MiB each")
    print(
        "| sequences | tok/s | gain | MB read a token | union less the resident share | ratio | hit rate "
        "| ms a token: all | computing | waiting | hook | disk GB/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    base = None
    for width in (int(w) for w in args.widths.split(",")):
        steps = args.steps or max(5, min(32, 160 // width))
        drop_cache(args.model)
        command = [
            sys.executable, "-m", "flashmoe.cli.main", "bench", str(args.model), "--backend", args.backend,
            "--parallel", str(width), "--tokens", str(steps), "--prompt-tokens", str(args.prompt_tokens),
            "--seed", str(args.seed), "--skew", str(args.skew), "--json",
        ]  # fmt: skip
        if args.backend == "stream":
            command += ["--store", args.store]
        if args.ram:
            command += ["--ram", str(args.ram)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"| {width} | failed: {done.stderr.strip().splitlines()[-1:]} |" + " |" * 10)
            continue
        r = json.loads(done.stdout)
        if args.json:
            with args.json.open("a") as f:
                f.write(json.dumps(r) + "\n")
        rate = r["decode_tok_s"]
        base = base or rate
        read = (r["read_bytes_per_token"] or 0) / 1e6
        predicted = ratio = "unknown"
        if r["budget_bytes"] and not args.skew:
            union = experts * (1 - (1 - used / experts) ** width)
            resident = min(1.0, r["budget_bytes"] / gguf.bytes.experts)
            expected = union * layers * one * (1 - resident) / width / 1e6
            predicted, ratio = f"{expected:.0f}", f"{read / expected:.2f}" if expected else "unknown"
        shown = "unknown" if r["hit_rate"] is None else f"{r['hit_rate']:.0%}"
        times = " | ".join(
            "unknown" if r[key] is None else f"{r[key] * 1000:.1f}"
            for key in ("compute_s_per_token", "stall_s_per_token", "hook_s_per_token")
        )
        disk = "unknown" if r["disk_bytes_s"] is None else f"{r['disk_bytes_s'] / 1e9:.2f}"
        print(
            f"| {width} | {rate:.2f} | {rate / base:.2f}x | {read:.0f} | {predicted} | {ratio} | {shown} "
            f"| {1000 / rate:.1f} | {times} | {disk} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
