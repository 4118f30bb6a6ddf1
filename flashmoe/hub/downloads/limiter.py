"""A bandwidth limit that any number of threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RateLimiter:
    """Hands out bytes at `bytes_s` (None: as fast as they come). The limit may change while threads wait."""

    def __init__(self, bytes_s: float | None = None) -> None:
        self.bytes_s = bytes_s
        self._lock = threading.Lock()
        self._next = 0.0

    def take(self, n: int, stopped: Callable[[], bool]) -> None:
        """Waits until `n` more bytes may be used, or until `stopped()`."""
        if not self.bytes_s:
            return
        with self._lock:
            now = time.monotonic()
            # A quarter of a second of burst smooths over slow wakeups without showing in the mean.
            self._next = max(self._next, now - 0.25) + n / self.bytes_s
            until = self._next
        while (left := until - time.monotonic()) > 0 and not stopped():
            time.sleep(min(left, 0.1))
