"""Events for one call or one answer, between the reader task and whoever awaits them."""

from __future__ import annotations

import asyncio
from collections import deque

from backends.engine.protocol import BenchProgress, ChildEvent, Failure, Reply
from backends.interface import Delta, EngineError, Failed, Finished, LoadProgress, PrefillProgress


class Inbox:
    """A queue that can't grow while its consumer lags: deltas of one kind are joined, of progress the newest is
    kept."""

    def __init__(self) -> None:
        self._queue: deque[ChildEvent] = deque()
        self._wake = asyncio.Event()
        self._error: EngineError | None = None
        self.ended = False
        """Whether the last event (a result, a failure, or the child's death) has come in."""

    def put(self, event: ChildEvent) -> None:
        """Adds an event; called from the event loop."""
        last = self._queue[-1] if self._queue else None
        if isinstance(event, Delta) and isinstance(last, Delta) and last.joins(event):
            self._queue[-1] = last.joined(event)
        elif isinstance(event, PrefillProgress | BenchProgress) and type(last) is type(event):
            self._queue[-1] = event
        else:
            self._queue.append(event)
        is_result = isinstance(event, Reply) and not isinstance(event.event, LoadProgress)
        if is_result or isinstance(event, Finished | Failed | Failure):
            self.ended = True
        self._wake.set()

    def fail(self, error: EngineError) -> None:
        """No more events will come; what is queued is still delivered first."""
        self._error, self.ended = error, True
        self._wake.set()

    async def get(self) -> ChildEvent:
        """The next event; raises what `fail` was given once the queue is empty."""
        while not self._queue:
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()
