"""Files and folders for their owner alone: made with their mode, so that there is no moment in which others may read.

What a user names (an export, a recording, a batch's output) isn't made here: there the umask decides.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def make_folders(path: Path) -> None:
    """Makes `path` and what is missing above it, each 0700; `mkdir` gives its mode only to the last. Raises OSError."""
    missing = []
    at = path
    while not at.exists() and at != at.parent:
        missing.append(at)
        at = at.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        path.mkdir()  # says what is in the way


def opener(path: str, flags: int) -> int:
    """For `open`: a new file is 0600."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def open_log(path: Path) -> BinaryIO:
    """Opens a log to append to."""
    return open(path, "ab", opener=opener)


def write_bytes(path: Path, data: bytes) -> None:
    """`Path.write_bytes`, with a new file 0600."""
    with open(path, "wb", opener=opener) as file:
        file.write(data)
