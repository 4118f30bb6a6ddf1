"""How far a pass over a prompt is: a pass takes seconds to minutes, and its layers tell how it goes."""

from __future__ import annotations

import time

LEAST_TOKENS = 32
"""Smaller passes aren't timed by layers: they take a moment."""
_NEARLY = 0.9
"""A layer that takes longer than those before it counts as so much done until the next one begins."""


class PassMeter:
    """Times the layers of passes. One thread calls `begin`, `layer` and `end`; any may call `share` and `left_s`."""

    def __init__(self, layers: int) -> None:
        """`layers`: those that tell when they begin, in order; 0 where none does: how far a pass is goes by how long
        one like it took then."""
        self._silent = not layers
        self._layers = max(1, layers)
        self._now: tuple[int, float, float] | None = None
        """(layers done, when the current one began, when the pass did); None outside a pass of many tokens."""
        self._pace = 0.0
        """Seconds of a layer, lately."""
        self._tokens = 0
        """Of the pass that the pace is from."""
        self.layer_s = [0.0] * self._layers
        """Seconds of each layer over all passes of many tokens."""

    def begin(self, tokens: int) -> None:
        """A pass starts. How long layers took tells nothing of a pass that is much smaller or larger."""
        if tokens >= LEAST_TOKENS:
            if not self._tokens / 2 <= tokens <= 2 * self._tokens:
                self._pace = 0.0
            self._tokens = tokens
        now = time.perf_counter()
        self._now = (0, now, now) if tokens >= LEAST_TOKENS else None

    def layer(self, index: int) -> None:
        """The router of a layer chose: the layers before it are done."""
        if self._now is None:
            return
        before, since, begun = self._now
        now = time.perf_counter()
        if index > before:
            self.layer_s[before] += now - since
            self._pace = (now - begun) / index  # what comes before the first router belongs to it
        self._now = (index, now, begun)

    def end(self) -> None:
        """The pass ended."""
        if self._now is not None:
            at, since, _ = self._now
            took = time.perf_counter() - since
            self.layer_s[at] += took
            if self._silent:
                self._pace = took
            self._now = None

    @property
    def running(self) -> bool:
        """Whether a pass of many tokens is being computed."""
        return self._now is not None

    def share(self) -> float:
        """How much of the pass is done, 0 to 1, the current layer by the pace of those before it."""
        state = self._now
        if state is None:
            return 0.0
        at, since, _ = state
        part = (time.perf_counter() - since) / self._pace if self._pace else 0.0
        return min(1.0, (at + min(_NEARLY, part)) / self._layers)

    def elapsed_s(self) -> float:
        """Seconds since the pass began; 0 outside one."""
        state = self._now
        return time.perf_counter() - state[2] if state is not None else 0.0

    def pass_s(self) -> float | None:
        """Seconds that a whole pass takes, by the layers' pace; None before the first one of passes like this."""
        return self._pace * self._layers if self._pace else None
