"""The memory of a pool: slots of one size in huge pages, and who lies in them."""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import Any

import numpy as np

from backends.streaming.layout import ExpertLayout
from backends.streaming.ledger import Ledger
from backends.streaming.stores import I64
from backends.system import libc

_HUGE = 2 << 20
_INFINITE = float("inf")
_REMADE_TOKENS = 16
_MOST_MOVED = 24
"""Each of them is looked at whenever a slot is taken; from so many on the order is made anew."""
_FOREIGN = -1e300
FIRST_SHARE = 3
"""How many times as many slots as the others' the first row may have."""
MANY_ROWS = 16
"""With fewer rows its larger share would cost the others too much."""


def slot_geometry(layout: ExpertLayout, align: int, memory_align: int) -> tuple[list[list[int]], list[int], list[int]]:
    """Where in a slot the bytes of each row's tensors begin, the sizes of slots (bytes, large ones first), and which of
    those each row takes. `align`: bytes, of what is read past the page cache; `memory_align`: of where it goes. Raises
    `OSError` where the disk's alignment doesn't suit the experts' sizes."""
    at: list[list[int]] = []
    exact = []
    for row in layout.rows:
        end, places = 0, []
        for t in row.tensors:
            head = t.entry.offset % align
            if t.slice_bytes % align == 0:
                places.append(end + head)  # every expert's slice begins equally within a block
                end += -(-(head + t.slice_bytes) // align) * align
            elif memory_align <= 32:
                places.append(end + align)
                end += -(-(t.slice_bytes + 3 * align) // align) * align
            else:
                raise OSError(errno.EINVAL, "the disk's alignment doesn't suit the experts' sizes")
        at.append(places)
        exact.append(end)
    sizes: list[int] = []
    for n in sorted(set(exact), reverse=True):
        if not sizes or n < sizes[-1] * 0.97:
            sizes.append(n)
    return at, sizes, [max(g for g, size in enumerate(sizes) if n <= size) for n in exact]


def first_share(n_slots: int, n_rows: int, experts: int) -> int:
    """Slots of the first row, whose experts nobody guesses: each that is missing is waited for, while the others' reads
    go on beside computing. 0: as many as any other row."""
    even = n_slots // n_rows
    more = min(experts, FIRST_SHARE * even)
    return more if n_rows >= MANY_ROWS and more > even else 0


class SlotGroup:
    """Slots of one size and the rows that use them."""

    def __init__(self, rows: list[int], stride: int, n_slots: int, first: int = 0) -> None:
        """`first`: experts of row 0, which has a larger home, or 0 for one like the others'."""
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
        self._moved: dict[int, list[int]] = {row: [] for row in rows}
        """Those that have no place in it any more: used, filled or emptied since."""
        self._out = bytearray(n_slots)
        """1 for a slot that is among the moved ones, or that the disk writes into."""
        self._made: dict[int, int] = dict.fromkeys(rows, -_REMADE_TOKENS)
        own = first_share(n_slots, len(rows), first) if rows[0] == 0 else 0
        edges = [0] if own else []
        edges += np.linspace(own, n_slots, len(rows) + 1 - len(edges)).astype(int).tolist()
        self.home = {row: (edges[i], edges[i + 1]) for i, row in enumerate(rows)}
        self.home_row = np.zeros(n_slots, np.int64)
        for row, (a, b) in self.home.items():
            self.home_row[a:b] = row
        self._home_of: list[int] = self.home_row.tolist()

    def own(self, slot: int, row: int, expert: int, width: int) -> None:
        """The disk begins to write an expert into a slot."""
        self.owner_at[slot] = row * width + expert
        self.order_at[slot] = _INFINITE
        self._out[slot] = 1

    def arrived(self, slot: int, row: int) -> None:
        """What a slot was given is all there."""
        lo, hi = self.home[row]
        self.order_at[slot] = 0.0 if lo <= slot < hi else _FOREIGN
        self._move(slot)

    def free(self, slot: int) -> None:
        """A slot's expert is dropped."""
        self.owner_at[slot] = -1
        self.order_at[slot] = -_INFINITE
        self._move(slot)

    def _move(self, slot: int) -> None:
        self._out[slot] = 1
        moved = self._moved[self._home_of[slot]]
        if slot not in moved:
            moved.append(slot)

    def coldest(self, row: int, count: int, keep: Collection[int], ledger: Ledger) -> list[int] | None:
        """`count` slots in the home of `row`, free ones first, then by their experts' heat; None where there aren't so
        many. `keep`: row * width + expert of what must stay.

        The order is made every few tokens: all heat fades alike, so between two uses of any of them it stays. What was
        used, filled or emptied since stands apart and is compared as it is.
        """
        if ledger.token - self._made[row] >= _REMADE_TOKENS or len(self._moved[row]) > _MOST_MOVED:
            self._remake(row, ledger)
        cold, moved, since, out = self._cold[row], self._moved[row], self._made[row], self._out
        owner, order, used, heat = self.owner_at, self.order_at, ledger.used_at, ledger.flat_heat.data
        found: list[int] = []
        while len(found) < count:
            while cold:
                slot = cold[-1]
                flat = owner[slot]
                if not out[slot]:
                    if flat < 0 or (used[flat] < since and flat not in keep):
                        break
                    out[slot] = 1
                    moved.append(slot)
                cold.pop()
            best = cold[-1] if cold else -1
            least = order[best] + (heat[owner[best]] if owner[best] >= 0 else 0.0) if cold else _INFINITE
            for slot in moved:
                flat, rank = owner[slot], order[slot]
                if rank == _INFINITE or flat in keep or slot in found:
                    continue
                if flat >= 0:
                    rank += heat[flat]
                if rank < least or (rank == least and slot < best):
                    best, least = slot, rank
            if best < 0:
                return None
            if not out[best]:
                cold.pop()
                out[best] = 1
                moved.append(best)
            found.append(best)
        return found

    def _remake(self, row: int, ledger: Ledger) -> None:
        lo, hi = self.home[row]
        rank = ledger.flat_heat[self.owner[lo:hi]]
        rank += self.order[lo:hi]
        taken = int(np.count_nonzero(rank == np.inf))
        order = rank.argsort(kind="stable")[: hi - lo - taken]
        self._cold[row], self._moved[row], self._made[row] = (order[::-1] + lo).tolist(), [], ledger.token
        self._out[lo:hi] = (self.order[lo:hi] == _INFINITE).tobytes()

    def close(self) -> None:
        libc.munmap(self.region, self.bytes + _HUGE)
