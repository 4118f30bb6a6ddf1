"""What the kernel says about this process and about files: counters, page cache residency, memory limits."""

from __future__ import annotations

import ctypes as C
import os
import platform
from pathlib import Path

_CACHESTAT = 451  # the same number on every architecture
_libc = C.CDLL(None, use_errno=True)
_libc.syscall.restype = C.c_long


class _Range(C.Structure):
    _fields_ = [("off", C.c_uint64), ("len", C.c_uint64)]


class _Stat(C.Structure):
    _fields_ = [
        ("nr_cache", C.c_uint64),
        ("nr_dirty", C.c_uint64),
        ("nr_writeback", C.c_uint64),
        ("nr_evicted", C.c_uint64),
        ("nr_recently_evicted", C.c_uint64),
    ]


def read_bytes() -> int | None:
    """Bytes this process fetched from storage, page faults included (``/proc/self/io``); None where not told."""
    try:
        text = Path("/proc/self/io").read_text()
        return int(text.split("\nread_bytes: ")[1].split("\n")[0])
    except (OSError, IndexError, ValueError):
        return None


def major_faults() -> int | None:
    """Page faults of this process that had to wait for storage."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[9])
    except (OSError, IndexError, ValueError):
        return None


def peak_rss_bytes() -> int | None:
    """The most memory that was resident at once, mapped file pages included (VmHWM)."""
    return _status_bytes("VmHWM")


def anonymous_bytes() -> int | None:
    """Resident memory that no file backs (RssAnon)."""
    return _status_bytes("RssAnon")


def _status_bytes(key: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    return None


def cached_bytes(fd: int, offset: int, length: int) -> int | None:
    """Bytes of a file's range that are in the page cache (cachestat, Linux 6.5); None where the kernel has no such
    call."""
    if platform.system() != "Linux":
        return None
    span, stat = _Range(offset, length), _Stat()
    if _libc.syscall(_CACHESTAT, fd, C.byref(span), C.byref(stat), 0) != 0:
        return None
    return min(int(stat.nr_cache) * os.sysconf("SC_PAGE_SIZE"), length)


def available_memory() -> int | None:
    """Bytes that can be allocated without pushing anything but page cache out: the machine's, or the cgroup's if
    less."""
    available: int | None = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    for limit, used in cgroup_memory():
        room = max(0, limit - used)
        available = room if available is None else min(available, room)
    return available


def cgroup_memory() -> list[tuple[int, int]]:
    """(limit, bytes in use that reclaim can't take) of each cgroup above this process that has a limit."""
    found: list[tuple[int, int]] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            root, limit_name, stat_key = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "total_rss"
        elif controllers == "":
            root, limit_name, stat_key = Path("/sys/fs/cgroup"), "memory.max", "anon"
        else:
            continue
        folder = root / path.lstrip("/")
        while folder == root or root in folder.parents:
            try:
                text = (folder / limit_name).read_text().strip()
                if text != "max" and int(text) < 1 << 60:
                    stat = dict(row.split()[:2] for row in (folder / "memory.stat").read_text().splitlines())
                    found.append((int(text), int(stat.get(stat_key, 0))))
            except (OSError, ValueError):
                pass
            folder = folder.parent
    return found


def usable_cpus() -> int:
    """Physical cores that this process may use: its affinity, one thread of each core, less by a cgroup's CPU quota."""
    try:
        allowed = os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return max(1, os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        try:
            base = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
            siblings = (base / "thread_siblings_list").read_text().strip()
            cores.add(siblings)
        except OSError:
            cores.add(str(cpu))
    count = max(1, len(cores))
    quota = _cpu_quota()
    return max(1, min(count, int(quota))) if quota else count


def _cpu_quota() -> float | None:
    try:
        text = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if text[0] != "max":
            return max(1.0, int(text[0]) / int(text[1]))
    except (OSError, ValueError, IndexError):
        pass
    try:
        quota = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        if quota > 0:
            return max(1.0, quota / period)
    except (OSError, ValueError):
        pass
    return None
