"""What a running download knows about each of its files, and how it is to behave."""

from __future__ import annotations

import hashlib
import threading

from msgspec import Struct

from flashmoe.hub.client import Resolved
from flashmoe.hub.downloads.jobs import JobFile
from flashmoe.hub.downloads.partfile import PartFile
from flashmoe.hub.downloads.views import FileState


class Options(Struct, frozen=True):
    """How downloads behave; all of it may be set by the user."""

    connections: int = 4
    """Over all downloads together."""
    active_jobs: int = 2
    attempts: int = 8
    """Failures in a row, without one byte of progress, before a download gives up."""
    backoff_s: float = 1.0
    backoff_max_s: float = 30.0
    retry_failed_s: float | None = None
    """In an app that stays open: a download that gave up for a passing reason starts again after so long, at most
    sixteen times that. None: it waits for the user."""
    preallocate: bool = True
    space_margin: int = 256 << 20
    """Bytes that a download leaves free on the disk."""


class TransferFile:
    """One file's state while its transfer runs."""

    def __init__(self, file: JobFile) -> None:
        self.file = file
        self.part: PartFile | None = None
        self.taken = bytearray()
        self.where: Resolved | None = None
        self.resolving = threading.Lock()
        self.refused = 0
        self.workers = 0
        self.failures = 0
        self.not_before = 0.0
        self.verified = 0
        self.restarted = False
        self.state: FileState = "queued"

    @property
    def done(self) -> int:
        return self.file.size if self.state == "done" else self.part.done if self.part else 0

    @property
    def etag(self) -> str:
        return self.file.sha256 or self.file.blob_id


def digest_of(file: JobFile) -> hashlib._Hash:
    """What the hub names the file by: sha256 of large files, git's blob hash of small ones."""
    return hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)
