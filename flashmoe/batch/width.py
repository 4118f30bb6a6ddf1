"""How many sequences to decode together: found by measuring on the batch's own work, so no token is wasted.

Wider is faster as long as sequences share expert reads, and slower once their union of experts no longer fits or the
cores are busy. So the width doubles while that pays, and then stays at the best one seen.
"""

from __future__ import annotations

from msgspec import Struct

GAIN = 1.08
"""A doubled width must be this much faster, or the search ends: below it is noise."""


class _Trial(Struct):
    width: int
    tokens: int
    started: float


class WidthSearch:
    """Feed it the tokens generated; read `width`. `limit` is the engine's number of sequences."""

    def __init__(self, limit: int, *, start: int = 1, window_s: float = 6.0, min_tokens_each: int = 8) -> None:
        self.limit = limit
        self.width = min(start, limit)
        self.rates: dict[int, float] = {}
        self.settled = limit == 1
        self._window_s = window_s
        self._min_tokens_each = min_tokens_each
        self._trial: _Trial | None = None

    def observe(self, tokens: int, active: int, now: float) -> None:
        """Called now and then with all tokens generated so far, the sequences being decoded, and the time (s)."""
        if self.settled:
            return
        if active < self.width:  # not full yet (or no longer): a measurement would flatter narrower widths
            self._trial = None
            return
        if self._trial is None:
            self._trial = _Trial(self.width, tokens, now)
            return
        seconds, made = now - self._trial.started, tokens - self._trial.tokens
        if seconds < self._window_s or made < self._min_tokens_each * self.width:
            return
        self.rates[self.width] = made / seconds
        self._trial = None
        best = max(self.rates, key=lambda w: self.rates[w])
        if self.width < self.limit and (best == self.width or self.rates[self.width] * GAIN > self.rates[best]):
            previous = self.rates.get(self.width // 2)
            if previous is None or self.rates[self.width] >= previous * GAIN or self.width <= 4:
                self.width = min(self.width * 2, self.limit)
                return
        self.width, self.settled = best, True
