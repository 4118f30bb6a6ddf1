"""Reads that go on while the caller does something else: Linux AIO, or threads where it is not to be had.

A request reads whole blocks (`os.preadv` semantics, O_DIRECT) to an address; its tag comes back when it is done. Linux
AIO submits all reads of a layer in one system call and needs neither threads nor the GIL. On a disk that works inside
the submission (zram) that call takes as long as the reads; two threads were no faster there than the noise.
"""

from __future__ import annotations

import ctypes as C
import errno
import os
import platform
import queue
import struct
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_NUMBERS = {  # io_setup, io_destroy, io_getevents, io_submit
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
}
_IOCB = struct.Struct("<QIiHhIQQqQII")
"""struct iocb (linux/aio_abi.h): data, key, rw_flags, opcode, reqprio, fd, buf, nbytes, offset, reserved, flags,
resfd."""
_EVENT = np.dtype([("data", "<u8"), ("obj", "<u8"), ("res", "<i8"), ("res2", "<i8")])

_RING_MAGIC = 0xA10A10A1
_FEW = 4
"""Reads that are waited for at a time while others wait for room."""

Request = tuple[int, int, int, int, int, int]
"""(tag, fd, address, bytes to ask for, file offset, bytes that must come): more is asked for than the file holds at its
end, since O_DIRECT reads whole blocks."""


class Reader(Protocol):
    """Submits reads and collects what is done. `collect` returns (tag, errno or 0; -1 for a short read)."""

    name: str

    def submit(self, requests: Sequence[Request], urgent: bool = True) -> None:
        """Starts reads, as many as the disk's queue takes, and of those that aren't urgent as many as keep it busy; the
        rest waits for `go_on`, behind later urgent ones."""
        ...

    def go_on(self) -> None:
        """Starts what had to wait, as far as there is room in the disk's queue now. Cheap where nothing waits."""
        ...

    def collect(self, at_least: int) -> list[tuple[int, int]]:
        """Waits for at least so many of the submitted reads, and returns all that are done."""
        ...

    def close(self) -> None:
        """Waits for what is under way and frees everything."""
        ...


def _pieces(size: int) -> int:
    """Of up to 1 MiB: the kernel splits larger reads."""
    return (size + (1 << 20) - 1) >> 20


def _read_rest(request: Request, got: int) -> int:
    """Reads what is missing of a request of which `got` bytes have come, and waits for it; returns what `collect`
    tells."""
    _, fd, address, size, offset, need = request
    try:
        while True:
            got -= got % 512  # O_DIRECT wants whole blocks
            n = os.preadv(fd, [(C.c_char * (size - got)).from_address(address + got)], offset + got)
            if got + n >= need:
                return 0
            if n < 512:  # the end of the file
                return -1
            got += n
    except OSError as e:
        return e.errno or errno.EIO
    except BaseException:  # a thread of the reader must not end for it
        return errno.EIO


class Depth:
    """How many reads that nobody waits for yet are with the disk at once: a disk takes them in turn, so what is needed
    at once waits for all of them. As few as keep it busy until somebody looks again."""

    LEAST = 24
    """What a disk gives its best with: eight experts of three matrices."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.reads = most

    def looked(self, left: int) -> None:
        """Reads had to wait until now, and so many are still with the disk."""
        if 4 * left < self.reads:  # a little later it would have had nothing to do
            self.reads = min(self._most, 2 * self.reads)
        elif 2 * left > self.reads:
            self.reads = max(min(self.LEAST, self._most), self.reads - 1)


class AioReader:
    """Linux AIO by way of libc's `syscall`."""

    name = "aio"
    DEPTH = 1024
    UNDER_WAY = 224
    """Pieces of up to 1 MiB under way at once. Beyond the queue's length, 256 requests at least on Linux, the system
    call sleeps until others are done, and the caller has something to compute meanwhile."""

    def __init__(self) -> None:
        """Raises `OSError` where the kernel or a sandbox refuses."""
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, "no Linux AIO on this architecture")
        self._setup, self._destroy, self._getevents, self._submit = numbers
        libc, n, at = C.CDLL(None, use_errno=True), C.c_long, C.c_void_p
        # with types of its own each, since converting arguments one by one takes longer than the call
        self._call = C.CFUNCTYPE(n, n, C.c_ulong, n, at, use_errno=True)(("syscall", libc))
        self._call_events = C.CFUNCTYPE(n, n, C.c_ulong, n, n, at, at, use_errno=True)(("syscall", libc))
        context = C.c_ulong(0)
        if self._call(self._setup, self.DEPTH, C.addressof(context), None):
            code = C.get_errno()
            raise OSError(code, os.strerror(code))
        self._context = context.value
        self._ring = (C.c_uint32 * 5).from_address(self._context)
        """The context is the address of struct aio_ring: id, nr, head, tail, magic."""
        self._readable = self._ring[4] == _RING_MAGIC
        self._iocbs = (C.c_char * (self.DEPTH * _IOCB.size))()
        self._free = list(range(self.DEPTH))
        self._address = C.addressof(self._iocbs)
        self._pointers: Any = (C.c_uint64 * self.DEPTH)()
        self._events = np.zeros(self.DEPTH, _EVENT)
        self._events_at = self._events.ctypes.data
        self._under_way: dict[int, Request] = {}
        self._slot: dict[int, tuple[int, int]] = {}
        self._early: list[tuple[int, int]] = []
        self._pieces = 0
        self._depth = Depth(self.UNDER_WAY)
        self._urgent: deque[Request] = deque()
        self._later: deque[Request] = deque()

    def submit(self, requests: Sequence[Request], urgent: bool = True) -> None:
        self.go_on()
        if not urgent and self._under_way and len(self._under_way) + len(requests) > self._depth.reads:
            self._early += self._wait(0)
        (self._urgent if urgent else self._later).extend(requests)
        self._start()

    def go_on(self) -> None:
        if self._urgent or self._later:
            if self._under_way:
                self._early += self._wait(0)
            if self._later:
                self._depth.looked(len(self._under_way))
            self._start()

    def _start(self) -> None:
        """Submits what waits as far as there is room."""
        part: list[Request] = []
        at: list[int] = []
        while waiting := self._urgent or self._later:
            under_way = len(self._under_way)
            if under_way and (
                self._pieces >= self.UNDER_WAY or (waiting is self._later and under_way >= self._depth.reads)
            ):
                break
            tag, fd, address, size, offset, _ = request = waiting.popleft()
            slot = self._free.pop()
            place = slot * _IOCB.size
            _IOCB.pack_into(self._iocbs, place, tag, 0, 0, 0, 0, fd, address, size, offset, 0, 0, 0)
            at.append(self._address + place)
            part.append(request)
            self._under_way[tag], self._slot[tag] = request, (slot, _pieces(size))
            self._pieces += _pieces(size)
        if part:
            self._submit_all(at, part)

    def _submit_all(self, at: list[int], part: Sequence[Request]) -> None:
        """`at`: the addresses of the requests' control blocks."""
        done, pointers = 0, self._pointers
        pointers[: len(at)] = at
        start = C.addressof(pointers)
        while done < len(part):
            n = self._call(self._submit, self._context, len(part) - done, start + 8 * done)
            if n > 0:
                done += n
                continue
            code = C.get_errno()
            if code == errno.EAGAIN and len(self._under_way) > len(part) - done:
                self._early += self._wait(1)
                continue
            if code == errno.EINTR:
                continue
            tag = part[done][0]  # the kernel refuses this one: report it as done with its error
            self._forget(tag)
            self._early.append((tag, code or errno.EIO))
            done += 1

    def _wait(self, at_least: int) -> list[tuple[int, int]]:
        if not at_least and self._readable and self._ring[2] == self._ring[3]:
            return []  # nothing is done: no need to ask
        while True:
            n = self._call_events(self._getevents, self._context, at_least, self.DEPTH, self._events_at, None)
            if n >= 0:
                break
            code = C.get_errno()
            if code != errno.EINTR:
                raise OSError(code, f"io_getevents: {os.strerror(code)}")
        out = []
        for tag, _, result, _ in self._events[:n].tolist():
            request = self._forget(tag)
            code = max(0, -int(result))
            if 0 <= result < request[5]:  # the kernel gives what it has before an error or the end, and says which next
                code = _read_rest(request, int(result))
            out.append((tag, code))
        return out

    def _forget(self, tag: int) -> Request:
        """The request that is over."""
        slot, pieces = self._slot.pop(tag)
        self._free.append(slot)
        self._pieces -= pieces
        return self._under_way.pop(tag)

    def collect(self, at_least: int) -> list[tuple[int, int]]:
        self._start()
        out, self._early = self._early, []
        while self._under_way:
            wanted = min(max(0, at_least - len(out)), len(self._under_way))
            if self._urgent or self._later:  # the disk isn't to run dry meanwhile
                wanted = min(wanted, _FEW)
            out += self._wait(wanted)
            self._start()
            if len(out) >= at_least:
                break
        return out

    def close(self) -> None:
        self._urgent.clear()
        self._later.clear()
        while self._under_way:
            self._wait(len(self._under_way))
        self._readable = False  # the ring goes with the context
        self._call(self._destroy, self._context, 0, None)


class ThreadReader:
    """A few threads with preadv, which releases the GIL."""

    name = "threads"

    def __init__(self, threads: int = 8) -> None:
        self._todo: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._under_way = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"expert-reader-{i}", daemon=True) for i in range(threads)
        ]
        for t in self._threads:
            t.start()

    def _run(self) -> None:
        while (request := self._todo.get()) is not None:
            self._done.put((request[0], _read_rest(request, 0)))

    def submit(self, requests: Sequence[Request], urgent: bool = True) -> None:
        self._under_way += len(requests)
        for r in requests:
            self._todo.put(r)

    def go_on(self) -> None:
        pass

    def collect(self, at_least: int) -> list[tuple[int, int]]:
        out: list[tuple[int, int]] = []
        while len(out) < min(at_least, self._under_way):
            out.append(self._done.get())
        while True:
            try:
                out.append(self._done.get_nowait())
            except queue.Empty:
                break
        self._under_way -= len(out)
        return out

    def close(self) -> None:
        self.collect(self._under_way)
        for _ in self._threads:
            self._todo.put(None)
        for t in self._threads:
            t.join()


def open_reader(kind: str = "auto", threads: int = 8) -> Reader:
    """`aio` where the kernel has it, else `threads`."""
    if kind in ("auto", "aio"):
        try:
            return AioReader()
        except OSError:
            if kind == "aio":
                raise
    return ThreadReader(threads)
