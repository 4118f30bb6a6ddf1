"""The memory of a pool: slots of one size in huge pages, and who lies in them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from backends.streaming.ledger import Ledger
from backends.streaming.stores import I64
from backends.system import libc

_HUGE = 2 << 20
_INFINITE = float("inf")
_REMADE_TOKENS = 4
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
        self.owner_at: Any = self.owner.data
        self.order_at: Any = self.order.data
        """The same memory: of one slot, Python reads and writes it sooner than numpy."""
        self._cold: dict[int, list[int]] = {row: [] for row in rows}
        """Each row's slots of its home that may be taken, the coldest last, as they were when it was made."""
        self._made: dict[int, int] = dict.fromkeys(rows, -_REMADE_TOKENS)
        edges = np.linspace(0, n_slots, len(rows) + 1).astype(int).tolist()
        self.home = {row: (edges[i], edges[i + 1]) for i, row in enumerate(rows)}
        self.home_row = np.zeros(n_slots, np.int64)
        for row, (a, b) in self.home.items():
            self.home_row[a:b] = row

    def own(self, slot: int, row: int, expert: int, width: int) -> None:
        """The disk begins to write an expert into a slot."""
        self.owner_at[slot] = row * width + expert
        self.order_at[slot] = _INFINITE

    def arrived(self, slot: int, row: int) -> None:
        """What a slot was given is all there."""
        lo, hi = self.home[row]
        self.order_at[slot] = 0.0 if lo <= slot < hi else _FOREIGN

    def free(self, slot: int) -> None:
        """A slot's expert is dropped."""
        self.owner_at[slot] = -1
        self.order_at[slot] = -_INFINITE

    def coldest(self, row: int, count: int, keep: Collection[int], ledger: Ledger) -> list[int] | None:
        """`count` slots in the home of `row`, free ones first, then by their experts' heat; None where there aren't so
        many. `keep`: row * width + expert of what must stay.

        The order is made every few tokens: all heat fades alike, so only what was used since is in another place, and
        that is passed over.
        """
        cold, since = self._cold[row], self._made[row]
        fresh = not cold or ledger.token - since >= _REMADE_TOKENS
        if fresh:
            cold, since = self._remake(row, ledger)
        found: list[int] = []
        owner, order, used = self.owner_at, self.order_at, ledger.used_at
        while len(found) < count:
            if not cold:
                if fresh:
                    return None
                cold, since = self._remake(row, ledger)
                fresh = True
                continue
            slot = cold.pop()
            if order[slot] == _INFINITE or slot in found:
                continue
            flat = owner[slot]
            if flat >= 0 and (flat in keep or used[flat] >= since):
                continue
            found.append(slot)
        return found

    def _remake(self, row: int, ledger: Ledger) -> tuple[list[int], int]:
        lo, hi = self.home[row]
        rank = ledger.flat_heat[self.owner[lo:hi]]
        rank += self.order[lo:hi]
        taken = int(np.count_nonzero(rank == np.inf))
        order = rank.argsort(kind="stable")[: hi - lo - taken]
        cold: list[int] = (order[::-1] + lo).tolist()
        self._cold[row], self._made[row] = cold, ledger.token
        return cold, ledger.token

    def close(self) -> None:
        libc.munmap(self.region, self.bytes + _HUGE)
