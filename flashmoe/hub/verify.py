"""Compares files with what the hub told of them when they were downloaded, and says exactly what was compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from flashmoe.hub.library import Expected, Library
from flashmoe.hub.names import readable
from flashmoe.hub.scan import Entry

Checked = Literal["sha256", "git", "size", "nothing"]


class FileCheck(Struct, frozen=True):
    """One file's result. ``unknown``: readable, but nobody told its hash."""

    path: str
    status: Literal["ok", "damaged", "unknown", "unreadable"]
    sha256: str | None = None
    """What the file has now; None where it couldn't be read, or where git's hash was compared."""
    expected: str | None = None
    message: str = ""
    checked: Checked = "nothing"
    """What was compared: its sha256, git's hash of it, its size alone, or nothing."""


def verify(entry: Entry, library: Library, progress: Callable[[int, int], bool] | None = None) -> Iterator[FileCheck]:
    """Hashes each file of `entry`; `progress(done, total)` in bytes may return False to stop."""
    total, done = entry.size, 0
    for file, expected in library.known_files(entry).items():
        path, name = readable(str(file)), readable(file.name)
        told = expected.digest or None if expected else None
        try:
            size = file.stat().st_size
            digest = hashlib.sha1(b"blob %d\0" % size) if _check(expected) == "git" else hashlib.sha256()
            with Path(file).open("rb") as stream:
                while data := stream.read(1 << 20):
                    digest.update(data)
                    done += len(data)
                    if progress is not None and not progress(done, total):
                        return
        except OSError as error:
            yield FileCheck(path, "unreadable", None, told, f"{name}: {error.strerror}.")
            continue
        yield _compare(path, name, digest.hexdigest(), size, expected)


def _check(expected: Expected | None) -> Checked:
    return expected.check if expected is not None else "nothing"


def _compare(path: str, name: str, found: str, size: int, expected: Expected | None) -> FileCheck:
    check = _check(expected)
    if expected is None:
        return FileCheck(path, "unknown", found, None, f"{name} wasn't downloaded here: nothing to compare with.")
    sha256 = None if check == "git" else found
    if expected.size is not None and size != expected.size:
        message = f"{name} has {size:,} bytes, {expected.size:,} on the hub: delete it and pull it again."
        return FileCheck(path, "damaged", sha256, expected.digest or None, message, check)
    if check == "size":
        message = f"{name} has the right size; the server gave no hash to compare with."
        return FileCheck(path, "unknown", sha256, None, message, check)
    if found != expected.digest:
        message = f"{name} is damaged: delete it and pull it again."
        return FileCheck(path, "damaged", sha256, expected.digest, message, check)
    message = f"{name}: git's hash matches (the hub gives no sha256 for it)." if check == "git" else ""
    return FileCheck(path, "ok", sha256, expected.digest, message, check)
