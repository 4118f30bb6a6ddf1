"""An agent in the same terminal, pointed at a server that has just got ready: it ends, and the server does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from typing import Protocol

from flashmoe.cli.common import CliError, note
from flashmoe.serve.clients import CLIENTS, Place, environment_for

_GOODBYE_S = 5.0
"""Seconds that an agent has to end by itself when the server is told to."""


def find(name: str) -> str:
    """Where the agent's command is. Raises `CliError` where it isn't installed."""
    client = CLIENTS[name]
    found = shutil.which(client.command)
    if found is None:
        what = f"{name} can't be started: there is no {client.command} on PATH"
        raise CliError(what, f"install it ({client.install}), or leave out --launch to see how it is pointed here")
    return found


class Server(Protocol):
    """What is asked of uvicorn's server."""

    started: bool
    should_exit: bool


class Launched:
    """One agent that runs beside a server. `run` until it has ended."""

    def __init__(self, name: str, place: Place, arguments: Sequence[str]) -> None:
        """`arguments`: the user's own for the agent."""
        self._client = CLIENTS[name]
        self._place = place
        self._arguments = arguments
        self._command = find(name)
        self.code: int | None = None
        """How the agent ended, None before: its exit code, 128 and the signal's number where one ended it."""
        self.problem: OSError | None = None
        """Why it couldn't be started."""

    async def run(self, server: Server) -> None:
        """Starts the agent once the server answers, and ends the server with it."""
        while not server.started:  # noqa: ASYNC110 - uvicorn tells it by nothing else
            await asyncio.sleep(0.02)
        # from here on ^C is the agent's; it would inherit that a signal is ignored, but no handler
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
        words = [*self._client.arguments(self._place), *self._arguments]
        env = environment_for(self._client, self._place, os.environ)
        try:
            process = await asyncio.create_subprocess_exec(self._command, *words, env=env)
        except OSError as problem:
            self.problem = problem
            server.should_exit = True
            return
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        self.code = code if code >= 0 else 128 - code
        server.should_exit = True

    def result(self) -> int:
        """The exit code for the whole. Raises `CliError` where the agent couldn't be started."""
        if self.problem is not None:
            raise CliError(f"{self._command} can't be started: {self.problem.strerror}", "see that it runs by itself")
        if self.code:
            note(f"{self._client.command} ended with exit code {self.code}")
        return self.code or 0


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _GOODBYE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
