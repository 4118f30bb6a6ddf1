"""Passes of many tokens: which of them read whole layers, and what the ledger and the pool learn from them.

The pool's contents survive such a pass. Where it has free slots they get the experts that the prompt used most, copied
from the buffers: the answer that follows finds them.
"""

from __future__ import annotations

import ctypes as C
import time
from collections.abc import Sequence

import numpy as np

from backends.interface import EngineError
from backends.llamacpp.context import Batch
from backends.streaming.layout import ExpertLayout
from backends.streaming.ledger import ABSENT, Ledger
from backends.streaming.moves import Moves
from backends.streaming.pool import PoolStore
from backends.streaming.staging import PassChoice, Staging
from backends.streaming.stores import I64

LEAST_TOKENS = 8
"""Smaller passes are never staged on the CPU."""
AGE_TOKENS = 16
"""A pass over a prompt ages the experts' heat like so many tokens, and its uses weigh as theirs together: what the pool
holds was earned by decoding, and a prompt's thousands of tokens would wipe the record of that."""
WORTH_READING = 0.1
"""Share of the experts that must be absent: below it the pool has nearly all of them, and copying costs more."""
IDLE_PASSES = 3
"""After so many passes that aren't staged the buffers' memory is given back."""


class WholeLayers:
    """Decides for each pass, and carries it out for each of its rows. One thread calls everything."""

    def __init__(
        self,
        layout: ExpertLayout,
        pool: PoolStore,
        ledger: Ledger,
        moves: Moves,
        staging: Staging,
        choice: PassChoice,
        offload_from: int | None = None,
    ) -> None:
        """`offload_from`: products of so many tokens run on a GPU, which copies experts by their own layout: such
        passes are always staged. None: no product does."""
        self._layout, self._pool, self._ledger, self._moves = layout, pool, ledger, moves
        self.staging, self._choice, self.offload_from = staging, choice, offload_from
        self._up = [[i for i, t in enumerate(r.tensors) if not t.is_down] for r in layout.rows]
        self._down = [[i for i, t in enumerate(r.tensors) if t.is_down] for r in layout.rows]
        self.active = False
        """Whether the pass that is being computed is staged."""
        self._tokens = 0
        self._last_row_wide = False
        """The last row computes on all tokens, also of a pass that wants logits of few: seen once."""
        self._idle = 0
        self._filling: dict[int, list[tuple[int, int]]] = {}
        self._before = (0, 0.0)
        self.passes = 0
        self.rows_done = 0

    # ---- a pass ----------------------------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> bool:
        """A pass starts; whether it is staged."""
        tokens, outputs = len(batch), sum(batch.outputs)
        self.active = self._worth(tokens, outputs)
        self._tokens = tokens
        if not self.active:
            self._idle += 1
            if self._idle == IDLE_PASSES and self.staging.touched:
                self.staging.give_back()
            else:
                self.staging.settle()  # the pool may change from here on, and what is copied from it must not
            return False
        self._idle = 0
        self._before = self.staging.read_bytes, self.staging.busy_s
        rows = list(range(len(self._layout.rows)))
        if not self._last_row_wide and not self._wide(outputs) and len(rows) > 1:
            rows.pop()
        try:
            self.staging.begin(rows, around=batch.more)
        except OSError as e:
            self.active = False
            if self.offload_from is None:
                return False  # the pool serves it, more slowly
            raise EngineError("no_memory", f"There is no memory for reading whole layers ({e.strerror or e}).") from e
        self.passes += 1
        return True

    def _wide(self, tokens: int) -> bool:
        least = self.offload_from if self.offload_from is not None else LEAST_TOKENS
        return tokens >= least

    def _worth(self, tokens: int, outputs: int) -> bool:
        if self.offload_from is not None:
            return tokens >= self.offload_from
        if tokens < LEAST_TOKENS or 2 * outputs > tokens:  # a wide step of many answers, which the pool serves
            return False
        total = self._layout.total_bytes
        absent = total - self._ledger.resident_bytes
        return absent >= WORTH_READING * total and self._choice.worth(tokens)

    def covers(self, row: int, tokens: int) -> bool:
        """Whether the products of `row` on so many tokens take this way. Not where the last layer computes on the few
        tokens whose logits are wanted."""
        if not self.active or not self._wide(tokens):
            return False
        if row == len(self._layout.rows) - 1 and tokens == self._tokens:
            self._last_row_wide = True
        return True

    def settle(self) -> None:
        """Before the pool changes within a pass: nothing is copied from it any more."""
        if self.active:
            self.staging.settle()

    def chosen(self, row: int, ids: I64, counts: I64 | None) -> None:
        """The router of `row` chose: returns when gate and up are there. Raises `EngineError` ``io_error``."""
        times = np.ones(len(ids), np.int64) if counts is None else counts
        absent = self._ledger.staged(row, ids, times, AGE_TOKENS / max(1, self._tokens))
        if not self._wait(row, self._up[row]):
            return  # the pass was stopped
        absent = absent[self._ledger.state[row, ids[absent]] == ABSENT]  # others are on their way already
        free = self._pool.free(row)
        if free and len(absent):
            order = np.argsort(-times[absent], kind="stable")[:free]
            experts = ids[absent][order].tolist()
            self._ledger.loading(row, experts)
            self._filling[row] = list(zip(experts, self._pool.adopt(row, experts), strict=True))

    def middle(self, row: int) -> None:
        """Gate and up of `row` were computed on: returns when down is there."""
        self._release(row, self._up[row])
        self._wait(row, self._down[row])

    def done(self, row: int) -> None:
        """All products of `row` were computed."""
        self._release(row, self._down[row])
        self.rows_done += 1
        filled = [e for e, _ in self._filling.pop(row, ())]
        if filled:
            self._pool.adopted(row, filled)
            self._ledger.arrived(row, filled)

    def end(self, ok: bool) -> None:
        """The pass ended; not `ok`: it was aborted."""
        for row, pairs in self._filling.items():
            experts = [e for e, _ in pairs]
            self._pool.drop([(row, e) for e in experts])
            self._ledger.dropped(row, experts)
        self._filling.clear()
        if not self.active:
            return
        self.active = False
        self._choice.staged(self.staging.read_bytes - self._before[0], self.staging.busy_s - self._before[1])
        if not ok:
            self.staging.reset()

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _wait(self, row: int, indices: Sequence[int]) -> bool:
        started = time.perf_counter()
        try:
            return self.staging.wait(row, indices)
        except OSError as e:
            raise self._moves.failure(row, e) from e
        finally:
            self._moves.stall_s += time.perf_counter() - started

    def _release(self, row: int, indices: Sequence[int]) -> None:
        for e, slot in self._filling.get(row, ()):
            for i in indices:
                size = self._layout.rows[row].tensors[i].slice_bytes
                C.memmove(slot + self._pool.place(row, i), self.staging.slice(row, i, e), size)
        self.staging.release(row, indices)

    def close(self) -> None:
        """Frees the buffers; before the pool is closed."""
        self.staging.close()
