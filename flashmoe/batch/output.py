"""A batch's output: a JSONL file that is valid at every moment and says what is done already.

Each result is one `write` of one line, so that a kill leaves whole lines; `sync` then brings all lines since the last
one to the disk together, so that a power cut leaves at most a torn last line, which the next call cuts off. The file is
locked while a batch writes it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from backends.errors import ReportedError


class OutputError(ReportedError):
    """The output can't be used. `busy`: worth trying again later."""

    def __init__(self, what: str, advice: str = "", *, busy: bool = False) -> None:
        super().__init__("output", what, advice)
        self.busy = busy


class Output:
    """Opens (or creates) the output and reads which ids it holds. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self.torn_bytes = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise OutputError(f"{path} can't be written: {e.strerror}") from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)  # a pipe or a device can't say what it holds already
            raise OutputError(f"{path} is not a file: a batch resumes from the file it wrote, so name one")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise OutputError(f"{path} is being written by another batch", "wait for it, or name another file",
                              busy=True) from None  # fmt: skip
        try:
            self._recover()
        except BaseException:
            os.close(self._fd)
            raise

    def _recover(self) -> None:
        good = 0
        with os.fdopen(os.dup(self._fd), "rb") as f:
            f.seek(0)
            for number, raw in enumerate(f, 1):
                try:
                    line = msgspec.json.decode(raw) if raw.endswith(b"\n") else None
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    line = None
                if line is None:
                    rest = f.read(1)
                    if rest:
                        raise OutputError(f"{self.path}, line {number}, is not JSON: name another output file")
                    self.torn_bytes = len(raw)
                    break
                item_id = line.get("custom_id", line.get("id")) if isinstance(line, dict) else None
                if not isinstance(item_id, str):
                    raise OutputError(f"{self.path}, line {number}, is not a batch's result: name another output file")
                (self.failed if line.get("error") else self.done).add(item_id)
                good += len(raw)
        if self.torn_bytes:
            os.ftruncate(self._fd, good)
            os.fsync(self._fd)

    def write(self, line: dict[str, Any]) -> None:
        """Appends one result, which a kill can't take away any more. Raises OSError (ENOSPC leaves no torn line)."""
        raw = msgspec.json.encode(line) + b"\n"
        before = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, raw) != len(raw):
                raise OSError(28, "No space left on device")
        except OSError:
            os.ftruncate(self._fd, before)
            raise
        item_id = line.get("custom_id", line["id"])
        (self.failed if line.get("error") else self.done).add(item_id)

    def sync(self) -> None:
        """Waits until all lines are on the disk. May run in a thread beside `write`. Raises OSError."""
        os.fsync(self._fd)

    def forget_failed(self) -> None:
        """Rewrites the file without the lines that failed, so that they are run again. Raises `OutputError`; the file
        is as it was then."""
        if not self.failed:
            return
        with os.fdopen(os.dup(self._fd), "rb") as f:
            f.seek(0)
            keep = b"".join(raw for raw in f if not msgspec.json.decode(raw).get("error"))
        target = self.path.resolve()  # what a link names, not the link
        fresh = target.with_name(target.name + ".new")
        fd = -1
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
            fcntl.flock(fd, fcntl.LOCK_EX)
            rest = memoryview(keep)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
            fresh.replace(target)
        except OSError as e:
            if fd >= 0:
                os.close(fd)
                fresh.unlink(missing_ok=True)
            raise OutputError(f"{fresh} can't be written: {e.strerror}", "the answers so far are untouched") from None
        os.close(self._fd)
        self._fd = fd
        self.failed.clear()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)
