"""What the kernel says about this process and about files: counters, page cache residency, memory limits."""

from __future__ import annotations

import os
from pathlib import Path

from backends.system import cgroups


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
    for limit, used in cgroups.memory_limits():
        room = max(0, limit - used)
        available = room if available is None else min(available, room)
    return available


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
    quota = cgroups.cpu_quota()
    return max(1, min(count, int(quota))) if quota else count
