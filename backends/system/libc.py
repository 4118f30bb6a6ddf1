"""The few calls of glibc and Linux that `mmap` and `os` don't reach: raw mappings, advice, cookie streams.

Addresses and lengths are plain ints in bytes. Every function raises `OSError` where the kernel refuses.
"""

from __future__ import annotations

import ctypes as C
import os
import sys
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")

PROT_NONE, PROT_READ, PROT_RW, PROT_RX = 0, 1, 3, 5
SHARED, PRIVATE, FIXED, ANON, NORESERVE, POPULATE = 0x1, 0x2, 0x10, 0x20, 0x4000, 0x8000
MADV_RANDOM, MADV_WILLNEED, MADV_DONTNEED = 1, 3, 4
MADV_DONTFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_POPULATE_READ = 10, 14, 15, 22
FADV_RANDOM, FADV_WILLNEED, FADV_DONTNEED = 1, 3, 4

_libc = C.CDLL(None, use_errno=True)
_FAILED = C.c_void_p(-1).value


class CookieIO(C.Structure):
    """cookie_io_functions_t of <stdio.h>."""

    _fields_ = [("read", C.c_void_p), ("write", C.c_void_p), ("seek", C.c_void_p), ("close", C.c_void_p)]


def _function(name: str, result: Any, *arguments: Any) -> Any:
    f = getattr(_libc, name)
    f.restype, f.argtypes = result, list(arguments)
    return f


_mmap = _function("mmap", C.c_void_p, C.c_void_p, C.c_size_t, C.c_int, C.c_int, C.c_int, C.c_long)
_munmap = _function("munmap", C.c_int, C.c_void_p, C.c_size_t)
_mprotect = _function("mprotect", C.c_int, C.c_void_p, C.c_size_t, C.c_int)
_madvise = _function("madvise", C.c_int, C.c_void_p, C.c_size_t, C.c_int)
_mincore = _function("mincore", C.c_int, C.c_void_p, C.c_size_t, C.c_void_p)
_setvbuf = _function("setvbuf", C.c_int, C.c_void_p, C.c_void_p, C.c_int, C.c_size_t)
_fclose = _function("fclose", C.c_int, C.c_void_p)


def has_fopencookie() -> bool:
    """Whether this C library has glibc's cookie streams."""
    return hasattr(_libc, "fopencookie")


def _raise(what: str) -> None:
    code = C.get_errno()
    raise OSError(code, f"{what}: {os.strerror(code)}")


def mmap(address: int | None, length: int, protection: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Maps memory and returns its address."""
    at = _mmap(address, length, protection, flags, fd, offset)
    if at is None or at == _FAILED:
        _raise("mmap")
    return int(at)


def munmap(address: int, length: int) -> None:
    """Unmaps a range."""
    if _munmap(address, length):
        _raise("munmap")


def mprotect(address: int, length: int, protection: int) -> None:
    """Changes a range's protection."""
    if _mprotect(address, length, protection):
        _raise("mprotect")


def madvise(address: int, length: int, advice: int) -> None:
    """Advises the kernel about a page-aligned range."""
    if _madvise(address, length, advice):
        _raise("madvise")


def mincore(address: int, length: int) -> bytes:
    """One byte a page, bit 0 set where the page is in memory."""
    out = C.create_string_buffer(-(-length // PAGE))
    if _mincore(address, length, out):
        _raise("mincore")
    return out.raw


def reserve(length: int) -> int:
    """Address space without memory behind it that reads as zeros when touched."""
    return mmap(None, length, PROT_RW, PRIVATE | ANON | NORESERVE)


def fopencookie(io: CookieIO, buffer: int, buffer_bytes: int) -> int:
    """A read-only FILE * over callbacks, with the given stdio buffer (8 KiB: a million callbacks per 8 GB)."""
    f = _function("fopencookie", C.c_void_p, C.c_void_p, C.c_char_p, CookieIO)
    stream = f(None, b"rb", io)
    if not stream:
        _raise("fopencookie")
    if _setvbuf(stream, buffer, 0, buffer_bytes):
        _raise("setvbuf")
    return int(stream)


def fclose(stream: int) -> None:
    """Closes a FILE *."""
    _fclose(stream)


# ---- process_madvise: many ranges in one call --------------------------------------------------------------------

_syscall = _libc.syscall
_syscall.restype = C.c_long
_SYS_PIDFD_OPEN, _SYS_PROCESS_MADVISE = 434, 440
_SYS_CACHESTAT = 451
IOV_MAX = 1024


def pidfd_self() -> int:
    """A pidfd of this process."""
    fd = int(_syscall(C.c_long(_SYS_PIDFD_OPEN), C.c_long(os.getpid()), C.c_long(0)))
    if fd < 0:
        _raise("pidfd_open")
    return fd


def process_madvise(pidfd: int, iovecs: int, count: int, advice: int) -> int:
    """Advises `count` (at most 1024) ranges given as an array of {address, length}; returns the bytes advised.

    Fewer bytes than asked for means that the kernel stopped at a range that failed. Raises `OSError` where the first
    range failed or the kernel can't give this advice by this call.
    """
    n = int(
        _syscall(
            C.c_long(_SYS_PROCESS_MADVISE),
            C.c_long(pidfd),
            C.c_void_p(iovecs),
            C.c_size_t(count),
            C.c_long(advice),
            C.c_long(0),
        )
    )
    if n < 0:
        _raise("process_madvise")
    return n


class _CacheRange(C.Structure):
    _fields_ = [("off", C.c_uint64), ("len", C.c_uint64)]


class _CacheStat(C.Structure):
    _fields_ = [(n, C.c_uint64) for n in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def cached_bytes(fd: int, offset: int = 0, length: int = 0) -> int | None:
    """Bytes of a file's range (`length` 0: to its end) in the page cache; None on kernels before 6.5.

    `mincore` won't do: on a file that one may only read it reports every page resident.
    """
    if sys.platform != "linux":
        return None
    stat = _CacheStat()
    span = _CacheRange(offset, length)
    if _syscall(C.c_long(_SYS_CACHESTAT), C.c_long(fd), C.byref(span), C.byref(stat), C.c_long(0)):
        return None
    cached = int(stat.cache) * PAGE
    return min(cached, length) if length else cached


def anonymous_ranges(least: int) -> list[tuple[int, int]]:
    """Start and end of this process's writable anonymous mappings of at least so many bytes; none without Linux."""
    out: list[tuple[int, int]] = []
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return out
    with maps.open() as f:
        for line in f:
            fields = line.split()
            if len(fields) == 5 and fields[1] == "rw-p":
                start, end = (int(x, 16) for x in fields[0].split("-"))
                if end - start >= least:
                    out.append((start, end))
    return out


def added(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of the ranges `after` lies in none of `before`: the kernel merges a new mapping with its neighbours."""
    out = []
    for start, end in after:
        at = start
        for a, b in sorted(before):
            if b > at and a < end:
                if a > at:
                    out.append((at, a))
                at = max(at, b)
        if at < end:
            out.append((at, end))
    return out


def anonymous_since(before: list[tuple[int, int]], least: int) -> list[tuple[int, int]]:
    """What was mapped since `anonymous_ranges(0)` gave `before`, where it is at least `least` bytes in one piece."""
    return [(start, end) for start, end in added(before, anonymous_ranges(least)) if end - start >= least]


def prefer_huge(start: int, end: int) -> None:
    """Asks for huge pages where a range of anonymous memory is touched for the first time."""
    try:
        madvise(start, end - start, MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without them: small pages do


def direct_io_alignment(fd: int) -> tuple[int, int]:
    """What O_DIRECT wants of file offsets and lengths, and of memory, in bytes (statx; a page where it won't tell)."""
    empty_path, dioalign = 0x1000, 0x2000
    out = C.create_string_buffer(256)
    if not hasattr(_libc, "statx") or _libc.statx(fd, b"", empty_path, dioalign, out):
        return PAGE, PAGE
    mask, memory, offset = (int.from_bytes(out.raw[i : i + 4], "little") for i in (0, 0x98, 0x9C))
    if not mask & dioalign or not offset:
        return PAGE, PAGE
    return max(512, offset), max(4, memory)


def read_bytes() -> int:
    """Bytes that this process made the block layer read, from /proc/self/io."""
    with open("/proc/self/io", "rb", 0) as f:
        return int(f.read().split(b"\nread_bytes: ")[1].split(b"\n")[0])
