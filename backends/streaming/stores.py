"""What a residency store is, and the page ranges that both stores work on."""

from __future__ import annotations

import ctypes as C
from collections.abc import Collection, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from backends.streaming import abi
from backends.streaming.layout import ExpertLayout
from backends.system.libc import PAGE

I64 = npt.NDArray[np.int64]
Arrival = Literal["coming", "there", "failed", "unknown"]


class Store(Protocol):
    """Makes experts readable at the addresses that ggml has for them, and gives their memory back.

    Rows and experts are indices of `ExpertLayout`. All calls come from one thread. Which expert is where is the
    ledger's business: a store does what it is told.
    """

    name: str
    cost: list[int]
    """Bytes of memory that one expert takes, per row."""
    group: list[int]
    """Rows of one group share a budget."""
    budget: list[int | None]
    """Bytes per group, None without a limit."""

    def fetch(self, row: int, experts: Sequence[int], urgent: bool = True) -> None:
        """Starts reading absent experts. The ledger has made room for them. Those that aren't `urgent` may be started
        by `go_on`, after urgent ones that come later."""
        ...

    def go_on(self) -> None:
        """Called now and then while something is computed: starts reads that the disk's queue had no room for."""
        ...

    def wait(self, row: int, experts: Sequence[int], down: bool) -> None:
        """Waits until the gate and up slices (or, with `down`, the down slices) of fetched experts can be computed on.
        Raises `OSError` where they can't be read."""
        ...

    def arrival(self, row: int, expert: int) -> Arrival:
        """What became of a fetched expert that nobody waits for; never waits. ``unknown``: only `wait` can tell."""
        ...

    def failures(self) -> Collection[tuple[int, int]]:
        """Fetched (row, expert) pairs that are known to have failed and weren't dropped yet."""
        ...

    def mend(self) -> None:
        """Called before each graph: what a failed read left where experts lie is taken away."""
        ...

    def drop(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Gives up resident (row, expert) pairs."""
        ...

    def residency(self) -> I64 | None:
        """Bytes of each (row, expert) that are in memory as the kernel sees it, None where it won't tell."""
        ...

    def set_budget(self, ram_bytes: int) -> None:
        """Changes the limit; the caller drops what is over it first or after."""
        ...

    def close(self) -> None:
        """Unmaps everything; only after the model was freed."""
        ...


class RowRanges:
    """The whole pages of one row's slices: arrays of experts x tensors, gate and up first.

    `lo` and `hi` are file offsets of the pages that a slice touches, `inner_lo` and `inner_hi` those that are its own
    alone (`inner_hi <= inner_lo` where there are none); `start` and `end` are the slice itself.
    """

    def __init__(self, layout: ExpertLayout, row: int) -> None:
        r = layout.rows[row]
        e = np.arange(r.n_experts, dtype=np.int64)[:, None]
        offset = np.array([t.entry.offset for t in r.tensors], np.int64)[None, :]
        size = np.array([t.slice_bytes for t in r.tensors], np.int64)[None, :]
        self.parts = [t.entry.part for t in r.tensors]
        self.n_up = sum(not t.is_down for t in r.tensors)
        """Tensors before the down projection."""
        self.start: I64 = offset + e * size
        self.end: I64 = self.start + size
        self.lo: I64 = self.start // PAGE * PAGE
        self.hi: I64 = -(-self.end // PAGE) * PAGE
        self.inner_lo: I64 = -(-self.start // PAGE) * PAGE
        self.inner_hi: I64 = self.end // PAGE * PAGE


def by_row(experts: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """(row, expert) pairs as a list of experts for each row."""
    rows: dict[int, list[int]] = {}
    for row, e in experts:
        rows.setdefault(row, []).append(e)
    return rows


def point_tensor(pointer: int, address: int) -> None:
    """Sets a tensor's data."""
    abi.Tensor.from_address(pointer).data = C.c_void_p(address).value
