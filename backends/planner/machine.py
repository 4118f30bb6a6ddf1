"""What this machine has for a model: memory (also a cgroup's), cores, GPUs, the disk, and how fast they are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from backends.planner.repack import Gain
from backends.system import cgroups, procfs


class Gpu(Struct, frozen=True):
    """A GPU that llama.cpp could use."""

    name: str
    total_bytes: int
    free_bytes: int


class Machine(Struct, frozen=True, kw_only=True):
    """Figures that a plan rests on. None: not known, and never taken for zero."""

    ram_total: int
    """The machine's, or the cgroup's limit where that is less."""
    ram_available: int
    """What can be had without pushing anything but page cache out."""
    cores: int
    gpus: tuple[Gpu, ...] = ()
    """Empty also where the installed llama.cpp can't use a GPU."""
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
    def detect(folder: Path | str | None = None) -> Machine:
        """Reads what can be read without measuring; `folder` is where models are (or will be)."""
        total, available = _memory()
        return Machine(
            ram_total=total,
            ram_available=available,
            cores=procfs.usable_cpus(),
            gpus=tuple(_gpus()) if llama_builds() else (),
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


def llama_builds() -> tuple[str, ...]:
    """The kinds of GPU that the installed llama.cpp was built for; looks at its files, loads nothing."""
    spec = importlib.util.find_spec("llama_cpp")
    places = list(spec.submodule_search_locations or ()) if spec else []
    kinds = ("cuda", "hip", "vulkan", "metal", "sycl", "musa")
    return tuple(k for k in kinds if any(any((Path(place) / "lib").glob(f"*ggml-{k}*")) for place in places))


def _gpus() -> Iterable[Gpu]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no library, no permission: all mean no GPU to plan with
        return
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        for i in visible_cards([_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]):
            handle = handles[i]
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            yield Gpu(_text(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))
    except Exception:
        return
    finally:
        pynvml.nvmlShutdown()


def _text(given: str | bytes) -> str:
    return given if isinstance(given, str) else given.decode("utf-8", "replace")


def visible_cards(uuids: Sequence[str]) -> list[int]:
    """Of NVIDIA's cards those that CUDA shows, in its order: ``CUDA_VISIBLE_DEVICES`` names them by number or UUID (or
    the start of one), and whatever stands behind a name that fits no card doesn't count."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return list(range(len(uuids)))
    shown: list[int] = []
    for word in (part.strip() for part in asked.split(",")):
        fitting = [i for i, uuid in enumerate(uuids) if word.startswith("GPU-") and uuid.startswith(word)]
        if word.isdecimal() and int(word) < len(uuids):
            fitting = [int(word)]
        if len(fitting) != 1:
            break
        shown += fitting
    return shown


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
