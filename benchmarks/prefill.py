#!/usr/bin/env python3
"""Prompts of a model over ubatches: tokens/s, bytes read, how much of the reading was hidden, what decode has of it.

    python benchmarks/prefill.py MODEL.gguf --ram 2.2 --prompt 4096 --ubatch 512 1024 2048 4096
    benchmarks/diskcap 100 MODEL.gguf python benchmarks/prefill.py MODEL.gguf --ram 2.2 --prompt 2048 --ubatch 512 2048
    python benchmarks/prefill.py MODEL.gguf --ram 1.5 --prompt 4096 --ubatch 4096 --rounds 3 --against-memory

Each row is a load of its own, the file dropped from the page cache first. `--answers` decodes 32 tokens before the
prompt and 32 after it: their hits and tokens/s show what the prompt left of the pool. `--against-memory` loads the
model a second time after each row, with every expert in memory, and says what share of that rate the row has.
`of_absent`: bytes read over what wasn't resident when the prompt began, once a pass. Prints a JSON object a row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from backends.interface import BenchRequest, LoadRequest  # noqa: E402

GIB = 2**30


def forget(path: str) -> None:
    """Drops a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def remember(path: str) -> None:
    """Reads a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(16 << 20):
            pass


def measure(o: argparse.Namespace, ubatch: int) -> dict[str, Any]:
    """One load and its prompts, in this process."""
    from backends.registry import load

    (remember if o.warm else forget)(o.model)
    request = LoadRequest(
        path=o.model, backend=o.backend, store=o.store, n_ctx=o.prompt + 256, n_ubatch=ubatch or None,
        ram_bytes=int(o.ram * GIB) if o.ram else None, n_threads=o.threads, n_gpu_layers=o.gpu_layers,
    )  # fmt: skip
    model: Any = load(request, lambda _: True)
    info = model.info
    model._parts.disk_probe = lambda: None

    def bench(prompt: int, tokens: int, seed: int) -> Any:
        return model.bench(BenchRequest(prompt_tokens=prompt, tokens=tokens, seed=seed), lambda _a, _b: True)

    pager = getattr(model, "pager", None)
    before = bench(4, 64, 1) and bench(4, 32, 2) and bench(4, 32, 2) if o.answers else None
    if o.warm:
        bench(o.prompt, 1, 4)  # what memory needs to be touched once
    absent = None if pager is None else info.expert_bytes - pager.ledger.resident_bytes
    r = bench(o.prompt, 1, 3)
    passes = -(-o.prompt // r.n_ubatch)
    few = absent is None or r.prefill_read_bytes is None or o.warm or not absent
    after = bench(4, 32, 2) if o.answers else None
    row: dict[str, Any] = {
        "ubatch": r.n_ubatch, "why": info.ubatch_reason, "backend": info.backend, "store": info.store,
        "prompt": o.prompt, "tok_s": round(r.prefill_tok_s, 2), "seconds": round(r.prefill_s, 2),
        "read_gb": None if r.prefill_read_bytes is None else round(r.prefill_read_bytes / 1e9, 2),
        "of_absent": None if few else round(r.prefill_read_bytes / (absent * passes), 3),
        "stall_s": None if r.prefill_stall_s is None else round(r.prefill_stall_s, 2),
        "overlap": None if r.prefill_overlap is None else round(r.prefill_overlap, 3),
        "rss_gb": None if r.peak_rss_bytes is None else round(r.peak_rss_bytes / 1e9, 2),
        "compute_mib": None if info.compute_bytes is None else info.compute_bytes >> 20,
        "vram_told_mib": None if info.vram_bytes is None else info.vram_bytes >> 20,
        "logits": r.logits_sha256[:12],
    }  # fmt: skip
    if before is not None and after is not None:
        row |= {
            "hits_before": before.hit_rate, "hits_after": after.hit_rate,
            "decode_before": round(before.decode_tok_s, 2), "decode_after": round(after.decode_tok_s, 2),
        }  # fmt: skip
    model.close()
    return row


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--prompt", type=int, default=4096)
    a.add_argument("--ubatch", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="0 is auto")
    a.add_argument("--ram", type=float, help="GiB for experts")
    a.add_argument("--threads", type=int)
    a.add_argument("--gpu-layers", type=int)
    a.add_argument("--backend", default="stream")
    a.add_argument("--store", default="auto")
    a.add_argument("--answers", action="store_true")
    a.add_argument("--against-memory", action="store_true")
    a.add_argument("--rounds", type=int, default=1)
    a.add_argument("--warm", action="store_true", help="the file is read into the page cache first, and no limit holds")
    a.add_argument("--one", action="store_true", help="measure in this process")
    o = a.parse_args()
    if o.one:
        print(json.dumps(measure(o, o.ubatch[0])), flush=True)
        sys.stdout.flush()
        os._exit(0)
    for ubatch in o.ubatch * o.rounds:
        row = one(o, ubatch)
        if o.against_memory and "tok_s" in row:
            all_there = one(argparse.Namespace(**{**vars(o), "warm": True, "ram": None, "store": "auto"}), ubatch)
            row["tok_s_in_memory"] = all_there.get("tok_s")
            row["of_memory"] = round(row["tok_s"] / all_there["tok_s"], 3) if all_there.get("tok_s") else None
            row["same_logits"] = row["logits"] == all_there.get("logits")
        print(json.dumps(row), flush=True)
    return 0


def one(o: argparse.Namespace, ubatch: int) -> dict[str, Any]:
    """A row, measured in a process of its own."""
    command = [sys.executable, __file__, o.model, "--one", "--ubatch", str(ubatch), "--prompt", str(o.prompt)]
    for name in ("ram", "threads", "gpu_layers", "backend", "store"):
        if getattr(o, name) is not None:
            command += ["--" + name.replace("_", "-"), str(getattr(o, name))]
    command += [f"--{name}" for name in ("answers", "warm") if getattr(o, name)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    try:
        row: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        row = {"ubatch": ubatch, "failed": done.returncode}
    return row


if __name__ == "__main__":
    raise SystemExit(main())
