"""The child's way out: events are queued and written by a thread, so that a slow reader never holds up the compute.

While the pipe is full, deltas of one answer grow together, and of progress, telemetry and maps only the newest is kept:
the queue's length is bounded by the number of answers, however long the reader sleeps.
"""

from __future__ import annotations

import os
import threading
from collections import deque

from backends.engine.protocol import BenchProgress, ChildEvent, Reply, encoder
from backends.interface import Delta, ExpertMap, LoadProgress, PrefillProgress, Telemetry


class Outbox:
    """A queue of events and the thread that writes them to `fd`, one JSON object a line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: deque[ChildEvent] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, event: ChildEvent) -> None:
        """Queues an event; never blocks on the pipe."""
        with self._wake:
            if not self._merge(event):
                self._queue.append(event)
            self._wake.notify()

    def _merge(self, event: ChildEvent) -> bool:
        """Joins an event with one that waits already, if that loses nothing."""
        if isinstance(event, Telemetry | ExpertMap):
            return self._replace(event, lambda e: type(e) is type(event), anywhere=True)
        if isinstance(event, PrefillProgress):
            return self._replace(event, lambda e: isinstance(e, PrefillProgress) and e.id == event.id)
        if isinstance(event, BenchProgress):
            return self._replace(event, lambda e: isinstance(e, BenchProgress) and e.id == event.id)
        if isinstance(event, Reply) and isinstance(event.event, LoadProgress):
            return self._replace(event, lambda e: isinstance(e, Reply) and isinstance(e.event, LoadProgress))
        if isinstance(event, Delta):
            for i in range(len(self._queue) - 1, -1, -1):
                other = self._queue[i]
                if getattr(other, "id", None) == event.id:
                    if isinstance(other, Delta) and other.joins(event):
                        self._queue[i] = other.joined(event)
                        return True
                    return False
        return False

    def _replace(self, event: ChildEvent, same: object, *, anywhere: bool = False) -> bool:
        assert callable(same)
        for i in range(len(self._queue) - 1, -1, -1):
            if same(self._queue[i]):
                self._queue[i] = event
                return True
            if not anywhere and getattr(self._queue[i], "id", None) == getattr(event, "id", ""):
                return False
        return False

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue:
                    if self._closing:
                        return
                    self._wake.wait()
                event = self._queue.popleft()
            data = memoryview(encoder.encode(event) + b"\n")
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:
                return  # the parent is gone; the reader thread notices too

    def close(self, timeout_s: float = 2.0) -> None:
        """Writes what is queued, then ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
