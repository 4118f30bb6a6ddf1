"""How much of a prompt goes into a pass beside answers that are being decoded: so much that these don't stall for long.

What a pass takes depends on the disk, on what is in memory and on its tokens: it is measured pass by pass. Twice the
tokens never take more than twice as long, since experts and weights are read once for all of them: so the first pass
is sized by what a step of the answers takes. One that overruns all the same is stopped, the answers get their token
alone, and a smaller one is tried.
"""

from __future__ import annotations

import threading
from types import TracebackType

from backends.llamacpp.context import AbortFlag

START = 64
"""Tokens of the first such pass at most."""
_UNKNOWN = 4
"""The same where not even a step of the answers was measured."""
_GROWTH = 2.0
_AIM = 0.8
"""Of the limit, what a pass is cut for."""
_AIM_DEADLINE = 0.9
"""The same of the time after which it would be stopped."""
_LEAST_DEADLINE = 0.25
"""Of the limit: a pass is never stopped sooner."""
_NEW = 0.3
"""Weight of the newest step in the mean of what one takes."""
_KEPT = 0.9
"""What is kept at each step of how much longer than the mean a slow one took."""


class PromptCut:
    """The tokens of prompts that a pass takes while others decode."""

    def __init__(self, max_s: float | None) -> None:
        """`max_s`: the longest that an answer may stall; None for no limit."""
        self.max_s = max_s if max_s is not None and max_s > 0 else None
        self._tokens: int | None = None
        self._step_s: float | None = None
        """Seconds of a step in which answers alone get a token each."""
        self._slow_s = 0.0
        """The same of slow ones, lately: reads take what they take."""

    def tokens(self, answers: int) -> int:
        """Tokens of prompts for the next pass beside so many answers."""
        if self._tokens is not None:
            return self._tokens
        if self._step_s is None or self.max_s is None:
            return _UNKNOWN
        return max(1, min(START, int(answers * (self._aim_s / max(self._step_s, 1e-6) - 1))))

    @property
    def deadline_s(self) -> float:
        """Seconds after which a pass is stopped, so that the answers have their token within the limit."""
        assert self.max_s is not None
        return max(_LEAST_DEADLINE * self.max_s, self.max_s - self._slow_s)

    @property
    def _aim_s(self) -> float:
        return min(_AIM * (self.max_s or 0.0), _AIM_DEADLINE * self.deadline_s)

    def stepped(self, seconds: float) -> None:
        """A step in which answers alone got a token each took so long."""
        mean = self._step_s = seconds if self._step_s is None else self._step_s + _NEW * (seconds - self._step_s)
        self._slow_s = max(seconds, mean + _KEPT * (self._slow_s - mean))

    def took(self, tokens: int, seconds: float) -> None:
        """A pass with so many tokens of prompts took so long."""
        if self.max_s is None or tokens <= 0:
            return
        if self._tokens is not None and tokens < self._tokens and seconds <= self._aim_s:
            return  # the rest of a prompt: it tells nothing of larger passes
        fitting = int(tokens * self._aim_s / max(seconds, 1e-6))
        self._tokens = max(1, min(fitting, int(_GROWTH * tokens)))

    def overran(self, tokens: int) -> None:
        """A pass was stopped because it took longer than the limit."""
        self._tokens = max(1, min(tokens, self._tokens or tokens) // 4)


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
