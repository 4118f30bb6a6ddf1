"""What moves experts: reads that start and are waited for, and residents that make room. Each carried out by the store
and written down in the ledger.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Sequence

from backends.interface import EngineError
from backends.streaming.layer_times import LayerTimes
from backends.streaming.layout import ExpertLayout
from backends.streaming.ledger import LOADING, UNPROVEN, Ledger
from backends.streaming.pool import PoolStore
from backends.streaming.stores import Store, by_row


def major_faults() -> int:
    """Page faults of this process that waited for a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


class Moves:
    """Moves the experts of one loaded model, and counts what that costs."""

    def __init__(self, layout: ExpertLayout, store: Store, ledger: Ledger, pace: LayerTimes) -> None:
        self.layout, self.store, self.ledger, self.pace = layout, store, ledger, pace
        self.slots = store if isinstance(store, PoolStore) else None
        self.stall_s = 0.0
        """Seconds that compute waited, for reads and for the kernel's work on requests."""
        self.faults = 0
        """Major faults that were waiting for reads, and so don't show that anything was taken away."""

    def fetch(self, row: int, experts: list[int], urgent: bool = True) -> None:
        """Starts reads. Raises `EngineError` ``io_error``."""
        started = time.perf_counter()
        try:
            self.store.fetch(row, experts, urgent)
        except OSError as e:
            raise self.failure(row, e) from e
        finally:
            self.stall_s += time.perf_counter() - started  # the kernel's work on a request, and fresh memory for it
        self.ledger.loading(row, experts)
        self.pace.reads += len(experts)

    def ask_again(self, row: int, experts: list[int]) -> None:
        """Starts to read what may not have arrived or have been taken away since: memory counts it already. Raises
        `EngineError` ``io_error``."""
        try:
            self.store.fetch(row, experts)
        except OSError as e:
            raise self.failure(row, e) from e
        self.ledger.state[row, experts] = LOADING

    def wait(self, row: int, experts: Sequence[int], down: bool) -> None:
        """Returns when gate and up (`down`: the down matrices) are there. Raises `EngineError` ``io_error``; those that
        weren't resident are absent then."""
        started = time.perf_counter()
        faults = major_faults() if self.slots is None else 0
        try:
            self.store.wait(row, experts, down)
            if self.slots is None:  # waiting for a read in the kernel counts as a fault, too
                self.faults += major_faults() - faults
        except OSError as e:
            self.give_up(row, [x for x in experts if self.ledger.state[row, x] in (LOADING, UNPROVEN)])
            if self.slots is None:
                self.ledger.doubt()  # an expert shares its first and last page with its neighbours
            raise self.failure(row, e) from e
        finally:
            self.stall_s += time.perf_counter() - started

    def through_file(self, row: int, experts: list[int]) -> None:
        """Brings experts into the page cache, past the pool. Raises `EngineError` ``io_error``."""
        assert self.slots is not None
        started = time.perf_counter()
        try:
            self.slots.mapping.fetch(row, experts)
            for down in (False, True):
                self.slots.mapping.wait(row, experts, down)
        except OSError as e:
            raise self.failure(row, e) from e
        finally:
            self.stall_s += time.perf_counter() - started

    def give_up(self, row: int, experts: list[int]) -> None:
        """Experts that couldn't be read, or aren't wanted any more, are absent again."""
        self.store.drop([(row, x) for x in experts])
        self.ledger.dropped(row, experts)

    def failure(self, row: int, e: OSError) -> EngineError:
        """What to tell where experts of `row` can't be read."""
        layer, part = self.layout.rows[row].layer, self.layout.rows[row].tensors[0].entry.part
        name = self.layout.virtual.paths[part].name
        return EngineError(
            "io_error",
            f"Experts of layer {layer} can't be read from {name} ({e.strerror or e})",
            "check the disk and the file, then load the model again.",
        )

    def make_room(self, row: int, count: int, total: int, in_use: dict[int, Sequence[int]]) -> bool:
        """Drops others than those in use until `count` more experts of `row` have room (of `total` that are needed at
        once); False where that can't be."""
        ledger = self.ledger
        if self.slots is None and ledger.room(row) is None:
            return True
        keep = [r * ledger.width + e for r, ids in in_use.items() for e in ids]
        if self.slots is not None:
            victims = self.slots.make_room(ledger, row, count, total, keep)
            if victims is not None:
                self.drop(victims)
            return victims is not None
        size = count * ledger.cost[row]
        self._free(row, size, set(keep))
        return (ledger.room(row) or 0) >= size

    def trim(self, row: int) -> None:
        """Gives back what is over the limit that `row` counts against."""
        if self.ledger.room(row) is not None:
            self._free(row, 0, ())

    def _free(self, row: int, size: int, keep: Collection[int]) -> None:
        short = size - (self.ledger.room(row) or 0)
        if short > 0:
            self.drop(self.ledger.victims(row, keep, short))

    def drop(self, victims: list[tuple[int, int]]) -> None:
        """Gives back the memory of resident experts."""
        if not victims:
            return
        self.ledger.evictions += len(victims)
        self.store.drop(victims)
        for row, experts in by_row(victims).items():
            self.ledger.dropped(row, experts)
