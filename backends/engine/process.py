"""The engine's child as a process: starting it, the two pipes, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from backends.engine import death
from backends.engine import protocol as p
from backends.engine.launch import let_threads_sleep
from backends.interface import EngineError
from backends.system import private
from backends.system.cgroups import oom_kills
from backends.system.python import start_python

MAX_EVENT_BYTES = 64 << 20
MAX_LOG_BYTES = 4 << 20
_HELLO_TIMEOUT_S = 60.0
_KILL_S = 30.0
"""The kernel takes its time to free what a large model has mapped."""


class ChildProcess:
    """One child ``python -m backends.engine`` at a time. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        log_path: Path,
        on_event: Callable[[p.ChildEvent], None],
        on_end: Callable[[EngineError, bool], None],
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`on_end` gets why it ended, and whether that is news: not where it was stopped or ended on purpose."""
        self._log_path = log_path
        self._on_event = on_event
        self._on_end = on_end
        self._env = dict(env or {})
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._hello: asyncio.Future[p.Hello] | None = None
        self._lock = asyncio.Lock()
        self._stopping = False
        self._why: EngineError | None = None
        """Why it is being ended, where we do it."""
        self._quiet = False
        self._log_offset = 0
        self._oom_before = 0
        self._last_death = ""

    @property
    def alive(self) -> bool:
        """Whether there is a running child."""
        return self._process is not None and self._process.returncode is None and self._reader is not None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self.alive and self._process is not None else None

    # -- the start -----------------------------------------------------------------------------------------------------

    async def start(self) -> p.Hello | None:
        """Starts it unless it runs, and waits until it speaks; what it said first, None where it ran already.

        Raises `EngineError` ``engine_died``.
        """
        async with self._lock:
            if self._why is not None and self._reader is not None:  # it was killed, and its end isn't through yet
                await asyncio.wait({self._reader}, timeout=_KILL_S)
            return None if self.alive else await self._spawn()

    async def _spawn(self) -> p.Hello:
        private.make_folders(self._log_path.parent)
        with contextlib.suppress(OSError):
            if self._log_path.stat().st_size > MAX_LOG_BYTES:
                self._log_path.replace(self._log_path.with_name(self._log_path.name + ".1"))
        start = start_python("backends.engine", "-X", "faulthandler", env=self._env)
        let_threads_sleep(start.env)
        self._oom_before = oom_kills()
        with private.open_log(self._log_path) as log:
            self._log_offset = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *start.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                limit=MAX_EVENT_BYTES, env=start.env, cwd=start.folder, process_group=0,
            )  # fmt: skip
        self._stopping, self._why, self._quiet = False, None, False
        self._hello = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(self._process), name="engine-events")
        try:
            return await asyncio.wait_for(asyncio.shield(self._hello), _HELLO_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            raise EngineError("engine_died", "The engine did not start", f"the log is {self._log_path}.") from None

    # -- the pipes -----------------------------------------------------------------------------------------------------

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                try:
                    event = p.event_decoder.decode(line)
                except msgspec.MsgspecError:
                    continue  # a child of another version; what it means can't be known
                if isinstance(event, p.Hello):
                    if self._hello is not None and not self._hello.done():
                        self._hello.set_result(event)
                else:
                    self._on_event(event)
        except ValueError:  # a line without end
            process.kill()
        returncode = await process.wait()
        if self._process is process:
            self._reader = None
            self._bury(returncode)

    def _bury(self, returncode: int) -> None:
        if self._why is not None and (self._quiet or not self._stopping):
            error = self._why
        elif self._stopping:
            error = EngineError("engine_died", "The engine was stopped.")
        else:
            oom = oom_kills() > self._oom_before
            tail = death.read_tail(self._log_path, self._log_offset)
            error = death.describe(returncode, tail, oom=oom, log_path=self._log_path)
        news = not self._stopping and not self._quiet
        if news:
            self._last_death = error.message
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(error)
        self._on_end(error, news)

    async def send(self, command: p.Command) -> None:
        """Sends a command. Raises `EngineError` where there is no child, or the command holds no valid text."""
        process = self._process
        if process is None or process.stdin is None or not self.alive:
            raise EngineError("engine_died", self._last_death or "The engine is not running; load a model first.")
        try:
            line = p.encoder.encode(command) + b"\n"
        except UnicodeEncodeError:
            raise EngineError("bad_request", "The text holds characters that are not valid Unicode.") from None
        process.stdin.write(line)
        with contextlib.suppress(ConnectionError):  # its death is told by the reader
            await process.stdin.drain()

    def send_soon(self, command: p.Command) -> None:
        """Sends without waiting, where there is a child: a generator that is being closed may not await."""
        process = self._process
        if self.alive and process is not None and process.stdin is not None:
            process.stdin.write(p.encoder.encode(command) + b"\n")

    # -- the end -------------------------------------------------------------------------------------------------------

    def end(self, why: EngineError, *, quiet: bool = False) -> asyncio.Task[None] | None:
        """Kills it now, whatever it does. Everybody who waits is told `why`; `quiet`: it is no news.

        Returns what ends with it, None where there is no child.
        """
        if self._process is not None and self._reader is not None:
            self._why, self._quiet = why, quiet
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        return self._reader

    async def kill(self, why: EngineError) -> None:
        """As `end`, and waits for it."""
        reader = self.end(why)
        if reader is not None:
            await asyncio.wait({reader}, timeout=_KILL_S)

    async def stop(self) -> None:
        """Ends it: asks, then terminates, then kills. A second call does nothing."""
        process = self._process
        if process is None or self._reader is None:
            return
        self._stopping = True
        reader = self._reader
        with contextlib.suppress(EngineError):
            await self.send(p.Shutdown())
        if process.stdin is not None:
            process.stdin.close()
        for action, seconds in ((None, 4.0), (process.terminate, 1.0), (process.kill, 5.0)):
            if action is not None:
                with contextlib.suppress(ProcessLookupError):
                    action()
            done, _ = await asyncio.wait({reader}, timeout=seconds)
            if done:
                return
