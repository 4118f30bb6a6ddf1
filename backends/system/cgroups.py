"""The memory cgroups (v2 or v1) around a process: limits, what is used of them, kills for lack of memory.

None, or nothing, for what this kernel or container doesn't tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60
"""Version 1 says "no limit" as a number near 2**63."""


def _text(path: Path | str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(65536).decode("ascii", "replace")
    except OSError:
        return None


def _pairs(path: Path) -> dict[str, int]:
    """The lines ``name number`` of a file."""
    rows = [line.split() for line in (_text(path) or "").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def folders(pid: int | None = None, controller: str = "memory") -> list[tuple[int, Path, Path]]:
    """(version, the process's folder, the mount's root) of each hierarchy that can limit memory, or what `controller`
    says."""
    who = str(pid) if pid else "self"
    mounts: dict[int, tuple[str, Path]] = {}
    for line in (_text("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2":
            mounts[2] = (fields[3], Path(fields[4]))
        elif kinds[0] == "cgroup" and controller in kinds[-1].split(","):
            mounts[1] = (fields[3], Path(fields[4]))
    found: list[tuple[int, Path, Path]] = []
    for line in (_text(f"/proc/{who}/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        if version in mounts and ".." not in path:
            mount_root, mount = mounts[version]
            inside = path[len(mount_root) :] if mount_root != "/" and path.startswith(mount_root) else path
            folder = mount / inside.lstrip("/")
            found.append((version, folder if folder.is_dir() else mount, mount))
    return found


def _levels(pid: int | None = None, controller: str = "memory") -> Iterator[tuple[int, Path]]:
    """(version, folder) from a process's own cgroup up to the mount's root."""
    for version, inner, root in folders(pid, controller):
        folder = inner
        while True:
            yield version, folder
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent


def cpu_quota() -> float | None:
    """CPUs' worth of time that this process may use by the narrowest quota above it; None without one."""
    found = []
    for version, folder in _levels(controller="cpu"):
        if version == 2:
            quota, _, period = (_text(folder / "cpu.max") or "").strip().partition(" ")
        else:
            quota, period = ((_text(folder / f"cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _limit(version: int, folder: Path) -> int | None:
    limit = _number(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
    return limit if limit is not None and limit < _NO_LIMIT else None


def memory_limits() -> list[tuple[int, int]]:
    """(limit, bytes in use that reclaim can't take) of each cgroup above this process that has a limit."""
    found = []
    for version, folder in _levels():
        limit = _limit(version, folder)
        if limit is not None:
            found.append((limit, _pairs(folder / "memory.stat").get("anon" if version == 2 else "total_rss", 0)))
    return found


def oom_kills() -> int:
    """Kills for lack of memory that the kernel counts, of this machine and of the cgroup that this process is in."""
    total = _pairs(Path("/proc/vmstat")).get("oom_kill", 0)
    for version, folder, _ in folders():
        name = "memory.events" if version == 2 else "memory.oom_control"
        total += _pairs(folder / name).get("oom_kill", 0)
    return total


class CgroupMemory:
    """The memory cgroup with the least limit among those around a process.

    Found once: a process rarely moves. Reading costs two small files.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._limit_file: Path | None = None
        self._usage_file: Path | None = None
        self._stat_file: Path | None = None
        self._cache_keys: tuple[str, ...] = ()
        best: int | None = None
        for version, folder in _levels(pid):
            limit = _limit(version, folder)
            if limit is not None and (best is None or limit < best):
                best = limit
                names = ("memory.max", "memory.current")
                if version == 1:
                    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
                self._limit_file, self._usage_file = folder / names[0], folder / names[1]
                self._stat_file = folder / "memory.stat"
                self._cache_keys = ("file",) if version == 2 else ("total_cache", "cache")

    def read(self) -> tuple[int | None, int | None, int | None]:
        """(limit, used, page cache among the used) in bytes; all None where nothing limits."""
        if self._limit_file is None or self._usage_file is None:
            return None, None, None
        stat = _pairs(self._stat_file) if self._stat_file else {}
        cached = next((stat[key] for key in self._cache_keys if key in stat), None)
        return _number(self._limit_file), _number(self._usage_file), cached
