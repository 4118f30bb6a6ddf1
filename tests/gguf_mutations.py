"""Damaged GGUF headers by the thousand, and a run over them whose memory is capped.

``python -m tests.gguf_mutations SEED_FILE N`` parses and plans N mutations in this process and prints one JSON object:
the outcomes by error code, the slowest parse in CPU seconds, the growth of the resident set in bytes, and every
exception that is not an `EngineError`.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from backends.gguf.cursor import BytesSource
from backends.gguf.file import from_headers
from backends.gguf.header import read_header
from backends.interface import EngineError
from backends.planner.machine import Machine
from backends.planner.plan import PlanRequest, plan

MACHINE = Machine(ram_total=16 << 30, ram_available=12 << 30, cores=4, disk_free=1 << 40, disk_bytes_s=1e9)
EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 20, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1)
EXTREMES += (1 << 63, (1 << 64) - 1, (1 << 64) - 32)


def field_offsets(data: bytes) -> list[int]:
    """Where counts, lengths, types and dimensions are: small little-endian numbers, most of a header's structure."""
    return [i for i in range(4, len(data) - 8) if data[i + 1 : i + 4] == b"\0\0\0" and data[i]]


def mutate(data: bytes, offsets: list[int], rng: np.random.Generator) -> bytes:
    """One damaged copy: flipped bits, extreme numbers where the structure is, cuts and repeats, up to four."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(out))) if rng.random() < 0.3 else int(rng.choice(offsets)) % len(out)
        kind = rng.integers(7)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind in (1, 2):
            size = 8 if kind == 1 else 4
            value = EXTREMES[int(rng.integers(len(EXTREMES)))] & ((1 << 8 * size) - 1)
            out[at : at + size] = struct.pack("<Q", value)[:size]
        elif kind == 3:
            out[at : at + 4] = rng.bytes(4)
        elif kind == 4:
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == 5:
            out[at:at] = out[at : at + int(rng.integers(1, 256))]
        else:
            del out[max(1, at) :]
    return bytes(out)


def attempt(name: str, data: bytes, size: int | None) -> str:
    """Parses and plans one header as the product does; returns ``ok`` or the error's code."""
    try:
        header = read_header(BytesSource(name, data, size))
        plan(from_headers([name], [header], header.end), MACHINE, PlanRequest(n_ctx=1 << 20))
    except EngineError as error:
        if not error.message or "\n" in error.message or not error.message.isprintable():
            raise AssertionError(f"unprintable: {error.message!a}") from error
        return error.code
    return "ok"


def run(seed_file: Path, n: int) -> dict[str, object]:
    """Parses `n` mutations of the header of `seed_file`."""
    data = seed_file.read_bytes()
    data = data[: read_header(BytesSource("seed", data)).data_offset]
    offsets = field_offsets(data)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    slowest = 0.0
    attempt("warm up", data, None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(n):
        mutated = mutate(data, offsets, np.random.default_rng(i))
        started = time.process_time()
        try:
            # every other one pretends to be a large file of which only the start was fetched
            outcomes[attempt("mutated.gguf", mutated, None if i % 2 else 1 << 40)] += 1
        except Exception:
            failures.append(f"{i}: {traceback.format_exc()}")
        slowest = max(slowest, time.process_time() - started)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"outcomes": outcomes, "failures": failures[:3], "slowest_cpu_s": slowest, "rss_growth_bytes": grown}


if __name__ == "__main__":
    vm = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (vm + (200 << 20), vm + (200 << 20)))
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))))
