"""What this machine has for a model: memory (also a cgroup's), cores, GPUs, the disk, and how fast they are."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from msgspec import Struct

from backends.planner.gpus import NONE, usable_gpus
from backends.planner.gpus import Gpu as Gpu
from backends.planner.repack import Gain
from backends.system import cgroups, procfs


class Machine(Struct, frozen=True, kw_only=True):
    """Figures that a plan rests on. None: not known, and never taken for zero."""

    ram_total: int
    """The machine's, or the cgroup's limit where that is less."""
    ram_available: int
    """What can be had without pushing anything but page cache out."""
    cores: int
    gpus: tuple[Gpu, ...] = ()
    """Cards with memory of their own; empty also where the installed llama.cpp can't use a GPU."""
    integrated_gpu: bool = False
    """Layers would go to a GPU in the processor, which takes them into the machine's memory."""
    disk_free: int | None = None
    disk_bytes_s: float | None = None
    """What `backends.system.disk_probe` measured: random reads of an expert's matrices (or of 1 MiB), as the pool
    reads."""
    disk_source: str = "not measured"
    """Where `disk_bytes_s` comes from, for the reader of a plan."""
    memory_bytes_s: float | None = None
    """Sequential reads of memory with all cores."""
    compute_scale: float | None = None
    """How fast runs on this machine computed, relative to the formula; None before the first."""
    repack_gains: dict[int, Gain] = {}
    """What repacking gains with a type of weights (``enum ggml_type``), of those that were measured."""

    @staticmethod
    def detect(folder: Path | str | None = None, *, gpus: bool = True) -> Machine:
        """Reads what can be read without measuring; `folder` is where models are (or will be). `gpus`: look for them,
        which may take llama.cpp a second."""
        total, available = _memory()
        found = usable_gpus() if gpus else NONE
        return Machine(
            ram_total=total,
            ram_available=available,
            cores=procfs.usable_cpus(),
            gpus=found.cards,
            integrated_gpu=found.integrated,
            disk_free=disk_free(folder) if folder is not None else None,
        )


def _memory() -> tuple[int, int]:
    """(total, available) bytes of RAM, cgroup limits of both versions included."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        total = 0
    available = procfs.available_memory()
    limits = [limit for limit, _ in cgroups.memory_limits()]
    total = min([total, *limits]) if total else min(limits, default=0)
    return total, total if available is None else min(available, total)


def disk_free(folder: Path | str) -> int | None:
    """Bytes that a user may still write to the file system of `folder`, or of its closest parent that exists."""
    path = Path(folder).absolute()
    for candidate in (path, *path.parents):
        try:
            return shutil.disk_usage(candidate).free
        except OSError:
            continue
    return None


# ---- measuring -----------------------------------------------------------------------------------------------------


def probe_memory(seconds: float = 0.15) -> float:
    """Bytes per second that all cores together read from memory: the bound of a matrix-vector product. 64 MiB."""
    import numpy as np  # a tenth of a second, which only measuring needs

    matrix = np.ones((1024, 16384), dtype=np.float32)
    vector = np.ones(16384, dtype=np.float32)
    matrix @ vector
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        matrix @ vector
        best = max(best, matrix.nbytes / (time.perf_counter() - started))
    return best
