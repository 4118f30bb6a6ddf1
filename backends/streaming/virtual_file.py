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
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backends.interface import EngineError
from backends.streaming import abi, libc

EXPERT_NAME = re.compile(r"^blk\.(\d+)\.ffn_(up|down|gate|gate_up)_exps\.weight$")
EXPERT_PATTERN = r"^blk\.\d+\.ffn_(up|down|gate|gate_up)_exps\.weight$"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_TENSORS, _MAX_HEADER = 1 << 17, 1 << 30
_STDIO_BYTES = 1 << 19


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


class _Header:
    """A part's header: raw key-value pairs and tensor infos. Every read is bounds-checked."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            self.raw = raw
            try:
                self._read()
            except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as e:
                raise self._bad("its header is cut short or damaged") from e

    def _bad(self, why: str) -> EngineError:
        return EngineError("bad_model", f"{self.path.name} can't be read: {why}. Verify the file or download it again.")

    def _unpack(self, form: str) -> int:
        value = struct.unpack_from(form, self.raw, self.at)[0]
        self.at += struct.calcsize(form)
        if self.at > _MAX_HEADER:
            raise self._bad("its header is larger than 1 GiB")
        return int(value)

    def _string(self) -> bytes:
        n = self._unpack("<Q")
        if n > self.size - self.at:
            raise IndexError
        self.at += n
        return self.raw[self.at - n : self.at]

    def _skip(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            n = self._unpack("<Q")
            if n > self.size - self.at:
                raise IndexError
            self.at += n
        elif kind == _ARRAY:
            inner, count = self._unpack("<I"), self._unpack("<Q")
            if inner in _SIZES:
                self.at += count * _SIZES[inner]
            elif depth > 3 or inner not in (_STRING, _ARRAY):
                raise self._bad("it has a key of an unknown type")
            else:
                for _ in range(count):
                    self._skip(inner, depth + 1)
        elif kind in _SIZES:
            self.at += _SIZES[kind]
        else:
            raise self._bad("it has a key of an unknown type")
        if self.at > self.size:
            raise IndexError

    def _read(self) -> None:
        self.at = 0
        if self.size < 24 or self.raw[:4] != b"GGUF":
            raise EngineError("not_gguf", f"{self.path.name} is not a GGUF file.")
        self.at = 4
        version, n_tensors, n_kv = self._unpack("<I"), self._unpack("<Q"), self._unpack("<Q")
        if version not in (2, 3) or n_tensors > _MAX_TENSORS or n_kv > _MAX_TENSORS:
            raise self._bad(f"version {version} with {n_tensors} tensors is not supported")
        self.kvs: list[bytes] = []
        alignment = 32
        for _ in range(n_kv):
            start = self.at
            key, kind = self._string(), self._unpack("<I")
            value_at = self.at
            self._skip(kind)
            if key == b"general.alignment" and kind == 4:
                alignment = struct.unpack_from("<I", self.raw, value_at)[0]
            if not key.startswith(b"split."):
                self.kvs.append(self.raw[start : self.at])
        if alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise self._bad(f"its alignment is {alignment}")
        self.alignment = alignment
        self.infos: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(n_tensors):
            name, n_dims = self._string().decode(), self._unpack("<I")
            if not 0 < n_dims <= 4:
                raise self._bad(f"tensor {name[:64]!r} has {n_dims} dimensions")
            dims = tuple(self._unpack("<Q") for _ in range(n_dims))
            kind, offset = self._unpack("<I"), self._unpack("<Q")
            self.infos.append((name, dims, kind, offset))
        self.data_start = -(-self.at // alignment) * alignment


def _bytes_of(dims: tuple[int, ...], kind: int) -> int:
    g = abi.ggml()
    block, size = (int(g.block_size(kind)), int(g.type_size(kind))) if 0 <= kind < 64 else (0, 0)
    if block <= 0 or size <= 0 or dims[0] % block:
        raise ValueError(kind)
    rows = 1
    for d in dims[1:]:
        rows *= d
    return dims[0] // block * size * rows


class VirtualGguf:
    """A GGUF of one or many parts as one range of bytes [0, size)."""

    def __init__(self, paths: list[Path]) -> None:
        """Reads the headers of the parts in order. Raises `EngineError`: ``not_found``, ``not_gguf``, ``bad_model``,
        ``truncated``."""
        self.paths = paths
        try:
            headers = [_Header(p) for p in paths]
        except FileNotFoundError as e:
            raise EngineError("not_found", f"{e.filename} does not exist; the model needs all its parts.") from e
        except (OSError, ValueError) as e:
            raise EngineError("io_error", f"The model can't be read: {e}.") from e
        self.part_sizes = [h.size for h in headers]
        self.tensors: list[TensorEntry] = []
        self.header = b""
        alignment = headers[0].alignment
        placed: list[tuple[int, int, tuple[str, tuple[int, ...], int, int], int]] = []
        seen: set[str] = set()
        for part, h in enumerate(headers):
            for info in h.infos:
                name, dims, kind, relative = info
                try:
                    n = _bytes_of(dims, kind)
                except ValueError as e:
                    raise h._bad(f"tensor {name[:64]!r} has a type or shape that this version does not know") from e
                if relative % h.alignment or h.data_start + relative + n > h.size:
                    raise EngineError(
                        "truncated",
                        f"{h.path.name} ends before its tensor {name[:64]!r}; download it again.",
                    )
                if name in seen:
                    raise h._bad(f"tensor {name[:64]!r} is there twice")
                seen.add(name)
                placed.append((part, h.data_start + relative, info, n))
        if len(paths) == 1:
            self.size = headers[0].size
            self.tensors = [TensorEntry(i[0], i[1], i[2], p, off, n, off) for p, off, i, n in placed]
        else:
            self._merge(headers[0].kvs, placed, alignment)
        self._segments = sorted((t.virtual, t.bytes, t.part, t.offset) for t in self.tensors)
        self._starts = [s[0] for s in self._segments]
        self.holes = sorted((t.virtual, t.virtual + t.bytes) for t in self.tensors if EXPERT_NAME.match(t.name))
        self._hole_starts = [a for a, _ in self.holes]
        self.expert_bytes = sum(b - a for a, b in self.holes)
        self.dense_bytes = sum(t.bytes for t in self.tensors) - self.expert_bytes

    def _merge(
        self,
        kvs: list[bytes],
        placed: list[tuple[int, int, tuple[str, tuple[int, ...], int, int], int]],
        alignment: int,
    ) -> None:
        infos, at, virtual = [], 0, []
        for _, _, (name, dims, kind, _), n in placed:
            raw = name.encode()
            infos.append(
                struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)
            )
            virtual.append(at)
            at += -(-n // alignment) * alignment
        header = b"GGUF" + struct.pack("<IQQ", 3, len(placed), len(kvs)) + b"".join(kvs) + b"".join(infos)
        self.header = header + b"\0" * (-len(header) % alignment)
        base = len(self.header)
        self.size = base + at
        self.tensors = [
            TensorEntry(i[0], i[1], i[2], p, off, n, base + v)
            for (p, off, i, n), v in zip(placed, virtual, strict=True)
        ]

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

    def __init__(self, virtual: VirtualGguf, progress: Callable[[int, int], bool], keep_cached: bool = True) -> None:
        """`progress(bytes read, bytes to read)` returning False makes the load fail soon, with `cancelled` set. Unless
        `keep_cached` the dense ranges are dropped from the page cache: their bytes live in anonymous memory now."""
        self.virtual, self._progress, self._keep_cached = virtual, progress, keep_cached
        self.error: BaseException | None = None
        self.cancelled = False
        self.read_bytes = 0
        self._at = 0
        self._reported = 0
        self._fds = [os.open(p, os.O_RDONLY | os.O_CLOEXEC) for p in virtual.paths]
        for fd in self._fds:  # no read-ahead into the experts; dense ranges are advised one by one
            os.posix_fadvise(fd, 0, 0, libc.FADV_RANDOM)
        self._advised = [0] * len(self._fds)
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
        if offset + n > self._advised[part] or offset < self._advised[part] - (32 << 20):
            # read ahead up to 16 MiB of this dense range, and not a byte of the expert after it
            _, _, start, ahead = self.virtual.locate(self._at, 16 << 20)
            os.posix_fadvise(fd, start, ahead, libc.FADV_WILLNEED)
            self._advised[part] = start + ahead
        got = os.preadv(fd, [(C.c_char * n).from_address(buffer)], offset)
        if got == 0:
            raise EngineError("truncated", f"{self.virtual.paths[part].name} became shorter while it was loaded.")
        return got

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
            for fd in self._fds:
                if not self._keep_cached:
                    os.posix_fadvise(fd, 0, 0, libc.FADV_DONTNEED)
                os.close(fd)
            del self._view
            self._buffer.close()
