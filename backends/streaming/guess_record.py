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
LIKELY = 0.92
"""The probability from which on an expert is read ahead that no guess named."""
_RATE_TOKENS = 1024.0
"""Tokens over which the rates of use are taken."""


class Record:
    """What each rank of the guess was worth lately. Lists: of so few, Python counts sooner than numpy."""

    def __init__(self, n_used: int) -> None:
        self.right = [0.0] * max(1, n_used)
        self.tried = [0.0] * max(1, n_used)

    def score(self, right: Sequence[float], fade: bool) -> None:
        """`right`: per rank the share of its guesses that were among the chosen."""
        for rank, share in enumerate(right):
            self.right[rank] += share
            self.tried[rank] += 1
        if fade or self.tried[0] > 2000:
            self.right = [_FADE * x for x in self.right]
            self.tried = [_FADE * x for x in self.tried]

    def worth(self, floor: float, k: int) -> list[int]:
        """Which of the first `k` ranks are right often enough."""
        tried, right = self.tried, self.right
        return [i for i in range(k) if tried[i] >= _TRIAL_TOKENS and right[i] >= floor * tried[i]]


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
