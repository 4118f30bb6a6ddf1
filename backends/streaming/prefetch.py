"""Reads experts before they are asked for: those that a guess names for the rows that come next.

What is read ahead takes room from all others' hits until it is used, so it has a share of the budget, and a larger one
where the disk has time to spare.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.interface import EngineError
from backends.streaming.ledger import ABSENT, LOADING
from backends.streaming.moves import Moves

AHEAD_SHARE = 0.08
"""Of the budget: what may be read ahead for a row, from `LEAST_AHEAD` experts on."""
SPARE_SHARE = 0.1
"""The same where the disk has time to spare."""
LEAST_AHEAD = 16


class Prefetcher:
    """The experts of one model that were asked for on a guess."""

    def __init__(self, moves: Moves) -> None:
        self._moves, self._ledger, self._store = moves, moves.ledger, moves.store
        self._asked: dict[int, list[int]] = {}
        self._spare = False
        self.bytes = 0
        """Bytes asked for so far."""

    @property
    def pending(self) -> bool:
        """Whether some of it may still be on its way."""
        return bool(self._asked)

    def read(
        self, row: int, experts: list[int], in_use: dict[int, Sequence[int]], *, now: int, spare: bool = False
    ) -> None:
        """Starts to read what is absent of `experts`, the likeliest first, as far as there is room; nothing that is
        `in_use`, to which they belong from now on, makes place for them. `now`: the row that is computed on."""
        if not experts or row == now:  # of a single row, what it computes on must stay
            return
        state = self._ledger.states[row]
        fresh = [e for e in experts if state[e] == ABSENT]
        if not fresh:
            return
        in_use[row] = experts  # what is there already must stay, too
        fresh = fresh[: self._most(row, SPARE_SHARE if spare else AHEAD_SHARE)]
        while fresh:
            if self._moves.make_room(row, len(fresh), len(experts), in_use):
                self._moves.fetch(row, fresh, urgent=False)
                self._asked.setdefault(row, []).extend(fresh)
                self.bytes += len(fresh) * int(self._moves.layout.rows[row].expert_bytes)
                return
            fresh = fresh[: len(fresh) // 2]

    def watch(self, row: int, experts: list[int]) -> None:
        """Looks after reads that somebody else has started and nobody waits for."""
        self._asked.setdefault(row, []).extend(experts)

    def _most(self, row: int, share: float) -> int:
        """How many experts may be read ahead: what waits for the next layer is lost to the hits of all others."""
        budget = self._ledger.budget[self._ledger.group[row]]
        if budget is None:
            return int(self._moves.layout.n_experts)
        return max(LEAST_AHEAD, int(share * budget / self._ledger.cost[row]))

    def has_time_to_spare(self, row: int) -> bool:
        """Whether all that was read ahead came before it was needed: then what is missing needn't share the disk with
        the next guesses, and more may be guessed. Otherwise the disk's queue is better never empty, and never full of
        what may not be needed."""
        asked = self._asked.get(row)
        if asked:
            self._spare = all(self._store.arrival(row, e) != "coming" for e in asked)
        return self._spare

    def collect(self) -> None:
        """Marks what was read ahead for nothing as resident (and cold) where it has arrived, as absent where its read
        failed: arrived and arrived well are two things."""
        for row in list(self._asked):
            left: list[int] = []
            for e in dict.fromkeys(self._asked.pop(row)):
                if self._ledger.states[row][e] != LOADING:
                    continue
                arrival = self._store.arrival(row, e)
                if arrival == "there":
                    self._ledger.arrived(row, [e])
                elif arrival == "unknown":
                    self._ledger.unproven(row, [e])
                elif arrival == "failed":
                    self._moves.give_up(row, [e])
                else:
                    left.append(e)
            if left:
                self._asked[row] = left

    def forget_failed(self) -> None:
        """What was guessed and couldn't be read is absent: where it is chosen after all it is read again, and only if
        that fails, too, it is an error. Cheap where nothing failed."""
        for row, e in list(self._store.failures()):
            if self._ledger.state[row, e] == LOADING and e in self._asked.get(row, ()):
                self._asked[row].remove(e)
                self._moves.give_up(row, [e])

    def settle(self) -> None:
        """Waits for everything that was read ahead; what can't be read is absent then."""
        for row in list(self._asked):
            experts = [e for e in dict.fromkeys(self._asked.pop(row)) if self._ledger.state[row, e] == LOADING]
            try:
                for down in (False, True):
                    self._moves.wait(row, experts, down)
            except EngineError:
                continue  # nobody needs them; `wait` has given them up
            self._ledger.arrived(row, experts)
