"""How fast a download is."""

from __future__ import annotations

import threading
import time
from collections import deque

SPEED_WINDOW_S = 8.0


class Meter:
    """Counts what comes over the network. Thread-safe."""

    def __init__(self) -> None:
        self.received = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def count(self, n: int) -> None:
        """`n` more bytes came."""
        now = time.monotonic()
        with self._lock:
            self.received += n
            if self._samples and now - self._samples[-1][0] < 0.1:
                at, before = self._samples[-1]
                self._samples[-1] = (at, before + n)
            else:
                self._samples.append((now, n))

    def bytes_s(self) -> float | None:
        """Over the last seconds; None while nothing moves."""
        now = time.monotonic()
        with self._lock:
            while self._samples and self._samples[0][0] < now - SPEED_WINDOW_S:
                self._samples.popleft()
            if len(self._samples) < 2:
                return None
            span = now - self._samples[0][0]
            return sum(n for _, n in self._samples) / max(span, 0.25)
