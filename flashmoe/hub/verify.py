"""Compares files with the hashes that the hub told when they were downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from flashmoe.hub.library import Entry, Library


class FileCheck(Struct, frozen=True):
    """One file's result. ``unknown``: readable, but nobody told its hash."""

    path: str
    status: Literal["ok", "damaged", "unknown", "unreadable"]
    sha256: str | None = None
    expected: str | None = None
    message: str = ""


def verify(entry: Entry, library: Library, progress: Callable[[int, int], bool] | None = None) -> Iterator[FileCheck]:
    """Hashes each file of `entry`; `progress(done, total)` in bytes may return False to stop."""
    total, done = entry.size, 0
    for file, expected in library.known_files(entry).items():
        digest = hashlib.sha256()
        try:
            with Path(file).open("rb") as stream:
                while data := stream.read(1 << 20):
                    digest.update(data)
                    done += len(data)
                    if progress is not None and not progress(done, total):
                        return
        except OSError as error:
            yield FileCheck(str(file), "unreadable", None, expected, f"{file.name}: {error.strerror}.")
            continue
        found = digest.hexdigest()
        if expected is None:
            yield FileCheck(
                str(file), "unknown", found, None, f"{file.name} wasn't downloaded here: no hash to compare."
            )
        elif found == expected:
            yield FileCheck(str(file), "ok", found, expected)
        else:
            yield FileCheck(
                str(file), "damaged", found, expected, f"{file.name} is damaged: delete it and pull it again."
            )
