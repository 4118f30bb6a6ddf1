"""What guesses were worth lately, and what tokens use without being guessed: see `backends.streaming.predictor`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
_TRIAL_TOKENS = 6
"""Guesses of a rank that are only scored before its record counts."""
_FADE = 0.97
_WINDOW = 1000
"""Guesses of which a record is made."""
LIKELY = 0.92
"""The probability from which on an expert is read ahead that no guess named."""
_RATE_TOKENS = 1024.0
"""Tokens over which the rates of use are taken."""
FLOORS = (0.6, 0.75)
"""The share of right guesses from which a rank is read ahead: for the next layer, and farther, where the disk's time is
more often its own."""
FARTHEST = 5
"""Layers that one token's guesses look ahead at most, but for those that are made by twos or fours."""
_KNOWN = 24.0
_USEFUL = 0.75
"""Of the ranks that are worth reading one layer ahead: so many must be farther."""
_CORRECTED_FROM = 0.03
"""How much better the next layer's guess must be to be made beside the farther one: a product costs as much as 3 % of
ten experts' reads."""


class Record:
    """What each rank of the guess was worth lately. Lists: of so few, Python counts sooner than numpy."""

    def __init__(self, n_used: int) -> None:
        self.right = [0.0] * max(1, n_used)
        self.tried = [0.0] * max(1, n_used)

    @property
    def share(self) -> float:
        """The share of all guesses that were right."""
        return sum(self.right) / max(1e-9, sum(self.tried))

    def score(self, right: Sequence[float]) -> None:
        """`right`: per rank the share of its guesses that were among the chosen."""
        for rank, share in enumerate(right):
            self.right[rank] += share
            self.tried[rank] += 1
        if self.tried[0] > _WINDOW:
            self.right = [_FADE * x for x in self.right]
            self.tried = [_FADE * x for x in self.tried]

    def worth(self, floor: float, k: int) -> list[int]:
        """Which of the first `k` ranks are right often enough."""
        tried, right = self.tried, self.right
        return [i for i in range(k) if tried[i] >= _TRIAL_TOKENS and right[i] >= floor * tried[i]]


class Distances:
    """How many layers ahead one token's guesses look, by what each distance was worth lately.

    A guess for the next layer leaves one layer's computing for its reads, and layers want now few, now many; and a disk
    gives its best only with many reads under way. Farther guesses leave more of both, but are right less often.
    """

    def __init__(self, n_used: int, rows: int) -> None:
        """`n_used`: experts of a layer that a token uses."""
        self._k = n_used
        self.records = [Record(n_used) for _ in range(max(1, min(FARTHEST + 1, rows - 1)))]
        self._all = tuple(range(1, len(self.records) + 1))
        self._rows = rows
        self._graphs = self._trial = 0
        self._first = self._all
        self._by: tuple[tuple[int, ...], ...] = (self._all,)
        """At which distances rows guess, by turns."""
        self._ranks: list[list[int]] = [[] for _ in self.records]

    def begin(self, reads: float) -> None:
        """A graph of one token starts; layers read so many experts lately, on average."""
        self._graphs += 1
        self._trial = self._graphs % self._rows
        near = self.records[0]
        self._ranks = [record.worth(FLOORS[d > 0], self._k) for d, record in enumerate(self.records)]
        if any(record.tried[0] < _KNOWN for record in self.records):
            self._first, self._by = self._all, (self._all,)
            return
        # as many reads under way as the disk is probed with: those of a layer that finds nothing
        want = min(len(self.records) - 1, max(1, round(self._k / max(reads, 0.1))))
        least = _USEFUL * max(1, len(self._ranks[0]))
        useful = [d for d in range(2, want + 1) if len(self._ranks[d]) >= least]
        if not useful:
            self._first, self._by = (1,), ((1,),)
            return
        last = max(useful) + 1
        if near.share - self.records[last - 1].share > _CORRECTED_FROM:
            self._by = (1, last - 1, last), (1,)
        else:
            farther = min(last + 1, len(self.records))
            if farther < 5 or len(self._ranks[farther - 1]) < least:
                self._by = (last - 1, last), ()
            else:  # four at once: the nearest has one layer less to arrive in, the farthest one more
                last = farther
                self._by = (last - 3, last - 2, last - 1, last), (), (), ()
        self._first = tuple(range(1, last + 1))

    def of(self, row: int) -> tuple[int, ...]:
        """The distances at which `row` guesses, the nearest first. The first row guesses all that nobody else can; far
        ones every second row guesses for two, or every fourth for four, which costs little more than one; and one row
        of each token tries all."""
        if row == 0:
            return self._first
        if row == self._trial:
            return self._all
        return self._by[row % len(self._by)]

    def scored(self, row: int) -> bool:
        """Whether what was guessed for `row` is scored this time: one row in four, once anything is known."""
        return (row + self._graphs) % 4 == 0 or self._by == (self._all,) or row - self._trial in self._all

    def worth(self, distance: int) -> list[int]:
        """The ranks of a guess that are worth reading ahead."""
        return self._ranks[distance - 1]


class Rates:
    """How often a token uses each expert, of the graphs of many tokens."""

    def __init__(self, n_rows: int) -> None:
        self._rates: list[F32 | None] = [None] * n_rows

    def note(self, row: int, ids: I64, counts: I64, tokens: int) -> None:
        """The distinct experts `ids` of `row` were used `counts` times by `tokens` tokens."""
        old = self._rates[row]
        size = int(ids.max()) + 1
        new = np.zeros(size if old is None else max(size, len(old)), np.float32)
        new[ids] = counts / np.float32(tokens)
        if old is not None:
            keep = np.float32(_RATE_TOKENS / (_RATE_TOKENS + tokens))
            new *= 1 - keep
            new[: len(old)] += keep * old
        self._rates[row] = np.minimum(new, np.float32(1))

    def likely(self, row: int, tokens: int) -> list[int]:
        """The experts of `row` that `tokens` tokens will most likely use, the likeliest first."""
        rates = self._rates[row]
        if rates is None:
            return []
        least = 1.0 - (1.0 - LIKELY) ** (1.0 / tokens)
        order = np.argsort(-rates, kind="stable")
        return list(order[: int(np.count_nonzero(rates >= least))].tolist())
