"""What a download looks like from outside: frozen structs, safe to hand from a worker thread to any screen."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

JobState = Literal["queued", "starting", "running", "waiting", "verifying", "paused", "failed", "done", "cancelled"]
FileState = Literal["queued", "running", "verifying", "done", "failed"]

ACTIVE: frozenset[str] = frozenset({"starting", "running", "waiting", "verifying"})
ENDED: frozenset[str] = frozenset({"paused", "failed", "done", "cancelled"})


class FileView(Struct, frozen=True):
    """One part. `done` bytes are on this disk, `verified` of them have gone through sha256."""

    path: str
    size: int
    done: int
    verified: int
    state: FileState


class JobView(Struct, frozen=True, kw_only=True):
    """One download. `message` is a sentence for the user where there is something to say."""

    id: str
    repo: str
    label: str
    state: JobState
    message: str = ""
    cause: str = ""
    """What ended it, without advice and full stop, where something did."""
    code: str = ""
    """`HubError`'s code where the download failed or was paused by a failure."""
    files: tuple[FileView, ...] = ()
    size: int = 0
    done: int = 0
    verified: int = 0
    received: int = 0
    """Bytes that came over the network in this process."""
    bytes_s: float | None = None
    """Over the last seconds; None while nothing is moving."""
    eta_s: float | None = None
    path: str = ""
    """The first file's final place."""
    checked: str = ""
    """What was compared with what the hub told, in words; empty while no file is finished."""

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.done / self.size if self.size else 1.0 if self.state == "done" else 0.0
