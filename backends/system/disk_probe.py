"""What the disk gives, read as the pool of `backends.streaming` reads: the ceiling that benchmarks and plans go by.

Large O_DIRECT reads, many under way at once through the pool's own reader, into memory in huge pages that was touched
before. Each of these counts: into pages of 4 KiB a virtual disk gave a third. No place is read twice as long as there
are others, and every probe draws other ones, so that neither the drive's nor a host's cache answers for the disk.
"""

from __future__ import annotations

import ctypes
import os
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from backends.gguf.file import EXPERT_WEIGHT, GgufFile, read_gguf
from backends.interface import EngineError
from backends.system import libc

BLOCK_BYTES = 1 << 20
"""Size of the reads where there is no model: about one matrix of an expert."""
SCRATCH_BYTES = 256 << 20
"""A smaller file is not worth reading; a scratch file has just this size."""
DEPTH = 24
"""Reads under way where no model tells: three matrices of eight experts."""
_BUFFER_BYTES = 64 << 20
_LEAST_DEPTH = 4
_MOST_BLOCKS = 1 << 15
_HUGE = 2 << 20

Read = tuple[int, int, int]
"""(index of the file, offset, bytes)."""


def disk_bytes_per_second(gguf: GgufFile, seconds: float = 1.0) -> float | None:
    """Bytes per second of expert matrices drawn at random, as many at once as one token wants of a layer; None where
    the file system has no O_DIRECT or the model no experts."""
    reads: list[Read] = []
    names: set[str] = set()
    for tensor in gguf.tensors:
        if EXPERT_WEIGHT.match(tensor.name):
            n = tensor.dims[-1]
            size = tensor.nbytes // n
            names.add(tensor.name.split(".")[-2])
            reads += [(tensor.file, tensor.offset + i * size, size) for i in range(n)]
    return read_at_random([str(path) for path in gguf.files], reads, seconds, max(1, gguf.n_expert_used) * len(names))


def probe_file(path: Path | str, seconds: float = 1.0) -> tuple[float | None, str]:
    """Bytes per second of a file (see `disk_bytes_per_second`), and what was read: a model's experts, else blocks of
    1 MiB of whatever it is."""
    try:
        gguf = read_gguf(path)
        if (speed := disk_bytes_per_second(gguf, seconds)) is not None:
            return speed, "random experts"
    except EngineError:
        pass  # not a model, or one that is not whole: any file's bytes will do
    return _blocks(path, seconds), "random 1 MiB blocks"


def _blocks(path: Path | str, seconds: float) -> float | None:
    try:
        n = Path(path).stat().st_size // BLOCK_BYTES
    except OSError:
        return None
    blocks = random.sample(range(n), min(n, _MOST_BLOCKS))
    return read_at_random([str(path)], [(0, i * BLOCK_BYTES, BLOCK_BYTES) for i in blocks], seconds, DEPTH)


def probe_scratch(folder: Path | str, seconds: float = 1.0) -> float | None:
    """Bytes per second of a nameless file of 256 MiB that is written to `folder` for it. Raises `OSError`."""
    with tempfile.TemporaryFile(dir=folder) as scratch:  # without a name: a kill leaves nothing behind
        block = os.urandom(BLOCK_BYTES)
        for _ in range(SCRATCH_BYTES // BLOCK_BYTES):
            scratch.write(block)
        scratch.flush()
        os.fsync(scratch.fileno())
        return _blocks(f"/proc/self/fd/{scratch.fileno()}", seconds)


def probe_disk(folder: Path | str, files: Iterable[Path | str] = (), seconds: float = 0.8) -> float | None:
    """Bytes per second of the disk below `folder`.

    It reads one of `files` of at least 256 MiB where there is one, else a scratch file. None where the file system has
    no O_DIRECT or nothing can be written.
    """
    if not hasattr(os, "O_DIRECT"):
        return None
    for file in files:
        try:
            info = Path(file).stat()
        except OSError:
            continue
        if SCRATCH_BYTES <= info.st_size <= info.st_blocks * 512 * 1.05:  # a sparse file reads holes, at any speed
            return probe_file(file, seconds)[0]
    try:
        return probe_scratch(folder, seconds)
    except OSError:
        return None


def read_at_random(paths: Sequence[str], reads: Sequence[Read], seconds: float, depth: int) -> float | None:
    """Bytes per second of `reads` in random order, `depth` of them under way; None where they can't be read so.

    The memory for them is at most 64 MiB (four reads where these are larger): fewer are then under way.
    """
    if not reads or not hasattr(os, "O_DIRECT"):
        return None
    fds: list[int] = []
    try:
        for path in paths:
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))  # noqa: PERF401 - one may fail
        return _measure(fds, reads, seconds, depth)
    except OSError:
        return None
    finally:
        for fd in fds:
            os.close(fd)


def _measure(fds: Sequence[int], reads: Sequence[Read], seconds: float, depth: int) -> float | None:
    # with numpy, a tenth of a second that only measuring needs
    from backends.system.reader import Request, open_reader

    align = libc.direct_io_alignment(fds[0])[0]
    largest = max(size for _, _, size in reads)
    stride = (largest // libc.PAGE + 2) * libc.PAGE
    depth = max(_LEAST_DEPTH, min(depth, _BUFFER_BYTES // stride))
    length = -(-depth * stride // _HUGE) * _HUGE
    region = libc.reserve(length + _HUGE)
    try:
        base = -(-region // _HUGE) * _HUGE
        libc.prefer_huge(base, base + length)
        ctypes.memset(base, 0, length)  # a pool's slots were in use before, too
        reader = open_reader()
        try:
            left: list[Read] = []

            def request(slot: int) -> Request:
                if not left:
                    left.extend(random.sample(reads, len(reads)))
                file, offset, size = left.pop()
                start = offset - offset % align
                end = offset + size
                return slot, fds[file], base + slot * stride, -(-(end - start) // align) * align, start, end - start

            free, asked, done = list(range(depth)), [0] * depth, 0
            started = time.perf_counter()
            while True:
                if time.perf_counter() - started < seconds:
                    batch = [request(slot) for slot in free]
                    for slot, _, _, length_asked, _, _ in batch:
                        asked[slot] = length_asked
                    free.clear()
                    reader.submit(batch)
                if len(free) == depth:
                    return done / (time.perf_counter() - started)
                for slot, code in reader.collect(1):
                    if code:
                        return None
                    done += asked[slot]
                    free.append(slot)
        finally:
            reader.close()  # waits for what is under way: only then may its memory go
    finally:
        libc.munmap(region, length + _HUGE)
