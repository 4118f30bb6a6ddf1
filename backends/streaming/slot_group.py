"""The memory of a pool: slots of one size in huge pages, and who lies in them."""

from __future__ import annotations

import numpy as np

from backends.streaming.stores import I64
from backends.system import libc

_HUGE = 2 << 20
_FOREIGN = -1e300


class SlotGroup:
    """Slots of one size and the rows that use them."""

    def __init__(self, rows: list[int], stride: int, n_slots: int) -> None:
        self.rows, self.stride, self.n_slots = rows, stride, n_slots
        self.bytes = -(-n_slots * stride // _HUGE) * _HUGE
        self.region = libc.reserve(self.bytes + _HUGE)
        self.base = -(-self.region // _HUGE) * _HUGE
        libc.prefer_huge(self.base, self.base + self.bytes)
        libc.madvise(self.region, self.bytes + _HUGE, libc.MADV_DONTFORK)
        self.owner: I64 = np.full(n_slots, -1, np.int64)
        """row * width + expert of each slot, -1 where it is free."""
        self.order = np.full(n_slots, -np.inf)
        """What is added to the heat of a slot's expert, so that the least may be taken first: free slots before those
        of other rows' experts, before its own row's; those that the disk writes into never."""
        edges = np.linspace(0, n_slots, len(rows) + 1).astype(int).tolist()
        self.home = {row: (edges[i], edges[i + 1]) for i, row in enumerate(rows)}
        self.home_row = np.zeros(n_slots, np.int64)
        for row, (a, b) in self.home.items():
            self.home_row[a:b] = row

    def own(self, slot: int, row: int, expert: int, width: int) -> None:
        """The disk begins to write an expert into a slot."""
        self.owner[slot] = row * width + expert
        self.order[slot] = np.inf

    def arrived(self, slot: int, row: int) -> None:
        """What a slot was given is all there."""
        self.order[slot] = 0.0 if self.home_row[slot] == row else _FOREIGN

    def free(self, slot: int) -> None:
        """A slot's expert is dropped."""
        self.owner[slot] = -1
        self.order[slot] = -np.inf

    def close(self) -> None:
        libc.munmap(self.region, self.bytes + _HUGE)
