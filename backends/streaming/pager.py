"""Brings the chosen experts in and sends others away: the ledger's decisions carried out by a store.

One thread calls everything but `counters` and `snapshot`.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from backends import libc
from backends.interface import EngineError, ExpertMap
from backends.streaming.layout import ExpertLayout
from backends.streaming.ledger import ABSENT, LOADING, RESIDENT, Ledger
from backends.streaming.pace import Pace
from backends.streaming.pagecache import PageCacheStore
from backends.streaming.reuse import SPEND, ReuseMeter
from backends.streaming.slots import SlotStore
from backends.streaming.stores import Store

I64 = npt.NDArray[np.int64]
Guess = Callable[[], list[int]]

DECODE_TOKENS = 16
"""A graph of more tokens is prefill to the reuse meter: its uses say nothing of the next token's."""


LOOK_S = 0.002
"""How long a snapshot for the monitor may ask the kernel which pages are there."""
AHEAD_SHARE = 0.08
"""Of the budget: what may be read ahead for a row, from `LEAST_AHEAD` experts on."""
SPARE_SHARE = 0.1
"""The same where the disk has time to spare: what waits for the next row takes room from all others' hits."""
LEAST_AHEAD = 16

COAST_BYTES = 512 << 20
"""Smaller models are watched always: they are fast, and exact counts are worth more there."""


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


class Pager:
    """Residency of every expert of one loaded model."""

    def __init__(self, layout: ExpertLayout, store: Store) -> None:
        self.layout, self.store = layout, store
        self._slots = store if isinstance(store, SlotStore) else None
        self.ledger = Ledger([r.n_experts for r in layout.rows], store.cost, store.group, store.budget)
        rows = layout.rows
        self.meter = ReuseMeter(len(rows), layout.n_experts, [r.expert_bytes for r in rows], spend=SPEND)
        self.pace = Pace()
        self._full_once = False
        self._decoding = True
        self.stall_s = 0.0
        self.ahead_bytes = 0
        self.reclaimed = 0
        self._quiet = 0
        self._spare = False
        self._full = sum(n * c for n, c in zip(self.ledger.n_experts, self.ledger.cost, strict=True))
        self._faults = 0
        self._synced = 0.0
        self.read_base = libc.read_bytes()
        self._unfinished: dict[int, list[int]] = {}
        self._guessed: dict[int, list[int]] = {}
        self._overflow: list[tuple[int, int]] = []
        self._in_use: dict[int, I64] = {}
        v = layout.virtual
        self._paths = v.paths
        self._watch = [os.open(p, os.O_RDONLY | os.O_CLOEXEC) for p in v.paths]
        self._stamp = [self._stamp_of(fd) for fd in self._watch]
        if [s for s, _ in self._stamp] != v.part_sizes:
            raise EngineError("io_error", f"{v.paths[0].name} was changed while it was loaded; load it again.")

    @staticmethod
    def _stamp_of(fd: int) -> tuple[int, int]:
        s = os.fstat(fd)
        return s.st_size, s.st_mtime_ns

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
            there = np.argwhere(self.ledger.state == RESIDENT)
        else:
            whole = np.array(self.layout.expert_bytes, np.int64)[:, None]
            there = np.argwhere((self.ledger.state == RESIDENT) & (held < whole))
        by_row: dict[int, list[int]] = {}
        for r, e in there.tolist():
            by_row.setdefault(r, []).append(e)
        for r, experts in by_row.items():
            self.ledger.dropped(r, experts)
            self.reclaimed += len(experts)

    # ---- one graph -----------------------------------------------------------------------------------------------

    def begin(self, tokens: int) -> None:
        """A graph of `tokens` tokens starts. Raises `EngineError` ``io_error`` where the file was changed: dense
        weights in memory and experts on disk would no longer belong together."""
        for fd, stamp, path in zip(self._watch, self._stamp, self._paths, strict=True):
            if self._stamp_of(fd) != stamp:
                raise EngineError("io_error", f"{path.name} was changed on disk while in use; load the model again.")
        self._in_use.clear()
        self._decoding = tokens <= DECODE_TOKENS
        self._faults = _major_faults()
        if self.ledger.evictions and not self._full_once:
            self._full_once = True
            self.pace.clear()  # fresh memory is slower to read into: what was timed while it filled comes no more
        self.pace.begin(tokens if self._decoding else 0)
        self.ledger.begin(tokens)

    def end(self) -> None:
        """The graph ended, also where it was aborted."""
        for row in list(self._unfinished):
            try:
                self.finish(row)
            except EngineError:
                pass
        self._collect_guesses()
        self._clear_overflow()
        self.ledger.flush()
        noted = self.ledger.take_noted()
        if noted:
            self.meter.note(noted, decode=self._decoding)
        if self._slots is None:
            self._trim()
        if self._slots is None and _major_faults() - self._faults > 16 and time.monotonic() - self._synced > 0.25:
            self._resync()

    def chosen(
        self, row: int, ids: I64, counts: I64 | None, ahead: Guess | None = None, likely: Guess | None = None
    ) -> bool:
        """The router of `row` chose these distinct experts: returns when gate and up can be computed. `ahead` is called
        once their reads are under way and gives experts of the next row to read after them; `likely`, of many tokens,
        what that row will use beside them, which is read where the disk has time to spare. Raises `EngineError`
        ``io_error``.

        False: the pool can't hold so many at once, and they can be computed on in the mapped file. The limit is
        exceeded by no more than this one layer, until the next one: a smaller ubatch would keep it, but llama.cpp
        rounds by the ubatch, so the answer would no longer be mmap's.
        """
        self._in_use = {row: ids}
        self._clear_overflow()
        absent = self.ledger.missing(row, ids, counts)
        self.pace.chosen(row)
        spare = likely is not None and self._has_time_to_spare(row)
        alone = False
        if absent:
            self._quiet = 0
            if not self._start(row, absent, ids):
                self._through_file(row, ids)
                return False
        else:
            self._quiet += 1
        if ahead is not None and self._quiet <= self.ledger.rows:  # with nothing missing there is nothing to guess
            guessed = ahead()
            if spare and likely is not None:
                named = set(guessed)
                guessed += [e for e in likely() if e not in named]
                if absent:
                    self._wait(row, absent, False)
                    alone = True
            self._read_ahead((row + 1) % len(self.layout.rows), guessed, SPARE_SHARE if spare else AHEAD_SHARE)
        if absent:
            if not alone:
                self._wait(row, absent, False)
            self._unfinished[row] = absent
        return True

    def _start(self, row: int, absent: list[int], ids: I64) -> bool:
        """Starts the reads of absent experts; False where the pool has no room for them. The page cache takes them
        all, and gives back what is over the limit when the next layer needs room."""
        state = self.ledger.state[row]
        fresh = [e for e in absent if state[e] == ABSENT]
        if fresh:
            if not self._make_room(row, len(fresh), len(ids)) and self._slots is not None:
                return False
            self._fetch(row, fresh)
        return True

    def _through_file(self, row: int, ids: I64) -> None:
        """Brings experts into the page cache for one layer's products, past the pool."""
        assert self._slots is not None
        experts = ids.tolist()
        self._overflow = [(row, e) for e in experts]
        started = time.perf_counter()
        try:
            self._slots.mapping.fetch(row, experts)
            for down in (False, True):
                self._slots.mapping.wait(row, experts, down)
        except OSError as e:
            raise self._failure(row, e) from e
        finally:
            self.stall_s += time.perf_counter() - started

    def _clear_overflow(self) -> None:
        if self._overflow and self._slots is not None:
            self._slots.mapping.drop(self._overflow)
            self._overflow = []

    def _fetch(self, row: int, experts: list[int], urgent: bool = True) -> None:
        started = time.perf_counter()
        try:
            self.store.fetch(row, experts, urgent)
        except OSError as e:
            raise self._failure(row, e) from e
        finally:
            self.stall_s += time.perf_counter() - started  # the kernel's work on a request, and fresh memory for it
        self.ledger.loading(row, experts)
        self.pace.reads += len(experts)

    def _wait(self, row: int, experts: Sequence[int], down: bool) -> None:
        started = time.perf_counter()
        faults = _major_faults() if self._slots is None else 0
        try:
            self.store.wait(row, experts, down)
            if self._slots is None:  # waiting for a read in the kernel counts as a fault, too
                self._faults += _major_faults() - faults
        except OSError as e:
            self._unfinished.pop(row, None)
            loading = [x for x in experts if self.ledger.state[row, x] == LOADING]
            self.store.drop([(row, x) for x in loading])
            self.ledger.dropped(row, loading)
            raise self._failure(row, e) from e
        finally:
            self.stall_s += time.perf_counter() - started

    def _failure(self, row: int, e: OSError) -> EngineError:
        layer, part = self.layout.rows[row].layer, self.layout.rows[row].tensors[0].entry.part
        name = self._paths[part].name
        return EngineError(
            "io_error",
            f"Experts of layer {layer} can't be read from {name} ({e.strerror or e}); check the disk and the file, "
            "then load the model again.",
        )

    def _trim(self) -> None:
        """Gives back what the last layers took beyond the limit."""
        for row in {g: r for r, g in enumerate(self.ledger.group)}.values():
            over = -(self.ledger.room(row) or 0)
            if over > 0:
                self._drop(self.ledger.victims(row, (), over))

    def all_there(self) -> bool:
        """Every expert of a large model is in the page cache and nothing limits it: there is nothing to do."""
        ledger, store = self.ledger, self.store
        if not isinstance(store, PageCacheStore) or ledger.budget[0] is not None or self._unfinished or self._guessed:
            return False
        return self.layout.total_bytes >= COAST_BYTES and ledger.held[0] == self._full

    def coasted(self) -> None:
        """A graph of one token ran unwatched; whatever it chose was there."""
        self.ledger.row_hits += self.ledger.last_count

    def unfinished(self, row: int) -> bool:
        """Whether down matrices of `row` may still be on their way."""
        return row in self._unfinished

    def finish(self, row: int) -> None:
        """Returns when the down matrices of `row` can be computed on."""
        experts = self._unfinished.pop(row, None)
        if experts is None:
            return
        self._wait(row, experts, True)
        self.ledger.arrived(row, experts)

    def pin(self, row: int) -> None:
        """The safety net: makes all experts of `row` resident, now and for good. Raises `EngineError`
        ``budget_too_small`` where they don't fit beside what is being computed on."""
        if self._slots is not None:
            return  # the product isn't patched: it computes on the mapped file
        n = self.layout.rows[row].n_experts
        ids = np.arange(n, dtype=np.int64)
        self._in_use[row] = ids
        self.finish(row)
        absent = np.flatnonzero(self.ledger.state[row, :n] != RESIDENT).tolist()
        if absent:
            self._start(row, absent, ids)
            self._wait(row, absent, False)
            self._unfinished[row] = absent
            self.finish(row)
        self.ledger.pinned.add(row)

    def _make_room(self, row: int, count: int, total: int, guess: bool = False) -> bool:
        """Drops others until `count` more experts of `row` have room (of `total` that are needed at once); False where
        that can't be."""
        if self._slots is None and self.ledger.room(row) is None:
            return True
        width = self.ledger.width
        keep = np.concatenate([ids + r * width for r, ids in self._in_use.items()])
        for attempt in range(1 if guess else 2):
            if self._slots is not None:
                victims = self._slots.make_room(self.ledger, row, count, total, keep)
                if victims is not None:
                    self._drop(victims)
                    return True
            else:
                size = count * self.ledger.cost[row]
                room = self.ledger.room(row) or 0
                if room < size:
                    self._drop(self.ledger.victims(row, set(keep.tolist()), size - room))
                if (self.ledger.room(row) or 0) >= size:
                    return True
            if not attempt and self._guessed:
                self.settle()
        return False

    def _drop(self, victims: list[tuple[int, int]]) -> None:
        if not victims:
            return
        self.ledger.evictions += len(victims)
        self.store.drop(victims)
        by_row: dict[int, list[int]] = {}
        for r, e in victims:
            by_row.setdefault(r, []).append(e)
        for r, experts in by_row.items():
            self.ledger.dropped(r, experts)

    # ---- reading ahead ---------------------------------------------------------------------------------------------

    def _read_ahead(self, row: int, experts: list[int], share: float) -> None:
        if not experts or row in self._in_use:  # of a single row, what it computes on must stay
            return
        state = self.ledger.state[row]
        fresh = [e for e in experts if state[e] == ABSENT]
        if not fresh:
            return
        self._in_use[row] = np.array(experts, np.int64)  # what is there already must stay, too
        fresh = fresh[: self._most_ahead(row, share)]
        while fresh:
            if self._make_room(row, len(fresh), len(experts), guess=True):
                self._fetch(row, fresh, urgent=False)
                self._guessed.setdefault(row, []).extend(fresh)
                self.ahead_bytes += len(fresh) * int(self.layout.rows[row].expert_bytes)
                return
            fresh = fresh[: len(fresh) // 2]

    def _has_time_to_spare(self, row: int) -> bool:
        """Whether all that was read ahead came before it was needed: then what is missing needn't share the disk with
        the next guesses, and more may be guessed. Otherwise the disk's queue is better never empty, and never full of
        what may not be needed."""
        guessed = self._guessed.get(row)
        if guessed:
            self._spare = all(self.store.ready(row, e) for e in guessed)
        return self._spare

    def _most_ahead(self, row: int, share: float) -> int:
        """How many experts may be read ahead: what waits for the next layer is lost to the hits of all others."""
        ledger = self.ledger
        budget = ledger.budget[ledger.group[row]]
        if budget is None:
            return int(self.layout.n_experts)
        return max(LEAST_AHEAD, int(share * budget / ledger.cost[row]))

    def _collect_guesses(self) -> None:
        """Marks what was read ahead for nothing as resident (and cold)."""
        for row in list(self._guessed):
            left = [e for e in self._guessed[row] if self.ledger.state[row, e] == LOADING]
            there = [e for e in left if self.store.ready(row, e)]
            if there:
                self.ledger.arrived(row, there)
                left = [e for e in left if e not in set(there)]
            if left:
                self._guessed[row] = left
            else:
                del self._guessed[row]

    def settle(self) -> None:
        """Waits for everything that was read ahead."""
        for row in list(self._guessed):
            experts = [e for e in self._guessed.pop(row) if self.ledger.state[row, e] == LOADING]
            if experts:
                self._wait(row, experts, False)
                self._wait(row, experts, True)
                self.ledger.arrived(row, experts)

    # ---- figures ---------------------------------------------------------------------------------------------------

    @property
    def read_bytes(self) -> int:
        """Bytes read from storage since the experts were placed."""
        return libc.read_bytes() - self.read_base

    def snapshot(self) -> ExpertMap:
        """Per-expert state; may be called from another thread."""
        ledger, rows = self.ledger, self.layout.rows
        share = np.where(ledger.state == RESIDENT, np.uint8(255), np.uint8(0))
        if isinstance(self.store, PageCacheStore):
            held = self.store.residency(LOOK_S)
            if held is not None:
                share = np.minimum(255, np.round(255 * held / self.store.whole)).astype(np.uint8)
        return ExpertMap(
            n_layers=len(rows),
            n_experts=self.layout.n_experts,
            first_layer=rows[0].layer,
            layers=tuple(r.layer for r in rows),
            expert_bytes=tuple(r.expert_bytes for r in rows),
            uses=ledger.uses.tobytes(),
            heat=ledger.heat().tobytes(),
            last_used=ledger.last_used.tobytes(),
            residency=share.tobytes(),
            hits=ledger.row_hits.astype(np.uint32).tobytes(),
            misses=ledger.row_misses.astype(np.uint32).tobytes(),
            next_token_reuse=self.meter.next_token_reuse_by_row().tobytes(),
        )

    def set_budget(self, ram_bytes: int) -> None:
        """Changes what experts may hold; what doesn't fit any more is dropped. Not within a graph."""
        self.settle()
        there = np.argwhere(self.ledger.state == RESIDENT)
        pairs = [(int(r), int(e)) for r, e in there]
        if self.store.name == "pool":
            self._drop(pairs)
        self.store.set_budget(ram_bytes)
        self.ledger.budget = list(self.store.budget)
        for row in range(self.ledger.rows):
            room = self.ledger.room(row)
            if room is not None and room < 0:
                self._drop(self.ledger.victims(row, (), -room))

    def close(self) -> None:
        """Closes the files; the store is closed by who made it."""
        while self._watch:
            os.close(self._watch.pop())
