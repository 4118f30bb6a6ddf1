"""Host buffers that take memory only where something was written, for KV caches that are mostly empty.

llama.cpp fills a new KV cache with zeros, and gives each sequence that has a cache of its own 256 cells at least: for
200 sequences that is gigabytes, most of them never used. Memory that the kernel hands out reads as zeros anyway, so
here "fill with zeros" gives the memory back instead. For that the two callbacks of ggml's CPU buffers that matter
(alloc_buffer of the type, clear of the buffer) are replaced while a context is made.
"""

from __future__ import annotations

import contextlib
import ctypes as C
import functools
import sys
from collections.abc import Iterator
from typing import Any

from backends.llamacpp import abi
from backends.system import libc

CLEAR = 9
"""The place of ``clear`` among a buffer's callbacks (``ggml_backend_buffer_i``)."""
_ALLOC = C.CFUNCTYPE(C.c_void_p, C.c_void_p, C.c_size_t)
_FILL = C.CFUNCTYPE(None, C.c_void_p, C.c_uint8)


def fill(at: int, size: int, value: int) -> None:
    """memset on private anonymous memory; zeros come from the kernel, without memory behind them."""
    start, end = -(-at // libc.PAGE) * libc.PAGE, (at + size) // libc.PAGE * libc.PAGE
    if value == 0 and start < end:
        try:
            libc.madvise(start, end - start, libc.MADV_DONTNEED)
        except OSError:
            pass  # locked into memory (mlockall)
        else:
            with contextlib.suppress(OSError):  # a kernel without huge pages
                # one cell that is written would else bring the unused ones around it in
                libc.madvise(start, end - start, libc.MADV_NOHUGEPAGE)
            C.memset(at, 0, start - at)
            C.memset(end, 0, at + size - end)
            return
    C.memset(at, value, size)


class _Patch:
    """The callbacks, and how often one filled a buffer. It lives as long as the process does: buffers point at it."""

    def __init__(self) -> None:
        ggml, p, size = abi.in_use(), C.c_void_p, C.c_size_t
        self.base_of: Any = abi.declare(ggml, "ggml_backend_buffer_get_base", p, p)
        self.size_of: Any = abi.declare(ggml, "ggml_backend_buffer_get_size", size, p)
        self.type_of: Any = abi.declare(ggml, "ggml_backend_buffer_get_type", p, p)
        self.cleared = 0
        self.host = int(abi.declare(ggml, "ggml_backend_cpu_buffer_type", p)())
        self.type = abi.BufferType.from_address(self.host)
        self._original = _ALLOC(self.type.alloc_buffer)
        self._callbacks = (_ALLOC(self._alloc), _FILL(self._clear))

    def _alloc(self, buft: int, size: int) -> int | None:
        buffer: int | None = self._original(buft, size)
        if buffer:
            b = abi.Buffer.from_address(buffer)
            if (b.buft, b.size, b.context) == (self.type_of(buffer), self.size_of(buffer), self.base_of(buffer)):
                b.callbacks[CLEAR] = C.cast(self._callbacks[1], C.c_void_p).value
        return buffer

    def _clear(self, buffer: int, value: int) -> None:
        self.cleared += 1
        fill(self.base_of(buffer), self.size_of(buffer), value)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        before = self.type.alloc_buffer
        self.type.alloc_buffer = C.cast(self._callbacks[0], C.c_void_p).value
        try:
            yield
        finally:
            self.type.alloc_buffer = before


@functools.cache
def _patch() -> _Patch | None:
    """The patch, tried out on a small buffer; None where this is no Linux, or ggml's structs are others."""
    if sys.platform != "linux":
        return None
    try:
        patch = _Patch()
        ggml, p = abi.in_use(), C.c_void_p
        alloc = abi.declare(ggml, "ggml_backend_buft_alloc_buffer", p, p, C.c_size_t)
        clear = abi.declare(ggml, "ggml_backend_buffer_clear", None, p, C.c_uint8)
        free = abi.declare(ggml, "ggml_backend_buffer_free", None, p)
    except (OSError, AttributeError):
        return None
    with patch.installed():
        buffer = alloc(patch.host, 3 * libc.PAGE)
    if not buffer:
        return None
    at, size = patch.base_of(buffer), patch.size_of(buffer)
    clear(buffer, 7)
    filled = C.string_at(at, size).count(7) == size
    clear(buffer, 0)
    works = filled and C.string_at(at, size).count(0) == size
    free(buffer)
    return patch if works and patch.cleared == 2 else None  # each time by the callback, which only `_alloc` sets


def available() -> bool:
    """Whether `lazy_zeros` changes anything with this system and llama.cpp."""
    return _patch() is not None


def lazy_zeros() -> contextlib.AbstractContextManager[None]:
    """Host buffers that llama.cpp allocates meanwhile take no memory for zeros that they are filled with, then or
    later. One thread at a time."""
    patch = _patch()
    return contextlib.nullcontext() if patch is None else patch.installed()
