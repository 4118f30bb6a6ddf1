"""What a running download knows about each of its files, and how it is to behave."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Literal, Protocol

from msgspec import Struct

from flashmoe.hub.client import HubClient, Resolved
from flashmoe.hub.downloads.jobs import Job, JobFile, JobStore
from flashmoe.hub.downloads.partfile import PartFile, PartHead
from flashmoe.hub.downloads.views import FileState
from flashmoe.hub.errors import HubError
from flashmoe.hub.floor import FLOOR_BYTES_S, FLOOR_WINDOW_S
from flashmoe.retry import Backoff

Check = Literal["sha256", "git", "size"]
"""What a file's bytes can be compared with: its sha256, git's hash of it, or only its size."""
_GIT_HASH = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class Options(Struct, frozen=True):
    """How downloads behave; all of it may be set by the user."""

    connections: int = 4
    """Over all downloads together."""
    active_jobs: int = 2
    backoff: Backoff = Backoff(first_s=1.0, most_s=30.0, attempts=8)
    """Failures in a row, without one byte of progress, before a download gives up; and the pauses between."""
    retry_failed_s: float | None = None
    """In an app that stays open: a download that gave up for a passing reason starts again after so long, at most
    sixteen times that. None: it waits for the user."""
    preallocate: bool = True
    space_margin: int = 256 << 20
    """Bytes that a download leaves free on the disk."""
    floor_bytes_s: float = FLOOR_BYTES_S
    """A connection that gives less than this over `floor_window_s` is dropped and asked again."""
    floor_window_s: float = FLOOR_WINDOW_S
    xet: bool = True
    """Fetch by xet what the hub stores there, where hf_xet is installed."""


class TransferFile:
    """One file's state while its transfer runs."""

    def __init__(self, file: JobFile) -> None:
        self.file = file
        self.part: PartFile | None = None
        self.taken = bytearray()
        self.where: Resolved | None = None
        self.resolving = threading.Lock()
        self.refused = 0
        """Addresses in a row that were refused as expired."""
        self.workers = 0
        self.failures = 0
        self.wrong = 0
        """Answers in a row that weren't the file."""
        self.slow = 0
        """Connections in a row that gave less than the floor."""
        self.not_before = 0.0
        self.verified = 0
        self.restarted = False
        self.whole = False
        """The server can't send parts of it: one connection fetches all of it from its start."""
        self.plain = False
        """Xet failed: fetched by plain HTTP from now on."""
        self.state: FileState = "queued"

    @property
    def done(self) -> int:
        return self.file.size if self.state == "done" else self.part.done if self.part else 0

    @property
    def etag(self) -> str:
        return self.file.sha256 or self.file.blob_id


class Owner(Protocol):
    """What the parts of a transfer ask of it. `cond` guards everything that they share."""

    job: Job
    files: list[TransferFile]
    store: JobStore
    client: HubClient
    options: Options
    cond: threading.Condition
    error: HubError | None
    notice: str
    """What happened to a file (changed, damaged), for as long as the transfer runs."""
    trouble: str
    """Why nothing moves right now, and when the next try is."""

    @property
    def stopping(self) -> bool:
        """Whether it is to end; whoever works on it returns soon."""
        ...

    def fail(self, error: HubError) -> None:
        """Ends the transfer with `error`."""
        ...

    def changed(self) -> None:
        """Something happened that is worth to be told at once."""
        ...


def head_of(job: Job, f: TransferFile) -> PartHead:
    """What a partial file of `f` is a part of."""
    return PartHead(job.repo, f.file.path, job.commit, f.etag, f.file.size, f.file.sha256)


def check_of(file: JobFile) -> Check:
    """What the hub told about `file` that its bytes can be compared with."""
    if file.sha256:
        return "sha256"
    return "git" if _GIT_HASH.fullmatch(file.blob_id) else "size"


def digest_of(file: JobFile) -> hashlib._Hash:
    """What the hub names the file by: sha256 of large files, git's blob hash of small ones."""
    return hashlib.sha256() if check_of(file) != "git" else hashlib.sha1(b"blob %d\0" % file.size)


CHECK_WORDS: dict[str, str] = {
    "sha256": "sha256 verified",
    "git": "git's hash verified (the hub gives no sha256 for it)",
    "size": "only its size could be compared (the server gives no hash)",
}


def checked_text(checks: Iterable[Check]) -> str:
    """What was compared of a download's files, in words."""
    counts = Counter(checks)
    if len(counts) == 1:
        return CHECK_WORDS[next(iter(counts))]
    return "; ".join(f"{n} files: {CHECK_WORDS[check]}" for check, n in counts.most_common())
