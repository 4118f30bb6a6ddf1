"""Notices a connection that gives too little to be worth keeping."""

from __future__ import annotations

import time

from flashmoe import figures
from flashmoe.hub.errors import HubError

FLOOR_BYTES_S = 8192.0
FLOOR_WINDOW_S = 60.0


class Floor:
    """Watches one connection: what gives less than `bytes_s` over `window_s` is dropped.

    Time that we ourselves held it back (a bandwidth limit, a slow disk) doesn't count.
    """

    def __init__(self, bytes_s: float = FLOOR_BYTES_S, window_s: float = FLOOR_WINDOW_S) -> None:
        self.bytes_s, self.window_s = bytes_s, window_s
        self._since = self._last = time.monotonic()
        self._waited = 0.0
        self._bytes = 0

    def arrived(self, n: int) -> bool:
        """`n` bytes came. True where a window has ended well; raises `HubError` (``slow``) where it hasn't."""
        now = time.monotonic()
        self._waited += now - self._last
        self._bytes += n
        if self._waited < self.window_s:
            return False
        rate = self._bytes / self._waited
        self._waited, self._bytes = 0.0, 0
        if rate < self.bytes_s:
            raise HubError("slow", f"The server sent less than {figures.rate(self.bytes_s)} for {self.window_s:.0f} s")
        return True

    def resume(self) -> None:
        """From here on time counts again."""
        self._last = time.monotonic()
