"""Brings the chosen experts in and sends others away: the ledger's decisions carried out by a store.

One thread calls everything but `counters` and `snapshot`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from backends.interface import EngineError, ExpertMap
from backends.streaming.layer_times import LayerTimes
from backends.streaming.layout import ExpertLayout
from backends.streaming.ledger import ABSENT, LOADING, RESIDENT, UNPROVEN, Ledger
from backends.streaming.moves import Moves, major_faults
from backends.streaming.pagecache import PageCacheStore
from backends.streaming.prefetch import Prefetcher
from backends.streaming.reuse_distance import SPEND, ReuseMeter
from backends.streaming.snapshot import expert_map
from backends.streaming.staging import PassChoice, Staging
from backends.streaming.stores import I64, Store, by_row
from backends.streaming.whole_layers import WholeLayers
from backends.system import libc

Guess = Callable[[], list[tuple[int, list[int]]]]
"""Which experts of which rows will be chosen."""
Likely = Callable[[], list[int]]

DECODE_TOKENS = 16
"""A graph of more tokens is prefill to the reuse meter: its uses say nothing of the next token's."""
COAST_BYTES = 512 << 20
"""Smaller models are watched always: they are fast, and exact counts are worth more there."""


def _pairs(found: I64) -> list[tuple[int, int]]:
    """Rows of `numpy.argwhere`, as (row, expert)."""
    return [(int(r), int(e)) for r, e in found]


class Pager:
    """Residency of every expert of one loaded model."""

    def __init__(self, layout: ExpertLayout, store: Store) -> None:
        self.layout, self.store = layout, store
        self.ledger = Ledger([r.n_experts for r in layout.rows], store.cost, store.group, store.budget)
        rows = layout.rows
        self.meter = ReuseMeter(len(rows), layout.n_experts, [r.expert_bytes for r in rows], spend=SPEND)
        self.pace = LayerTimes()
        self._moves = Moves(layout, store, self.ledger, self.pace)
        self._slots = self._moves.slots
        self._ahead = Prefetcher(self._moves)
        self.whole: WholeLayers | None = None
        """Reads whole layers for passes of many tokens, where the pool holds the experts."""
        self._full_once = False
        self._decoding = True
        self.reclaimed = 0
        self._quiet = 0
        self._reads, self._missed = 1.0, 0
        self._full = sum(n * c for n, c in zip(self.ledger.n_experts, self.ledger.cost, strict=True))
        self._faults = 0
        self._synced = 0.0
        self.read_base = libc.read_bytes()
        self._unfinished: dict[int, list[int]] = {}
        self._overflow: list[tuple[int, int]] = []
        self._in_use: dict[int, Sequence[int]] = {}

    def read_whole_layers(self, staging: Staging, n_used: int, offload_from: int | None) -> None:
        """From now on passes of many tokens are staged where that is worth it (see `WholeLayers`)."""
        assert self._slots is not None
        choice = PassChoice(self.layout.n_experts, n_used)
        self.whole = WholeLayers(self.layout, self._slots, self.ledger, self._moves, staging, choice, offload_from)

    def adopt(self, progress: Callable[[int, int], bool]) -> None:
        """Starts with what the page cache already holds of the model, mapped; with a limit it starts empty. Raises
        `EngineError` ``cancelled``."""
        store = self.store
        if not isinstance(store, PageCacheStore):
            return
        if store.budget[0] is not None:
            store.forget_file()
            return
        done = 0
        for row in range(self.ledger.rows):
            try:
                found = store.populate_cached(row)
            except OSError:
                continue  # it is read again when it is needed
            if found is None:
                return
            experts, size = found
            if experts:
                self.ledger.loading(row, experts)
                self.ledger.arrived(row, experts)
                done += size
            if not progress(done, self.layout.total_bytes):
                raise EngineError("cancelled", "Loading was cancelled.")

    def _resync(self) -> None:
        """The kernel took pages that the ledger thought resident (compute waited for page faults): look again."""
        held = self.store.residency()
        self._synced = time.monotonic()
        if held is None:
            there = np.argwhere(self.ledger.state >= RESIDENT)
        else:
            whole = np.array(self.layout.expert_bytes, np.int64)[:, None]
            there = np.argwhere((self.ledger.state >= RESIDENT) & (held < whole))
        for r, experts in by_row(_pairs(there)).items():
            self.ledger.dropped(r, experts)
            self.reclaimed += len(experts)

    # ---- one graph -----------------------------------------------------------------------------------------------

    def begin(self, tokens: int, ages: int | None = None) -> None:
        """A graph of `tokens` tokens starts; `ages`: see `Ledger.begin`."""
        self.store.mend()
        self._in_use.clear()
        self._decoding = tokens <= DECODE_TOKENS
        self._faults = major_faults() - self._moves.faults
        if self.ledger.evictions and not self._full_once:
            self._full_once = True
            self.pace.clear()  # fresh memory is slower to read into: what was timed while it filled comes no more
        self.pace.begin(tokens if self._decoding else 0)
        self.ledger.begin(tokens, ages)

    def end(self) -> None:
        """The graph ended, also where it was aborted."""
        for row in list(self._unfinished):
            try:
                self.finish(row)
            except EngineError:
                pass
        self._ahead.collect()
        self._clear_overflow()
        self.ledger.flush()
        noted = self.ledger.take_noted()
        if noted:
            self.meter.note(noted, decode=self._decoding)
        if self._slots is None:
            self._trim()
        if (
            self._slots is None
            and major_faults() - self._moves.faults - self._faults > 16
            and time.monotonic() - self._synced > 0.25
        ):
            self._resync()

    def chosen(
        self,
        row: int,
        ids: list[int],
        counts: I64 | None,
        ahead: Guess | None = None,
        likely: Likely | None = None,
    ) -> bool:
        """The router of `row` chose these distinct experts: returns when gate and up can be computed. `ahead` is called
        once their reads are under way and gives experts of the next rows to read after them; `likely`, of many tokens,
        what that row will use beside them, which is read where the disk has time to spare. Raises `EngineError`
        ``io_error``.

        False: the pool can't hold so many at once, and they can be computed on in the mapped file. The limit is
        exceeded by no more than this one layer, until the next one: a smaller ubatch would keep it, but llama.cpp
        rounds by the ubatch, so the answer would no longer be mmap's.
        """
        self._in_use = {row: ids}
        self._clear_overflow()
        if self.store.failures():
            self._ahead.forget_failed()
        absent = self.ledger.missing(row, ids, counts)
        self.pace.chosen(row)
        states = self.ledger.states[row]
        guessed_before = any(states[e] == LOADING for e in absent)
        spare = likely is not None and self._ahead.has_time_to_spare(row)
        alone = False
        if absent:
            self._quiet = 0
            if not self._start(row, absent, ids):
                self._through_file(row, ids)
                return False
        else:
            self._quiet += 1
        if ahead is not None and self._quiet <= self.ledger.rows:  # with nothing missing there is nothing to guess
            guesses = ahead()
            if spare and likely is not None:
                following = (row + 1) % len(self.layout.rows)
                named = guesses[0][1] if guesses else []
                guesses = [(following, named + [e for e in likely() if e not in set(named)])]
                if absent:
                    self._wait(row, absent, ids, guessed_before)
                    alone = True
            for there, guessed in guesses:
                self._ahead.read(there, guessed, self._in_use, now=row, spare=spare)
        if absent:
            if not alone:
                self._wait(row, absent, ids, guessed_before)
            if self._slots is not None and self._slots.all_there(row, absent):
                self.ledger.arrived(row, absent)
            else:
                self._unfinished[row] = absent
        return True

    def _wait(self, row: int, absent: list[int], ids: list[int], guessed: bool) -> None:
        """Waits for gate and up. A guess that failed is no reason to refuse an answer: it is read again, once."""
        try:
            self._moves.wait(row, absent, False)
        except EngineError:
            if not guessed or not self._start(row, absent, ids):
                raise
            self._moves.wait(row, absent, False)

    def _start(self, row: int, absent: list[int], ids: list[int]) -> bool:
        """Starts the reads of absent experts; False where the pool has no room for them. The page cache takes them
        all, and gives back what is over the limit when the next layer needs room."""
        state = self.ledger.states[row]
        fresh = [e for e in absent if state[e] == ABSENT]
        unproven = [e for e in absent if state[e] == UNPROVEN]
        if unproven:
            self._moves.ask_again(row, unproven)
        if fresh:
            if not self._make_room(row, len(fresh), len(ids)) and self._slots is not None:
                return False
            self._moves.fetch(row, fresh)
        return True

    def _through_file(self, row: int, experts: list[int]) -> None:
        """Brings experts into the page cache for one layer's products, past the pool."""
        self._overflow = [(row, e) for e in experts]
        self._moves.through_file(row, experts)

    def _clear_overflow(self) -> None:
        if self._overflow and self._slots is not None:
            self._slots.mapping.drop(self._overflow)
            self._overflow = []

    def _trim(self) -> None:
        """Gives back what the last layers took beyond the limit."""
        for row in {g: r for r, g in enumerate(self.ledger.group)}.values():
            self._moves.trim(row)

    def all_there(self) -> bool:
        """Every expert of a large model is in the page cache and nothing limits it: there is nothing to do."""
        ledger, store = self.ledger, self.store
        if (
            not isinstance(store, PageCacheStore)
            or ledger.budget[0] is not None
            or self._unfinished
            or self._ahead.pending
        ):
            return False
        return self.layout.total_bytes >= COAST_BYTES and ledger.held[0] == self._full

    def coasted(self) -> None:
        """A graph of one token ran unwatched; whatever it chose was there."""
        self.ledger.row_hits += self.ledger.last_count

    def reads_a_row(self) -> float:
        """Experts that a layer reads lately, on average over graphs; asked once a graph."""
        missed = self.ledger.misses
        self._reads += 0.2 * ((missed - self._missed) / self.ledger.rows - self._reads)
        self._missed = missed
        return self._reads

    def unfinished(self, row: int) -> bool:
        """Whether down matrices of `row` may still be on their way."""
        return row in self._unfinished

    def finish(self, row: int) -> None:
        """Returns when the down matrices of `row` can be computed on."""
        experts = self._unfinished.pop(row, None)
        if experts is None:
            return
        self._moves.wait(row, experts, True)
        self.ledger.arrived(row, experts)

    def pin(self, row: int) -> None:
        """The safety net: makes all experts of `row` resident, now and for good. Raises `EngineError`
        ``budget_too_small`` where they don't fit beside what is being computed on."""
        if self._slots is not None:
            return  # the product isn't patched: it computes on the mapped file
        n = self.layout.rows[row].n_experts
        ids = list(range(n))
        self._in_use[row] = ids
        self.finish(row)
        absent = np.flatnonzero(self.ledger.state[row, :n] != RESIDENT).tolist()
        if absent:
            self._start(row, absent, ids)
            self._moves.wait(row, absent, False)
            self._unfinished[row] = absent
            self.finish(row)
        self.ledger.pinned.add(row)

    def _make_room(self, row: int, count: int, total: int) -> bool:
        if self._moves.make_room(row, count, total, self._in_use):
            return True
        if not self._ahead.pending:
            return False
        self._ahead.settle()  # what is on its way can't make room, what has come can
        return self._moves.make_room(row, count, total, self._in_use)

    # ---- between graphs ------------------------------------------------------------------------------------------

    def share(self, row: int) -> int:
        """Experts of `row` that may be there before anything is asked; 0 without a limit, where the kernel keeps what
        it likes across restarts."""
        if self._slots is not None:
            return self._slots.share(row)
        budget = self.ledger.budget[0]
        return 0 if budget is None else budget // self.ledger.rows // self.ledger.cost[row]

    def warming(self) -> bool:
        """Whether reads that nobody waits for are still under way."""
        self._ahead.collect()
        return self._ahead.pending

    def warm(self, row: int, experts: list[int]) -> bool:
        """Starts to read absent experts of `row`, as many as there is free room for; whether there were any. In the
        page cache it waits for them."""
        if self._slots is not None:
            free = self._slots.free(row)
        else:
            free = (self.ledger.room(row) or 0) // self.ledger.cost[row]
        state = self.ledger.state[row]
        fresh = [e for e in experts if state[e] == ABSENT][: max(0, free)]
        if not fresh:
            return False
        stall_s, reads = self._moves.stall_s, self.pace.reads
        try:
            if self._moves.make_room(row, len(fresh), len(fresh), {row: fresh}):
                self._moves.fetch(row, fresh, urgent=False)
                if self._slots is not None:
                    self._ahead.watch(row, fresh)
                else:
                    for down in (False, True):
                        self._moves.wait(row, fresh, down)
                    self.ledger.arrived(row, fresh)
        except EngineError:
            return False  # whoever asks for them is told
        finally:
            self._moves.stall_s, self.pace.reads = stall_s, reads  # nobody was kept waiting
        return True

    # ---- figures ---------------------------------------------------------------------------------------------------

    @property
    def stall_s(self) -> float:
        """Seconds that compute waited for reads."""
        return self._moves.stall_s

    def waited(self, seconds: float) -> None:
        """Compute waited for something else than experts."""
        self._moves.stall_s += seconds

    @property
    def ahead_bytes(self) -> int:
        """Bytes asked for before any router chose them."""
        return self._ahead.bytes

    @property
    def read_bytes(self) -> int:
        """Bytes read from storage since the experts were placed."""
        return libc.read_bytes() - self.read_base

    def snapshot(self) -> ExpertMap:
        """Per-expert state; may be called from another thread."""
        return expert_map(self.layout, self.store, self.ledger, self.meter)

    def set_budget(self, ram_bytes: int) -> None:
        """Changes what experts may hold; what doesn't fit any more is dropped. Not within a graph."""
        self._ahead.settle()
        if self.whole is not None:
            self.whole.staging.reset()
        if self.store.name == "pool":
            self._moves.drop(_pairs(np.argwhere(self.ledger.state == RESIDENT)))
        self.store.set_budget(ram_bytes)
        self.ledger.budget = list(self.store.budget)
        for row in range(self.ledger.rows):
            self._moves.trim(row)

    def close(self) -> None:
        """Frees the buffers of whole layers; the store is closed by who made it, afterwards."""
        if self.whole is not None:
            self.whole.close()
