"""The list of downloads on disk: what was asked for, so that it goes on after anything."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from backends.system import private
from flashmoe.figures import size as size_text
from flashmoe.hub.downloads.partfile import PART, disk_error, fsync_dir
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import check_file_name, check_repo, show

JOBS_DIR = ".downloads"
MANIFEST = ".flashmoe-hub.json"


class JobFile(Struct, frozen=True):
    """One file to fetch. `sha256` is None where git itself holds the file: `blob_id` is then git's hash of it, or
    whatever else the server tells it by; empty: nothing."""

    path: str
    size: int
    sha256: str | None = None
    blob_id: str = ""


class Job(Struct, frozen=True):
    """One download: a file or a split set of one repository at one commit."""

    id: str
    repo: str
    label: str
    commit: str
    files: tuple[JobFile, ...]
    wanted: Literal["run", "pause"] = "run"
    created: float = 0.0
    revision: str = ""
    """The branch, tag or commit that was asked for; empty: the main one."""

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)


class KnownFile(Struct, frozen=True):
    """What the hub said about a file that is here."""

    size: int
    sha256: str | None
    commit: str
    etag: str = ""
    downloaded: float = 0.0


class Manifest(Struct, frozen=True):
    """Beside each repository's files: what the hub said about them (``verify`` compares with it)."""

    repo: str
    files: dict[str, KnownFile] = {}


def job_id(repo: str, label: str, revision: str = "") -> str:
    """A stable, file-safe id: pulling the same thing again resumes the same job."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{repo}-{label}")[:80].strip("-.")
    key = f"{repo}|{label}|{revision}" if revision else f"{repo}|{label}"
    return f"{slug}-{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:8]}"


class JobStore:
    """Jobs of one models folder, as JSON files that are replaced atomically."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / JOBS_DIR

    def path(self, id: str) -> Path:
        return self.folder / f"{id}.json"

    def save(self, job: Job) -> None:
        write_atomically(self.path(job.id), msgspec.json.format(msgspec.json.encode(job)))

    def load(self, id: str) -> Job | None:
        return self._read(self.path(id))

    def all(self) -> list[Job]:
        """Every job that can be read, oldest first."""
        if not self.folder.is_dir():
            return []
        jobs = [job for path in self.folder.glob("*.json") if (job := self._read(path)) is not None]
        return sorted(jobs, key=lambda j: (j.created, j.id))

    def _read(self, path: Path) -> Job | None:
        try:
            job = msgspec.json.decode(path.read_bytes(), type=Job)
            check_repo(job.repo)
            for file in job.files:
                check_file_name(file.path)
        except (OSError, msgspec.DecodeError, HubError):
            return None
        return job if job.id == path.stem else None

    def remove(self, id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path(id).unlink()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held for the moments in which space is counted and reserved: two starters must not both see it free."""
        try:
            private.make_folders(self.folder)
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise disk_error(error, self.folder) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # ---- space

    def target(self, job: Job, file: JobFile) -> Path:
        """Where a file will be (not checked: see `names.target_path`)."""
        return self.root / job.repo / file.path

    def still_needed(self, job: Job) -> int:
        """Bytes that the disk has yet to give to this job."""
        total = 0
        for file in job.files:
            target = self.target(job, file)
            allocated = 0
            for path in (target, target.with_name(target.name + PART)):
                with contextlib.suppress(OSError):
                    allocated = max(allocated, path.lstat().st_blocks * 512)
            total += max(0, file.size - allocated)
        return total

    def check_space(self, job: Job, *, margin: int = 256 << 20) -> None:
        """Raises `HubError` (``no_space``) where this job and those already running would fill the disk."""
        needed = self.still_needed(job)
        others = sum(self.still_needed(other) for other in self.all() if other.id != job.id and other.wanted == "run")
        free = free_bytes(self.root)
        if needed == 0 or needed + others + margin <= free:
            return
        reserved = f", of which other downloads will take {size_text(others)}" if others else ""
        raise HubError(
            "no_space",
            f"{job.repo} {show(job.label)} needs {size_text(needed)} more and {show(str(self.root))} has"
            f" {size_text(free)} free{reserved}",
            f"free {size_text(needed + others + margin - free)}, or set FLASHMOE_MODELS to a folder on a larger disk",
        )

    # ---- what the hub said

    def manifest(self, repo: str) -> Manifest:
        try:
            return msgspec.json.decode((self.root / repo / MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            return Manifest(repo)

    def remember(self, job: Job, file: JobFile, etag: str) -> None:
        """Adds a verified file to its repository's manifest."""
        known = KnownFile(file.size, file.sha256, job.commit, etag, time.time())
        with self.exclusive():
            manifest = self.manifest(job.repo)
            files = {**manifest.files, file.path: known}
            write_atomically(
                self.root / job.repo / MANIFEST, msgspec.json.format(msgspec.json.encode(Manifest(job.repo, files)))
            )

    def forget(self, repo: str, paths: set[str]) -> None:
        """Removes deleted files from the manifest, and the manifest with the last of them."""
        with self.exclusive():
            manifest = self.manifest(repo)
            files = {p: k for p, k in manifest.files.items() if p not in paths}
            place = self.root / repo / MANIFEST
            if files:
                write_atomically(place, msgspec.json.format(msgspec.json.encode(Manifest(repo, files))))
            else:
                with contextlib.suppress(OSError):
                    place.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` so that a crash leaves the old or the new content. Raises `HubError`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        private.make_folders(path.parent)
        with open(temporary, "wb", opener=private.opener) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error(error, path) from None


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write where `path` is or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize
