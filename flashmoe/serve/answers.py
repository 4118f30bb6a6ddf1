"""The answers to one HTTP request: one or several, run together, their events in one stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from backends.interface import Delta, EngineError, Event, Finished, GenerateRequest, PrefillProgress
from flashmoe.serve.engine import Engine, Ticket

_AHEAD = 8
"""Events that wait for the client; more of them grow together in the engine's client."""


class Answers:
    """Asks the engine for each of some requests. `begin` first, `stop` in any case."""

    def __init__(self, engine: Engine, requests: Sequence[GenerateRequest]) -> None:
        self._engine = engine
        self._requests = requests
        self._queue: asyncio.Queue[tuple[int, Delta | Finished | EngineError]] = asyncio.Queue(_AHEAD)
        self._tasks: list[asyncio.Task[None]] = []
        self._taken = [asyncio.Event() for _ in requests]
        self._refused: EngineError | None = None
        self.prompt_tokens = [0] * len(requests)
        """Of each request's prompt, once it was taken."""

    async def begin(self) -> None:
        """Returns once the engine has taken every request. Raises `BusyError`, or `EngineError` where one is
        refused."""
        tickets: list[Ticket] = []
        try:
            for request in self._requests:
                tickets.append(await self._engine.admit(request))  # noqa: PERF401 - those before are given back
        except BaseException:
            for ticket in tickets:
                ticket.give_back()
            raise
        self._tasks = [
            asyncio.create_task(self._run(i, request, ticket))
            for i, (request, ticket) in enumerate(zip(self._requests, tickets, strict=True))
        ]
        try:
            for taken in self._taken:
                await taken.wait()
        except asyncio.CancelledError:
            self.stop()
            raise
        if self._refused is not None:
            self.stop()
            raise self._refused

    async def _run(self, index: int, request: GenerateRequest, ticket: Ticket) -> None:
        events: AsyncIterator[Event] = self._engine.generate(request, ticket)
        taken = self._taken[index]
        try:
            async for event in events:
                if isinstance(event, PrefillProgress):
                    self.prompt_tokens[index] = event.total
                taken.set()
                if isinstance(event, Delta | Finished):
                    await self._queue.put((index, event))
        except EngineError as error:
            if not taken.is_set():
                self._refused = error
            else:
                await self._queue.put((index, error))
        finally:
            taken.set()
            aclose = getattr(events, "aclose", None)
            if aclose is not None:  # the engine hears of it where this was cancelled
                with contextlib.suppress(Exception):
                    await aclose()

    async def events(self) -> AsyncIterator[tuple[int, Delta | Finished]]:
        """What comes of the answers, by their place, until all have finished. Raises `EngineError`."""
        left = len(self._requests)
        while left:
            index, event = await self._queue.get()
            if isinstance(event, EngineError):
                raise event
            left -= isinstance(event, Finished)
            yield index, event

    def prompts(self) -> list[PrefillProgress]:
        """How far the prompts of these requests are that are being computed."""
        return [p for r in self._requests if (p := self._engine.prompts.get(r.id)) is not None]

    def stop(self) -> None:
        """Stops what still runs; the engine hears of it in a moment."""
        for task in self._tasks:
            task.cancel()
