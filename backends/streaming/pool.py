"""The store with a budget of its own: slots in huge pages, filled by O_DIRECT reads, and products that look there.

An expert goes to any free slot; nothing is mapped, unmapped or zeroed for it. Before an expert product runs, its node
is pointed at a private copy of the weight tensor (data: a slot, stride: the slot's size) and at ids that number slots
instead of experts; afterwards the node gets its own sources back. The arithmetic is the same, bit for bit. A product
that is not patched computes on the page cache's mapping of the file, which is never wrong, only slow.

Each row has a home of its share of the slots, so that the slots of one product lie close together, and so that a step
which needs more than the budget keeps every row's share.
"""

from __future__ import annotations

import ctypes as C
import errno
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.streaming import abi
from backends.streaming.known_products import SOURCES_BYTES, Product
from backends.streaming.layout import ExpertLayout
from backends.streaming.ledger import Ledger
from backends.streaming.pagecache import PageCacheStore
from backends.streaming.slot_group import SlotGroup, slot_geometry
from backends.streaming.stores import I64, Arrival
from backends.system import libc
from backends.system.reader import Reader, Request, open_reader


class PoolStore:
    """Experts in at most `ram_bytes` of anonymous memory. CPU only: a GPU copies experts by their own layout."""

    name = "pool"

    def __init__(self, layout: ExpertLayout, ram_bytes: int, reader: Reader | None = None) -> None:
        """Raises `OSError` where O_DIRECT is refused or its alignment doesn't suit the file."""
        self._layout = layout
        self.width = layout.n_experts
        self._fds = []
        try:
            for p in layout.virtual.paths:
                self._fds.append(os.open(p, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
            self._align, memory_align = libc.direct_io_alignment(self._fds[0])
            self._at, self._sizes, self.group = slot_geometry(layout, self._align, memory_align)
        except OSError:
            for fd in self._fds:
                os.close(fd)
            raise
        self.cost = [self._sizes[g] for g in self.group]
        self._reader = reader or open_reader()
        self.mapping = PageCacheStore(layout, None)
        self._build(ram_bytes)
        self._slot = np.full((len(layout.rows), self.width), -1, np.int32)
        self._slot_at = self._slot.reshape(-1).data
        """The same memory as `_slot`, by row * width + expert."""
        self._pending: dict[tuple[int, int], tuple[set[int], set[int]]] = {}
        self._tags: dict[int, tuple[int, int, bool]] = {}
        self._failed: dict[tuple[int, int], int] = {}
        self._next_tag = 1
        self._reads = [
            [(self._fds[t.entry.part], t.entry.offset, t.slice_bytes, place, t.is_down) for t, place in pairs]
            for pairs in (zip(r.tensors, at, strict=True) for r, at in zip(layout.rows, self._at, strict=True))
        ]
        """Of each row's tensors: file, offset, bytes of an expert, where in a slot they go, whether it is down."""
        self._weights = [
            [abi.Tensor.from_buffer_copy(abi.Tensor.from_address(t.pointer)) for t in r.tensors] for r in layout.rows
        ]
        self._ids = [abi.Tensor(type=abi.TYPE_I32) for _ in layout.rows]
        self._shape = [(0, 0)] * len(layout.rows)
        self._span = [(-1, -1)] * len(layout.rows)
        """What of the slots (first, last) the weights of a row are now."""
        self._ids_data: list[npt.NDArray[np.int32]] = [np.zeros(1, np.int32) for _ in layout.rows]
        self._weight_at = [[C.addressof(w) for w in ws] for ws in self._weights]
        self._ids_at = [C.addressof(i) for i in self._ids]
        self._ids_view: list[Any] = [(C.c_int32 * 1)() for _ in layout.rows]
        """The memory of `_ids_data` as Python writes it."""
        self._patched: list[tuple[int, bytes]] = []
        """(the address of a node's sources, those of its own)"""

    def _build(self, ram_bytes: int) -> None:
        self._groups: list[SlotGroup] = []
        total = [0] * len(self._sizes)
        number = [0] * len(self._sizes)
        for row, g in zip(self._layout.rows, self.group, strict=True):
            total[g] += row.expert_bytes * row.n_experts
            number[g] += row.n_experts
        for g, size in enumerate(self._sizes):
            n = max(1, min(number[g], int(ram_bytes * (total[g] / sum(total))) // size))
            rows = [r for r, x in enumerate(self.group) if x == g]
            self._groups.append(SlotGroup(rows, size, n, self._layout.rows[0].n_experts))
        self.budget: list[int | None] = [g.n_slots * g.stride for g in self._groups]

    # ---- room --------------------------------------------------------------------------------------------------------

    def make_room(
        self, ledger: Ledger, row: int, count: int, total: int, keep: Sequence[int]
    ) -> list[tuple[int, int]] | None:
        """Chooses `count` slots for experts of `row` (of which `total` are needed at once), and returns what must be
        dropped for them; None where there aren't so many. `keep`: row * width + expert of what must stay."""
        g = self._groups[self.group[row]]
        slots = g.coldest(row, count, set(keep), ledger)
        if slots is None:
            ledger.flush()
            slots = self._elsewhere(g, row, count, keep, ledger).tolist()
            if len(slots) < count:
                return None
        self._chosen_slots = slots
        owner, width = g.owner_at, self.width
        return [divmod(owner[slot], width) for slot in slots if owner[slot] >= 0]

    def _elsewhere(self, g: SlotGroup, row: int, count: int, keep: Sequence[int], ledger: Ledger) -> I64:
        """Slots in and beyond the home: free ones, then what others hold beyond their homes, then from the rows that
        were computed last, whose turn is farthest away."""
        owner = g.owner
        owner_row = np.where(owner < 0, -1, owner // self.width)
        at_home = g.home_row == owner_row
        distance = (row - owner_row) % len(self._layout.rows)
        rank = np.where(owner < 0, 0, np.where(g.home_row == row, 1, np.where(~at_home, 2, 3 + distance)))
        usable = np.flatnonzero((g.order < np.inf) & ~np.isin(owner, keep))
        heat = ledger.flat_heat[owner[usable]]
        return usable[np.lexsort((heat, rank[usable]))][:count]

    # ---- whole layers --------------------------------------------------------------------------------------------

    @property
    def fds(self) -> list[int]:
        """The model's parts, opened with O_DIRECT."""
        return self._fds

    def held(self, row: int) -> tuple[I64, I64]:
        """(experts, addresses of their slots) of what is resident of a row as a whole."""
        g = self._groups[self.group[row]]
        slots = self._slot[row].astype(np.int64)
        experts = np.flatnonzero((slots >= 0) & (g.order[slots] < np.inf))
        return experts, g.base + slots[experts] * g.stride

    def place(self, row: int, index: int) -> int:
        """Where in a slot the slice of a row's tensor begins."""
        return self._at[row][index]

    def home(self, row: int, index: int) -> int:
        """Where the model's own tensor points while nothing else says so: the mapped file."""
        return self.mapping.address(row, index)

    def share(self, row: int) -> int:
        """Slots of a row's own."""
        lo, hi = self._groups[self.group[row]].home[row]
        return int(hi - lo)

    def free(self, row: int) -> int:
        """Those of them that are free."""
        g = self._groups[self.group[row]]
        lo, hi = g.home[row]
        return int(np.count_nonzero(g.owner[lo:hi] < 0))

    def adopt(self, row: int, experts: Sequence[int]) -> list[int]:
        """Gives absent experts free slots of their row's own share, to be filled by the caller, who tells `adopted`;
        returns the slots' addresses."""
        g = self._groups[self.group[row]]
        lo, hi = g.home[row]
        slots = (np.flatnonzero(g.owner[lo:hi] < 0)[: len(experts)] + lo).tolist()
        for e, slot in zip(experts, slots, strict=True):
            g.own(slot, row, e, self.width)
            self._slot[row, e] = slot
        return [g.base + slot * g.stride for slot in slots]

    def adopted(self, row: int, experts: Sequence[int]) -> None:
        """The slots of adopted experts hold all of them."""
        g = self._groups[self.group[row]]
        for e in experts:
            g.arrived(int(self._slot[row, e]), row)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def fetch(self, row: int, experts: Sequence[int], urgent: bool = True) -> None:
        g = self._groups[self.group[row]]
        align, reads, start_at = self._align, self._reads[row], row * self.width
        up: list[Request] = []
        down: list[Request] = []
        for e, slot in zip(experts, self._chosen_slots, strict=True):
            g.own(slot, row, e, self.width)
            self._slot_at[start_at + e] = slot
            base = g.base + slot * g.stride
            waiting: tuple[set[int], set[int]] = (set(), set())
            tag = self._next_tag
            for fd, offset, size, place, is_down in reads:
                start = offset + e * size
                head = start % align
                self._tags[tag] = (row, e, is_down)
                waiting[is_down].add(tag)
                need = head + size
                request = (tag, fd, base + place - head, -(-need // align) * align, start - head, need)
                (down if is_down else up).append(request)
                tag += 1
            self._next_tag = tag
            self._pending[row, e] = waiting
        self._chosen_slots = []
        self._reader.submit(up + down, urgent)  # what is computed on first is read first

    def go_on(self) -> None:
        self._reader.go_on()

    def _take(self, at_least: int) -> None:
        for tag, code in self._reader.collect(at_least):
            whose = self._tags.pop(tag, None)
            if whose is None:
                continue  # it was told before
            row, e, is_down = whose
            waiting = self._pending[row, e]
            waiting[is_down].discard(tag)
            if code:
                self._failed[row, e] = code
            if not waiting[0] and not waiting[1]:
                del self._pending[row, e]
                if (row, e) not in self._failed:  # else nothing may be computed on the slot, nor be read into it yet
                    self._groups[self.group[row]].arrived(self._slot_at[row * self.width + e], row)

    def wait(self, row: int, experts: Sequence[int], down: bool) -> None:
        wanted: set[int] = set()
        for e in experts:
            waiting = self._pending.get((row, e))
            if waiting is not None:
                wanted |= waiting[down]
        while wanted:
            self._take(len(wanted))
            wanted = {tag for tag in wanted if tag in self._tags}
        if self._failed:
            bad = [self._failed[row, e] for e in experts if (row, e) in self._failed]
            if bad and bad[0] < 0:
                raise OSError(errno.ENODATA, "the file is shorter than it was")
            if bad:
                raise OSError(bad[0], os.strerror(bad[0]))

    def arrival(self, row: int, expert: int) -> Arrival:
        if (row, expert) in self._pending:
            self._take(0)
        if (row, expert) in self._failed:
            return "failed"
        return "coming" if (row, expert) in self._pending else "there"

    def all_there(self, row: int, experts: Sequence[int]) -> bool:
        """Whether experts that were waited for have come as a whole, down matrices, too."""
        pending = self._pending
        if any((row, e) in pending for e in experts):
            self._take(0)
        return not any((row, e) in pending or (row, e) in self._failed for e in experts)

    def failures(self) -> Collection[tuple[int, int]]:
        return self._failed

    def mend(self) -> None:
        self.mapping.mend()

    def drop(self, pairs: Sequence[tuple[int, int]]) -> None:
        for row, e in pairs:
            while (row, e) in self._pending:
                self._take(1)
            self._failed.pop((row, e), None)
            at = row * self.width + e
            slot = self._slot_at[at]
            if slot >= 0:
                self._groups[self.group[row]].free(slot)
                self._slot_at[at] = -1

    # ---- products ----------------------------------------------------------------------------------------------------

    def translate(self, row: int, table: npt.NDArray[np.int32]) -> None:
        """Prepares the products of `row` for the chosen ids, int32 (n_tokens, n_used): all of them are in slots."""
        n, k = table.shape
        slots = self._slot[row][table]
        first = self._point(row, int(slots.min()), int(slots.max()), k, n)
        np.subtract(slots, np.int32(first), out=self._ids_data[row])

    def translate_one(self, row: int, ids: Sequence[int]) -> None:
        """`translate` for the ids of one token."""
        start, held = row * self.width, self._slot_at
        slots = [held[start + e] for e in ids]
        first = self._point(row, min(slots), max(slots), len(slots), 1)
        self._ids_view[row][:] = [slot - first for slot in slots]

    def _point(self, row: int, first: int, last: int, k: int, n: int) -> int:
        """Lets the products of `row` see the slots from `first` to `last`, for `n` tokens with `k` ids each; returns
        the slot that counts as number 0."""
        g = self._groups[self.group[row]]
        if first < 0:
            raise OSError(errno.EFAULT, "an expert that was chosen has no slot")
        lo, hi = g.home[row]
        if lo <= first and last < hi:  # mostly: then nothing changes from token to token but the ids
            first, last = lo, hi - 1
        if self._shape[row] != (k, n):
            ids = self._ids[row]
            self._shape[row] = k, n
            ids.ne[:] = (k, n, 1, 1)
            ids.nb[:] = (4, 4 * k, 4 * k * n, 4 * k * n)
            self._ids_data[row] = data = np.zeros((n, k), np.int32)
            ids.data = data.ctypes.data
            self._ids_view[row] = (C.c_int32 * (k * n)).from_address(data.ctypes.data)
        if self._span[row] == (first, last):
            return first
        self._span[row] = first, last
        base, span = g.base + first * g.stride, last - first + 1
        for w, place in zip(self._weights[row], self._at[row], strict=True):
            w.data = base + place
            w.ne[2] = span
            w.nb[2] = g.stride
            w.nb[3] = g.stride * span
        return first

    def slotted(self, row: int, index: int) -> tuple[int, int]:
        """The weight and the ids that a product of `row` with its tensor `index` is pointed at (``ggml_tensor *``)."""
        return self._weight_at[row][index], self._ids_at[row]

    def patch(self, node: int, row: int, index: int) -> None:
        """Points an expert product at the slots. `translate` was called for the row."""
        at = node + abi.SRC
        sources = abi.Sources.from_address(at)
        self._patched.append((at, C.string_at(at, SOURCES_BYTES)))
        sources[0], sources[2] = self.slotted(row, index)

    def patch_known(self, products: Sequence[Product]) -> None:
        """The same for products that are known."""
        for p in products:
            C.memmove(p.sources, p.slotted, SOURCES_BYTES)
            self._patched.append((p.sources, p.own))

    def unpatch(self) -> None:
        """Gives every patched node its own sources back; the nodes have been computed."""
        for at, own in self._patched:
            C.memmove(at, own, SOURCES_BYTES)
        self._patched.clear()

    # ---- the rest ----------------------------------------------------------------------------------------------------

    def residency(self) -> I64 | None:
        out = np.zeros((len(self._layout.rows), self.width), np.int64)
        for row, r in enumerate(self._layout.rows):
            out[row] = np.where(self._slot[row] >= 0, r.expert_bytes, 0)
        for row, e in list(self._pending):
            out[row, e] = 0
        return out

    def set_budget(self, ram_bytes: int) -> None:
        """The caller has dropped everything."""
        if (self._slot >= 0).any():
            raise ValueError("drop every expert before the pool's size changes")
        for g in self._groups:
            g.close()
        self._span = [(-1, -1)] * len(self._span)
        self._build(ram_bytes)

    def close(self) -> None:
        self._reader.close()
        for g in self._groups:
            g.close()
        self.mapping.close()
        while self._fds:
            os.close(self._fds.pop())
