"""One download at work: connections that fetch runs of blocks, and a hash that follows each file from its start.

Threads of one `Transfer`: the one that calls `run`, a few fetchers (for all parts and for pieces of one part alike),
and one hasher a file. They share one condition. Nothing in here decides what is wanted: see `downloads`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from flashmoe.hub.downloads.connections import TRANSIENT, Fetching
from flashmoe.hub.downloads.partfile import STATE, PartFile, disk_error
from flashmoe.hub.downloads.state import Options, TransferFile, digest_of
from flashmoe.hub.downloads.views import FileView, JobView
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import show, target_path

FLUSH_S = 5.0


class Transfer(Fetching):
    """Fetches one job until it is done, fails, or is told to stop."""

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
                cause=self.error.gist if self.error else "",
                code=self.error.code if self.error else "", files=files, size=size, done=done,
                verified=sum(f.verified for f in files), received=self.received, bytes_s=speed,
                eta_s=(size - done) / speed if speed and state == "running" else None,
                path=str(self.store.target(self.job, self.job.files[0])),
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

    def _already_here(self, f: TransferFile, target: Path, known: bool) -> bool:
        """Whether the finished file is there: by the manifest, or (copied here by hand) by its hash."""
        try:
            if target.is_symlink() or target.stat().st_size != f.file.size:
                return False
            if known:
                return True
            digest = digest_of(f.file)
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

    def _close_files(self) -> None:
        for thread in self._threads:
            thread.join()
        for f in self.files:
            if f.part and f.state != "done":
                with suppress(OSError):
                    f.part.flush()
                f.part.close()
        self.closed.set()

    # ---- hashing

    def _hash(self, f: TransferFile) -> None:
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

    def _hash_once(self, f: TransferFile, part: PartFile) -> str | None:
        """The hash once the last block is in; None when the file started over or the transfer stops."""
        with self._cond:
            generation, have, n_blocks = part.generation, part.have, part.n_blocks
            digest = digest_of(f.file)
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

    def _finish(self, f: TransferFile, part: PartFile) -> None:
        self.store.remember(self.job, f.file, f.etag)
        part.finish()
        with self._cond:
            f.state, f.verified = "done", f.file.size
            self._cond.notify_all()
        self.changed()


__all__ = ["Options", "Transfer"]
