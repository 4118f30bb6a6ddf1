"""Why a child process died, in one sentence, from its exit status, its log and the kernel's counters."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from backends.errors import EngineError

_TAIL_BYTES = 64 << 10


def read_tail(log_path: Path, offset: int) -> str:
    """The end of the log as far as this child wrote it (from byte `offset` on)."""
    try:
        with log_path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(offset if offset <= size else 0, size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def abort_reason(tail: str) -> str:
    """The line that llama.cpp wrote before it aborted, without its path; '' where there is none."""
    for line in reversed(tail.splitlines()):
        if m := re.search(r"(GGML_ASSERT\(.*\) failed)", line):
            return m[1]
        if m := re.search(r"[\w./-]+\.(?:cpp|c|cu|h|m|comp):\d+: (.+)", line):
            return m[1].strip()
        if m := re.search(r"what\(\):\s*(.+)", line):
            return m[1].strip()
    return ""


def describe(returncode: int | None, tail: str, *, oom: bool, log_path: Path) -> EngineError:
    """How the engine ended, and what to do: ``engine_died``.

    That the model is to be loaded again isn't said: the app, the server and the batch do it by themselves.

    Args:
        returncode: As `subprocess` has it: negative for a signal.
        tail: What the child wrote to its log last.
        oom: Whether the kernel killed something for lack of memory while the child ran.
    """
    return EngineError("engine_died", *_what_and_advice(returncode, tail, oom, f"the log is {log_path}."))


def _what_and_advice(returncode: int | None, tail: str, oom: bool, log: str) -> tuple[str, str]:
    if returncode is None:
        return "The engine stopped answering", log
    if returncode >= 0:
        last = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")
        why = f" ({last[:200]})" if last else ""
        return f"The engine ended with status {returncode}{why}", log
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if name == "SIGKILL":
        if oom:
            what = "The kernel killed the engine because memory ran out"
            return what, "load the model with a smaller context, a lower --ram or a smaller quantisation."
        return "The engine was killed from outside (SIGKILL).", ""
    if name == "SIGABRT":
        reason = abort_reason(tail)
        return f"llama.cpp gave up on an internal check{f': {reason[:200]}' if reason else ''}", log
    if name == "SIGBUS":
        what = "The engine crashed because the model file changed, shrank or could not be read while it was in use"
        return f"{what} (SIGBUS)", "verify the file."
    if name == "SIGSEGV":
        return "The engine crashed (SIGSEGV): a bug in it, not something you did", log
    if name == "SIGILL":
        return (
            "llama.cpp was built for another processor than this one (SIGILL)",
            "reinstall llama-cpp-python on this machine.",
        )
    return f"The engine was ended by {name}", log
