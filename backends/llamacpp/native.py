"""llama.cpp as loaded into this process: imported on first use, its log captured and filtered.

`lib()` gives llama-cpp-python's low-level module. It is typed `Any`: its annotations describe C pointers as ints and
NewTypes that no checker can hold together.
"""

from __future__ import annotations

import ctypes as C
import os
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DEBUG, _CONTINUE = 1, 5  # enum ggml_log_level
_state: dict[str, Any] = {}
_lock = threading.Lock()


class LogTail:
    """The last lines of llama.cpp's log: they hold the reason of a failed load and the sizes of its buffers."""

    def __init__(self, lines: int = 400) -> None:
        self.lines: deque[str] = deque(maxlen=lines)
        self._partial = ""

    def feed(self, text: str) -> None:
        parts = (self._partial + text).split("\n")
        self._partial = parts.pop()[-4096:]
        self.lines.extend(line[:1000] for line in parts)


_tails: list[LogTail] = []


def lib() -> Any:
    """``llama_cpp.llama_cpp``, initialised once: log callback set, backends registered."""
    with _lock:
        module: Any = _state.get("lib")
        if module is None:
            import llama_cpp.llama_cpp

            module = llama_cpp.llama_cpp
            os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort must end the process, not start a debugger
            _state["callback"] = module.llama_log_callback(_on_log)
            module.llama_log_set(_state["callback"], C.c_void_p(0))
            module.llama_backend_init()
            _state["lib"] = module
        return module


def _on_log(level: int, text: bytes | None, _: object) -> None:
    """Called by llama.cpp, from any of its threads. Debug lines come by the thousand and are dropped."""
    previous = _state.get("level", 0)
    if level != _CONTINUE:
        _state["level"] = previous = level
    if previous == _DEBUG or text is None:
        return
    try:
        os.write(2, text)
    except OSError:
        pass
    decoded = text.decode("utf-8", "replace")
    for tail in _tails:
        tail.feed(decoded)


@contextmanager
def log_tail() -> Iterator[LogTail]:
    """Collects what llama.cpp logs while the block runs."""
    tail = LogTail()
    _tails.append(tail)
    try:
        yield tail
    finally:
        _tails.remove(tail)


def logged_mib(tail: LogTail, what: str) -> int | None:
    """Sum in bytes of the lines ``… <what> buffer size = N MiB``; None where there is none."""
    found = [
        float(m[2])
        for line in tail.lines
        if (m := re.search(rf"(\S+)\s+{what} buffer size =\s+([0-9.]+) MiB", line)) is not None
    ]
    return round(sum(found) * 2**20) if found else None


def last_error(tail: LogTail) -> str:
    """The line of the log that says best why loading failed, without the C++ function's name; '' where there is
    none."""
    for line in tail.lines:
        if re.search(r"error loading|unknown model arch|failed|missing tensor|invalid|corrupt", line):
            text = re.sub(r"^\S+?: ", "", line).strip()
            return re.sub(r"^error loading model: ", "", text)[:300]
    return ""
