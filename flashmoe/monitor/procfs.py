"""Readers of /proc and of cgroups: None, or None fields, for what this kernel or container doesn't tell."""

from __future__ import annotations

import os
from pathlib import Path

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


class CgroupMemory:
    """The memory cgroup (v2 or v1) with the least limit among those around a process.

    Found once: a process rarely moves. Reading costs two small files.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._limit_file: Path | None = None
        self._usage_file: Path | None = None
        self._stat_file: Path | None = None
        self._cache_keys: tuple[str, ...] = ()
        best: int | None = None
        for version, folder, root in self._folders(pid):
            names = (
                ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            )
            while True:
                limit = self._number(folder / names[0])
                # v1 says "no limit" as a number near 2**63
                if limit is not None and limit < 2**60 and (best is None or limit < best):
                    best = limit
                    self._limit_file, self._usage_file = folder / names[0], folder / names[1]
                    self._stat_file = folder / "memory.stat"
                    self._cache_keys = ("file",) if version == 2 else ("total_cache", "cache")
                if folder == root or root not in folder.parents:
                    break
                folder = folder.parent

    @staticmethod
    def _number(path: Path) -> int | None:
        text = (_text(str(path)) or "").strip()
        return int(text) if text.isdigit() else None

    @staticmethod
    def _folders(pid: int | None) -> list[tuple[int, Path, Path]]:
        """(version, the process's folder, the mount's root) of each hierarchy that can limit memory."""
        who = str(pid) if pid else "self"
        mounts: dict[int, tuple[str, Path]] = {}
        for line in (_text("/proc/self/mountinfo") or "").splitlines():
            left, _, right = line.partition(" - ")
            fields, kinds = left.split(), right.split()
            if len(fields) < 5 or len(kinds) < 3:
                continue
            if kinds[0] == "cgroup2":
                mounts[2] = (fields[3], Path(fields[4]))
            elif kinds[0] == "cgroup" and "memory" in kinds[-1].split(","):
                mounts[1] = (fields[3], Path(fields[4]))
        found: list[tuple[int, Path, Path]] = []
        for line in (_text(f"/proc/{who}/cgroup") or "").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            version = 2 if number == "0" and not controllers else 1
            if version == 1 and "memory" not in controllers.split(","):
                continue
            if version in mounts and ".." not in path:
                mount_root, mount = mounts[version]
                inside = path[len(mount_root) :] if mount_root != "/" and path.startswith(mount_root) else path
                folder = mount / inside.lstrip("/")
                found.append((version, folder if folder.is_dir() else mount, mount))
        return found

    def read(self) -> tuple[int | None, int | None, int | None]:
        """(limit, used, page cache among the used) in bytes; all None where nothing limits."""
        if self._limit_file is None or self._usage_file is None:
            return None, None, None
        stat = _values(_text(str(self._stat_file)), self._cache_keys, " ")
        cached = next((stat[key] for key in self._cache_keys if key in stat), None)
        return self._number(self._limit_file), self._number(self._usage_file), cached


def usable_cpus(pid: int | None = None) -> int | None:
    """CPUs that a process may run on (its affinity); quotas are not counted."""
    try:
        return len(os.sched_getaffinity(pid or 0))
    except OSError:
        return os.cpu_count()
