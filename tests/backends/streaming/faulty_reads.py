"""Readers whose reads fail as a plan says: what no disk here can be told to do."""

from __future__ import annotations

import ctypes as C
import errno
import os
from collections.abc import Sequence
from typing import Literal

from backends.system.reader import Request

Fault = Literal["error", "short", "late", "twice"]
FAULTS: tuple[Fault, ...] = ("error", "short", "late", "twice")
_GARBAGE = 0x3C
"""As float16 it is about 1: nothing that a product would hide."""


class FaultyReader:
    """A `Reader` that fills every destination with garbage first, and treats the n-th request as `faults[n]` says.

    ``error``: nothing is read, EIO. ``short``: half is read, and it is told. ``late``: it is read last of all that is
    asked for. ``twice``: it is told once more, after the next ones.
    """

    name = "faulty"

    def __init__(self) -> None:
        self.faults: dict[int, Fault] = {}
        self.asked = 0
        """Requests so far; `restart` sets it back."""
        self.met = 0
        """Faults that came to pass."""
        self._held: list[tuple[Request, Fault | None]] = []
        self._again: list[tuple[int, int]] = []

    def restart(self, faults: dict[int, Fault]) -> None:
        self.faults, self.asked, self.met = faults, 0, 0

    def submit(self, requests: Sequence[Request], urgent: bool = True) -> None:
        for request in requests:
            _, _, address, size, _, _ = request
            C.memset(address, _GARBAGE, size)
            fault = self.faults.get(self.asked)
            self.asked += 1
            self.met += fault is not None
            if urgent:
                self._held.insert(0, (request, fault))
            else:
                self._held.append((request, fault))

    def go_on(self) -> None:
        pass

    def collect(self, at_least: int) -> list[tuple[int, int]]:
        out, self._again = self._again, []
        self._held.sort(key=lambda held: held[1] == "late")
        while self._held and (len(out) < at_least or self._held[0][1] != "late"):
            request, fault = self._held.pop(0)
            out.append((request[0], self._read(request, fault)))
            if fault == "twice":
                self._again.append(out[-1])
        return out

    @staticmethod
    def _read(request: Request, fault: Fault | None) -> int:
        _, fd, address, size, offset, need = request
        if fault == "error":
            return errno.EIO
        wanted = size // 2 // 4096 * 4096 if fault == "short" else size
        got = os.preadv(fd, [(C.c_char * wanted).from_address(address)], offset) if wanted else 0
        return 0 if got >= need else -1

    def close(self) -> None:
        self._held.clear()
