"""Which experts are resident, how often each is used, and which to give up: the policy, apart from the mechanics.

Rows are the layers with experts. The order of giving up is LFRU: each use adds 1 and all uses decay by half every 64
tokens, so what was used often or lately stays. Where the experts of one graph (a wide batch) exceed the budget, any
such order evicts just what comes next round; then each row keeps its share of the budget and only what exceeds it is
given up.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import numpy.typing as npt

ABSENT, LOADING, RESIDENT, UNPROVEN = 0, 1, 2, 3
"""UNPROVEN: asked for, and its memory counts, but nobody has seen it arrive. It is waited for like an absent one before
anything is computed on it, and given up like a resident one."""
HALF_LIFE_TOKENS = 64.0
_REBUILD_TOKENS = 8


class Ledger:
    """State of every (row, expert). One thread writes; readers of the arrays may see a graph's half-done update."""

    def __init__(
        self, n_experts: Sequence[int], cost: Sequence[int], group: Sequence[int], budget: Sequence[int | None]
    ):
        """Per row: its number of experts, what one of them costs in bytes, its group. Per group: the bytes that its
        experts may hold together, None for no limit."""
        rows, width = len(n_experts), max(n_experts)
        self.rows, self.width = rows, width
        self.n_experts = list(n_experts)
        self.cost = list(cost)
        self.group = list(group)
        self.budget = list(budget)
        self.state = np.zeros((rows, width), np.uint8)
        self.uses = np.zeros((rows, width), np.uint32)
        self.last_used = np.zeros((rows, width), np.uint32)
        self.raw_heat = np.zeros((rows, width), np.float64)
        """Uses weighted by when they were: comparable with each other, not with a count."""
        self.flat_heat = self.raw_heat.reshape(-1)
        self.row_hits = np.zeros(rows, np.int64)
        self.row_misses = np.zeros(rows, np.int64)
        self.held = [0] * len(self.budget)
        """Bytes held per group, what is loading included."""
        self.row_held = [0] * rows
        self.evictions = 0
        self.last_count = np.zeros(rows, np.int64)
        """Distinct experts that each row chose last."""
        self.pinned: set[int] = set()
        self.token = 0
        self._weight = 1.0
        self._pending: list[int] = []
        self._pending_counts: list[tuple[int, npt.NDArray[np.int64]]] = []
        """(place in the pending ones, counts from there on)"""
        self._noted: list[npt.NDArray[np.int64]] = []
        self._start = [row * width for row in range(rows)]
        # between two layers the processor's caches are full of experts: every step of numpy that isn't taken counts
        self.states = [states.data for states in self.state]
        """The same memory as `state`, row by row: of few experts, Python reads and writes it sooner than numpy."""
        self._hits, self._misses, self._last = self.row_hits.data, self.row_misses.data, self.last_count.data
        self._flat_uses = self.uses.reshape(-1)
        self._flat_last = self.last_used.reshape(-1)
        self.used_at = self._flat_last.data
        """When each was used last, in tokens, by row * width + expert."""
        self._queue: list[list[int]] = [[] for _ in self.budget]
        self._queue_token = [-(10**9)] * len(self.budget)
        self._graph_bytes = [0] * len(self.budget)
        self._graph_largest = [0] * len(self.budget)
        self._wide = [False] * len(self.budget)
        self._reserve = [0] * len(self.budget)

    # ---- use -----------------------------------------------------------------------------------------------------

    def begin(self, tokens: int, ages: int | None = None) -> None:
        """A graph of `tokens` tokens starts; heat ages like by `ages` tokens, None by all of them."""
        self.flush()
        self.token += tokens
        self._weight *= 2.0 ** ((tokens if ages is None else ages) / HALF_LIFE_TOKENS)
        if self._weight > 1e200:
            self.raw_heat /= self._weight
            self._weight = 1.0
        for g, budget in enumerate(self.budget):
            self._wide[g] = budget is not None and self._graph_bytes[g] > budget
            self._reserve[g] = self._graph_largest[g]
            self._graph_bytes[g] = self._graph_largest[g] = 0

    def missing(self, row: int, ids: Sequence[int], counts: npt.NDArray[np.int64] | None) -> list[int]:
        """Notes that the router of `row` chose the distinct experts `ids` (`counts` times each; None: once), and
        returns those that are not resident, what is loading included."""
        if counts is not None:
            self._pending_counts.append((len(self._pending), counts))
        start, state = self._start[row], self.states[row]
        self._pending += [start + e for e in ids]
        absent = [e for e in ids if state[e] != RESIDENT]
        if absent:
            self._misses[row] += len(absent)
        self._hits[row] += len(ids) - len(absent)
        self._last[row] = len(ids)
        size, g = len(ids) * self.cost[row], self.group[row]
        self._graph_bytes[g] += size
        if size > self._graph_largest[g]:
            self._graph_largest[g] = size
        return absent

    def staged(
        self, row: int, ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], weight: float
    ) -> npt.NDArray[np.int64]:
        """Like `missing` for a pass that computes on whole layers, whose uses weigh `weight` each in the heat; returns
        which of `ids` (indices into it) are not resident."""
        flat = ids + self._start[row]
        absent = np.flatnonzero(self.state[row, ids] != RESIDENT)
        self.row_misses[row] += len(absent)
        self.row_hits[row] += len(ids) - len(absent)
        self.last_count[row] = len(ids)
        self._flat_uses[flat] += counts.astype(np.uint32)
        self.flat_heat[flat] += counts * (weight * self._weight)
        self._flat_last[flat] = self.token
        self._noted.append(flat)
        return absent

    def flush(self) -> None:
        """Accounts for the uses noted so far."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        counts, self._pending_counts = self._pending_counts, []
        flat = np.array(pending, np.int64)
        self._noted.append(flat)
        # a row comes once a graph, so no index repeats
        if counts:
            times = np.ones(len(flat), np.int64)
            for at, of_row in counts:
                times[at : at + len(of_row)] = of_row
            self._flat_uses[flat] += times.astype(np.uint32)
            self.flat_heat[flat] += np.minimum(times, 8) * self._weight
        else:
            self._flat_uses[flat] += np.uint32(1)
            self.flat_heat[flat] += self._weight
        self._flat_last[flat] = self.token

    def take_noted(self) -> list[npt.NDArray[np.int64]]:
        """The uses (row * width + expert) accounted for since the last call, in order."""
        noted, self._noted = self._noted, []
        return noted

    def heat(self) -> npt.NDArray[np.float32]:
        """Uses that decay by half every 64 tokens, float32 of rows x experts."""
        return (self.raw_heat / self._weight).astype(np.float32)

    def remember(self, heat: npt.NDArray[np.float32]) -> None:
        """Adds what was hot before this model was loaded, rows x experts: what is given up first follows it until uses
        say otherwise."""
        self.raw_heat += heat * self._weight

    @property
    def hits(self) -> int:
        return int(self.row_hits.sum())

    @property
    def misses(self) -> int:
        return int(self.row_misses.sum())

    @property
    def resident_bytes(self) -> int:
        """Bytes held by experts, what is loading included."""
        return sum(self.held)

    # ---- residency -------------------------------------------------------------------------------------------------

    def _become(self, row: int, experts: Sequence[int], what: int) -> None:
        states = self.states[row]
        for e in experts:
            states[e] = what

    def loading(self, row: int, experts: Sequence[int]) -> None:
        """Reads of absent experts were started."""
        self._become(row, experts, LOADING)
        size = self.cost[row] * len(experts)
        self.held[self.group[row]] += size
        self.row_held[row] += size

    def arrived(self, row: int, experts: Sequence[int]) -> None:
        """Experts are all there."""
        self._become(row, experts, RESIDENT)

    def unproven(self, row: int, experts: Sequence[int]) -> None:
        """Experts that were loading are no longer looked after; whether they arrived is for who needs them to see."""
        self._become(row, experts, UNPROVEN)

    def doubt(self) -> None:
        """A read failed, and what it touched may be shared: no resident is computed on before it is waited for."""
        self.state[self.state == RESIDENT] = UNPROVEN

    def dropped(self, row: int, experts: Sequence[int]) -> None:
        """Experts that were loading or resident are gone."""
        self._become(row, experts, ABSENT)
        size = self.cost[row] * len(experts)
        self.held[self.group[row]] -= size
        self.row_held[row] -= size

    def room(self, row: int) -> int | None:
        """Bytes free in the row's group (negative: over the limit), None without a limit."""
        budget = self.budget[self.group[row]]
        return None if budget is None else budget - self.held[self.group[row]]

    def victims(self, row: int, keep: Container[int], size: int) -> list[tuple[int, int]]:
        """Resident or unproven (row, expert) pairs of the row's group to give up so that `size` bytes come free; fewer
        where there are no more. Never one of `keep` (row * width + expert), of a pinned row, or that is loading."""
        self.flush()
        g = self.group[row]
        out: list[tuple[int, int]] = []
        if self._wide[g]:
            out, size = self._over_share(g, row, keep, size)
        fresh = False
        chosen = {r * self.width + e for r, e in out}
        while size > 0:
            queue = self._queue[g]
            if not queue or (not fresh and self.token - self._queue_token[g] >= _REBUILD_TOKENS):
                if fresh:
                    break
                self._rebuild(g)
                fresh = True
                continue
            flat = queue.pop()
            r, e = divmod(flat, self.width)
            if self.state[r, e] < RESIDENT or flat in chosen or r in self.pinned or flat in keep:
                continue
            used = int(self.last_used[r, e])
            if used > self._queue_token[g] and not fresh:
                continue  # used since the queue was made: not cold
            chosen.add(flat)
            out.append((r, e))
            size -= self.cost[r]
        return out

    def _rebuild(self, g: int) -> None:
        mask = self.state >= RESIDENT
        for r in range(self.rows):
            if self.group[r] != g or r in self.pinned:
                mask[r] = False
        flat = np.flatnonzero(mask)
        order = np.argsort(self.flat_heat[flat], kind="stable")[::-1]
        self._queue[g] = flat[order].tolist()
        self._queue_token[g] = self.token

    def _over_share(self, g: int, row: int, keep: Container[int], size: int) -> tuple[list[tuple[int, int]], int]:
        """Victims from rows that hold more than their share: the last computed ones, whose turn is farthest away."""
        budget = self.budget[g] or 0
        members = [r for r in range(self.rows) if self.group[r] == g]
        share = max(0, budget - self._reserve[g]) // max(1, len(members))
        out: list[tuple[int, int]] = []
        at = members.index(row)
        for r in reversed(members[at + 1 :] + members[:at] + [row]):
            if size <= 0:
                break
            excess = self.row_held[r] - share if r != row else size
            if r in self.pinned or excess < self.cost[r]:
                continue
            there = np.flatnonzero(self.state[r] >= RESIDENT)
            there = there[np.argsort(self.raw_heat[r, there], kind="stable")]
            for e in there.tolist():
                if size <= 0 or excess < self.cost[r]:
                    break
                if r * self.width + e in keep:
                    continue
                out.append((r, e))
                size -= self.cost[r]
                excess -= self.cost[r]
        return out, size
