"""Whole layers for passes of many tokens: their experts in the file's own layout, read while earlier layers compute.

A pass over a prompt wants nearly every expert of every layer, so there is nothing to choose: the tensors come in the
order in which they are computed on, in large sequential reads, into a few buffers that take turns. What the pool holds
is copied from there instead of read, and the pool keeps it: a prompt throws nothing out. The model's own tensors point
into the buffers for their product, so ids need no translation, and a GPU copies experts from there as it copies them
from any model in memory.

One thread calls everything; worker threads read and copy.
"""

from __future__ import annotations

import ctypes as C
import errno
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from backends.streaming.layout import ExpertLayout
from backends.streaming.stores import I64, point_tensor
from backends.system import libc
from backends.system.libc import PAGE

PIECE = 4 << 20
"""Bytes of one read."""
WORKERS = 4
STOP_S = 0.1
"""Seconds after which somebody who waits looks whether the pass was stopped."""


class Source(Protocol):
    """The pool, as staging needs it."""

    @property
    def fds(self) -> list[int]:
        """The model's parts, opened with O_DIRECT."""
        ...

    def held(self, row: int) -> tuple[I64, I64]:
        """(experts, addresses of their slots) of what is resident of a row."""
        ...

    def place(self, row: int, index: int) -> int:
        """Where in a slot the slice of a row's tensor begins."""
        ...


class _Stage:
    """One tensor on its way to a buffer, or there."""

    def __init__(self, row: int, index: int, buffer: int, address: int) -> None:
        self.row, self.index, self.buffer, self.address = row, index, buffer, address
        self.left = 0
        self.error = 0
        """errno of the first read that failed; -1 for a short one."""


Job = tuple[_Stage, int, int, int, int, int]
"""(stage, fd or -1 for a copy, address, bytes, file offset or the address to copy from, bytes that must come)"""


class Staging:
    """The buffers of one loaded model, and the readers that fill them."""

    def __init__(
        self,
        layout: ExpertLayout,
        source: Source,
        home: Callable[[int, int], int],
        *,
        buffers: int,
        pin: Callable[[int, int], Callable[[], None] | None] = lambda _address, _size: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`home(row, index)`: where a tensor points while it isn't staged. `buffers`: how many tensors are in memory at
        once. `pin(address, bytes)` makes memory that a GPU copies from without waiting, and returns what undoes it.
        `stopped`: whether the pass is to end, also while a layer is waited for, which may take seconds."""
        self._layout, self._source, self._home, self._pin = layout, source, home, pin
        self._stopped = stopped
        most = max(t.entry.bytes for r in layout.rows for t in r.tensors)
        self.buffer_bytes = -(-(most + 2 * PAGE) // (2 << 20)) * (2 << 20)
        self.buffers = buffers
        self._region = 0
        self._unpin: Callable[[], None] | None = None
        self._free: list[int] = []
        self._tape: list[tuple[int, int]] = []
        self._next = 0
        """Of the tape: what is read next."""
        self._around = False
        self._stages: dict[tuple[int, int], _Stage] = {}
        self._lock = threading.Condition()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._under_way = 0
        self._since = 0.0
        self._stop = False
        self._threads: list[threading.Thread] = []
        self.read_bytes = self.copied_bytes = 0
        """Bytes that came from the disk and from the pool."""
        self.busy_s = 0.0
        """Seconds in which something was being read or copied."""
        self.wait_s = 0.0
        """Seconds that computing waited for it."""

    @property
    def bytes(self) -> int:
        """Memory of all buffers."""
        return self.buffers * self.buffer_bytes

    @property
    def touched(self) -> bool:
        """Whether the buffers take memory now."""
        return bool(self._region)

    # ---- a pass ----------------------------------------------------------------------------------------------------

    def begin(self, rows: Sequence[int], *, around: bool) -> None:
        """A pass over `rows` starts, in this order: their reads begin. `around`: another such pass follows, whose first
        rows may be read when this one's last have been."""
        tape = [(row, i) for row in rows for i in range(len(self._layout.rows[row].tensors))]
        if tape != self._tape or not self._stages:
            self.reset()
            self._tape, self._next = tape, 0
        self._around = around
        self._open()
        self._fill()

    def wait(self, row: int, indices: Sequence[int]) -> bool:
        """Returns when these tensors of a row are there, and points the model's at them; False where the pass was
        stopped before. Raises `OSError`."""
        missing = [i for i in indices if (row, i) not in self._stages]
        if missing:
            self._seek(row)
        started = time.perf_counter()
        for i in indices:
            stage = self._stages.get((row, i))
            while stage is None:  # the buffers are full of what comes before it
                raise OSError(errno.EFAULT, "a layer is larger than its buffers")
            with self._lock:
                while stage.left:
                    if self._stopped():
                        self.wait_s += time.perf_counter() - started
                        return False
                    self._lock.wait(STOP_S)
            if stage.error:
                code = stage.error if stage.error > 0 else errno.ENODATA
                raise OSError(code, os.strerror(code) if stage.error > 0 else "the file is shorter than it was")
            point_tensor(self._layout.rows[row].tensors[i].pointer, stage.address)
        self.wait_s += time.perf_counter() - started
        return True

    def release(self, row: int, indices: Sequence[int]) -> None:
        """These tensors have been computed on: their buffers go to what comes next."""
        for i in indices:
            stage = self._stages.pop((row, i), None)
            if stage is not None:
                point_tensor(self._layout.rows[row].tensors[i].pointer, self._home(row, i))
                self._free.append(stage.buffer)
        self._fill()

    def settle(self) -> None:
        """Waits for what is being read and copied."""
        with self._lock:
            while self._under_way:
                self._lock.wait()

    def slice(self, row: int, index: int, expert: int) -> int:
        """Address of an expert's slice of a tensor that is there."""
        return self._stages[row, index].address + expert * self._layout.rows[row].tensors[index].slice_bytes

    def reset(self, *, restore: bool = True) -> None:
        """Ends a pass: what is under way is waited for, what wasn't begun is forgotten. `restore`: the model's tensors
        point home again (they must still be there)."""
        dropped: list[Job] = []
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                dropped.append(job)
        with self._lock:
            for stage, *_ in dropped:
                stage.left -= 1
            self._count(-len(dropped))
            while any(s.left for s in self._stages.values()):
                self._lock.wait()
        for row, index in self._stages if restore else ():
            point_tensor(self._layout.rows[row].tensors[index].pointer, self._home(row, index))
        self._stages.clear()
        self._tape, self._next = [], 0
        self._free = list(range(self.buffers))

    def give_back(self, *, restore: bool = True) -> None:
        """Returns the buffers' memory. `restore`: see `reset`."""
        self.reset(restore=restore)
        if self._region:
            if self._unpin is not None:
                self._unpin()
                self._unpin = None
            libc.munmap(self._region, self.bytes)
            self._region = 0

    def close(self) -> None:
        """Ends the workers and frees everything; the model may be gone."""
        self.give_back(restore=False)
        for _ in self._threads:
            self._jobs.put(None)
        for t in self._threads:
            t.join()
        self._threads.clear()

    # ---- reading ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if not self._region:
            self._region = libc.reserve(self.bytes)
            libc.prefer_huge(self._region, self._region + self.bytes)
            libc.madvise(self._region, self.bytes, libc.MADV_DONTFORK)
            self._unpin = self._pin(self._region, self.bytes)
            self._free = list(range(self.buffers))
        while len(self._threads) < WORKERS:
            t = threading.Thread(target=self._run, name=f"staging-{len(self._threads)}", daemon=True)
            self._threads.append(t)
            t.start()

    def _seek(self, row: int) -> None:
        """A row comes out of turn: another graph of the same pass began, or one of its rows was left out."""
        rows = list(dict.fromkeys(r for r, _ in self._tape))
        around = self._around
        self.reset()
        at = rows.index(row) if row in rows else 0
        if row not in rows:
            rows.insert(0, row)
        self._tape = [(r, i) for r in rows for i in range(len(self._layout.rows[r].tensors))]
        self._next = next(k for k, (r, _) in enumerate(self._tape) if r == rows[at])
        self._around = around
        self._open()
        self._fill()

    def _fill(self) -> None:
        while self._free and self._tape:
            if self._next >= len(self._tape):
                if not self._around:
                    return
                self._next = 0
            key = self._tape[self._next]
            if key in self._stages:
                return
            self._next += 1
            self._issue(*key)

    def _issue(self, row: int, index: int) -> None:
        tensor = self._layout.rows[row].tensors[index]
        buffer = self._free.pop(0)
        offset = tensor.entry.offset
        address = self._region + buffer * self.buffer_bytes + offset % PAGE
        stage = self._stages[row, index] = _Stage(row, index, buffer, address)
        experts, slots = self._source.held(row)
        size, place = tensor.slice_bytes, self._source.place(row, index)
        fd, base = self._source.fds[tensor.entry.part], address - offset
        jobs: list[Job] = []
        absent = np.ones(tensor.n_experts, bool)
        absent[experts] = False
        edges = np.flatnonzero(np.diff(np.concatenate(([False], absent, [False])).astype(np.int8)))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            start, end = offset + first * size, offset + last * size
            self.read_bytes += end - start
            at = start - start % PAGE  # whole blocks: what is read beside it is the same file's
            while at < end:
                n = min(PIECE, -(-(end - at) // PAGE) * PAGE)
                jobs.append((stage, fd, base + at, n, at, min(n, end - at)))
                at += n
        for e, slot in zip(experts.tolist(), slots.tolist(), strict=True):
            self.copied_bytes += size
            jobs.append((stage, -1, address + e * size, size, slot + place, size))
        with self._lock:
            stage.left = len(jobs)
            self._count(len(jobs))
        for job in jobs:
            self._jobs.put(job)

    def _count(self, n: int) -> None:
        """Notes that `n` more jobs are under way; the lock is held."""
        now = time.perf_counter()
        if not self._under_way and n > 0:
            self._since = now
        self._under_way += n
        if not self._under_way and n < 0:
            self.busy_s += now - self._since

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            stage, fd, address, size, source, need = job
            code = 0
            try:
                if fd < 0:
                    C.memmove(address, source, size)
                else:
                    code = _read(fd, address, size, source, need)
            except OSError as e:
                code = e.errno or errno.EIO
            except BaseException:
                code = errno.EIO
            with self._lock:
                if code and not stage.error:
                    stage.error = code
                stage.left -= 1
                self._count(-1)
                if not stage.left or not self._under_way:
                    self._lock.notify_all()


def _read(fd: int, address: int, size: int, offset: int, need: int) -> int:
    """Reads whole blocks; 0, or -1 where the file is too short."""
    got = 0
    while got < need:
        n = os.preadv(fd, [(C.c_char * (size - got)).from_address(address + got)], offset + got)
        if n == 0:
            return -1
        got += n
    return 0


class PassChoice:
    """Which passes are staged: those for which reading all that isn't resident, at the pace of large reads beside
    computing, was measured to take less than reading what is chosen, at the pace of single experts."""

    START = 0.5
    """The share of experts wanted from which on a pass is staged, before anything was measured."""

    def __init__(self, n_experts: int, n_used: int) -> None:
        self._n_experts, self._n_used = n_experts, max(1, n_used)
        self._staged: deque[tuple[float, float]] = deque(maxlen=8)
        self._single: deque[tuple[float, float]] = deque(maxlen=64)

    def staged(self, size: int, seconds: float) -> None:
        """A pass read `size` bytes while something was under way for so long."""
        if size > 0 and seconds > 0:
            self._staged.append((size, seconds))

    def single(self, size: int, seconds: float) -> None:
        """Single experts of `size` bytes together were waited for."""
        if size > 0 and seconds > 0:
            self._single.append((size, seconds))

    @property
    def threshold(self) -> float:
        """The share of experts from which on a pass is staged."""
        if len(self._staged) < 2 or len(self._single) < 16:
            return self.START
        large, small = (sum(b for b, _ in x) / sum(s for _, s in x) for x in (self._staged, self._single))
        return min(0.8, max(0.25, self.START * small / large * 1.5))

    def wanted(self, tokens: int) -> float:
        """The share of a layer's experts that so many tokens choose where routing is even."""
        return float(1.0 - (1.0 - min(1.0, self._n_used / self._n_experts)) ** tokens)

    def worth(self, tokens: int) -> bool:
        """Whether to stage a pass of so many tokens."""
        return self.wanted(tokens) >= self.threshold
