"""The files of a loaded model, and whether they are still what was loaded.

Dense weights were copied or mapped when the model was loaded, experts are read later: once a file changes they no
longer belong together, and nothing computed from them is right. Size and times tell of a change; the time of the
inode's last change tells it also where somebody put the time of the content's last change back. A file that was only
renamed, linked, deleted or given to somebody else is still the same inside, which some of its blocks confirm.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.interface import EngineError

_BLOCK = 4096
_BLOCKS = 64
"""Of all parts together: few enough to cost a few milliseconds on a cold disk."""


@dataclass
class _Part:
    path: Path
    name: str
    """The path for the system: asked for at every token."""
    fd: int
    stat: os.stat_result
    blocks: bytes
    """Digest of the blocks that are looked at."""


class ModelFiles:
    """Keeps every part of a model open from before it is loaded until it is closed. One thread calls `check`."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        """Opens the parts, in order. Raises `EngineError` ``io_error`` where one can't be read."""
        self._parts: list[_Part] = []
        self._each = max(2, _BLOCKS // max(1, len(paths)))
        try:
            for path in paths:
                self._open(Path(path).absolute())
        except OSError as e:
            self.close()
            name = Path(e.filename or paths[0]).name
            raise EngineError("io_error", f"{name} can't be read: {e.strerror or e}.") from e

    def _open(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        part = _Part(path, os.fspath(path), fd, os.fstat(fd), b"")
        self._parts.append(part)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # read-ahead round each block would read megabytes
        part.blocks = self._digest(part)

    def _digest(self, part: _Part) -> bytes:
        last = max(0, part.stat.st_size // _BLOCK - 1)
        places = sorted({round(i * last / (self._each - 1)) for i in range(self._each)})
        digest = hashlib.sha256()
        for place in places:
            digest.update(os.pread(part.fd, _BLOCK, place * _BLOCK))
        return digest.digest()

    @property
    def fingerprint(self) -> str:
        """What tells this model from others: its parts' sizes and some of their blocks, the first and last included;
        not its name, its place or its times."""
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(b"%d:" % part.stat.st_size + part.blocks)
        return digest.hexdigest()

    def check(self, doing: str = "in use") -> None:
        """Raises `EngineError` ``io_error`` where a part is no longer what it was: changed, or another file's name."""
        for part in self._parts:
            now, before = os.fstat(part.fd), part.stat
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise self._changed(part, doing)
            named = _stat(part.name)
            if named is not None and (named.st_dev, named.st_ino) != (now.st_dev, now.st_ino):
                raise EngineError(
                    "io_error", f"{part.path.name} was replaced by another file while {doing}", "load the model again."
                )
            if now.st_ctime_ns != before.st_ctime_ns:
                # a new name, link, owner or mode changes this time, too
                harmless = named is None or _about(now) != _about(before)
                if not harmless or self._digest(part) != part.blocks:
                    raise self._changed(part, doing)
                part.stat = now

    @staticmethod
    def _changed(part: _Part, doing: str) -> EngineError:
        return EngineError("io_error", f"{part.path.name} was changed on disk while {doing}", "load the model again.")

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        while self._parts:
            os.close(self._parts.pop().fd)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - a third of pathlib's time
    except OSError:
        return None


def _about(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_nlink, stat.st_mode, stat.st_uid, stat.st_gid
