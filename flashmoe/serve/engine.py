"""The engine as the server sees it: admission, cancellation, and starting the child again after its death."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from backends.engine.protocol import Notice
from backends.interface import (
    EngineError,
    Event,
    Finished,
    GenerateRequest,
    LoadRequest,
    ModelInfo,
    PrefillProgress,
    Telemetry,
)
from backends.llamacpp.prompts import check_size
from flashmoe.monitor.engine import MonitoredEngine
from flashmoe.serve.watchdog import Watchdog

MAX_WAITING = 256
"""Requests queued beyond those being decoded; more are refused with 429."""

log = logging.getLogger(__name__)


class BusyError(Exception):
    """Too many requests wait already."""


class Ticket:
    """One admitted request's place in the count, given back once."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        engine.in_flight += 1

    def give_back(self) -> None:
        if self._engine is not None:
            self._engine.in_flight -= 1
            self._engine = None


class Engine:
    """One model in one child process, shared by all clients of the server."""

    def __init__(
        self, request: LoadRequest, log_path: Path, model_id: str | None = None, *, stuck_s: float | None = None
    ) -> None:
        """`stuck_s`: see `Watchdog`."""
        self.request = request
        self.watchdog = Watchdog(stuck_s)
        self._watching: asyncio.Task[None] | None = None
        self.client = MonitoredEngine(log_path=log_path, on_event=self._on_event)
        self._info: ModelInfo | None = None
        self._model_id = model_id
        self._reload: asyncio.Task[None] | None = None
        self.telemetry: Telemetry | None = None
        self.in_flight = 0
        self.prompts: dict[str, PrefillProgress] = {}
        """How far the prompts are that are being computed, by request."""
        self._took_s = 5.0
        """Seconds that a request takes from its admission to its end, on a sliding mean."""
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "context": 0, "cancelled": 0}
        self.failed = 0
        self.restarts = 0

    @property
    def info(self) -> ModelInfo:
        if self._info is None:
            raise EngineError("not_found", "no model is loaded yet")
        return self._info

    @property
    def model_id(self) -> str:
        return self._model_id or self.info.name or Path(self.info.path).stem

    @property
    def request_ctx(self) -> int:
        """Tokens that one request's prompt and answer may have together."""
        return min(self.info.n_ctx, self.info.n_ctx_train or self.info.n_ctx)

    @property
    def queue_s(self) -> int:
        """Seconds until a place in the queue is likely free again, by how long requests have taken lately."""
        return max(1, min(600, round(self._took_s / max(1, self.info.n_seq_max))))

    @property
    def ready(self) -> bool:
        return self.client.alive and self.client.model is not None

    @property
    def healthy(self) -> bool:
        """Whether answers can be had: it is there, and moves where it has work."""
        return self.ready and not self.watchdog.unwell

    async def start(self) -> ModelInfo:
        """Loads the model; raises `EngineError`."""
        self._info = await self.client.load(self.request)
        await self.client.watch(1.0)
        self.watchdog.started()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return self._info

    async def stop(self) -> None:
        for task in (self._reload, self._watching):
            if task is not None:
                task.cancel()
        self._watching = None
        await self.client.stop()

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Telemetry):
            self.telemetry = event
        elif isinstance(event, Notice):
            log.warning("%s", event.message)

    async def _watch(self) -> None:
        while True:
            self.watchdog.work(self.in_flight)
            self.watchdog.observe(self.telemetry, self.client.pid)
            if self.ready and self.watchdog.stuck:
                seconds = self.watchdog.still_s
                log.error("the engine has done nothing for %.0f s though it has work; restarting it", seconds)
                self.telemetry = None
                await self.client.kill(
                    f"The engine has been stuck for {seconds:.0f} s and is being restarted",
                    "send the request again in a moment.",
                )
                self._start_again()
            await asyncio.sleep(min(1.0, self.watchdog.limit_s / 4))

    def _start_again(self) -> None:
        if self._reload is None or self._reload.done():
            self._reload = asyncio.create_task(self._again())

    async def _again(self) -> None:
        try:
            await self.start()
            self.restarts += 1
            self.telemetry = None
        except EngineError as e:
            log.error("the engine could not be restarted: %s", e.message)

    async def admit(self, request: GenerateRequest) -> Ticket:
        """A place for one request. Raises `BusyError`, or `EngineError` while the engine is being restarted, or where
        the prompt is far too long."""
        if not self.ready:
            self._start_again()
            raise EngineError("engine_died", "the engine stopped and is being restarted", "try once more in a moment")
        if self.info.n_ctx:
            check_size(request, self.info.n_ctx, self.request_ctx)  # megabytes needn't go to the engine to be refused
        if self.in_flight >= self.info.n_seq_max + MAX_WAITING:
            raise BusyError(f"{self.in_flight} requests are waiting already; try again in a moment")
        return Ticket(self)

    async def generate(self, request: GenerateRequest, ticket: Ticket) -> AsyncIterator[Event]:
        """The request's events. Closing the iterator early cancels the request in the engine."""
        ended = False
        began = time.monotonic()
        try:
            async for event in self.client.generate(request):
                if isinstance(event, PrefillProgress) and event.done < event.total:
                    self.prompts[request.id] = event
                else:
                    self.prompts.pop(request.id, None)
                if isinstance(event, Finished):
                    ended = True
                    self._took_s += (time.monotonic() - began - self._took_s) / 8
                    self.finished[event.reason] += 1
                yield event
            ended = True
        except EngineError:
            ended = True
            self.failed += 1
            raise
        finally:
            ticket.give_back()
            self.prompts.pop(request.id, None)
            if not ended:
                self.finished["cancelled"] += 1
                if self.client.alive:
                    await self.client.cancel(request.id)
