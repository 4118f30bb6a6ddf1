"""Which models are loaded right now: a shared lock on the file itself, so it ends with the process that holds it.

Whoever drives an engine holds `InUse` for as long as the model is loaded; `library.delete` refuses while anybody does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType

from flashmoe.hub.downloads.partfile import lock_owner
from flashmoe.hub.errors import HubError


class InUse:
    """Marks a model's first file as loaded until `release` (or the end of the process). A context manager.

    Never fails for a file that can't be opened or locked: it is a courtesy to `rm`, not a condition for loading.
    """

    def __init__(self, path: Path | str) -> None:
        self._fd: int | None = None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            self.release()

    def release(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def __enter__(self) -> InUse:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def holder(path: Path | str) -> int | None:
    """The process that has `path` loaded (0 where its number can't be told), None where nobody has."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return lock_owner(fd) or 0
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def check_unused(path: Path | str, name: str) -> None:
    """Raises `HubError` (``in_use``) where `path` is loaded."""
    pid = holder(path)
    if pid is not None:
        by = "this app" if pid == os.getpid() else f"process {pid}" if pid else "another process"
        raise HubError("in_use", f"{name} is loaded by {by}: unload it there, then delete it.")
