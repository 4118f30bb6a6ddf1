"""The store that leaves the bytes in the page cache: our own read-only mapping of the model, not populated.

A page that isn't there simply faults, so an answer can't be wrong. Chosen slices are advised (``MADV_WILLNEED`` starts
all reads at once) and then populated (``MADV_POPULATE_READ`` waits for them, maps them and reports what can't be read).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Sequence

import numpy as np

from backends.streaming.layout import ExpertLayout
from backends.streaming.stores import I64, Arrival, RowRanges, by_row, point_tensor
from backends.system import libc
from backends.system.libc import PAGE


class Advisor:
    """Advises many ranges, in one system call where the kernel can."""

    def __init__(self, sample: int) -> None:
        self._batch = np.empty((libc.IOV_MAX, 2), np.uint64)
        self._pidfd = -1
        self._batched: set[int] = set()
        try:
            self._pidfd = libc.pidfd_self()
        except OSError:
            return
        for advice in (libc.MADV_WILLNEED, libc.MADV_POPULATE_READ, libc.MADV_DONTNEED):
            self._batch[0] = (sample, PAGE)
            try:
                if libc.process_madvise(self._pidfd, self._batch.ctypes.data, 1, advice) == PAGE:
                    self._batched.add(advice)
            except OSError:
                pass

    def advise(self, starts: I64, lengths: I64, advice: int) -> None:
        """Advises flat arrays of addresses and lengths; raises the first error."""
        n = len(starts)
        if advice not in self._batched:
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                if length > 0:
                    libc.madvise(start, length, advice)
            return
        for at in range(0, n, libc.IOV_MAX):
            part = slice(at, min(n, at + libc.IOV_MAX))
            count = part.stop - at
            self._batch[:count, 0] = starts[part]
            self._batch[:count, 1] = lengths[part]
            try:
                done = libc.process_madvise(self._pidfd, self._batch.ctypes.data, count, advice)
            except OSError as e:
                if e.errno != errno.EINTR:
                    raise
                done = 0
            if done < int(lengths[part].sum()):  # stopped at a range: one by one, to learn why
                for start, length in zip(starts[part].tolist(), lengths[part].tolist(), strict=True):
                    if length > 0:
                        libc.madvise(start, length, advice)

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)


class PageCacheStore:
    """Experts in the page cache, at most `ram_bytes` of them (None: as much as the kernel keeps)."""

    name = "pagecache"

    def __init__(self, layout: ExpertLayout, ram_bytes: int | None) -> None:
        """Maps every part and points the expert tensors into the mappings. Raises `OSError`."""
        v = layout.virtual
        self._layout = layout
        self._fds = [os.open(p, os.O_RDONLY | os.O_CLOEXEC) for p in v.paths]
        self._maps: list[tuple[int, int]] = []
        for fd, size in zip(self._fds, v.part_sizes, strict=True):
            at = libc.mmap(None, size, libc.PROT_READ, libc.SHARED, fd)
            self._maps.append((at, size))
            libc.madvise(at, size, libc.MADV_RANDOM)  # read-around would double the bytes
        self.ranges = [RowRanges(layout, r) for r in range(len(layout.rows))]
        self._base = [np.array([self._maps[p][0] for p in r.parts], np.int64) for r in self.ranges]
        self.cost = [int((r.hi - r.lo).sum(axis=1).max()) for r in self.ranges]
        self.whole = np.ones((len(layout.rows), layout.n_experts), np.float64)
        """Bytes of the pages that each expert touches, rows x experts: what `residency` gives where all is there."""
        for index, r in enumerate(self.ranges):
            self.whole[index, : len(r.lo)] = (r.hi - r.lo).sum(axis=1)
        self.group = [0] * len(layout.rows)
        self.budget = [ram_bytes]
        for row in layout.rows:
            for t in row.tensors:
                point_tensor(t.pointer, self._maps[t.entry.part][0] + t.entry.offset)
        self._advisor = Advisor(self._maps[0][0])
        self._held: I64 | None = None
        self._look_next = 0
        self._broken: set[tuple[int, int]] = set()

    def address(self, row: int, index: int) -> int:
        """Where a row's tensor lies in the mapping."""
        entry = self._layout.rows[row].tensors[index].entry
        return self._maps[entry.part][0] + entry.offset

    def _pages(self, row: int, experts: Sequence[int], tensors: slice) -> tuple[I64, I64]:
        r, rows = self.ranges[row], np.asarray(experts, np.int64)
        lo, hi = r.lo[rows, tensors], r.hi[rows, tensors]
        return (lo + self._base[row][tensors]).ravel(), (hi - lo).ravel()

    def fetch(self, row: int, experts: Sequence[int], urgent: bool = True) -> None:
        self.mend()
        r = self.ranges[row]
        for tensors in (slice(0, r.n_up), slice(r.n_up, None)):  # what is computed on first is read first
            starts, lengths = self._pages(row, experts, tensors)
            try:
                self._advisor.advise(starts, lengths, libc.MADV_WILLNEED)
            except OSError as e:
                if e.errno not in (errno.EAGAIN, errno.EIO, errno.ENOMEM):
                    raise  # populating reports what can't be read

    def go_on(self) -> None:
        pass  # the kernel was told of all

    def wait(self, row: int, experts: Sequence[int], down: bool) -> None:
        r = self.ranges[row]
        starts, lengths = self._pages(row, experts, slice(r.n_up, None) if down else slice(0, r.n_up))
        try:
            self._advisor.advise(starts, lengths, libc.MADV_POPULATE_READ)
        except OSError as e:
            self._shield(row, experts)
            if e.errno == errno.EFAULT:
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from e
            raise

    def arrival(self, row: int, expert: int) -> Arrival:
        return "unknown"  # the kernel was asked; whether it can read them is seen when they are populated

    def failures(self) -> Collection[tuple[int, int]]:
        return ()

    def _shield(self, row: int, experts: Sequence[int]) -> None:
        """Zeros over slices that can't be read: the aborted graph may still touch them, and must not die of SIGBUS."""
        r = self.ranges[row]
        flags = libc.PRIVATE | libc.ANON | libc.NORESERVE | libc.FIXED
        for e in experts:
            for t, base in enumerate(self._base[row].tolist()):
                libc.mmap(base + int(r.lo[e, t]), int(r.hi[e, t] - r.lo[e, t]), libc.PROT_READ, flags)
            self._broken.add((row, e))

    def mend(self) -> None:
        for row, e in self._broken:
            r = self.ranges[row]
            for t, (base, part) in enumerate(zip(self._base[row].tolist(), r.parts, strict=True)):
                lo, n = int(r.lo[e, t]), int(r.hi[e, t] - r.lo[e, t])
                libc.mmap(base + lo, n, libc.PROT_READ, libc.SHARED | libc.FIXED, self._fds[part], lo)
                libc.madvise(base + lo, n, libc.MADV_RANDOM)
        self._broken.clear()

    def drop(self, pairs: Sequence[tuple[int, int]]) -> None:
        for row, experts in by_row(pairs).items():
            r = self.ranges[row]
            lo, n = r.inner_lo[experts], r.inner_hi[experts] - r.inner_lo[experts]
            starts, lengths = (lo + self._base[row]).ravel(), np.maximum(n, 0).ravel()
            some = lengths > 0
            self._advisor.advise(starts[some], lengths[some], libc.MADV_DONTNEED)
            for t, part in enumerate(r.parts):
                for at, size in zip(lo[:, t].tolist(), n[:, t].tolist(), strict=True):
                    if size > 0:
                        os.posix_fadvise(self._fds[part], at, size, libc.FADV_DONTNEED)

    def cached(self, row: int) -> I64 | None:
        """Bytes of each expert of a row in the page cache (edge pages count for both neighbours); None if unknown."""
        r = self.ranges[row]
        out = np.zeros(len(r.lo), np.int64)
        for t, base in enumerate(self._base[row].tolist()):
            first, last = int(r.lo[0, t]), int(r.hi[-1, t])
            try:
                pages = np.frombuffer(libc.mincore(base + first, last - first), np.uint8) & 1
            except OSError:
                return None
            total = np.concatenate(([0], np.cumsum(pages, dtype=np.int64)))
            out += (total[(r.hi[:, t] - first) // PAGE] - total[(r.lo[:, t] - first) // PAGE]) * PAGE
        return out

    def populate_cached(self, row: int) -> tuple[list[int], int] | None:
        """Maps those experts of a row that are in the page cache as a whole, in long runs and without reading; returns
        them and their bytes, None where the kernel won't tell what is cached."""
        cached = self.cached(row)
        if cached is None:
            return None
        r = self.ranges[row]
        there = np.flatnonzero(cached >= (r.hi - r.lo).sum(axis=1))
        if len(there):
            breaks = np.flatnonzero(np.diff(there) > 1)
            firsts = there[np.concatenate(([0], breaks + 1))]
            lasts = there[np.concatenate((breaks, [len(there) - 1]))]
            starts = (r.lo[firsts] + self._base[row]).ravel()
            self._advisor.advise(starts, (r.hi[lasts] - r.lo[firsts]).ravel(), libc.MADV_POPULATE_READ)
        return there.tolist(), int(cached[there].sum())

    def residency(self, spend_s: float | None = None) -> I64 | None:
        """Bytes of each expert (rows x experts) in the page cache; None if unknown. With `spend_s`, rows are looked at
        for so long, those first that were looked at longest ago: a walk over 3 GB that are there takes 10 ms."""
        held, known = self._held, self._held is not None  # two threads look: the one that computes, and the monitor's
        if held is None:
            held = np.zeros((len(self.ranges), self._layout.n_experts), np.int64)
        deadline = time.perf_counter() + (spend_s or 0.0)
        n, first = len(self.ranges), self._look_next
        for row in (*range(first, n), *range(first)):
            cached = self.cached(row)
            if cached is None:
                return None
            held[row, : len(cached)] = cached
            self._look_next = (row + 1) % n
            if known and spend_s is not None and time.perf_counter() > deadline:
                break
        self._held = held
        return held.copy()

    def file_cached_bytes(self) -> int | None:
        """Bytes of all parts in the page cache; None on old kernels."""
        found = [libc.cached_bytes(fd) for fd in self._fds]
        return None if None in found else sum(f for f in found if f is not None)

    def forget_file(self) -> None:
        """Drops every page of the model from the page cache, ours and what was there before."""
        for (at, size), fd in zip(self._maps, self._fds, strict=True):
            libc.madvise(at, size, libc.MADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, libc.FADV_DONTNEED)

    def set_budget(self, ram_bytes: int) -> None:
        self.budget = [ram_bytes]

    def close(self) -> None:
        while self._maps:
            libc.munmap(*self._maps.pop())
        self._advisor.close()
        while self._fds:
            os.close(self._fds.pop())
