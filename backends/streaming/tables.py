"""Weights that are only looked up stay on the SSD, mapped, and are read by row.

A token embedding is a row of a table, and so is what a hashed n-gram adds to it (qwen4exp: tens of GiB): a batch reads
a few rows of it, whatever its size. llama.cpp's own way (``lazy_mode``) maps the file behind the loader's stream, and
there is none; so these tensors are allocated by our buffer type as experts are, filled by nobody, and pointed into
mappings of our own. Before their rows are gathered all of them are asked for at once and seen to arrive: a row that
can't be read is an error then, and not the end of the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.interface import EngineError
from backends.streaming import abi
from backends.streaming.pagecache import Advisor
from backends.streaming.stores import I64, point_tensor
from backends.streaming.virtual_file import TensorEntry, VirtualGguf
from backends.system import libc
from backends.system.libc import PAGE


@dataclass
class _Table:
    entry: TensorEntry
    fd: int
    base: int
    """Address of the page that holds the first byte."""
    first: int
    """Offset of that page in the file."""
    size: int
    row_bytes: int

    @property
    def data(self) -> int:
        return self.base + self.entry.offset - self.first


class Tables:
    """The looked-up tensors of one loaded model. `of` finds one by its ``ggml_tensor *``."""

    def __init__(self, virtual: VirtualGguf, pointers: dict[str, int]) -> None:
        """`pointers`: those tensors that llama.cpp put into our buffer type, by name. Raises `OSError`."""
        self._virtual = virtual
        self._tables: dict[int, _Table] = {}
        self._broken: list[tuple[_Table, int, int]] = []
        self._advisor: Advisor | None = None
        entries = {t.name: t for t in virtual.tensors}
        try:
            for name, pointer in pointers.items():
                table = self._map(entries[name])
                self._tables[pointer] = table
                point_tensor(pointer, table.data)
                if self._advisor is None:
                    self._advisor = Advisor(table.base)
        except OSError:
            self.close()
            raise
        self.bytes = sum(t.entry.bytes for t in self._tables.values())
        """What of the model lies in them."""

    def _map(self, entry: TensorEntry) -> _Table:
        fd = os.open(self._virtual.paths[entry.part], os.O_RDONLY | os.O_CLOEXEC)
        try:
            first = entry.offset // PAGE * PAGE
            size = -(-(entry.offset + entry.bytes) // PAGE) * PAGE - first
            base = libc.mmap(None, size, libc.PROT_READ, libc.SHARED, fd, first)
        except OSError:
            os.close(fd)
            raise
        libc.madvise(base, size, libc.MADV_RANDOM)  # read-around would bring many rows for one
        return _Table(entry, fd, base, first, size, entry.bytes // entry.dims[1])

    def __len__(self) -> int:
        return len(self._tables)

    @property
    def pointers(self) -> Sequence[int]:
        """``ggml_tensor *`` of each."""
        return list(self._tables)

    def gathered(self, pointer: int, ids: int) -> float:
        """Rows are about to be gathered from a table by the tensor `ids`: brings them in, and returns the seconds that
        took. Of ids of another layout than usual reading faults the pages in, one by one. Raises `EngineError`."""
        t = abi.Tensor.from_address(ids)
        if t.type != abi.TYPE_I32 or t.nb[1] != 4 * t.ne[0] or not t.ne[2] == t.ne[3] == 1:
            return 0.0
        rows = np.empty(t.ne[0] * t.ne[1], np.int32)
        abi.ggml().tensor_get(ids, rows.ctypes.data, 0, rows.nbytes)
        started = time.perf_counter()
        self.need(pointer, rows)
        return time.perf_counter() - started

    def need(self, pointer: int, rows: npt.NDArray[np.int32]) -> None:
        """Returns when these rows of a table can be gathered. Raises `EngineError` ``io_error``; the gathering may
        still go on without harm then."""
        table = self._tables[pointer]
        assert self._advisor is not None
        starts, lengths = self._pages(table, rows)
        try:
            if len(starts) > 1:  # of one alone, waiting for it asks for it as well
                self._advisor.advise(starts, lengths, libc.MADV_WILLNEED)
            self._advisor.advise(starts, lengths, libc.MADV_POPULATE_READ)
        except OSError as e:
            self._shield(table, starts, lengths)
            name = self._virtual.paths[table.entry.part].name
            raise EngineError(
                "io_error",
                f"Rows of {table.entry.name} can't be read from {name} ({e.strerror or e}); check the disk and the "
                "file, then load the model again.",
            ) from e

    @staticmethod
    def _pages(table: _Table, rows: npt.NDArray[np.int32]) -> tuple[I64, I64]:
        """Addresses and lengths of the pages that rows lie in, each page in one range at most."""
        distinct = np.unique(rows).astype(np.int64)
        distinct = distinct[(distinct >= 0) & (distinct < table.entry.dims[1])]  # llama.cpp asserts on others
        begin = table.data + distinct * table.row_bytes
        lo, hi = begin // PAGE * PAGE, -(-(begin + table.row_bytes) // PAGE) * PAGE
        if not len(lo):
            return lo, hi
        joined = np.flatnonzero(lo[1:] > hi[:-1])  # rows in order: a range ends where the next begins beyond it
        starts, ends = lo[np.append(0, joined + 1)], hi[np.append(joined, len(hi) - 1)]
        return starts, ends - starts

    def _shield(self, table: _Table, starts: I64, lengths: I64) -> None:
        """Zeros where rows can't be read: the graph that is given up may still gather them."""
        flags = libc.PRIVATE | libc.ANON | libc.NORESERVE | libc.FIXED
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            libc.mmap(start, length, libc.PROT_READ, flags)
            self._broken.append((table, start, length))

    def mend(self) -> None:
        """Called before each graph: takes the zeros of `need` away."""
        while self._broken:
            table, start, length = self._broken.pop()
            offset = table.first + start - table.base
            libc.mmap(start, length, libc.PROT_READ, libc.SHARED | libc.FIXED, table.fd, offset)
            libc.madvise(start, length, libc.MADV_RANDOM)

    def close(self) -> None:
        """Unmaps everything; only after the model was freed."""
        for table in self._tables.values():
            libc.munmap(table.base, table.size)
            os.close(table.fd)
        self._tables.clear()
        if self._advisor is not None:
            self._advisor.close()
            self._advisor = None
