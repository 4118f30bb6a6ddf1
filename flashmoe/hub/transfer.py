"""One download at work: connections that fetch runs of blocks, and a hash that follows each file from its start.

Threads of one `Transfer`: the one that calls `run`, a few fetchers (the models's parts and pieces of one part alike),
and one hasher a file. They share one condition. Nothing in here decides what is wanted: see `downloads`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import random
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from flashmoe.hub.errors import HubError
from flashmoe.hub.jobs import Job, JobFile, JobStore
from flashmoe.hub.limiter import RateLimiter
from flashmoe.hub.names import show, target_path
from flashmoe.hub.partfile import BLOCK, STATE, PartFile, PartHead, disk_error
from flashmoe.hub.session import HubClient, Resolved, retry_after
from flashmoe.hub.views import FileState, FileView, JobState, JobView

if TYPE_CHECKING:
    import httpx2

SEGMENT = (64 << 20) // BLOCK
"""Most blocks of one request: what a slow server can hold up, and how long one signed address is used."""
FLUSH_BYTES = 64 << 20
FLUSH_S = 5.0
SPEED_WINDOW_S = 8.0
TRANSIENT = frozenset({"network", "offline", "rate_limited", "server", "bad_answer"})
_GONE = frozenset({400, 401, 403, 404, 410})
"""Statuses with which CDNs refuse a signed address that expired."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Options(Struct, frozen=True):
    """How downloads behave; all of it may be set by the user."""

    connections: int = 4
    """Over all downloads together."""
    active_jobs: int = 2
    attempts: int = 8
    """Failures in a row, without one byte of progress, before a download gives up."""
    backoff_s: float = 1.0
    backoff_max_s: float = 30.0
    preallocate: bool = True
    space_margin: int = 256 << 20
    """Bytes that a download leaves free on the disk."""


class _File:
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


class Transfer:
    """Fetches one job until it is done, fails, or is told to stop. `changed` is called from any of its threads."""

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
        self.files = [_File(f) for f in job.files]
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

    # ---- from outside

    def stop(self, state: str) -> None:
        """Ends the transfer soon (``pause``, ``cancel``, ``close``); `run` returns when it has."""
        with self._cond:
            self._stop = self._stop or state
            for sock in self._sockets:  # a recv that waits for a stalled server returns at once
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._cond.notify_all()

    def view(self) -> JobView:
        """A snapshot; cheap enough for several a second."""
        with self._cond:
            files = tuple(
                FileView(f.file.path, f.file.size, f.done, min(f.verified, f.file.size), f.state) for f in self.files
            )
            speed = self._speed()
            size, done = sum(f.size for f in files), sum(f.done for f in files)
            state, message = self.state, self.error.message if self.error else self.notice
            if state == "running":
                failing = [f.failures for f in self.files if f.state != "done" and f.failures]
                if failing and (not speed or max(failing) > 1):  # one dropped connection among four is no news
                    message = self.trouble
                    state = "running" if speed else "waiting"
                elif done == size:
                    state = "verifying"
            return JobView(
                id=self.job.id, repo=self.job.repo, label=self.job.label, state=state, message=message,
                code=self.error.code if self.error else "", files=files, size=size, done=done,
                verified=sum(f.verified for f in files), received=self.received, bytes_s=speed,
                eta_s=(size - done) / speed if speed and state == "running" else None,
                path=str(self.store.target(self.job, self.job.files[0])),
            )  # fmt: skip

    def _speed(self) -> float | None:
        now = time.monotonic()
        while self._samples and self._samples[0][0] < now - SPEED_WINDOW_S:
            self._samples.popleft()
        if len(self._samples) < 2:
            return None
        span = now - self._samples[0][0]
        return sum(n for _, n in self._samples) / max(span, 0.25)

    # ---- the whole

    def run(self) -> None:
        """Blocks until it is over; then `state` is done, failed, paused or cancelled."""
        try:
            self._open()
            if self._stop is None:
                self._start_threads()
                self._watch()
        except HubError as error:
            self._fail(error)
        except OSError as error:
            self._fail(disk_error(error, self.store.root))
        self.stop("close")
        # A thread inside a connect or a HEAD can't be woken: it ends by its timeout, and the files close behind it.
        until = time.monotonic() + 2.0
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._settle()
        if any(t.is_alive() for t in self._threads):
            threading.Thread(target=self._close_files, name=f"{self.job.id}-close", daemon=True).start()
        else:
            self._close_files()
        self.changed()

    def _settle(self) -> None:
        if all(f.state == "done" for f in self.files):
            self.state, self.error = "done", None
        elif self._stop == "cancel":
            self.state, self.error = "cancelled", None
        elif self.error is not None:
            self.state = "paused" if self.error.code == "no_space" else "failed"
        else:
            self.state = "paused"

    def _open(self) -> None:
        """Locks the files, keeps what is there, and reserves the space for the rest."""
        manifest = self.store.manifest(self.job.repo)
        for f in self.files:
            target = target_path(self.store.root, self.job.repo, f.file.path)
            known = manifest.files.get(f.file.path)
            if self._already_here(f, target, known is not None and known.sha256 == f.file.sha256):
                f.state, f.verified = "done", f.file.size
                with suppress(OSError):  # a kill between the file's new name and the table's end
                    target.with_name(target.name + STATE).unlink()
                continue
            f.part = PartFile(target, self._head(f))
            f.taken = bytearray(f.part.have)
            if f.part.replaced:
                self.notice = f"{show(target.name)} changed on the hub: that file starts again."
        self._ask_first()
        with self.store.exclusive():
            self.store.check_space(self.job, margin=self.options.space_margin)
            if self.options.preallocate:
                for f in self.files:
                    if f.part:
                        f.part.preallocate()
        self.state = "running"

    def _ask_first(self) -> None:
        """Whether the hub lets us have it at all, before any space is taken. Passing troubles are the fetchers'."""
        for f in self.files:
            if f.part is not None:
                try:
                    self._where(f)
                except HubError as error:
                    if error.code not in TRANSIENT:
                        raise
                return

    def _head(self, f: _File) -> PartHead:
        return PartHead(self.job.repo, f.file.path, self.job.commit, f.etag, f.file.size, f.file.sha256)

    def _already_here(self, f: _File, target: Path, known: bool) -> bool:
        """Whether the finished file is there: by the manifest, or (copied here by hand) by its hash."""
        try:
            if target.is_symlink() or target.stat().st_size != f.file.size:
                return False
            if known:
                return True
            digest = _digest(f.file)
            self.state, self.notice = "verifying", f"Checking {show(target.name)}, which is here already."
            with target.open("rb") as file:
                while data := file.read(1 << 20):
                    if self._stop:
                        return False
                    digest.update(data)
                    f.verified += len(data)
        except FileNotFoundError:
            return False
        self.notice = ""
        f.verified = 0
        if digest.hexdigest() != f.etag:
            return False
        self.store.remember(self.job, f.file, f.etag)
        return True

    def _start_threads(self) -> None:
        for number, f in enumerate(self.files):
            if f.state != "done":
                self._spawn(f"hash-{number}", partial(self._hash, f))
        for number in range(self.options.connections):
            self._spawn(f"fetch-{number}", self._fetch_loop)

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except HubError as error:
                self._fail(error)
            except OSError as error:
                self._fail(disk_error(error, self.store.root))
            except Exception as error:  # a bug must end the download with a sentence, not hang it
                self._fail(HubError("io_error", f"The download stopped: {type(error).__name__}: {error}."))

        thread = threading.Thread(target=guarded, name=f"{self.job.id}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        """Waits for the end, and puts what came on the disk every few seconds."""
        last = time.monotonic()
        while True:
            with self._cond:
                if self._stop or self.error or all(f.state == "done" for f in self.files):
                    return
                self._cond.wait(1.0)
            if time.monotonic() - last > FLUSH_S:
                last = time.monotonic()
                for f in self.files:
                    if f.part and f.state != "done":
                        f.part.flush()

    def _fail(self, error: HubError) -> None:
        with self._cond:
            if self.error is None and not self._stop:
                self.error = error
            self._cond.notify_all()
        self.stop("close")

    def _close_files(self) -> None:
        for thread in self._threads:
            thread.join()
        for f in self.files:
            if f.part and f.state != "done":
                with suppress(OSError):
                    f.part.flush()
                f.part.close()
        self.closed.set()

    # ---- fetching

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

    def _claim(self) -> tuple[_File, int, int, int] | None:
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

    def _release(self, f: _File, first: int, end: int, generation: int) -> None:
        with self._cond:
            f.workers -= 1
            if f.part and generation == f.part.generation:
                f.taken[first:end] = f.part.have[first:end]
            self._cond.notify_all()

    def _fetch(self, f: _File, first: int, end: int, generation: int) -> None:
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

    def _judge(self, f: _File, where: Resolved, response: httpx2.Response, start: int) -> None:
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

    def _where(self, f: _File) -> Resolved:
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
            raise HubError("not_found", f"{show(gone[0])} was removed from {self.job.repo}; choose another file.")
        with self._cond:
            self.job = structs.replace(self.job, commit=listing.commit)
        self.store.save(self.job)

    def _start_over(self, f: _File, size: int, etag: str) -> None:
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

    def _recovered(self, f: _File) -> None:
        with self._cond:
            f.failures = f.refused = 0
            f.not_before = 0.0

    def _failed_once(self, f: _File, error: HubError) -> None:
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
                self.error = self.error or HubError(error.code, f"{_gist(error)}: {tries}")
                self._cond.notify_all()
                return
            wait = min(self.options.backoff_max_s, self.options.backoff_s * 2 ** (f.failures - 1))
            wait *= random.uniform(0.75, 1.25)
            if error.retry_after is not None:
                wait = max(wait, error.retry_after)
            f.not_before = now + wait
            self.trouble = f"{_gist(error)}; trying again in {wait:.0f} s ({f.failures} of {self.options.attempts})."
            self._cond.notify_all()
        self.changed()

    # ---- hashing

    def _hash(self, f: _File) -> None:
        """Follows the file from its first block; at its end compares, and gives the file its name."""
        while not self._stop and f.part is not None:
            digest = self._hash_once(f, f.part)
            if digest is None:
                continue
            if digest == f.etag:
                self._finish(f, f.part)
                return
            name = show(f.part.target.name)
            if f.restarted:
                raise HubError(
                    "checksum",
                    f"{name} arrived twice with a wrong checksum: the hub's copy or the way to it is damaged.",
                )
            with self._cond:
                f.restarted, f.verified = True, 0
                f.part.forget_all()
                f.taken = bytearray(f.part.have)
                f.state, f.where = "running", None
                self.notice = f"{name} arrived damaged (its checksum is not the hub's): fetching that file again."
                self._cond.notify_all()
            self.changed()

    def _hash_once(self, f: _File, part: PartFile) -> str | None:
        """The hash once the last block is in; None when the file started over or the transfer stops."""
        with self._cond:
            generation, have, n_blocks = part.generation, part.have, part.n_blocks
            digest = _digest(f.file)
            f.verified = index = 0
        while index < n_blocks:
            if self._stop or part.generation != generation:
                return None
            if not have[index]:
                with self._cond:
                    self._cond.wait(0.1)
                continue
            data = part.read_block(index)
            if data is None:  # the disk lost it (a power failure): fetch it again
                with self._cond:
                    if part.generation == generation:
                        f.taken[index] = 0
                        f.state = "running"
                    self._cond.notify_all()
                continue
            digest.update(data)
            index += 1
            f.verified += len(data)
            if f.state == "running" and have.find(0) < 0:
                f.state = "verifying"
        return None if part.generation != generation else digest.hexdigest()

    def _finish(self, f: _File, part: PartFile) -> None:
        self.store.remember(self.job, f.file, f.etag)
        part.finish()
        with self._cond:
            f.state, f.verified = "done", f.file.size
            self._cond.notify_all()
        self.changed()


def _gist(error: HubError) -> str:
    """What happened, without the advice for somebody who asked just once."""
    return error.message.split(";")[0].rstrip(".")


def _digest(file: JobFile) -> hashlib._Hash:
    """What the hub names the file by: sha256 of large files, git's blob hash of small ones."""
    return hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)
