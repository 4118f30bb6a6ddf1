"""What the measurements of the app share: a chat of 500 messages, a model, the app in a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tui_screen import Screen

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PARAGRAPH = (
    "A router scores every expert for each token and keeps the **best eight**; only those are computed, so a model of "
    "30 billion parameters does the work of three. The `ffn_down_exps` tensor holds them side by side. "
)
MESSAGE = "\n\n".join(
    [
        PARAGRAPH * 2,
        "- one point\n- a second one\n- and a third",
        PARAGRAPH * 2,
        "```python\nx = router(h)\n```",
        PARAGRAPH,
    ]
)
"""About 2 kB of Markdown, as an answer has it."""

LULL_S = 0.04
"""Nothing for this long: the app has drawn what it had to draw."""

FORK_PAUSE_S = 0.05
"""Between fork and exec, not part of any figure."""


def make_home(folder: Path, *, messages: int = 0, chats: int = 0) -> int | None:
    """A data folder with one chat of `messages` messages of 2 kB and `chats` small ones; returns the long chat's id."""
    os.environ["FLASHMOE_HOME"] = str(folder)
    from flashmoe.history import History
    from flashmoe.paths import chats_db, ensure_dir

    ensure_dir(chats_db().parent)
    with History() as history:
        with history.transaction():
            for number in range(chats):
                chat = history.create_chat()
                history.add_message(chat.id, "user", f"Question {number} about experts and routers?")
        chat_id = None
        if messages:
            chat_id = history.create_chat(title="A long chat").id
            with history.transaction():
                for number in range(messages):
                    history.add_message(chat_id, "assistant" if number % 2 else "user", MESSAGE)
    return chat_id


def _arguments(
    model: str | None = None, chat: int | None = None, ctx: int | None = None, calm: bool | None = None
) -> list[str]:
    """The command line, as a user would write it."""
    named = [("--chat", chat), ("--ctx", ctx if model else None)]
    values = [str(part) for name, value in named if value is not None for part in (name, value)]
    return [*([model] if model else []), *values, *(["--calm"] if calm else [])]


class App:
    """The app in a pseudo-terminal of `columns` x `rows`; reads what it writes."""

    def __init__(
        self, home: Path, columns: int, rows: int, *, runs: Sequence[str] = ("-m", "flashmoe.cli.main"), **options: Any
    ) -> None:
        """`runs`: what Python runs; a path in front of it runs Python (`valgrind`)."""
        command = [*([] if runs[0].startswith("/") else [sys.executable]), *runs, *_arguments(**options)]
        self.started = time.monotonic()
        pid, self.fd = pty.fork()
        if pid == 0:
            os.environ.update(
                FLASHMOE_HOME=str(home), TERM="xterm-256color", COLORTERM="truecolor", PYTHONPATH=str(ROOT)
            )
            os.environ.pop("SSH_CONNECTION", None)
            # As installed: pip compiles what it installs. Some machines tell Python not to keep bytecode; every start
            # would then compile the whole program from its source.
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            os.environ["PYTHONPYCACHEPREFIX"] = str(home / "bytecode")
            time.sleep(FORK_PAUSE_S)  # the size below is set first
            # Its environment is what Python knows: readline leaves COLUMNS and LINES of this terminal in C's.
            os.execve(command[0], command, os.environ)
        self.pid = pid
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.n_bytes = 0
        self.tail = b""
        self._screen = Screen(columns, rows)
        self._unread = bytearray()

    def read(self, seconds: float, until: bytes | None = None) -> bool:
        """Reads for `seconds`, or until the output holds `until`, or it stands on the screen (True).

        The app sends what changed of a line: words that it shows needn't come in one piece. The screen is worked out
        only while nothing comes, so that this takes no time from an app in a hurry.
        """
        end = time.monotonic() + seconds
        looked = False
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.fd], [], [], left if looked or until is None else min(left, LULL_S))[0]:
                if until is not None and until.decode("utf-8", "replace") in self.screen.text():
                    return True
                looked = True
                continue
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:
                return False
            looked = False
            self.n_bytes += len(data)
            self.tail = (self.tail + data)[-(1 << 18) :]
            self._unread += data
            if until is not None and until in self.tail:
                return True
        return until is None

    @property
    def screen(self) -> Screen:
        """What stands on the terminal now."""
        self._screen.feed(bytes(self._unread))
        self._unread.clear()
        return self._screen

    def read_for(self, seconds: float) -> None:
        """Reads for exactly `seconds`, however quiet it is."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)

    def progress(self) -> tuple[int, float] | None:
        """Tokens and seconds of the answer under way, as the app shows them."""
        found = re.search(r"([\d,]+) tokens in (?:(\d+) min )?([\d.]+) s", self.screen.text())
        if found is None:
            return None
        return int(found[1].replace(",", "")), int(found[2] or 0) * 60.0 + float(found[3])

    def write(self, text: str) -> None:
        """Types."""
        os.write(self.fd, text.encode())

    def cpu_s(self) -> float:
        """CPU seconds of the app's own process (not the engine's)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Ends it as a closed terminal would."""
        os.kill(self.pid, signal.SIGHUP)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            self.read(0.1)
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


def synthetic_model(folder: Path, size: str) -> Path:
    """A synthetic model (see benchmarks/synthetic.py) made once and kept in `folder`."""
    path = folder / f"synthetic-{size}.gguf"
    if not path.exists():
        command = [sys.executable, str(ROOT / "benchmarks" / "synthetic.py"), str(path), "--size", size]
        subprocess.run(command, check=True)
    return path


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for one run."""
    return tempfile.TemporaryDirectory(prefix="flashmoe-bench-")


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
