"""How long a layer takes, by how many experts were read meanwhile: what a read really costs here and now.

Waiting is only part of that cost. Reads that overlap with computing slow it (interrupts, memory, caches), requests take
time to be submitted, and the first read of a layer may cost nothing where down is read while gate and up compute. All
of it is in the time from one router's choice to the next layer's, and every token gives one such time per layer, with
anything from no read to as many as experts are used: so the effect of fewer misses is measured, not modelled.
"""

from __future__ import annotations

import time

MOST = 32
"""Layers that read more are counted with these."""
_FADE_GRAPHS = 32
_HALF_LIFE_GRAPHS = 256
_APART_S = 0.02
"""A tiny model's graphs come faster than that: one now and then is timed, so that it costs next to nothing there."""
_LONGEST_S = 5.0
"""A longer gap was no layer: the process was stopped, or the disk hung."""


class LayerTimes:
    """Times of layers by their reads, fading by half every 256 graphs. One thread writes, another may read."""

    def __init__(self) -> None:
        self.reads = 0
        """Experts whose reads were started since the last `chosen`; whoever starts reads adds to it."""
        self._seconds = [0.0] * (MOST + 1)  # lists: adding to one number of an array takes four times as long
        self._layers = [0.0] * (MOST + 1)
        self._row = -1
        self._since = 0.0
        self._begun = -_APART_S
        self._tokens = 0
        self._counted = False
        self._graphs = 0

    def clear(self) -> None:
        """Forgets the times so far."""
        self._seconds[:] = self._layers[:] = [0.0] * (MOST + 1)

    def begin(self, tokens: int) -> None:
        """A graph of `tokens` tokens that decode starts, 0 for a prefill's. Graphs of another width than the one before
        aren't counted: they are the last piece of a prompt, or the first step of a wider batch."""
        now = time.perf_counter()
        self._row, self._counted = -1, 0 < tokens == self._tokens and now - self._begun >= _APART_S
        self._tokens = tokens
        if self._counted:
            self._begun = now
            self._graphs += 1
            if self._graphs % _FADE_GRAPHS == 0:
                keep = 0.5 ** (_FADE_GRAPHS / _HALF_LIFE_GRAPHS)
                self._seconds[:] = [keep * s for s in self._seconds]
                self._layers[:] = [keep * n for n in self._layers]

    def chosen(self, row: int) -> None:
        """The router of `row` chose, and nothing was read for it yet but what was guessed; rows come in order."""
        if not self._counted:
            return
        now = time.perf_counter()
        took = now - self._since
        if 0 <= self._row == row - 1 and took < _LONGEST_S:
            reads = min(self.reads, MOST)
            self._seconds[reads] += took
            self._layers[reads] += 1
        self.reads = 0
        self._row, self._since = row, now

    def table(self) -> tuple[tuple[float, float], ...] | None:
        """(layers, seconds they took together) by the number of experts read, from 0; None before any."""
        layers, seconds = list(self._layers), list(self._seconds)
        last = max((reads for reads, n in enumerate(layers) if n > 1e-6), default=-1) + 1
        if not last:
            return None
        return tuple((round(n, 3), round(s, 6)) for n, s in zip(layers[:last], seconds[:last], strict=True))
