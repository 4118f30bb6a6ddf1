"""Textual's Linux driver, made to survive a terminal that goes away, and to stop the engine with the app on ^Z."""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from tui.terminal.bursts import LULL_S, Bursts
from tui.terminal.escapes import KeyParser

if TYPE_CHECKING:
    from textual.app import App

_READ = 4096
"""Bytes: as many as a terminal's line holds."""
_MOST_PIECES = 1 << 20
"""Keys that are looked at together at most."""


class _HangupProof:
    """The terminal as a file whose writes never fail: after the first error they go nowhere, and that is reported.

    Textual's writer thread would end with the exception, and the event loop then waits for ever on its full queue.
    """

    def __init__(self, file: TextIO, lost: Callable[[], None]) -> None:
        self._file = file
        self._lost = lost
        self._gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Writes, or drops the text where the terminal is gone."""
        if not self._gone:
            try:
                return self._file.write(text)
            except (OSError, ValueError):
                self._fail()
        return len(text)

    def flush(self) -> None:
        """Flushes, or does nothing where the terminal is gone."""
        if not self._gone:
            try:
                self._file.flush()
            except (OSError, ValueError):
                self._fail()

    def _fail(self) -> None:
        self._gone = True
        self._lost()


class AppDriver(LinuxDriver):
    """What `FlashmoeApp` runs on. The app gives `engine_pid`, `terminal_lost` and `redraw`."""

    def __init__(self, app: App[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self._loop_lock = threading.Lock()
        self._began = False
        self._suspended = False
        self._file: Any = _HangupProof(self._file, self._lost)

    def start_application_mode(self) -> None:
        """At the start and after every suspension: what the app wrote before is gone from the screen then."""
        super().start_application_mode()  # type: ignore[no-untyped-call]
        if self._began:
            with contextlib.suppress(RuntimeError, AttributeError):
                self._loop.call_soon_threadsafe(self._app.redraw)  # type: ignore[attr-defined]
        self._began = True

    def _lost(self) -> None:
        self._soon(self._app.terminal_lost)  # type: ignore[attr-defined]

    def run_input_thread(self) -> None:
        """Reads keys; those that come in one piece are looked at together, since they may be a paste."""
        parser, bursts = KeyParser(self._debug), Bursts(getattr(self._app, "leaders", frozenset()))
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        with selectors.DefaultSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                pieces: list[Message] = []
                wait = 0.1
                if selector.select(0):
                    bursts.more_at_once(time.monotonic())
                while selector.select(wait):
                    data = os.read(self.fileno, _READ)
                    if not data:  # the end of what isn't a terminal
                        self.exit_event.wait(0.1)
                        break
                    if text := decode(data):  # an empty one, as of half a character, would end the parser
                        pieces += parser.feed(text)
                    more = len(data) == _READ or bursts.unfinished(pieces, time.monotonic())
                    if not more or len(pieces) > _MOST_PIECES:
                        break
                    wait = LULL_S
                pieces += parser.tick()
                for message in bursts.take(pieces, time.monotonic()):
                    self.process_message(message)

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except OSError:  # EIO: the terminal hung up
            self._lost()
        except BaseException:
            super()._run_input_thread()

    def _signal_engine(self, number: int) -> None:
        pid = getattr(self._app, "engine_pid", None)
        if pid is not None:
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    # Python runs a signal's handler between any two steps of the main thread, also while that puts something into the
    # writer's queue and holds its lock: what ends or starts the writer is left to the event loop.

    def _sigtstp_application(self, *arguments: Any) -> None:
        if self._auto_restart:
            self._soon(self._suspend)
        else:  # an editor has the terminal, and the event loop waits for it
            self._suspend()

    def _suspend(self) -> None:
        if self._suspended:
            return  # the second of two; the first one's end is on its way
        self._signal_engine(signal.SIGSTOP)
        self._suspended = True
        super()._sigtstp_application()

    def _sigcont_application(self, *arguments: Any) -> None:
        self._signal_engine(signal.SIGCONT)
        if self._auto_restart:
            self._soon(self._resume)
        else:
            self._suspended = False

    def _resume(self) -> None:
        if not self._suspended:
            # Nobody suspended it: a SIGSTOP, which can't be caught, or the kernel's own along with the SIGHUP of a
            # terminal that is gone. Textual would start its threads a second time, and the first ones never end.
            if not os.isatty(self.fileno):
                return
            self.suspend_application_mode()
        self._suspended = False
        super()._sigcont_application()

    def _soon(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError, AttributeError):  # the loop has ended, or isn't there yet
            self._app._loop.call_soon_threadsafe(work)  # type: ignore[union-attr]
