"""A GGUF, or a whole split set, as one virtual file that llama.cpp loads through a `FILE *` without reading an expert.

`VirtualGguf` maps ranges of the virtual file to (part, offset). A single file is its own virtual file; a split set gets
one merged header built in memory (tensor infos with new offsets, ``split.*`` keys dropped). `CookieStream` is the
`FILE *`: glibc's fopencookie over callbacks of ours. A range that holds expert weights is reported as read, and nothing
happens.
"""

from __future__ import annotations

import bisect
import ctypes as C
import mmap
import os
import queue
import re
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.gguf.cursor import FileSource
from backends.gguf.header import Header, RawTensor, read_header
from backends.interface import EngineError
from backends.system import libc

EXPERT_NAME = re.compile(r"^blk\.(\d+)\.ffn_(up|down|gate|gate_up)_exps\.weight$")
EXPERT_PATTERN = r"^blk\.\d+\.ffn_(up|down|gate|gate_up)_exps\.weight$"
_STDIO_BYTES = 1 << 19
_RANGE = 16 << 20
_READ_AHEAD = 64 << 20
"""Dense bytes asked for beyond the one being read: enough to keep a fast disk's queue full across the experts."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the set: where its bytes lie in its part and in the virtual file."""

    name: str
    dims: tuple[int, ...]
    type: int
    part: int
    offset: int
    """Bytes from the start of the part."""
    bytes: int
    virtual: int
    """Bytes from the start of the virtual file."""


def _streams(name: str, vram_layers: Sequence[int]) -> bool:
    match = EXPERT_NAME.match(name)
    return match is not None and int(match[1]) not in vram_layers


def _header(path: Path) -> tuple[Header, int]:
    with FileSource(path) as source:
        return read_header(source), source.size or 0


class VirtualGguf:
    """A GGUF of one or many parts as one range of bytes [0, size)."""

    def __init__(self, paths: list[Path], tables: Sequence[str] = (), vram_layers: Sequence[int] = ()) -> None:
        """Reads the headers of the parts in order. `tables`: tensors that stay in the file as experts do; the experts
        of `vram_layers` are read like any tensor. Raises
        `EngineError`: ``not_found``, ``not_gguf``, ``bad_model``, ``truncated``."""
        self.paths = paths
        try:
            read = [_header(p) for p in paths]
        except FileNotFoundError as e:
            raise EngineError("not_found", f"{e.filename} does not exist", "the model needs all its parts.") from e
        except OSError as e:
            raise EngineError("io_error", f"The model can't be read: {e}.") from e
        self.part_sizes = [size for _, size in read]
        placed = [(part, t) for part, (header, _) in enumerate(read) for t in header.tensors]
        if len({t.name for _, t in placed}) < len(placed):
            raise EngineError(
                "bad_model", f"{paths[0].name} and its other parts have a tensor twice", "they don't belong together."
            )
        self.header = b""
        if len(paths) == 1:
            self.size = self.part_sizes[0]
            virtual = [t.offset for _, t in placed]
        else:
            virtual = self._merge(read[0][0], placed)
        self.tensors = [
            TensorEntry(t.name, t.dims, t.type, part, t.offset, t.nbytes, at)
            for (part, t), at in zip(placed, virtual, strict=True)
        ]
        self._segments = sorted((t.virtual, t.bytes, t.part, t.offset) for t in self.tensors)
        self._starts = [s[0] for s in self._segments]
        left = [t for t in self.tensors if _streams(t.name, vram_layers) or t.name in tables]
        self.holes = sorted((t.virtual, t.virtual + t.bytes) for t in left)
        self._hole_starts = [a for a, _ in self.holes]
        self.table_bytes = sum(t.bytes for t in left if t.name in tables)
        self.expert_bytes = sum(t.bytes for t in left) - self.table_bytes
        self.dense_bytes = sum(t.bytes for t in self.tensors) - self.expert_bytes - self.table_bytes
        names = {t.name for t in left}
        self.data_start = min((t.virtual for t in self.tensors), default=0)
        self.dense_ranges = sorted(
            (t.virtual + at, t.part, t.offset + at, min(_RANGE, t.bytes - at))
            for t in self.tensors
            if t.name not in names
            for at in range(0, t.bytes, _RANGE)
        )
        """(first byte in the virtual file, part, offset in the part, bytes) of what is read into memory."""

    def _merge(self, first: Header, placed: list[tuple[int, RawTensor]]) -> list[int]:
        """Builds `header` and settles `size`; returns where each tensor begins in the virtual file."""
        infos, at, virtual = [], 0, []
        for _, t in placed:
            raw, n = t.name.encode(), len(t.dims)
            infos.append(struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{n}QIQ", n, *t.dims, t.type, at))
            virtual.append(at)
            at += -(-t.nbytes // first.alignment) * first.alignment
        spans = [span for key, span in first.kv_spans.items() if not key.startswith("split.")]
        with open(self.paths[0], "rb", 0) as f:
            kvs = [os.pread(f.fileno(), end - start, start) for start, end in spans]
        header = b"GGUF" + struct.pack("<IQQ", 3, len(placed), len(kvs)) + b"".join(kvs) + b"".join(infos)
        self.header = header + b"\0" * (-len(header) % first.alignment)
        self.size = len(self.header) + at
        return [len(self.header) + v for v in virtual]

    def locate(self, at: int, n: int) -> tuple[str, int, int, int]:
        """What up to `n` bytes from `at` are: (kind, part, offset in the part, bytes), kind one of ``expert``,
        ``file``, ``header`` (offset in `header`) and ``zero`` (padding between merged tensors)."""
        i = bisect.bisect_right(self._hole_starts, at) - 1
        if i >= 0 and at < self.holes[i][1]:
            return "expert", 0, 0, min(n, self.holes[i][1] - at)
        if i + 1 < len(self.holes):
            n = min(n, self.holes[i + 1][0] - at)
        n = min(n, self.size - at)
        if not self.header:
            return "file", 0, at, n
        if at < len(self.header):
            return "header", 0, at, min(n, len(self.header) - at)
        j = bisect.bisect_right(self._starts, at) - 1
        if j < 0:
            return "zero", 0, 0, n
        start, size, part, offset = self._segments[j]
        if at < start + size:
            return "file", part, offset + at - start, min(n, start + size - at)
        following = self._starts[j + 1] if j + 1 < len(self._starts) else self.size
        return "zero", 0, 0, min(n, following - at)


class CookieStream:
    """A `FILE *` over a `VirtualGguf`. `error` holds what went wrong inside a callback, which must not raise."""

    def __init__(
        self,
        virtual: VirtualGguf,
        progress: Callable[[int, int], bool],
        allocated: Callable[[], None],
        keep_cached: bool = True,
    ) -> None:
        """`progress(bytes read, bytes to read)` returning False makes the load fail soon, with `cancelled` set.
        `allocated` is called once, when the first weight is about to be read: its memory is there, but untouched.
        Unless `keep_cached` the dense ranges are dropped from the page cache: their bytes live in anonymous memory now.
        """
        self.virtual, self._progress, self._keep_cached = virtual, progress, keep_cached
        self._allocated: Callable[[], None] | None = allocated
        self.error: BaseException | None = None
        self.cancelled = False
        self.read_bytes = 0
        self._at = 0
        self._reported = 0
        self._fds = [os.open(p, os.O_RDONLY | os.O_CLOEXEC) for p in virtual.paths]
        for fd in self._fds:  # no read-ahead into the experts; dense ranges are advised one by one
            os.posix_fadvise(fd, 0, 0, libc.FADV_RANDOM)
        self._starts = [r[0] for r in virtual.dense_ranges]
        self._asked: set[int] = set()
        self._asked_bytes = 0
        self._wanted: queue.SimpleQueue[tuple[int, int, int] | None] = queue.SimpleQueue()
        self._advisor = threading.Thread(target=self._advise, name="load-read-ahead", daemon=True)
        self._advisor.start()
        read = C.CFUNCTYPE(C.c_ssize_t, C.c_void_p, C.c_void_p, C.c_size_t)(self._read)
        seek = C.CFUNCTYPE(C.c_int, C.c_void_p, C.POINTER(C.c_int64), C.c_int)(self._seek)
        self._buffer = mmap.mmap(-1, _STDIO_BYTES)
        self._view = C.c_char.from_buffer(self._buffer)
        self._keep = (read, seek)
        io = libc.CookieIO(C.cast(read, C.c_void_p), None, C.cast(seek, C.c_void_p), None)
        self.pointer = libc.fopencookie(io, C.addressof(self._view), _STDIO_BYTES)

    def _read(self, _: object, buffer: int, n: int) -> int:
        try:
            if self.cancelled or self.error is not None:
                return -1
            kind, part, offset, count = self.virtual.locate(self._at, n)
            if count <= 0:
                return 0
            if kind == "file":
                count = self._from_file(part, offset, buffer, count)
                self.read_bytes += count
                if self.read_bytes - self._reported >= 1 << 22:
                    self._report()
            elif kind == "header":
                C.memmove(buffer, self.virtual.header[offset : offset + count], count)
            elif kind == "zero":
                C.memset(buffer, 0, count)
            self._at += count
            return count
        except BaseException as e:  # nothing may be raised into C
            self.error = e
            return -1

    def _report(self) -> None:
        self._reported = self.read_bytes
        total = max(self.virtual.dense_bytes + len(self.virtual.header), self.read_bytes)
        if not self._progress(self.read_bytes, total):
            self.cancelled = True

    def _from_file(self, part: int, offset: int, buffer: int, n: int) -> int:
        fd = self._fds[part]
        if self._at >= self.virtual.data_start:
            if self._allocated is not None:
                self._allocated()
                self._allocated = None
            self._read_ahead()
        got = os.preadv(fd, [(C.c_char * n).from_address(buffer)], offset)
        if got == 0:
            raise EngineError("truncated", f"{self.virtual.paths[part].name} became shorter while it was loaded.")
        return got

    def _read_ahead(self) -> None:
        """Asks for the dense bytes that come next, across the experts between them and not a byte of those."""
        here = max(0, bisect.bisect_right(self._starts, self._at) - 1)
        for i in range(here, len(self._starts)):
            if i > here and self._asked_bytes >= self.read_bytes + _READ_AHEAD:
                break
            if i not in self._asked:
                _, part, offset, size = self.virtual.dense_ranges[i]
                self._wanted.put((self._fds[part], offset, size))
                self._asked.add(i)
                self._asked_bytes += size

    def _advise(self) -> None:
        """Submitting reads takes as long as copying what has come: a thread of its own does it."""
        while (wanted := self._wanted.get()) is not None:
            try:
                os.posix_fadvise(*wanted, libc.FADV_WILLNEED)
            except OSError:
                pass  # reading the range tells what is wrong

    def _seek(self, _: object, offset: C._Pointer[C.c_int64], whence: int) -> int:
        try:
            target = int(offset[0]) + (0, self._at, self.virtual.size)[whence]
            if target < 0:
                return -1
            offset[0] = self._at = target
            return 0
        except BaseException as e:
            self.error = e
            return -1

    def close(self) -> None:
        """Closes the stream and the files; a second call does nothing."""
        if self.pointer:
            libc.fclose(self.pointer)
            self.pointer = 0
            self._wanted.put(None)
            self._advisor.join()
            for fd in self._fds:
                if not self._keep_cached:
                    os.posix_fadvise(fd, 0, 0, libc.FADV_DONTNEED)
                os.close(fd)
            del self._view
            self._buffer.close()
