"""Tries a question to the hub again while its failure may be passing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from flashmoe.hub.errors import HubError

T = TypeVar("T")
_PASSING = frozenset({"network", "server", "rate_limited"})
LONGEST_WAIT_S = 120.0


def patiently(
    ask: Callable[[], T],
    *,
    attempts: int = 4,
    backoff_s: float = 1.0,
    waiting: Callable[[HubError, float], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """`ask()`, again after passing failures; honours Retry-After up to two minutes. `waiting` hears of each wait.

    Raises the last `HubError`. Being offline is no passing failure: it is said at once.
    """
    for attempt in range(attempts):
        try:
            return ask()
        except HubError as error:
            wait = max(error.retry_after or 0.0, backoff_s * 2**attempt * random.uniform(0.75, 1.25))
            if error.code not in _PASSING or attempt == attempts - 1 or wait > LONGEST_WAIT_S:
                raise
            if waiting is not None:
                waiting(error, wait)
            sleep(wait)
    raise AssertionError("unreachable")
