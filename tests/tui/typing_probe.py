"""The real app in a pseudo-terminal, with two more keys: F12 writes what the focused field holds to a pipe, F11
interrupts it with a signal at the worst moment.

Run as ``python -m tests.tui.typing_probe FD [CHAT]``; imported, it starts itself and types.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
DUMP = "\x1b[24~"
INTERRUPT = "\x1b[23~"


class Probe:
    """Types into the app and asks what became of it."""

    def __init__(
        self, home: Path, columns: int = 300, rows: int = 30, *, config: str = "", chat: int | None = None
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        if config:
            (home / "config").mkdir(exist_ok=True)
            (home / "config" / "config.yaml").write_text(config)
        self._answers, given = os.pipe()
        os.set_inheritable(given, True)
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.environ.update(FLASHMOE_HOME=str(home), TERM="xterm-256color", COLORTERM="truecolor")
            for name in ("COLUMNS", "LINES", "SSH_CONNECTION", "TMUX", "NO_COLOR"):
                os.environ.pop(name, None)
            os.chdir(ROOT)
            shown = [] if chat is None else [str(chat)]
            arguments = [sys.executable, "-m", "tests.tui.typing_probe", str(given), *shown]
            # Not execv: readline, which pytest imports, sets COLUMNS and LINES behind Python's back.
            os.execve(sys.executable, arguments, dict(os.environ))
        os.close(given)
        self._unread = b""
        self.written = b""
        self._line()  # it is ready

    def type(self, data: str | bytes, *, pause: float = 0.0) -> None:
        """Sends keys in one piece."""
        data = data.encode() if isinstance(data, str) else data
        while data:
            self._drain(0)
            try:
                data = data[os.write(self.fd, data[:2048]) :]
            except BlockingIOError:
                self._drain(0.01)
        if pause:
            self._drain(pause)

    def field(self) -> dict[str, Any]:
        """The focused field: ``id``, ``text``, ``screen``; it is empty then."""
        self.type(DUMP)
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def wait(self, seconds: float) -> None:
        """Lets the app go on, reading what it draws."""
        self._drain(seconds)

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)
        os.close(self._answers)

    def _drain(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while select.select([self.fd], [], [], max(0.0, end - time.monotonic()))[0]:
            try:
                self.written = (self.written + os.read(self.fd, 1 << 16))[-(1 << 16) :]
            except OSError:
                return

    def _line(self) -> bytes:
        end = time.monotonic() + 300
        while b"\n" not in self._unread:
            assert time.monotonic() < end, self.written[-2000:]
            ready, _, _ = select.select([self.fd, self._answers], [], [], 1)
            if self.fd in ready:
                self._drain(0)
            if self._answers in ready:
                data = os.read(self._answers, 1 << 16)
                assert data, self.written[-2000:]
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def main() -> None:
    """The app's side."""
    from textual.widgets import Input, TextArea

    from tui.app import AppOptions, FlashmoeApp
    from tui.screens.chat.screen import ChatScreen
    from tui.terminal.driver import AppDriver

    given = int(sys.argv[1])
    chat = int(sys.argv[2]) if sys.argv[2:] else None
    app = FlashmoeApp(AppOptions(measure=False, chat=chat), driver_class=AppDriver)
    sent: list[str] = []

    def dump() -> None:
        field = app.focused
        text = field.text if isinstance(field, TextArea) else field.value if isinstance(field, Input) else None
        screen = type(app.screen).__name__
        line = json.dumps(
            {"id": field and field.id, "text": text, "screen": screen, "sent": sent, "size": field and field.size}
        )
        os.write(given, line.encode() + b"\n")
        sent.clear()
        if isinstance(field, TextArea):
            field.load_text("")
        elif isinstance(field, Input):
            field.value = ""

    app.action_dump = dump  # type: ignore[attr-defined]
    app._bindings.bind("f12", "dump", priority=True)

    def interrupt() -> None:
        """A signal comes while the main thread holds the lock of what is written."""
        driver: Any = app._driver
        with driver._writer_thread._queue.mutex:
            os.kill(os.getpid(), signal.SIGCONT)

    app.action_worst_moment = interrupt  # type: ignore[attr-defined]
    app._bindings.bind("f11", "worst_moment", priority=True)
    asks = ChatScreen.on_composer_sent

    def noted(screen: ChatScreen, event: Any) -> None:
        sent.append(event.text)
        asks(screen, event)

    ChatScreen.on_composer_sent = noted  # type: ignore[method-assign]
    app.call_later(app.call_after_refresh, os.write, given, b"{}\n")
    app.run()


if __name__ == "__main__":
    main()
