"""Readers of /proc and of cgroups: None, or None fields, for what this kernel or container doesn't tell."""

from __future__ import annotations

import os

from backends.system.cgroups import CgroupMemory
from flashmoe.monitor.sample import MemoryCounters, Pressure, ProcessCounters

_TICKS = os.sysconf("SC_CLK_TCK")
_KIB = 1024
_STATUS = ("RssAnon", "RssShmem", "RssFile", "VmSwap")
_IO = ("read_bytes",)
_MEMINFO = ("MemTotal", "MemAvailable", "MemFree", "Cached", "Buffers", "Shmem", "SwapTotal", "SwapFree")


def _text(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(65536).decode("ascii", "replace")
    except OSError:
        return None


def _values(text: str | None, keys: tuple[str, ...], after: str = ":") -> dict[str, int]:
    """The values of lines ``Name:  123 kB`` as bytes (without a unit as they are), of the keys that are there.

    Each key is searched for: these files have 60 lines of which a handful matter, many times a minute.
    """
    values: dict[str, int] = {}
    if text is None:
        return values
    text = "\n" + text
    for key in keys:
        at = text.find(f"\n{key}{after}")
        if at < 0:
            continue
        start = at + len(key) + 1 + len(after)
        end = text.find("\n", start)
        parts = text[start : end if end >= 0 else len(text)].split()
        if parts and parts[0].isdigit():
            values[key] = int(parts[0]) * (_KIB if len(parts) > 1 and parts[1] == "kB" else 1)
    return values


def process(pid: int) -> ProcessCounters | None:
    """The counters of a live process; None once it is gone."""
    stat = _text(f"/proc/{pid}/stat")
    if stat is None or ")" not in stat:
        return None
    # The command's name may hold spaces and brackets: the fields start after the last one.
    fields = stat.rsplit(")", 1)[1].split()
    if len(fields) < 18 or fields[0] == "Z":
        return None
    status = _values(_text(f"/proc/{pid}/status"), _STATUS)
    io = _values(_text(f"/proc/{pid}/io"), _IO)
    return ProcessCounters(
        pid=pid,
        read_bytes=io.get("read_bytes"),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        major_faults=int(fields[9]),
        rss_anon=status.get("RssAnon"),
        rss_shmem=status.get("RssShmem"),
        rss_file=status.get("RssFile"),
        swap=status.get("VmSwap"),
        threads=int(fields[17]),
    )


def memory(limits: CgroupMemory | None = None) -> MemoryCounters | None:
    """The machine's memory, with the cgroup's limit where `limits` has one."""
    info = _values(_text("/proc/meminfo"), _MEMINFO)
    if "MemTotal" not in info:
        return None
    limit, used, cached = limits.read() if limits else (None, None, None)
    return MemoryCounters(
        total=info["MemTotal"],
        available=info.get("MemAvailable", info.get("MemFree", 0)),
        free=info.get("MemFree", 0),
        cached=max(0, info.get("Cached", 0) + info.get("Buffers", 0) - info.get("Shmem", 0)),
        swap_total=info.get("SwapTotal", 0),
        swap_free=info.get("SwapFree", 0),
        limit=limit if limit is not None and limit < info["MemTotal"] else None,
        limit_used=used,
        limit_cached=cached,
    )


def _stalled(name: str) -> tuple[float | None, float | None]:
    some = full = None
    for line in (_text(f"/proc/pressure/{name}") or "").splitlines():
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if total.isdigit():
            if kind == "some":
                some = int(total) / 1e6
            elif kind == "full":
                full = int(total) / 1e6
    return some, full


def pressure() -> Pressure | None:
    """Stall times since boot; None where the kernel was built without PSI."""
    memory_some, memory_full = _stalled("memory")
    io_some, io_full = _stalled("io")
    if memory_some is None and io_some is None:
        return None
    return Pressure(
        memory_some_s=memory_some,
        memory_full_s=memory_full,
        io_some_s=io_some,
        io_full_s=io_full,
        cpu_some_s=_stalled("cpu")[0],
    )


def usable_cpus(pid: int | None = None) -> int | None:
    """CPUs that a process may run on (its affinity); quotas are not counted."""
    try:
        return len(os.sched_getaffinity(pid or 0))
    except OSError:
        return os.cpu_count()
