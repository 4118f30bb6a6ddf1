"""One download at work: connections that fetch runs of blocks, and a hash that follows each file from its start.

Threads of one `Transfer`: the one that calls `run`, a few connections (for all parts and for pieces of one part
alike), and one hasher a file. They share one condition. Nothing in here decides what is wanted: see `manager`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from flashmoe.hub.client import HubClient
from flashmoe.hub.downloads.addresses import Addresses
from flashmoe.hub.downloads.checking import Checking
from flashmoe.hub.downloads.connections import Connections
from flashmoe.hub.downloads.jobs import Job, JobStore, KnownFile
from flashmoe.hub.downloads.limiter import RateLimiter
from flashmoe.hub.downloads.meter import Meter
from flashmoe.hub.downloads.partfile import STATE, PartFile, disk_error
from flashmoe.hub.downloads.setbacks import Setbacks
from flashmoe.hub.downloads.state import Options, TransferFile, check_of, checked_text, digest_of, head_of
from flashmoe.hub.downloads.views import FileView, JobState, JobView
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import show, target_path
from flashmoe.hub.xet import XetStorage, why_not

FLUSH_S = 5.0


class Transfer:
    """Fetches one job until it is done, fails, or is told to stop. The `state.Owner` of its parts.

    `on_change` is called from any of its threads.
    """

    def __init__(
        self,
        job: Job,
        store: JobStore,
        client: HubClient,
        options: Options,
        limiter: RateLimiter,
        permits: threading.Semaphore,
        on_change: Callable[[], None],
    ) -> None:
        self.job = job
        self.store = store
        self.client = client
        self.options = options
        self.files = [TransferFile(f) for f in job.files]
        self.cond = threading.Condition()
        self.state: JobState = "starting"
        self.error: HubError | None = None
        self.notice = ""
        self.trouble = ""
        self.closed = threading.Event()
        self._on_change = on_change
        self._stop: str | None = None
        self._threads: list[threading.Thread] = []
        self._meter = Meter()
        self._addresses = Addresses(self)
        self._checking = Checking(self)
        xet = XetStorage(client) if options.xet and why_not() is None else None
        self._connections = Connections(
            self, self._addresses, Setbacks(self), self._meter, limiter, permits, xet
        )  # fmt: skip

    # ---- what its parts ask of it

    @property
    def stopping(self) -> bool:
        """Whether it is to end."""
        return self._stop is not None

    def fail(self, error: HubError) -> None:
        """Ends it with `error`; the first one counts."""
        with self.cond:
            if self.error is None and not self._stop:
                self.error = error
            self.cond.notify_all()
        self.stop("close")

    def changed(self) -> None:
        """Tells whoever watches."""
        self._on_change()

    # ---- from outside

    @property
    def received(self) -> int:
        """Bytes that came over the network."""
        return self._meter.received

    def stop(self, state: str) -> None:
        """Ends the transfer soon (``pause``, ``cancel``, ``close``); `run` returns when it has."""
        with self.cond:
            self._stop = self._stop or state
            self._connections.hang_up()
            self.cond.notify_all()

    def view(self) -> JobView:
        """A snapshot; cheap enough for several a second."""
        with self.cond:
            files = tuple(
                FileView(f.file.path, f.file.size, f.done, min(f.verified, f.file.size), f.state) for f in self.files
            )
            speed = self._meter.bytes_s()
            size, done = sum(f.size for f in files), sum(f.done for f in files)
            state, message = self.state, self.error.message if self.error else self.notice
            if state == "running":
                failing = [f.failures for f in self.files if f.state != "done" and f.failures]
                if failing and (not speed or max(failing) > 1):  # one dropped connection among four is no news
                    message = self.trouble
                    state = "running" if speed else "waiting"
                elif done == size:
                    state = "verifying"
                elif any(f.slow and f.state != "done" for f in self.files):
                    message = self.trouble
            checks = [check_of(f.file) for f in self.files if f.state == "done"]
            return JobView(
                id=self.job.id, repo=self.job.repo, label=self.job.label, state=state, message=message,
                cause=self.error.gist if self.error else "",
                code=self.error.code if self.error else "", files=files, size=size, done=done,
                verified=sum(f.verified for f in files), received=self.received, bytes_s=speed,
                eta_s=(size - done) / speed if speed and state == "running" else None,
                path=str(self.store.target(self.job, self.job.files[0])),
                checked=checked_text(checks) if checks else "",
            )  # fmt: skip

    # ---- the whole

    def run(self) -> None:
        """Blocks until it is over; then `state` is done, failed, paused or cancelled."""
        try:
            self._open()
            if self._stop is None:
                self._start_threads()
                self._watch()
        except HubError as error:
            self.fail(error)
        except OSError as error:
            self.fail(disk_error(error, self.store.root))
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
            if self._already_here(f, target, manifest.files.get(f.file.path)):
                f.state, f.verified = "done", f.file.size
                with suppress(OSError):  # a kill between the file's new name and the table's end
                    target.with_name(target.name + STATE).unlink()
                continue
            f.part = PartFile(target, head_of(self.job, f))
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
        """Whether the hub lets us have it at all, before any space is taken. Passing troubles are the connections'."""
        for f in self.files:
            if f.part is not None:
                try:
                    self._addresses.of(f)
                except HubError as error:
                    if not error.passing and error.code != "bad_answer":
                        raise
                return

    def _already_here(self, f: TransferFile, target: Path, known: KnownFile | None) -> bool:
        """Whether the finished file is there: by the manifest, or (copied here by hand) by its hash."""
        told = check_of(f.file) != "size"
        try:
            if target.is_symlink() or target.stat().st_size != f.file.size:
                return False
            if known is not None and known.etag == f.etag:
                return True
            if not told:
                return False
            digest = digest_of(f.file)
            self.state, self.notice = "verifying", f"Checking {show(target.name)}, which is already downloaded."
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
                self._spawn(f"hash-{number}", partial(self._checking.follow, f))
        for number in range(self.options.connections):
            self._spawn(f"fetch-{number}", self._connections.work)

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except HubError as error:
                self.fail(error)
            except OSError as error:
                self.fail(disk_error(error, self.store.root))
            except Exception as error:  # a bug must end the download with a sentence, not hang it
                self.fail(HubError("io_error", f"The download stopped: {type(error).__name__}: {show(str(error))}"))

        thread = threading.Thread(target=guarded, name=f"{self.job.id}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        """Waits for the end, and puts what came on the disk every few seconds."""
        last = time.monotonic()
        while True:
            with self.cond:
                if self._stop or self.error or all(f.state == "done" for f in self.files):
                    return
                self.cond.wait(1.0)
            if time.monotonic() - last > FLUSH_S:
                last = time.monotonic()
                for f in self.files:
                    if f.part and f.state != "done":
                        f.part.flush()

    def _close_files(self) -> None:
        for thread in self._threads:
            thread.join()
        for f in self.files:
            if f.part and f.state != "done":
                with suppress(OSError):
                    f.part.flush()
                f.part.close()
        self.closed.set()
