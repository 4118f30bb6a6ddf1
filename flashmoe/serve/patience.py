"""uvicorn's HTTP/1.1 connection with an end to patience: a request whose head dribbles in keeps no place for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""A request's line and headers must be there so long after the connection, or after their first byte."""
MAX_HEAD_BYTES = 64 * 1024
MAX_CONNECTIONS = 1024
"""More connections and requests than this at once are answered 503 by uvicorn."""


def config(app: Any, *, graceful_s: int = 3) -> uvicorn.Config:
    """How `serve` runs its ASGI app."""
    return uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=graceful_s,
        timeout_keep_alive=30, server_header=False, http=PatientProtocol, limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )  # fmt: skip


class PatientProtocol(H11Protocol):
    """Closes a connection that doesn't finish the head of a request within `HEAD_S`; bodies are the app's affair."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client connected."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes came: a part of a head, a whole one, or a body."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._done_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._done_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _done_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
