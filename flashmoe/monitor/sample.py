"""What one look at the machine and the engine found: plain counters, typed, with None for what can't be known.

A `Sample` holds counters as they stand, never rates: whoever wants a rate takes the difference of two. So a recording
holds exactly what was measured, and the same code computes the same curves live and in replay. Units: bytes, seconds.
"""

from __future__ import annotations

from msgspec import Struct

from backends.interface import Telemetry


class ProcessCounters(Struct, kw_only=True, frozen=True):
    """The engine's process, from /proc/<pid>."""

    pid: int
    read_bytes: int | None = None
    """Bytes fetched from storage for this process, page faults included (io: read_bytes)."""
    cpu_s: float | None = None
    """User and system time of all threads."""
    major_faults: int | None = None
    rss_anon: int | None = None
    """Resident memory of its own: heap, KV cache, buffers."""
    rss_shmem: int | None = None
    """Resident shared memory of its own (the pool's memfd)."""
    rss_file: int | None = None
    """Resident file mappings: page cache that the process has mapped, which the kernel may take back."""
    swap: int | None = None
    threads: int | None = None


class MemoryCounters(Struct, kw_only=True, frozen=True):
    """The machine's memory from /proc/meminfo, and the limit of the cgroup around the engine where there is one."""

    total: int
    available: int
    free: int
    cached: int
    """Page cache: Cached + Buffers, less shared memory."""
    swap_total: int = 0
    swap_free: int = 0
    limit: int | None = None
    """The least memory limit of the cgroups around the engine; None: none below the machine's memory."""
    limit_used: int | None = None
    """What is charged to that cgroup, page cache included."""
    limit_cached: int | None = None
    """The part of it that is page cache."""


class Pressure(Struct, kw_only=True, frozen=True):
    """Seconds since boot that tasks were stalled (/proc/pressure): `some` any task, `full` all of them."""

    memory_some_s: float | None = None
    memory_full_s: float | None = None
    io_some_s: float | None = None
    io_full_s: float | None = None
    cpu_some_s: float | None = None


class DiskCounters(Struct, kw_only=True, frozen=True):
    """The whole device that the model's file is on, everybody's requests together."""

    name: str
    read_bytes: int
    reads: int
    read_s: float
    """Seconds that reads took, summed over reads: the latency is its difference over that of `reads`."""
    busy_s: float


class Gpu(Struct, kw_only=True, frozen=True):
    """One GPU. `engine_used` is None where the driver doesn't tell processes apart (containers)."""

    index: int
    name: str
    total: int
    used: int
    engine_used: int | None = None
    busy: float | None = None
    """Share of the last moment with a kernel running, 0 to 1."""


class Sample(Struct, kw_only=True, frozen=True):
    """One look. `t` is seconds of the monotonic clock, `wall` seconds since 1970."""

    t: float
    wall: float
    memory: MemoryCounters | None = None
    process: ProcessCounters | None = None
    pressure: Pressure | None = None
    disk: DiskCounters | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str | None = None
    """Why there is no VRAM figure, in a few words."""
    model_cached: int | None = None
    """Bytes of the model's files that are in the page cache."""
    telemetry: Telemetry | None = None
    cpus: int | None = None
    """CPUs that the engine may use."""
