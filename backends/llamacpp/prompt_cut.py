"""How much of a prompt goes into a pass beside answers that are being decoded: so much that these don't stall for long.

What a pass takes depends on the disk, on what is in memory and on its tokens: it is measured pass by pass. One that
overruns all the same is stopped within a layer, and a smaller one is tried.
"""

from __future__ import annotations

import threading
from types import TracebackType

from backends.llamacpp.context import AbortFlag

START = 64
"""Tokens of the first such pass."""
_GROWTH = 2.0
_AIM = 0.8
"""Of the limit, what a pass is cut for."""


class PromptCut:
    """The tokens of prompts that a pass takes while others decode."""

    def __init__(self, max_s: float | None) -> None:
        """`max_s`: the longest that an answer may stall; None for no limit."""
        self.max_s = max_s if max_s is not None and max_s > 0 else None
        self.tokens = START

    def took(self, tokens: int, seconds: float) -> None:
        """A pass with so many tokens of prompts took so long."""
        if self.max_s is None or tokens <= 0:
            return
        fitting = int(tokens * _AIM * self.max_s / max(seconds, 1e-6))
        self.tokens = max(1, min(fitting, int(_GROWTH * max(tokens, self.tokens))))

    def overran(self, tokens: int) -> None:
        """A pass was stopped because it took longer than the limit."""
        self.tokens = max(1, min(tokens, self.tokens) // 4)


class Deadline:
    """Within it, `abort` is set when the time is up; `passed` tells afterwards whether it was."""

    def __init__(self, seconds: float | None, abort: AbortFlag) -> None:
        """None: never."""
        self.passed = False
        self._abort = abort
        self._lock = threading.Lock()
        self._over = False
        self._timer = None if seconds is None else threading.Timer(seconds, self._up)

    def _up(self) -> None:
        with self._lock:
            if not self._over:
                self.passed = True
                self._abort.set()

    def __enter__(self) -> Deadline:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over = True
        if self._timer is not None:
            self._timer.cancel()
