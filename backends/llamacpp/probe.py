"""What the disk gives: random reads of one expert's size from the model's own file, past the page cache."""

from __future__ import annotations

import mmap
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

from backends.gguf_file import EXPERT_WEIGHT, GgufFile

_PAGE = 4096


def disk_bytes_per_second(gguf: GgufFile, seconds: float = 1.0, threads: int = 8) -> float | None:
    """Bytes per second of parallel O_DIRECT reads of expert matrices drawn at random; None where the file system has no
    O_DIRECT or the model no experts."""
    slices = []
    for tensor in gguf.tensors:
        if EXPERT_WEIGHT.match(tensor.name):
            n = tensor.dims[-1]
            size = tensor.nbytes // n
            slices += [(tensor.file, tensor.offset + i * size, size) for i in range(n)]
    if not slices or not hasattr(os, "O_DIRECT"):
        return None
    try:
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC) for path in gguf.files]
    except OSError:
        return None
    deadline = 0.0

    def read(worker: int) -> int:
        rng, done = random.Random(worker), 0
        largest = max(size for _, _, size in slices)
        with mmap.mmap(-1, (largest // _PAGE + 3) * _PAGE) as buffer:
            view = memoryview(buffer)
            try:
                while time.perf_counter() < deadline:
                    file, offset, size = rng.choice(slices)
                    start = offset // _PAGE * _PAGE
                    length = -(-(offset + size - start) // _PAGE) * _PAGE
                    done += os.preadv(fds[file], [view[:length]], start)
            finally:
                view.release()
        return done

    try:
        started = time.perf_counter()
        deadline = started + seconds
        with ThreadPoolExecutor(threads) as pool:
            total = sum(pool.map(read, range(threads)))
        return total / (time.perf_counter() - started)
    except OSError:
        return None
    finally:
        for fd in fds:
            os.close(fd)
