#!/usr/bin/env python3
"""What the disk does while a model decodes: the share of a token in which it is busy, its rate then, reads under way.

    python benchmarks/decode_disk.py MODEL.gguf --ram 24 --threads 32 8
    python benchmarks/decode_disk.py MODEL.gguf --ram 24 --threads 32 30 8 --against ../before --spin 1000 0 --curve 32

A low share of busy time means that reads are asked for too late; a low rate beside computing, that the disk (or who
serves it) gives no more then. Each version and each `--spin` (GOMP_SPINCOUNT: turns that llama.cpp's threads wait
before they sleep; 0: GNU's own) is a load of its own; thread counts take turns within it. The bound is the full
overlap's, `1 / max(computing, bytes / probed rate)`. Figures of the disk are the kernel's (/sys/block/*/stat) and None
where it has none. `--curve N` tells first what the disk gives at several depths and sizes of reads, alone and beside N
busy processes. Parts of the hook are timed over tokens of their own, which are slower.
"""

from __future__ import annotations

import argparse
import ctypes as C
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from hook_cost import GIB, Clock  # noqa: E402

KEYS = (
    "ms", "compute_ms", "stall_ms", "hook_ms", "mb", "hits", "disk_busy", "disk_gb_s", "under_way", "read_kib", "share",
)  # fmt: skip


def counted() -> dict[str, list[int]]:
    """The kernel's counters of each block device."""
    out = {}
    for path in Path("/sys/block").glob("*/stat"):
        try:
            out[path.parent.name] = [int(x) for x in path.read_text().split()]
        except (OSError, ValueError):
            continue
    return out


def disk_between(before: dict[str, list[int]], after: dict[str, list[int]], seconds: float) -> dict[str, float | None]:
    """What the device that read most did meanwhile: the share of the time in which it was busy, GB/s while it was,
    requests under way then, KiB of a request."""
    grown = {
        name: [b - a for a, b in zip(before[name], now, strict=True)] for name, now in after.items() if name in before
    }
    name = max(grown, key=lambda n: grown[n][2], default=None)
    reads, _, sectors, waited = grown[name][:4] if name is not None else (0, 0, 0, 0)
    if name is None or not reads or not grown[name][9]:
        return dict.fromkeys(("disk_busy", "disk_gb_s", "under_way", "read_kib"))
    busy = grown[name][9] / 1e3
    return {
        "disk_busy": round(busy / seconds, 3), "disk_gb_s": round(sectors * 512 / busy / 1e9, 3),
        "under_way": round(waited / 1e3 / busy, 1), "read_kib": round(sectors / 2 / reads),
    }  # fmt: skip


# ---- the disk alone --------------------------------------------------------------------------------------------------


def read_rate(path: str, *, depth: int, seconds: float, parts: int = 1, memory: int = 64 << 20) -> dict[str, float]:
    """Reads of an expert's matrix, or of so many parts of one, always `depth` under way, into `memory` bytes by turns:
    GB/s and the median time of one in ms."""
    from backends.gguf.file import EXPERT_WEIGHT, read_gguf
    from backends.system import libc
    from backends.system.reader import open_reader

    gguf = read_gguf(path)
    slices = []
    for t in gguf.tensors:
        if EXPERT_WEIGHT.match(t.name):
            size = t.nbytes // t.dims[-1]
            slices += [(t.file, t.offset + i * size, size) for i in range(t.dims[-1])]
    fds = [os.open(p, os.O_RDONLY | os.O_DIRECT) for p in gguf.files]
    size = max(s for _, _, s in slices) // parts // libc.PAGE * libc.PAGE
    stride = size + libc.PAGE
    slots = max(depth, memory // stride)
    length = -(-slots * stride // (2 << 20)) * (2 << 20)
    region = libc.reserve(length + (2 << 20))
    base = -(-region // (2 << 20)) * (2 << 20)
    libc.prefer_huge(base, base + length)
    C.memset(base, 0, length)
    reader, rng = open_reader(), random.Random(depth * 97 + parts)
    begun: dict[int, float] = {}
    times: list[float] = []
    tag = done = 0
    started = time.perf_counter()
    try:
        while (now := time.perf_counter()) - started < seconds or begun:
            batch = []
            while now - started < seconds and len(begun) < depth:
                file, offset, _ = rng.choice(slices)
                offset += size * rng.randrange(parts)
                batch.append((tag, fds[file], base + tag % slots * stride, size, offset - offset % libc.PAGE, size))
                begun[tag] = now
                tag += 1
            if batch:
                reader.submit(batch)
            for finished, code in reader.collect(1):
                if code:
                    raise OSError(code, os.strerror(max(0, code)))
                times.append(time.perf_counter() - begun.pop(finished))
                done += size
        took = time.perf_counter() - started
    finally:
        reader.close()
        libc.munmap(region, length + (2 << 20))
        for fd in fds:
            os.close(fd)
    return {"gb_s": round(done / took / 1e9, 3), "one_ms": round(1e3 * statistics.median(times), 2)}


def curve(path: str, busy: int, seconds: float) -> None:
    """Prints the disk's rate by depth and size, into memory that is in the caches and into much more, and beside busy
    processes."""
    for depth in (1, 2, 4, 8, 16, 30, 60):
        print(json.dumps({"depth": depth, **read_rate(path, depth=depth, seconds=seconds)}), flush=True)
    for depth in (4, 32, 96):
        quarters = read_rate(path, depth=depth, seconds=seconds, parts=4)
        print(json.dumps({"depth": depth, "of": 4, **quarters}), flush=True)
    cold = {"depth": 30, "into_gib": 3, **read_rate(path, depth=30, seconds=2 * seconds, memory=3 * GIB)}
    print(json.dumps(cold), flush=True)
    spin = "import numpy as n\na = n.ones(1 << 23, n.float32)\nwhile 1: a.sum()"
    for count in sorted({busy, max(1, busy - 2), max(1, busy // 4)}, reverse=True) if busy else ():
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        others = [subprocess.Popen([sys.executable, "-c", spin], env=env) for _ in range(count)]
        try:
            time.sleep(1.0)
            print(json.dumps({"depth": 30, "beside": count, **read_rate(path, depth=30, seconds=seconds)}), flush=True)
        finally:
            for other in others:
                other.kill()
            for other in others:
                other.wait()


# ---- decode ----------------------------------------------------------------------------------------------------------


def set_threads(model: Any, n: int) -> None:
    """From now on llama.cpp and the guesses compute with so many threads."""
    from backends.llamacpp import native
    from backends.llamacpp.abi import declare, in_use

    native.lib().llama_set_n_threads(model.context.pointer, n, n)
    model.context.n_threads = n
    kernels = model._parts.hook._predictor._kernels
    if kernels is not None:
        declare(in_use(), "ggml_backend_cpu_set_n_threads", None, C.c_void_p, C.c_int)(kernels._backend, n)


def huge_share() -> float | None:
    """The share of this process's anonymous memory that lies in huge pages."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        anonymous, huge = (int(lines[k].split()[0]) for k in ("Anonymous", "AnonHugePages"))
    except (OSError, KeyError, ValueError):
        return None
    return round(huge / max(1, anonymous), 3)


def measure(o: argparse.Namespace) -> None:
    """One load in this process; prints a row for each number of threads and round."""
    sys.path.insert(0, str(o.tree))
    import numpy as np

    from backends.gguf.file import read_gguf
    from backends.interface import LoadRequest
    from backends.llamacpp.context import Batch
    from backends.registry import load
    from backends.system import procfs, reader
    from backends.system.disk_probe import disk_bytes_per_second

    for setting in o.set or ():
        name, value = setting.split("=")
        owner = next(kind for kind in vars(reader).values() if isinstance(kind, type) and name in vars(kind))
        setattr(owner, name, int(value))
    clock = Clock(time.perf_counter)
    if o.parts:
        clock.install()
    request = LoadRequest(
        path=o.model, backend="stream", store="pool", n_ctx=1024, ram_bytes=int(o.ram * GIB), n_threads=max(o.threads),
        n_gpu_layers=0,
    )  # fmt: skip
    model: Any = load(request, lambda _: True)
    context, counters = model.context, model._parts.counters
    ids = iter(np.random.default_rng(o.seed).integers(0, context.n_vocab, 1000).tolist())
    position = 0

    def decode(count: int) -> None:
        nonlocal position
        for _ in range(count):
            batch = Batch()
            batch.add(next(ids), position, 0, True)
            context.decode(batch)
            position += 1

    decode(o.settle)
    told: dict[str, Any] = {"huge": huge_share(), "cores": procfs.usable_cpus()}
    rows = []
    for round_ in range(o.rounds):
        for threads in o.threads if round_ % 2 == 0 else o.threads[::-1]:
            set_threads(model, threads)
            decode(3)
            a, disk, started = counters(), counted(), time.perf_counter()
            decode(o.tokens)
            seconds, b, after = time.perf_counter() - started, counters(), counted()
            hits, misses = b.expert_hits - a.expert_hits, b.expert_misses - a.expert_misses
            each = 1e3 / o.tokens
            row = {
                "threads": threads, "ms": each * seconds, "stall_ms": each * (b.stall_s - a.stall_s),
                "hook_ms": each * (b.hook_s - a.hook_s), "mb": (b.read_bytes - a.read_bytes) / o.tokens / 1e6,
                "hits": hits / max(1, hits + misses), **disk_between(disk, after, seconds),
            }  # fmt: skip
            row["compute_ms"] = row["ms"] - row["stall_ms"]
            if o.parts:
                clock.seconds = dict.fromkeys(clock.seconds, 0.0)
                clock.on = True
                decode(o.parts)
                clock.on = False
                row["parts_ms"] = {p: round(1e3 * s / o.parts, 2) for p, s in clock.seconds.items()}
            rows.append(row)
    probed = disk_bytes_per_second(read_gguf(o.model), 2.0)
    for row in rows:
        if probed:
            row["share"] = max(row["compute_ms"] / 1e3, row["mb"] * 1e6 / probed) / (row["ms"] / 1e3)
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
        print(json.dumps({**told, "probed_gb_s": round((probed or 0) / 1e9, 3), **rounded}), flush=True)


def main() -> int:
    here = Path(__file__).resolve().parent.parent
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--ram", type=float, required=True, help="GiB for experts")
    a.add_argument("--threads", type=int, nargs="+", required=True)
    a.add_argument("--settle", type=int, default=56, help="tokens before those that are measured")
    a.add_argument("--tokens", type=int, default=12, help="of each row")
    a.add_argument("--parts", type=int, default=0, help="tokens over which the hook's parts are timed")
    a.add_argument("--rounds", type=int, default=1)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--spin", type=int, nargs="+", default=[1000], help="GOMP_SPINCOUNT; 0: not set")
    a.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    a.add_argument("--curve", type=int, metavar="N", help="the disk by depth and size, and beside N busy processes")
    a.add_argument("--seconds", type=float, default=0.7, help="of each point of the curve")
    a.add_argument("--set", nargs="*", metavar="NAME=N", help="other values for constants of the reader's classes")
    a.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    o = a.parse_args()
    if o.tree:
        measure(o)
        sys.stdout.flush()
        os._exit(0)
    if o.curve is not None:
        sys.path.insert(0, str(here))
        curve(o.model, o.curve, o.seconds)
    trees = {"now": here} if o.against is None else {"before": o.against.resolve(), "now": here}
    found: dict[str, list[dict[str, Any]]] = {}
    for spin in o.spin:
        for name, tree in trees.items():
            env = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | {"OPENBLAS_NUM_THREADS": "1"}
            if spin:
                env["GOMP_SPINCOUNT"] = str(spin)
            command = [sys.executable, __file__, *sys.argv[1:], "--tree", str(tree)]
            started = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
            if done.returncode:
                return done.returncode
            for line in done.stdout.splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    found.setdefault(f"{name} spin {spin} threads {row['threads']}", []).append(row)
                    print(json.dumps({"version": name, "spin": spin, **row}), flush=True)
            print(f"# {name}, spin {spin}: {time.perf_counter() - started:.0f} s", flush=True)
    for what, rows in found.items():
        middle = {}
        for key in KEYS:
            values = [row[key] for row in rows if row.get(key) is not None]
            if values:
                middle[key] = round(statistics.median(values), 3)
        print(f"{what}: {middle}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
