"""The block device under a file, and how much of a file is in the page cache."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from backends.system.libc import cached_bytes
from flashmoe.monitor.sample import DiskCounters

_SECTOR = 512  # the unit of /sys/dev/block/*/stat, whatever the device's own sector size is
_CHUNK = 64 << 20


class Device:
    """The whole disk that holds `path`: of a partition, its parent, since they share the hardware."""

    def __init__(self, path: Path) -> None:
        self.name: str | None = None
        self._stat: Path | None = None
        try:
            number = path.stat().st_dev
        except OSError:
            return
        folder = self._folder(number) or self._from_mounts(number)
        if folder is None:
            return
        if (folder / "partition").exists() and (folder.parent / "stat").exists():
            folder = folder.parent
        self.name = folder.name
        self._stat = folder / "stat"

    @staticmethod
    def _folder(number: int) -> Path | None:
        link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        return link.resolve() if (link / "stat").exists() else None

    @classmethod
    def _from_mounts(cls, number: int) -> Path | None:
        """btrfs and overlays give files an anonymous device: the mount's source is the real one."""
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/mountinfo").read_text().splitlines():
                left, _, right = line.partition(" - ")
                fields, kinds = left.split(), right.split()
                if len(fields) > 2 and fields[2] == f"{os.major(number)}:{os.minor(number)}" and len(kinds) > 1:
                    with contextlib.suppress(OSError):
                        return cls._folder(Path(kinds[1]).stat().st_rdev)
        return None

    def read(self) -> DiskCounters | None:
        """The counters now; None where the file is on no block device (network, memory)."""
        if self._stat is None or self.name is None:
            return None
        try:
            fields = [int(x) for x in self._stat.read_text().split()]
        except (OSError, ValueError):
            return None
        if len(fields) < 11:
            return None
        return DiskCounters(
            name=self.name,
            read_bytes=fields[2] * _SECTOR,
            reads=fields[0],
            read_s=fields[3] / 1e3,
            busy_s=fields[9] / 1e3,
        )


class PageCacheMeter:
    """Page-cache bytes of some files, kept current a piece at a time.

    cachestat walks the pages that are there, some 10 ns each: on a warm file of many GiB that is too long for one
    sample. So each `read` spends at most `spend_s` on the pieces that were looked at longest ago.
    """

    def __init__(self, paths: Sequence[Path], *, spend_s: float = 0.002) -> None:
        self._spend_s = spend_s
        self._pieces: list[tuple[int, int, int]] = []  # fd, offset, length
        self._fds: list[int] = []
        for path in paths:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            self._fds.append(fd)
            size = os.fstat(fd).st_size
            self._pieces += [(fd, start, min(_CHUNK, size - start)) for start in range(0, size, _CHUNK)]
        self._known = [0] * len(self._pieces)
        self._next = 0
        self._whole = False

    def read(self) -> int | None:
        """The sum of the pieces as last seen; None before all were seen once, or without cachestat."""
        deadline = time.perf_counter() + self._spend_s
        for _ in range(len(self._pieces)):
            cached = cached_bytes(*self._pieces[self._next])
            if cached is None:
                return None
            self._known[self._next] = cached
            self._next += 1
            if self._next == len(self._pieces):
                self._next, self._whole = 0, True
            if time.perf_counter() > deadline:
                break
        return sum(self._known) if self._whole else None

    def close(self) -> None:
        """Closes the files."""
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds, self._pieces = [], []


def split_files(path: Path) -> list[Path]:
    """The files of a model: its split set where the name says ``-00001-of-0000N.gguf``, else the file alone."""
    stem, _, count = path.name.removesuffix(".gguf").rpartition("-of-")
    base, _, first = stem.rpartition("-")
    if path.suffix == ".gguf" and base and count.isdigit() and first.isdigit() and 0 < int(count) <= 9999:
        width, total = len(first), int(count)
        parts = [path.with_name(f"{base}-{i:0{width}d}-of-{count}.gguf") for i in range(1, total + 1)]
        return [part for part in parts if part.exists()]
    return [path]
