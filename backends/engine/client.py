"""The parent's side of the engine: an asyncio client that owns one child process.

    client = EngineClient(log_path=log_dir() / "engine.log")
    info = await client.load(LoadRequest(path="model.gguf"))
    async for event in client.generate(GenerateRequest(id="1", prompt="Once")):
        ...
    await client.stop()

A child that dies fails every pending call with one sentence; the next `load` starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from backends.engine import protocol as p
from backends.engine.inbox import Inbox
from backends.engine.launch import absolute
from backends.engine.process import ChildProcess
from backends.interface import (
    BenchRequest,
    BenchResult,
    Delta,
    EngineError,
    Event,
    ExpertMap,
    Failed,
    Finished,
    GenerateRequest,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    PrefillProgress,
    Telemetry,
)

_CANCEL_LOAD_S = 1.0


class Died(msgspec.Struct, frozen=True):
    """The child died by itself. Given to `on_event` after every pending call has failed with the same sentence."""

    message: str


class EngineClient:
    """Owns one child process ``python -m backends.engine``. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        log_path: Path,
        on_event: Callable[[p.ChildEvent | Died], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`log_path`: where the child's and llama.cpp's prints go. `on_event`: gets Telemetry, ExpertMap, Notice and
        Died. `env`: variables to set for the child besides this process's."""
        self._on_event = on_event
        self._child = ChildProcess(log_path=log_path, on_event=self._dispatch, on_end=self._ended, env=env)
        self._load_lock = asyncio.Lock()
        self._ids = itertools.count(1)
        self._inboxes: dict[str, Inbox] = {}
        self._calls: dict[str, Inbox] = {}
        self._load_id: str | None = None
        self._watch: p.Watch | None = None
        self.backends: tuple[str, ...] = ()
        """Backends that the child knows."""
        self.model: ModelInfo | None = None
        """The loaded model; None before `load`, after `unload` and after the child died."""

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether there is a running child."""
        return self._child.alive

    # -- the process ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the child unless it runs, and waits until it speaks. Raises `EngineError` ``engine_died``."""
        hello = await self._child.start()
        if hello is None:
            return
        self.backends = hello.backends
        if self._watch is not None:
            await self._child.send(self._watch)

    def _ended(self, error: EngineError, news: bool) -> None:
        self.model = None
        for inbox in [*self._inboxes.values(), *self._calls.values()]:
            inbox.fail(error)
        self._inboxes.clear()
        self._calls.clear()
        if news:
            self._tell(Died(error.message))

    def _tell(self, event: p.ChildEvent | Died) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception as error:  # the reader must go on, or every call would hang
            context = {"message": "The engine client's on_event failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def _dispatch(self, event: p.ChildEvent) -> None:
        match event:
            case PrefillProgress() | Delta() | Finished() | Failed():
                inbox = self._inboxes.get(event.id)
                if inbox is not None:
                    inbox.put(event)
            case p.Reply() | p.Counted() | p.Tokens() | p.Text() | p.BenchProgress() | p.Done() | p.Failure():
                call = self._calls.get(event.id)
                if call is not None:
                    call.put(event)
            case Telemetry() | ExpertMap() | p.Notice():
                self._tell(event)
            case _:
                pass

    async def kill(self, what: str, advice: str = "") -> None:
        """Ends the child now, whatever it does. Everybody who waits is told `what` happened and what to do."""
        await self._child.kill(EngineError("engine_died", what, advice))

    async def stop(self) -> None:
        """Ends the child: asks, then terminates, then kills. A second call does nothing."""
        await self._child.stop()

    # -- calls ---------------------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        return f"call-{next(self._ids)}"

    @contextlib.contextmanager
    def _call(self, call_id: str) -> Any:
        inbox = self._calls[call_id] = Inbox()
        try:
            yield inbox
        finally:
            self._calls.pop(call_id, None)

    async def load(self, request: LoadRequest, on_progress: Callable[[LoadProgress], None] | None = None) -> ModelInfo:
        """Loads a model, in a new child if the last one died; frees the loaded one first. Raises `EngineError`."""
        p.require_utf8(request.path)
        async with self._load_lock:
            await self.start()
            call_id = self._load_id = self.new_id()
            self.model = None
            try:
                with self._call(call_id) as inbox:
                    await self._child.send(p.Load(call_id, absolute(request)))
                    while True:
                        event = await inbox.get()
                        if isinstance(event, p.Reply) and isinstance(event.event, ModelInfo):
                            self.model = event.event
                            return event.event
                        if isinstance(event, p.Reply) and isinstance(event.event, LoadProgress):
                            if on_progress is not None:
                                on_progress(event.event)
                        elif isinstance(event, p.Failure):
                            raise event.error()
            except asyncio.CancelledError:
                await asyncio.shield(self.cancel_load())
                raise
            finally:
                self._load_id = None

    async def cancel_load(self) -> None:
        """Stops a running `load`, which then raises `EngineError` ``cancelled``. Where the kernel won't let go of a
        load (MAP_POPULATE can't be interrupted) the child is killed."""
        call_id = self._load_id
        if call_id is None:
            return
        with contextlib.suppress(EngineError):
            await self._child.send(p.CancelLoad(call_id))
        for _ in range(int(_CANCEL_LOAD_S / 0.05)):
            if self._load_id != call_id or not self.alive:
                return
            inbox = self._calls.get(call_id)
            if inbox is None or inbox.ended:
                return
            await asyncio.sleep(0.05)
        if self._load_id == call_id:
            self._child.end(EngineError("cancelled", "Loading was cancelled."), quiet=True)

    async def unload(self) -> None:
        """Frees the model; the child stays."""
        if not self.alive:
            self.model = None
            return
        self.model = None
        await self.ask(p.Unload(self.new_id()))

    async def ask(self, command: Any) -> p.Counted | p.Tokens | p.Text | p.Done | p.Reply:
        """Sends a command that has one answer. Raises `EngineError`."""
        with self._call(command.id) as inbox:
            await self._child.send(command)
            while True:
                event = await inbox.get()
                if isinstance(event, p.Failure):
                    raise event.error()
                if isinstance(event, p.Counted | p.Tokens | p.Text | p.Done | p.Reply):
                    return event

    async def _count(self, command: Any) -> int:
        event = await self.ask(command)
        return event.n if isinstance(event, p.Counted) else 0

    async def count_tokens(self, request: GenerateRequest) -> int:
        """Tokens of the request's prompt after the chat template. Raises `EngineError`."""
        return await self._count(p.CountTokens(self.new_id(), request))

    async def bench(self, request: BenchRequest, on_progress: Callable[[int, int], None] | None = None) -> BenchResult:
        """Runs the benchmark; `on_progress(done, total)`. Cancelling the task stops it. Raises `EngineError`."""
        call_id = self.new_id()
        with self._call(call_id) as inbox:
            await self._child.send(p.Bench(call_id, request))
            try:
                while True:
                    event = await inbox.get()
                    if isinstance(event, p.BenchProgress):
                        if on_progress is not None:
                            on_progress(event.done, event.total)
                    elif isinstance(event, p.Failure):
                        raise event.error()
                    elif isinstance(event, p.Reply) and isinstance(event.event, BenchResult):
                        return event.event
            except asyncio.CancelledError:
                with contextlib.suppress(EngineError):
                    await asyncio.shield(self._child.send(p.Cancel(call_id)))
                raise

    async def watch(self, interval_s: float, map_interval_s: float = 0.0) -> None:
        """Asks for Telemetry and ExpertMap events at `on_event`; 0 stops either. Kept for later children, too."""
        self._watch = p.Watch(interval_s=interval_s, map_interval_s=map_interval_s)
        if self.alive:
            await self._child.send(self._watch)

    # -- answers -------------------------------------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """PrefillProgress, Delta…, then Finished. Raises `EngineError` where the request fails or the child dies.

        A slow consumer gets fewer, longer deltas. Leaving the loop early cancels the request.
        """
        if request.id in self._inboxes:
            raise EngineError("bad_request", f"A request with the id {request.id} is running already.")
        inbox = self._inboxes[request.id] = Inbox()
        ended = False
        try:
            await self._child.send(p.Generate(request))
            while True:
                event = await inbox.get()
                if isinstance(event, Failed):
                    ended = True
                    raise event.error()
                if not isinstance(event, PrefillProgress | Delta | Finished):
                    continue
                ended = isinstance(event, Finished)
                if ended:  # its id is free again, also where the consumer leaves this generator suspended here
                    self._inboxes.pop(request.id, None)
                yield event
                if ended:
                    return
        except EngineError:
            ended = True
            raise
        finally:
            if self._inboxes.get(request.id) is inbox:
                del self._inboxes[request.id]
            if not ended:
                self._child.send_soon(p.Cancel(request.id))

    async def cancel(self, request_id: str) -> None:
        """Stops an answer; its `generate` then gets a Finished with the reason ``cancelled``. Unknown ids are
        ignored."""
        if self.alive:
            await self._child.send(p.Cancel(request_id))
