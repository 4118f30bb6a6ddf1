#!/usr/bin/env python3
"""Many tokens in as little memory as can be: what the engine holds, what the page cache holds of the model, no kill.

    python benchmarks/tight_memory.py model.gguf --tokens 2000 --store pagecache     # needs root (a memory cgroup)

A short run without a cap tells how much anonymous memory the command takes. Then the same `bench`, with experts
limited to `--ram` (one token's working set unless said otherwise), runs in a cgroup of that plus one layer's experts;
both processes and the experts' pages in the page cache are watched. The logits are held against mmap's without a cap.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backends.gguf.file import EXPERT_WEIGHT, GgufFile, read_gguf
from backends.planner.compute import compute_bytes
from backends.planner.kv import kv_bytes
from backends.planner.plan import working_set
from backends.system.libc import cached_bytes

HERE = Path(__file__).resolve().parent
MIB = 2**20


def field(pid: int, name: str) -> int:
    """A field of /proc/<pid>/status in bytes, 0 where the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name + ":")), 0)


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    out, todo = [], [pid]
    while todo:
        out.append(todo.pop())
        try:
            todo += [int(x) for x in Path(f"/proc/{out[-1]}/task/{out[-1]}/children").read_text().split()]
        except OSError:
            pass
    return out


def watched(command: list[str], gguf: GgufFile) -> tuple[int, dict[str, Any], dict[str, int]]:
    """Runs a command: (exit status, its JSON, the most that was seen of ``engine``, ``all`` and ``cache``, bytes: the
    engine's and all processes' anonymous memory, and the experts' pages in the page cache)."""
    fds = [os.open(f, os.O_RDONLY) for f in gguf.files]
    experts = [(fds[t.file], t.offset, t.nbytes) for t in gguf.tensors if EXPERT_WEIGHT.match(t.name)]
    for fd in fds:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    most = {"engine": 0, "all": 0, "cache": 0}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parent)
    while process.poll() is None:
        anonymous = [field(pid, "RssAnon") + field(pid, "RssShmem") for pid in family(process.pid)]
        most["engine"] = max(most["engine"], *anonymous)
        most["all"] = max(most["all"], sum(anonymous))
        most["cache"] = max(most["cache"], sum(cached_bytes(*x) or 0 for x in experts))
        time.sleep(0.05)
    for fd in fds:
        os.close(fd)
    out, err = process.communicate()
    if process.returncode:
        print(err.strip()[-400:], file=sys.stderr)
    return process.returncode, json.loads(out) if out.strip() else {}, most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--store", default="pagecache", choices=("pagecache", "pool"))
    parser.add_argument("--ram", type=float, help="GiB that experts may hold; one token's working set if not given")
    parser.add_argument("--ctx", type=int, default=4096)
    args = parser.parse_args()
    gguf = read_gguf(args.model)
    budget = int(args.ram * 2**30) if args.ram else working_set(gguf) + MIB
    layer = max(x.expert_bytes * x.n_experts for x in gguf.expert_layers)
    command = [sys.executable, "-m", "flashmoe.cli.main", "bench", str(args.model), "--json", "--ctx", str(args.ctx)]
    stream = [*command, "--backend", "stream", "--store", args.store, "--ram", str(budget / 2**30), "--tokens"]
    _, _, free = watched([*stream, "48"], gguf)
    cap = free["all"] + layer
    start = time.monotonic()
    status, result, most = watched([str(HERE / "ramcap"), str(cap / 2**30), *stream, str(args.tokens)], gguf)
    took = time.monotonic() - start
    other = gguf.bytes.dense + kv_bytes(gguf, args.ctx).total + compute_bytes(gguf, args.ctx).allocated
    pool = budget if args.store == "pool" else 0
    engine, cache = most["engine"], most["cache"]
    print(f"experts at most {budget / MIB:.0f} MiB in the {args.store}; one layer's are {layer / MIB:.0f} MiB")
    print(f"engine's anonymous memory {engine / MIB:.0f} MiB: dense weights, KV cache, compute buffers, pool:")
    print(f"  {(other + pool) / MIB:.0f} MiB, and {(engine - other - pool) / MIB:.0f} MiB more")
    print(f"expert pages in the page cache at most {cache / MIB:.0f} MiB ({cache / budget:.2f} of the limit)")
    speed = result.get("decode_tok_s") or 0.0
    print(f"cgroup of {cap / MIB:.0f} MiB, {args.tokens} tokens: exit status {status}, {took:.0f} s, {speed:.1f} tok/s")
    reference = watched([*command, "--backend", "mmap", "--tokens", str(args.tokens)], gguf)[1]
    equal = bool(result) and result["logits_sha256"] == reference.get("logits_sha256")
    print(f"logits {'equal' if equal else 'DIFFER from'} mmap's")
    return 0 if equal and status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
