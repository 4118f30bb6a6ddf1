"""The connections of one download: they claim runs of missing blocks, fetch them, and know what failures mean.

`Fetching` is the half of `transfer.Transfer` that talks to the network; its threads share one condition with the rest.
"""

from __future__ import annotations

import ipaddress
import random
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from msgspec import structs

from flashmoe.hub.client import HubClient, Resolved, retry_after
from flashmoe.hub.downloads.jobs import Job, JobFile, JobStore
from flashmoe.hub.downloads.limiter import RateLimiter
from flashmoe.hub.downloads.partfile import BLOCK, PartHead, disk_error
from flashmoe.hub.downloads.state import Options, TransferFile
from flashmoe.hub.downloads.views import JobState
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import show

if TYPE_CHECKING:
    import httpx2

SEGMENT = (64 << 20) // BLOCK
"""Most blocks of one request: what a slow server can hold up, and how long one signed address is used."""
FLUSH_BYTES = 64 << 20
SPEED_WINDOW_S = 8.0
TRANSIENT = frozenset({"network", "offline", "rate_limited", "server", "bad_answer"})
_GONE = frozenset({400, 401, 403, 404, 410})
"""Statuses with which CDNs refuse a signed address that expired."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Fetching:
    """Fetches the blocks of one job. `changed` is called from any of its threads."""

    def __init__(
        self,
        job: Job,
        store: JobStore,
        client: HubClient,
        options: Options,
        limiter: RateLimiter,
        permits: threading.Semaphore,
        changed: Callable[[], None],
    ) -> None:
        self.job = job
        self.store = store
        self.client = client
        self.options = options
        self.limiter = limiter
        self.permits = permits
        self.changed = changed
        self.files = [TransferFile(f) for f in job.files]
        self.state: JobState = "starting"
        self.notice = ""
        """What happened to a file (changed, damaged), for as long as the transfer runs."""
        self.trouble = ""
        """Why nothing moves right now, and when the next try is."""
        self.closed = threading.Event()
        self.error: HubError | None = None
        self.received = 0
        self._stop: str | None = None
        self._cond = threading.Condition()
        self._samples: deque[tuple[float, int]] = deque()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def stop(self, state: str) -> None:
        """Ends the transfer soon (``pause``, ``cancel``, ``close``); `run` returns when it has."""
        with self._cond:
            self._stop = self._stop or state
            for sock in self._sockets:  # a recv that waits for a stalled server returns at once
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._cond.notify_all()

    def _speed(self) -> float | None:
        now = time.monotonic()
        while self._samples and self._samples[0][0] < now - SPEED_WINDOW_S:
            self._samples.popleft()
        if len(self._samples) < 2:
            return None
        span = now - self._samples[0][0]
        return sum(n for _, n in self._samples) / max(span, 0.25)

    def _fail(self, error: HubError) -> None:
        with self._cond:
            if self.error is None and not self._stop:
                self.error = error
            self._cond.notify_all()
        self.stop("close")

    def _head(self, f: TransferFile) -> PartHead:
        return PartHead(self.job.repo, f.file.path, self.job.commit, f.etag, f.file.size, f.file.sha256)

    # ---- runs of blocks

    def _fetch_loop(self) -> None:
        while (claim := self._claim()) is not None:
            f, first, end, generation = claim
            permit = False
            try:
                while self._stop is None and not permit:
                    permit = self.permits.acquire(timeout=0.2)
                if self._stop is None:
                    self._fetch(f, first, end, generation)
                if f.part and f.state != "done":
                    f.part.flush(at_least=FLUSH_BYTES)
            except HubError as error:
                self._failed_once(f, error)
            finally:
                if permit:
                    self.permits.release()
                self._release(f, first, end, generation)

    def _claim(self) -> tuple[TransferFile, int, int, int] | None:
        """A run of blocks that nobody fetches yet (file, first, end, generation); None: nothing is left to do."""
        with self._cond:
            while self._stop is None and self.error is None:
                if all(f.state == "done" for f in self.files):
                    return None
                now = time.monotonic()
                open_files = [f for f in self.files if f.part and f.state != "done" and f.taken.find(0) >= 0]
                ready = [f for f in open_files if f.not_before <= now]
                if ready:
                    # The file with the fewest connections: at most as many files at once as connections.
                    f = min(ready, key=lambda f: (f.workers, self.files.index(f)))
                    first = f.taken.find(0)
                    after = f.taken.find(1, first)
                    limit = max(8, min(SEGMENT, f.taken.count(0) // (2 * self.options.connections)))
                    end = min(first + limit, after if after >= 0 else len(f.taken))
                    f.taken[first:end] = b"\1" * (end - first)
                    f.workers += 1
                    f.state = "running"
                    return f, first, end, f.part.generation if f.part else 0
                self._cond.wait(max(0.02, min([*(f.not_before - now for f in open_files), 1.0])))
            return None

    def _release(self, f: TransferFile, first: int, end: int, generation: int) -> None:
        with self._cond:
            f.workers -= 1
            if f.part and generation == f.part.generation:
                f.taken[first:end] = f.part.have[first:end]
            self._cond.notify_all()

    def _fetch(self, f: TransferFile, first: int, end: int, generation: int) -> None:
        where = self._where(f)
        part = f.part
        if part is None or generation != part.generation or self._stop:
            return
        start_byte, end_byte = first * BLOCK, part.block_end(end - 1)
        with self.client.open_range(where, start_byte, end_byte) as response, self._interruptible(response):
            self._judge(f, where, response, start_byte)
            index, buffer = first, bytearray()
            for chunk in response.iter_raw():
                if self._stop or generation != part.generation:
                    return
                self.limiter.take(len(chunk), lambda: self._stop is not None)
                self._count(len(chunk))
                buffer += chunk
                while index < end and len(buffer) >= part.block_size(index):
                    size = part.block_size(index)
                    try:
                        if not part.write_block(index, bytes(memoryview(buffer)[:size]), generation):
                            return
                    except OSError as error:  # here, where it can't be taken for the network's
                        raise disk_error(error, part.part_path) from None
                    del buffer[:size]
                    index += 1
                    if f.failures or f.refused:
                        self._recovered(f)
                # A whole 206 is read to its end, so that its connection can be used again; a 200 goes on and on.
                if index == end and response.status_code == 200:
                    return
            if index < end and not self._stop:
                raise HubError("network", f"The server cut {show(part.target.name)} short")

    def _judge(self, f: TransferFile, where: Resolved, response: httpx2.Response, start: int) -> None:
        """Whether this answer really is the range that was asked for."""
        status, name = response.status_code, show(f.file.path.rsplit("/", 1)[-1])
        if status in _GONE:
            with self._cond:
                if f.where is where:  # the first of the connections that used it
                    f.where = None
                    f.refused += 1
                again = f.refused <= 2
            raise HubError("expired" if again else "server", f"The download address of {name} was refused ({status})")
        if status in (408, 429) or status >= 500:
            code = "rate_limited" if status == 429 else "server"
            raise HubError(code, f"The download server answered {status}", retry_after=retry_after(response.headers))
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
        plain = response.headers.get("content-encoding", "identity").lower() == "identity"
        if status == 206 and match and int(match[1]) == start and int(match[3]) == f.file.size and plain:
            return
        if status == 200 and start == 0 and plain and response.headers.get("content-length") == str(f.file.size):
            return  # a server without ranges: the first run is what comes first
        with self._cond:
            f.where = None
        if status == 200:
            raise HubError("bad_answer", "The download server ignores ranges, so it can't go on where it stopped")
        raise HubError(
            "bad_answer", f"The download server sent something else than the asked part of {name} ({status})"
        )

    @contextmanager
    def _interruptible(self, response: httpx2.Response) -> Iterator[None]:
        stream: Any = response.extensions.get("network_stream")
        sock = stream.get_extra_info("socket") if stream is not None else None
        if not isinstance(sock, socket.socket):
            yield
            return
        with suppress(OSError, ValueError):
            # What waits in the kernel is lost with the process. Near servers fill any buffer and need none.
            if ipaddress.ip_address(sock.getpeername()[0]).is_private:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)
        with self._cond:
            self._sockets.add(sock)
        try:
            yield
        finally:
            with self._cond:
                self._sockets.discard(sock)

    def _count(self, n: int) -> None:
        now = time.monotonic()
        with self._cond:
            self.received += n
            if self._samples and now - self._samples[-1][0] < 0.1:
                at, before = self._samples[-1]
                self._samples[-1] = (at, before + n)
            else:
                self._samples.append((now, n))

    # ---- where the bytes are

    def _where(self, f: TransferFile) -> Resolved:
        """The file's current address, asked for at most once at a time; notices a file that changed on the hub."""
        with f.resolving:
            if f.where is None:
                try:
                    found = self.client.resolve(self.job.repo, f.file.path, self.job.commit)
                except HubError as error:
                    if error.code != "changed":
                        raise
                    self._move_to_newest()
                    found = self.client.resolve(self.job.repo, f.file.path, self.job.commit)
                if found.etag != f.etag or found.size != f.file.size:
                    self._start_over(f, found.size, found.etag)
                f.where = found
            return f.where

    def _move_to_newest(self) -> None:
        """The commit is gone (somebody rewrote the repository): take the newest, keep the files that are the same."""
        listing = self.client.repo(self.job.repo)
        by_path = {file.path: file for quant in listing.quants for file in quant.files}
        by_path |= {file.path: file for file in listing.other}
        gone = [f.file.path for f in self.files if f.file.path not in by_path]
        if gone:
            raise HubError("not_found", f"{show(gone[0])} was removed from {self.job.repo}", "choose another file.")
        with self._cond:
            self.job = structs.replace(self.job, commit=listing.commit)
        self.store.save(self.job)

    def _start_over(self, f: TransferFile, size: int, etag: str) -> None:
        """The hub has another version of this file than the one that was begun."""
        with self._cond:
            is_sha = re.fullmatch(r"[0-9a-f]{64}", etag) is not None
            f.file = JobFile(f.file.path, size, etag if is_sha else None, "" if is_sha else etag)
            f.verified = 0
            self.job = structs.replace(self.job, files=tuple(g.file for g in self.files))
            self.store.save(self.job)
            if f.part:
                f.part.reset(self._head(f))
                f.taken = bytearray(f.part.have)
            self.notice = f"{show(f.file.path.rsplit('/', 1)[-1])} changed on the hub: that file starts again."
            self._cond.notify_all()
        self.changed()

    # ---- failures

    def _recovered(self, f: TransferFile) -> None:
        with self._cond:
            f.failures = f.refused = 0
            f.not_before = 0.0

    def _failed_once(self, f: TransferFile, error: HubError) -> None:
        """Waits before the next try, or gives up."""
        if self._stop:
            return
        if error.code == "expired":  # a new address costs nothing: at once
            return
        if error.code not in TRANSIENT:
            self._fail(error)
            return
        with self._cond:
            now = time.monotonic()
            if now < f.not_before:
                return  # another connection met the same trouble
            f.failures += 1
            if f.failures >= self.options.attempts:
                tries = f"gave up after {f.failures} tries; what is here is kept, resume it later."
                self.error = self.error or HubError(error.code, error.gist, tries)
                self._cond.notify_all()
                return
            wait = min(self.options.backoff_max_s, self.options.backoff_s * 2 ** (f.failures - 1))
            wait *= random.uniform(0.75, 1.25)
            if error.retry_after is not None:
                wait = max(wait, error.retry_after)
            f.not_before = now + wait
            self.trouble = f"{error.gist}; trying again in {wait:.0f} s ({f.failures} of {self.options.attempts})."
            self._cond.notify_all()
        self.changed()
