"""One answer under way: what has come and was not yet shown, how fast, and how it ended."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from backends.interface import Delta, EngineError, Finished, PrefillProgress


class Answer:
    """One answer under way: what has come and was not yet taken, and how it ended."""

    def __init__(self, answer_id: str, *, held: bool = False) -> None:
        self.id = answer_id
        self.held = held
        """Nobody is told of it yet."""
        self.begun = asyncio.Event()
        """The engine has taken it, or it has ended."""
        self.parts: list[tuple[str, str]] = []
        """(kind, text) not yet taken, neighbours of one kind joined."""
        self.n_tokens = 0
        self.prefill: PrefillProgress | None = None
        self.finished: Finished | None = None
        self.error: EngineError | None = None
        self.started = time.monotonic()
        self.first_token: float | None = None
        self.recent: list[tuple[float, int]] = []
        """(monotonic time, tokens so far) of the last seconds, for a rate that follows."""
        self.announced = False
        self.last_taken = 0.0
        self.task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finished is not None or self.error is not None

    def add(self, delta: Delta) -> None:
        """Gathers one piece of text."""
        now = time.monotonic()
        if self.first_token is None:
            self.first_token = now
        self.n_tokens += delta.n_tokens
        self.recent.append((now, self.n_tokens))
        while len(self.recent) > 2 and now - self.recent[0][0] > 4.0:
            del self.recent[0]
        if self.parts and self.parts[-1][0] == delta.kind:
            self.parts[-1] = (delta.kind, self.parts[-1][1] + delta.text)
        else:
            self.parts.append((delta.kind, delta.text))

    def rate(self) -> float | None:
        """Tokens a second over the last seconds; None before there are two."""
        if len(self.recent) < 2:
            return None
        (first, n_first), (last, n_last) = self.recent[0], self.recent[-1]
        return (n_last - n_first) / (last - first) if last > first else None


class Taken(NamedTuple):
    """What was taken of an answer at one moment."""

    answer: Answer
    parts: list[tuple[str, str]]
    """(kind, text) since the time before."""
    last: bool
    """Whether that was all of it. `Answer.ended` may become true while these parts are still being shown; text that
    came along with that end is then handed over by the next take, not by this one."""
