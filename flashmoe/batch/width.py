"""How many sequences to decode together: found by measuring on the batch's own work, so no token is wasted.

Wider is faster as long as sequences share expert reads, and slower once the cores are busy or the KV cache is crowded.
The width begins in the middle of what is usual, or where the caller says, doubles while that pays, halves where
doubling did not pay at once (or there was nothing wider) and many more lines wait, and then stays at the best one seen.
"""

from __future__ import annotations

from msgspec import Struct

GAIN = 1.05
"""A doubled width must be this much faster, or the search ends: below it is noise."""
START = 8
START_STREAMING = 64
"""Where experts don't fit into their budget: there a read serves more sequences the wider a step is, and narrow trials
of a cold pool are the slowest part of a batch."""

WORTH_A_TRIAL = 4
"""Of as many lines as are decoded together so many must still wait, or half as many at once aren't tried: it would cost
more than it may save."""


class _Trial(Struct):
    width: int
    tokens: int
    started: float


class WidthSearch:
    """Feed it the tokens generated; read `width`. `limit` is the engine's number of sequences."""

    def __init__(self, limit: int, *, start: int = START, window_s: float = 6.0, min_tokens_each: int = 5) -> None:
        self.limit = limit
        self.width = self._start = min(start, limit)
        self.rates: dict[int, float] = {}
        """Tokens per second at each width that was measured."""
        self.settled = limit == 1
        self._window_s = window_s
        self._min_tokens_each = min_tokens_each
        self._trial: _Trial | None = None

    def begin_at(self, start: int) -> None:
        """Another width to begin with, before anything was observed; no more than `limit`."""
        if not self.settled and not self.rates:
            self.width = self._start = min(start, self.limit)

    def observe(self, tokens: int, active: int, prefilling: int, waiting: int, now: float) -> None:
        """Called now and then with all tokens generated so far, the sequences that are being worked on, how many of
        these have no token yet, how many more wait for a place, and the time (s)."""
        if self.settled:
            return
        if active != self.width:  # not full yet (or no longer), or not yet as narrow as it shall be
            self._trial = None
            return
        if self._trial is None:
            # many prompts at once are a beginning, not what the width always costs; and the first experts all miss
            if prefilling * 4 <= self.width and (self.rates or tokens >= self._min_tokens_each * self.width):
                self._trial = _Trial(self.width, tokens, now)
            return
        seconds, made = now - self._trial.started, tokens - self._trial.tokens
        if seconds < self._window_s or made < self._min_tokens_each * self.width:
            return
        self.rates[self.width] = made / seconds
        self._trial = None
        following = self._following(waiting)
        self.settled = following is None
        self.width = following or self.best

    @property
    def best(self) -> int:
        """The fastest width seen."""
        return max(self.rates, key=lambda w: self.rates[w])

    def _following(self, waiting: int) -> int | None:
        """The width to try after the one that was just measured; None: the best is found."""
        rates, width = self.rates, self.width
        others = [rate for w, rate in rates.items() if w != width]
        paid = not others or rates[width] >= max(others) * GAIN
        if width >= self._start:
            if paid and width < self.limit:
                return min(width * 2, self.limit)
            worth = waiting >= WORTH_A_TRIAL * width and len(rates) <= 2 and self.best == self._start
            return self._start // 2 or None if worth else None
        return width // 2 or None if paid else None
