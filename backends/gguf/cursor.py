"""Where a header's bytes come from, and a window over them that never reads beyond what is there."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from backends.interface import EngineError

MAX_HEADER_BYTES = 96 << 20
"""More metadata than any real model has; a file that claims more is refused."""

_CHUNK = 1 << 20
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class IncompleteHeader(EngineError):
    """The source ends before the header does, but more of the file exists: come back with `needed` bytes or more."""

    def __init__(self, name: str, needed: int) -> None:
        super().__init__("truncated", f"{name}: the header isn't there yet; its first {needed:,} bytes are needed.")
        self.needed = needed


class Source(Protocol):
    """Bytes of a file by offset."""

    name: str
    """For error messages."""
    size: int | None
    """Bytes of the whole file, None where not known."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only where no more can be had now."""
        ...


class FileSource:
    """A local file. Of a download in progress `available` says how many first bytes are there, `size` the whole."""

    def __init__(self, path: Path | str, *, available: int | None = None, size: int | None = None) -> None:
        self.name = Path(path).name
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        here = os.fstat(self._fd).st_size
        self._end = here if available is None else min(here, available)
        self.size: int | None = size if size is not None else (here if available is None else None)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, max(0, min(length, self._end - offset)), offset)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BytesSource:
    """The first bytes of a file in memory; `size` is the whole file's where more of it exists elsewhere."""

    def __init__(self, name: str, data: bytes, size: int | None = None) -> None:
        self.name, self.size, self._data = name, size, data

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class FetchSource:
    """A file that is read by a function, e.g. HTTP ranges: ``fetch(offset, length) -> bytes``.

    `fetched` counts the bytes that were moved.
    """

    def __init__(self, name: str, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self.name, self.size, self._fetch, self.fetched = name, size, fetch, 0

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        data = self._fetch(offset, length)
        self.fetched += len(data)
        return data[:length]


class Cursor:
    """A window over the source that only moves forward."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.buf = b""
        self.pos = 0
        self.base = 0
        """Offset in the file of ``buf[0]``."""

    def tell(self) -> int:
        return self.base + self.pos

    def check(self, n: int, what: str) -> None:
        """That `n` more bytes can exist."""
        end = self.tell() + n
        size = self.source.size
        if size is not None and end > size:
            raise EngineError(
                "truncated",
                f"{self.source.name}: the file ends at byte {size:,}, but {what} reaches to byte {end:,}",
                "download it again.",
            )
        if end > MAX_HEADER_BYTES:
            limit = MAX_HEADER_BYTES >> 20
            raise EngineError("bad_model", f"{self.source.name}: its header claims more than {limit} MiB ({what}).")

    def need(self, n: int, what: str) -> None:
        """Makes ``buf[pos : pos + n]`` be there."""
        if self.pos + n <= len(self.buf):
            return
        self.check(n, what)
        rest = self.buf[self.pos :]
        at = self.base + len(self.buf)
        more = self.source.read(at, max(n - len(rest), _CHUNK))
        self.base += self.pos
        self.buf, self.pos = rest + more, 0
        if len(self.buf) < n:
            if self.source.size is not None and at + len(more) >= self.source.size:
                self.check(n, what)
            raise IncompleteHeader(self.source.name, self.base + n)

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.buf, self.pos)
        self.pos += 4
        return int(value)

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.buf, self.pos)
        self.pos += 8
        return int(value)

    def string(self, what: str, limit: int) -> str:
        n = self.u64(what)
        if n > limit:
            self.check(n, what)
            raise EngineError("bad_model", f"{self.source.name}: {what} is {n:,} bytes long; the limit is {limit:,}.")
        self.need(n, what)
        raw = self.buf[self.pos : self.pos + n]
        self.pos += n
        return raw.decode("utf-8", "replace")

    def skip(self, n: int, what: str) -> None:
        """Steps over `n` bytes without reading them."""
        self.check(n, what)
        if self.pos + n <= len(self.buf):
            self.pos += n
        else:
            self.base, self.buf, self.pos = self.tell() + n, b"", 0

    def skip_strings(self, n: int, what: str) -> None:
        """Steps over `n` strings; the inner loop is what makes a real vocabulary fast."""
        unpack = _U64.unpack_from
        while n:
            self.need(8, what)
            buf, pos, last = self.buf, self.pos, len(self.buf) - 8
            while n and pos <= last:
                pos += 8 + unpack(buf, pos)[0]
                n -= 1
            if pos > len(buf):  # the last string goes on behind the window
                self.pos = len(buf)
                self.skip(pos - len(buf), what)
            else:
                self.pos = pos
