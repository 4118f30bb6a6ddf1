"""The store with a budget of its own: slots in a memfd, filled by O_DIRECT reads, mapped where ggml expects the expert.

A slot holds the pages that are one expert's own, mapped over its fixed addresses (``MAP_FIXED | MAP_SHARED |
MAP_POPULATE``); the first and last page of a slice, which neighbours share, are anonymous. A slot that changes hands is
never zeroed again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import numpy as np

from backends.streaming import libc
from backends.streaming.layout import ExpertLayout
from backends.streaming.libc import PAGE
from backends.streaming.reader import Reader, Request, open_reader
from backends.streaming.stores import I64, RowRanges, point_tensor

MAX_MAPPINGS = 30_000
"""Each resident slice is a mapping of its own; Linux allows a process 65,530."""


class PoolStore:
    """Experts in at most `ram_bytes` of memory of ours."""

    name = "pool"

    def __init__(self, layout: ExpertLayout, ram_bytes: int, reader: Reader | None = None) -> None:
        """Reserves address space and points the expert tensors at it. Raises `OSError` (O_DIRECT is refused, too many
        mappings, no address space)."""
        self._layout = layout
        self._reader = reader or open_reader()
        self.reader_name = self._reader.name
        self._fds = [os.open(p, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC) for p in layout.virtual.paths]
        self.ranges = [RowRanges(layout, r) for r in range(len(layout.rows))]
        room = [np.maximum(r.inner_hi - r.inner_lo, 0).max(axis=0) for r in self.ranges]
        self._slice_at = [np.cumsum(n) - n for n in room]
        """Per row, where each tensor's slice begins in a slot."""
        self._regions: list[tuple[int, int]] = []
        self._address: list[I64] = []
        for row in layout.rows:
            addresses = []
            for t in row.tensors:
                length = t.entry.bytes + 2 * PAGE
                region = libc.reserve(length)
                libc.madvise(region, length, libc.MADV_NOHUGEPAGE)
                self._regions.append((region, length))
                # congruent to the file offset, so that O_DIRECT pages and mapped pages are the same
                addresses.append(region - t.entry.offset // PAGE * PAGE)
                point_tensor(t.pointer, region + t.entry.offset % PAGE)
            self._address.append(np.array(addresses, np.int64))  # add a file offset to get the address
        exact = [max(PAGE, int(n.sum())) for n in room]
        self.cost, self.group, sizes = self._classes(exact)
        self._edges = self._edge_bytes()
        self._slot_bytes = sizes
        self._slot: dict[tuple[int, int], int] = {}
        self._pending: dict[tuple[int, int], tuple[set[int], set[int]]] = {}
        self._tags: dict[int, tuple[int, int, int]] = {}
        self._failed: dict[tuple[int, int], int] = {}
        self._next_tag = 1
        self._memfds: list[int] = []
        self._free: list[list[int]] = []
        self.budget: list[int | None] = []
        for g, n in enumerate(self._counts(ram_bytes)):
            fd = os.memfd_create(f"expert-pool-{g}", os.MFD_CLOEXEC)
            self._memfds.append(fd)
            os.ftruncate(fd, n * sizes[g])
            self._free.append(list(range(n - 1, -1, -1)))
            self.budget.append(n * sizes[g])

    @staticmethod
    def _classes(exact: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Rows whose experts differ by less than 6 % share a class of slots: (cost and group per row, slot per group)."""
        sizes: list[int] = []
        for n in sorted(set(exact), reverse=True):
            if not sizes or n < sizes[-1] * 0.94:
                sizes.append(n)
        group = [max(g for g, size in enumerate(sizes) if n <= size) for n in exact]
        return [sizes[g] for g in group], group, sizes

    def _edge_bytes(self) -> int:
        """What the anonymous edge pages can take at most."""
        pages = 0
        for r in self.ranges:
            edge = (r.lo < r.inner_lo) | (r.hi > r.inner_hi)
            pages += int(edge.sum()) + edge.shape[1]
        return pages * PAGE

    def _counts(self, ram_bytes: int) -> list[int]:
        """Slots per group for a budget, each group by its share of all expert bytes."""
        total = [0] * len(self._slot_bytes)
        number = [0] * len(self._slot_bytes)
        for row, g in zip(self._layout.rows, self.group, strict=True):
            total[g] += row.expert_bytes * row.n_experts
            number[g] += row.n_experts
        usable = max(0, ram_bytes - min(self._edges, ram_bytes // 10))
        counts = [
            max(1, min(number[g], int(usable * total[g] / sum(total)) // size))
            for g, size in enumerate(self._slot_bytes)
        ]
        widest = max(len(r.tensors) for r in self._layout.rows)
        if sum(counts) * widest > MAX_MAPPINGS:
            raise OSError(errno.ENOMEM, "the pool would need more mappings than Linux allows a process")
        return counts

    # ---- reading -------------------------------------------------------------------------------------------------

    def fetch(self, row: int, experts: Sequence[int]) -> None:
        r, g = self.ranges[row], self.group[row]
        for e in experts:
            self._slot[row, e] = self._free[g].pop()
            self._pending[row, e] = (set(), set())
        for down in (False, True):  # what is computed on first is read first
            for e in experts:  # the disk works on one while the next is mapped
                self._reader.submit(self._place(row, e, range(r.n_up, len(r.parts)) if down else range(r.n_up)))

    def _place(self, row: int, e: int, tensors: range) -> list[Request]:
        """Maps the slot's pages over slices of an expert; returns the reads that fill them.

        The edge pages are read too, and whole: what neighbours have on them is written once more, as it is.
        """
        r, g = self.ranges[row], self.group[row]
        slot = self._slot[row, e] * self._slot_bytes[g]
        flags = libc.SHARED | libc.FIXED | libc.POPULATE
        out = []
        for t in tensors:
            lo, hi, inner, inner_end, end = (int(x[e, t]) for x in (r.lo, r.hi, r.inner_lo, r.inner_hi, r.end))
            base = int(self._address[row][t])
            if inner_end > inner:
                at = slot + int(self._slice_at[row][t])
                libc.mmap(base + inner, inner_end - inner, libc.PROT_RW, flags, self._memfds[g], at)
            tag, self._next_tag = self._next_tag, self._next_tag + 1
            self._tags[tag] = (row, e, t)
            self._pending[row, e][t >= r.n_up].add(tag)
            out.append((tag, self._fds[r.parts[t]], base + lo, hi - lo, lo, end - lo))
        return out

    def _take(self, at_least: int) -> None:
        for tag, code in self._reader.collect(at_least):
            row, e, t = self._tags.pop(tag)
            self._pending[row, e][t >= self.ranges[row].n_up].discard(tag)
            if code:
                self._failed[row, e] = code

    def wait(self, row: int, experts: Sequence[int], down: bool) -> None:
        which = 1 if down else 0
        wanted: set[int] = set()
        for e in experts:
            wanted |= self._pending[row, e][which] if (row, e) in self._pending else set()
        while left := sum(tag in self._tags for tag in wanted):
            self._take(left)
        bad = [self._failed[row, e] for e in experts if (row, e) in self._failed]
        if bad:
            if bad[0] < 0:
                raise OSError(errno.ENODATA, "the file is shorter than it was")
            raise OSError(bad[0], os.strerror(bad[0]))

    def ready(self, row: int, expert: int) -> bool:
        if any(self._pending.get((row, expert), ())):
            self._take(0)
        return not any(self._pending.get((row, expert), ()))

    def drop(self, pairs: Sequence[tuple[int, int]]) -> None:
        flags = libc.PRIVATE | libc.ANON | libc.NORESERVE | libc.FIXED
        for row, e in pairs:
            while any(self._pending.get((row, e), ())):
                self._take(1)  # the disk still writes into the slot
            self._pending.pop((row, e), None)
            self._failed.pop((row, e), None)
            slot = self._slot.pop((row, e), None)
            if slot is None:
                continue
            r = self.ranges[row]
            for t, base in enumerate(self._address[row].tolist()):
                lo, hi = int(r.inner_lo[e, t]), int(r.inner_hi[e, t])
                if hi > lo:
                    libc.mmap(base + lo, hi - lo, libc.PROT_RW, flags)
            self._free[self.group[row]].append(slot)

    def residency(self) -> I64 | None:
        out = np.zeros((len(self.ranges), self._layout.n_experts), np.int64)
        for (row, e), _ in list(self._slot.items()):
            up, down = self._pending.get((row, e), (set(), set()))
            if not up and not down:
                out[row, e] = self._layout.rows[row].expert_bytes
        return out

    def set_budget(self, ram_bytes: int) -> None:
        """The caller has dropped everything: slots of the old size of pool are given back."""
        if self._slot:
            raise ValueError("drop every expert before the pool's size changes")
        for g, n in enumerate(self._counts(ram_bytes)):
            size = n * self._slot_bytes[g]
            os.ftruncate(self._memfds[g], size)
            self._free[g] = list(range(n - 1, -1, -1))
            self.budget[g] = size

    def close(self) -> None:
        self._reader.close()
        while self._regions:
            libc.munmap(*self._regions.pop())
        for fds in (self._memfds, self._fds):
            while fds:
                os.close(fds.pop())
