"""The one backoff: which failures may pass by themselves, and how long to wait before the next try."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from backends.errors import ReportedError

PASSING = frozenset({"network", "offline", "rate_limited", "server", "slow", "locked"})
"""Codes of failures that may be gone the next time. A command that ends with one of them exits with 3."""

LONGEST_WAIT_S = 120.0
"""A command that somebody waits for doesn't wait longer than this before a try, even where a server asks for more."""

T = TypeVar("T")


class Backoff(Struct, frozen=True):
    """Pauses that double from `first_s` to `most_s`, a quarter shorter or longer by chance; `attempts` failures in a
    row are the end."""

    first_s: float = 1.0
    most_s: float = 30.0
    attempts: int = 8

    def over(self, failures: int) -> bool:
        """Whether after so many failures in a row it's time to give up."""
        return failures >= self.attempts

    def pause_s(self, failures: int, retry_after: float | None = None) -> float:
        """Seconds to wait after the failure number `failures` (from 1); at least what the server asked for."""
        doubled = self.first_s * 2.0 ** min(failures - 1, 30)
        return max(min(self.most_s, doubled) * random.uniform(0.75, 1.25), retry_after or 0.0)


SHORT = Backoff(attempts=4)
"""For what somebody waits for."""


def patiently(
    ask: Callable[[], T],
    *,
    backoff: Backoff = SHORT,
    waiting: Callable[[ReportedError, float], None] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """`ask()`, asked again after failures that may pass; `waiting` hears of each pause.

    Raises the last failure. Being offline is told at once: somebody waits in front of the screen.
    """
    failed = 0
    while True:
        try:
            return ask()
        except ReportedError as error:
            failed += 1
            pause = backoff.pause_s(failed, getattr(error, "retry_after", None))
            may_pass = error.code in PASSING and error.code != "offline"
            if not may_pass or backoff.over(failed) or pause > LONGEST_WAIT_S:
                raise
            if waiting is not None:
                waiting(error, pause)
            sleep(pause)
