"""A pool that is warm from the start: how much each expert was used is kept on disk, and after a load, while nobody
asks, the hottest are read.

What is kept is small (a number for each expert), belongs to the files' content, and may be deleted at any time. Nothing
is ever given up for it: only room that is free is filled, in the order of the file, so that the disk reads ahead of
itself.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends.streaming.ledger import ABSENT
from backends.streaming.pager import Pager

F32 = npt.NDArray[np.float32]
_MAGIC = b"flashmoe-heat 1\n"
MOST_FILES = 64
"""Models that are remembered; those used longest ago go first."""
SAVE_EVERY_S = 60.0
"""While nothing is asked; and when the model is closed."""
SLICE_BYTES = 8 << 20
"""Read at a time: a request that comes meanwhile waits no longer for its own."""


class HeatFile:
    """One model's heat on disk: a line that tells the format, a digest, and float32 of rows x experts."""

    def __init__(self, folder: Path, fingerprint: str, shape: tuple[int, int]) -> None:
        self._folder, self._shape = folder, shape
        self._of = hashlib.sha256(f"{fingerprint}:{shape}".encode()).digest()
        self._path = folder / f"{self._of.hex()[:32]}.heat"

    def read(self) -> F32 | None:
        """What was kept; None where there is nothing, or nothing that belongs to this model."""
        rows, width = self._shape
        size = len(_MAGIC) + 64 + 4 * rows * width
        try:
            with self._path.open("rb") as file:
                raw = file.read(size + 1)
        except OSError:
            return None
        body = raw[len(_MAGIC) + 64 :]
        head = _MAGIC + self._of + hashlib.sha256(body).digest()
        if len(raw) != size or raw[: len(head)] != head:
            return None
        heat = np.frombuffer(body, np.float32).reshape(rows, width)
        return heat if np.isfinite(heat).all() and (heat >= 0).all() else None

    def write(self, heat: F32) -> None:
        """Keeps it, as far as the folder may be written; for this user's eyes."""
        body = np.ascontiguousarray(heat, np.float32).tobytes()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(dir=self._folder, suffix=".part")
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(_MAGIC + self._of + hashlib.sha256(body).digest() + body)
                Path(name).replace(self._path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
            kept = sorted(self._folder.glob("*.heat"), key=lambda p: p.stat().st_mtime, reverse=True)
            for old in kept[MOST_FILES:]:
                old.unlink(missing_ok=True)
        except OSError:
            pass  # a cache: the next start is cold, as the first one was


class Warmth:
    """Fills the free room of a loaded model's store with what was hot. One thread calls everything."""

    def __init__(self, pager: Pager, file: HeatFile) -> None:
        self._pager, self._file = pager, file
        self._left: list[tuple[int, list[int]]] | None = None
        """Experts to read, row by row, the first row last; None until somebody has time to look."""
        self._saved, self._saved_at = 0, time.monotonic()

    def idle(self) -> bool:
        """Does a little of the filling where nothing is asked; whether there is more to do. Never waits for the disk
        longer than a slice takes."""
        if self._left is None:
            self._left = self._choose()
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()
        if self._pager.warming():
            return True
        while self._left:
            row, experts = self._left[-1]
            n = max(1, SLICE_BYTES // int(self._pager.layout.rows[row].expert_bytes))
            part, rest = experts[:n], experts[n:]
            self._left[-1] = (row, rest)
            if not rest:
                self._left.pop()
            if self._pager.warm(row, part):
                return True
        return False

    def _choose(self) -> list[tuple[int, list[int]]]:
        """What to read: of each row its hottest, as many as it has room of its own for."""
        heat = self._file.read()
        if heat is None:
            return []
        self._pager.ledger.remember(heat)
        chosen = []
        for row in reversed(range(self._pager.ledger.rows)):
            state = self._pager.ledger.state[row]
            order = np.argsort(-heat[row], kind="stable")[: self._pager.share(row)]
            wanted = [e for e in order.tolist() if heat[row, e] > 0 and state[e] == ABSENT]
            if wanted:
                chosen.append((row, sorted(wanted)))
        return chosen

    def save(self) -> None:
        """Keeps the heat as it is now, where anything was computed since the last time."""
        self._saved_at = time.monotonic()
        if self._pager.ledger.token > self._saved:
            self._saved = self._pager.ledger.token
            self._file.write(self._pager.ledger.heat())
