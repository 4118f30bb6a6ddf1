"""All downloads of one process: which run, which wait, what the user wants of each; resumed at the next start.

One manager a process, on the models folder; what several processes must not do at once is guarded by file locks
(`partfile`, `jobs`). Listeners are called from worker threads with a frozen `JobView`: post it, don't draw in it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import structs

from flashmoe.hub.client import HubClient
from flashmoe.hub.downloads.jobs import Job, JobFile, JobStore, job_id
from flashmoe.hub.downloads.limiter import RateLimiter
from flashmoe.hub.downloads.partfile import PartFile, PartHead, peek, remove_part
from flashmoe.hub.downloads.state import Options
from flashmoe.hub.downloads.transfer import Transfer
from flashmoe.hub.downloads.views import ACTIVE, ENDED, FileView, JobView
from flashmoe.hub.errors import HubError
from flashmoe.hub.inuse import holder
from flashmoe.hub.listing import HubQuant, HubRepo
from flashmoe.hub.names import check_file_name, target_path
from flashmoe.hub.selection import incomplete
from flashmoe.paths import models_dir
from flashmoe.retry import PASSING, Backoff

Listener = Callable[[JobView], None]
TICK_S = 0.5
KEPT = PASSING | {"no_space", "io_error"}
"""Failures that are no refusal; after any other, a download of which nothing came leaves nothing behind."""


class DownloadManager:
    """Downloads into one models folder. Every method returns at once but `wait` and `close`; all are thread-safe."""

    def __init__(
        self,
        root: Path | None = None,
        client: HubClient | None = None,
        options: Options | None = None,
        *,
        limit_bytes_s: float | None = None,
        on_event: Listener | None = None,
    ) -> None:
        self.root = root or models_dir()
        self.client = client or HubClient()
        self.options = options or Options()
        self.store = JobStore(self.root)
        self.limiter = RateLimiter(limit_bytes_s)
        self._listeners: list[Listener] = [on_event] if on_event else []
        self._permits = threading.Semaphore(self.options.connections)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._jobs: dict[str, Job] = {}
        self._views: dict[str, JobView] = {}
        self._running: dict[str, Transfer] = {}
        self._closing: dict[str, Transfer] = {}
        self._queue: list[str] = []
        self._rounds: dict[str, int] = {}
        """Rounds in a row of each download that brought nothing."""
        self._ticker: threading.Thread | None = None
        self._closed = False

    # ---- listening

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with each change of any download; returns what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def remove() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return remove

    def jobs(self) -> list[JobView]:
        """Every download as it is now, in the order in which they were asked for."""
        with self._lock:
            return [self._view(id) for id in self._jobs]

    def get(self, id: str) -> JobView | None:
        with self._lock:
            return self._view(id) if id in self._jobs else None

    def active(self) -> bool:
        """Whether something is moving or about to (closing the app would stop it)."""
        with self._lock:
            return bool(self._running or self._queue)

    def _view(self, id: str) -> JobView:
        transfer = self._running.get(id)
        return transfer.view() if transfer else self._views[id]

    # ---- what the user wants

    def start(self, *, resume: bool = True) -> None:
        """Reads what earlier runs left; with `resume`, what was running then goes on."""
        with self._lock:
            for job in self.store.all():
                if job.id not in self._jobs:
                    self._jobs[job.id] = job
                    self._views[job.id] = self._idle_view(job)
                    if resume and job.wanted == "run":
                        self._enqueue(job.id)
            self._pump()

    def add(self, repo: HubRepo, quant: HubQuant) -> str:
        """Starts (or goes on with) the download of one model; returns its id. Raises `HubError` for bad names."""
        if not quant.complete:
            raise incomplete(repo, quant)
        for file in quant.files:
            check_file_name(file.path)
        files = tuple(JobFile(f.path, f.size, f.sha256, f.blob_id) for f in quant.files)
        id = job_id(repo.repo, quant.label, repo.revision)
        with self._lock:
            if id in self._running or id in self._queue:
                return id
            old = self._jobs.get(id) or self.store.load(id)
            created = old.created if old else time.time()
            job = Job(id, repo.repo, quant.label, repo.commit, files, "run", created, repo.revision)
            self.store.save(job)
            self._jobs[id] = job
            self._views[id] = self._idle_view(job)
            self._enqueue(id)
            self._pump()
        return id

    def resume(self, id: str) -> None:
        """Goes on with a paused or failed download."""
        with self._lock:
            job = self._jobs.get(id)
            if job is None or id in self._running or id in self._queue or self._views[id].state == "done":
                return
            self._want(id, "run")
            self._enqueue(id)
            self._pump()

    def pause(self, id: str) -> None:
        """Stops a download; what is there stays, also over a restart."""
        with self._lock:
            if id not in self._jobs or self._views[id].state == "done":
                return
            self._want(id, "pause")
            transfer = self._running.get(id)
            if transfer:
                transfer.stop("pause")
            else:
                self._leave_queue(id)
                self._set(id, structs.replace(self._views[id], state="paused", message="", code=""))
        self._emit(id)

    def cancel(self, id: str) -> None:
        """Stops a download for good and deletes what came of it."""
        with self._lock:
            if id not in self._jobs:
                return
            transfer = self._running.get(id)
            if transfer:
                transfer.stop("cancel")
                return
            self._leave_queue(id)
        self._discard(id)

    def dismiss(self, id: str) -> None:
        """Takes a finished or cancelled download off the list."""
        with self._lock:
            if id in self._views and id not in self._running and self._views[id].state in ("done", "cancelled"):
                self._jobs.pop(id, None)
                self._views.pop(id, None)

    def set_limit(self, bytes_s: float | None) -> None:
        """Limits all downloads together; None: as fast as they come."""
        self.limiter.bytes_s = bytes_s

    def wait(self, id: str, timeout: float | None = None) -> JobView:
        """Blocks until the download has ended (done, failed, paused, cancelled); returns how."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                view = self._view(id)
                if id not in self._running and id not in self._queue and view.state in ENDED:
                    return view
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return view
                self._changed.wait(0.2 if left is None else min(left, 0.2))

    def close(self, timeout: float = 5.0) -> None:
        """Stops everything, so that the next start goes on with it."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            transfers = list(self._running.values())
            for transfer in transfers:
                transfer.stop("close")
        until = time.monotonic() + timeout
        for transfer in transfers:
            transfer.closed.wait(max(0.0, until - time.monotonic()))

    # ---- inside

    def _want(self, id: str, what: str) -> None:
        job = structs.replace(self._jobs[id], wanted="run" if what == "run" else "pause")
        self._jobs[id] = job
        with contextlib.suppress(HubError):  # a full disk must not keep anybody from pausing
            self.store.save(job)

    def _enqueue(self, id: str) -> None:
        self._queue.append(id)
        self._views[id] = structs.replace(self._views[id], state="queued", message="", code="")

    def _leave_queue(self, id: str) -> None:
        with contextlib.suppress(ValueError):
            self._queue.remove(id)

    def _set(self, id: str, view: JobView) -> None:
        with self._changed:
            self._views[id] = view
            self._changed.notify_all()

    def _pump(self) -> None:
        """Starts what waits, as far as the limit allows. Call with the lock held."""
        while self._queue and len(self._running) < self.options.active_jobs and not self._closed:
            id = self._queue.pop(0)
            transfer = Transfer(
                self._jobs[id], self.store, self.client, self.options, self.limiter, self._permits,
                partial(self._emit, id),
            )  # fmt: skip
            self._running[id] = transfer
            before = self._closing.get(id)
            threading.Thread(target=self._run, args=(id, transfer, before), name=f"download-{id}", daemon=True).start()
        if self._running and (self._ticker is None or not self._ticker.is_alive()):
            self._ticker = threading.Thread(target=self._tick, name="download-ticker", daemon=True)
            self._ticker.start()

    def _run(self, id: str, transfer: Transfer, before: Transfer | None) -> None:
        if before is not None:
            before.closed.wait(60)  # its last thread may still hold the files
        transfer.run()
        refused = transfer.error is not None and transfer.error.code not in KEPT and not transfer.view().done
        if refused or transfer.state == "cancelled":
            transfer.closed.wait(60)
            self._clean_up(transfer.job)
        with self._changed:
            self._closing[id] = transfer
            del self._running[id]
            self._jobs[id] = structs.replace(transfer.job, wanted=self._jobs[id].wanted)
            self._views[id] = transfer.view()
            if transfer.state == "done":
                self.store.remove(id)
            elif transfer.state == "cancelled":
                self._views[id] = structs.replace(self._views[id], done=0, verified=0)
            elif transfer.error is not None and transfer.error.code == "no_space":
                self._want(id, "pause")  # so that its rest counts as reserved no more
            elif transfer.error is not None and transfer.error.passing:
                self._try_later(id, progressed=transfer.received > 0)
            self._changed.notify_all()
        self._emit(id)
        with self._lock:
            self._pump()

    def _try_later(self, id: str, *, progressed: bool) -> None:
        """A laptop that slept, a network that was gone for an hour: nobody should have to press a key. Lock held."""
        first = self.options.retry_failed_s
        if first is None or self._closed:
            return
        rounds = self._rounds[id] = 1 if progressed else self._rounds.get(id, 0) + 1
        wait = Backoff(first_s=first, most_s=first * 16).pause_s(rounds)
        view = self._views[id]
        message = f"{view.cause}; trying again in {_span(wait)}."
        self._views[id] = structs.replace(view, message=message)

        def again() -> None:
            with self._lock:
                job = self._jobs.get(id)
                still = job is not None and job.wanted == "run" and self._views[id].state == "failed"
            if still and not self._closed:
                self.resume(id)

        timer = threading.Timer(wait, again)
        timer.daemon = True
        timer.start()

    def _discard(self, id: str) -> None:
        with self._lock:
            job = self._jobs[id]
        self._clean_up(job)
        self._set(id, structs.replace(self._views[id], state="cancelled", message="", code="", done=0, verified=0))
        self._emit(id)

    def _clean_up(self, job: Job) -> None:
        """Deletes the parts of an unfinished download, its finished parts too: alone they are of no use."""
        manifest = self.store.manifest(job.repo)
        try:
            for file in job.files:
                target = target_path(self.root, job.repo, file.path)
                with contextlib.suppress(HubError):
                    part = (
                        PartFile(target, PartHead(job.repo, file.path, job.commit, "", 0, None))
                        if _begun(target)
                        else None
                    )
                    if part:
                        part.remove()
                    if file.path in manifest.files and holder(target) is None:
                        target.unlink(missing_ok=True)
                remove_empty(target.parent, self.root)
            self.store.forget(job.repo, {f.path for f in job.files})
            remove_empty(self.root / job.repo, self.root)
        except (HubError, OSError):
            pass  # what can't be deleted stays and is seen in the library
        self.store.remove(job.id)

    def _idle_view(self, job: Job) -> JobView:
        files = []
        for file in job.files:
            head = PartHead(job.repo, file.path, job.commit, file.sha256 or file.blob_id, file.size, file.sha256)
            done = peek(self.store.target(job, file), head)
            files.append(FileView(file.path, file.size, done, 0, "queued"))
        return JobView(
            id=job.id, repo=job.repo, label=job.label, state="paused", files=tuple(files), size=job.size,
            done=sum(f.done for f in files), path=str(self.store.target(job, job.files[0])) if job.files else "",
        )  # fmt: skip

    def _emit(self, id: str) -> None:
        with self._lock:
            if id not in self._jobs:
                return
            view, listeners = self._view(id), list(self._listeners)
        for listener in listeners:
            listener(view)

    def _tick(self) -> None:
        """Tells the listeners where things are, twice a second, while something moves."""
        while True:
            time.sleep(TICK_S)
            with self._lock:
                running = list(self._running)
                if not running:
                    self._ticker = None
                    return
            for id in running:
                view = self.get(id)
                if view is not None and view.state in ACTIVE:
                    self._emit(id)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _begun(target: Path) -> bool:
    return any(target.with_name(target.name + suffix).exists() for suffix in (".part", ".part.state"))


def remove_empty(folder: Path, root: Path) -> None:
    """Removes `folder` and its parents below `root` as far as they are empty."""
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


__all__ = ["DownloadManager", "Listener", "remove_empty", "remove_part"]
