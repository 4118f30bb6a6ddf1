"""Tells an engine that is stuck from one that is slow: it has work, and nothing that can be counted moves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from backends.interface import Telemetry

STUCK_S = 180.0
"""An engine that counts the experts it uses moves with each layer, however slow the disk."""
STUCK_BLIND_S = 900.0
"""One that doesn't is silent for as long as a batch takes."""
UNWELL_SHARE = 0.5
"""Of that time, after which it is said that no answers are to be had."""
_LONGEST = 4.0
"""A batch may take so many times as long as the longest one so far."""


class Watchdog:
    """Fed with the engine's counters; says for how long nothing has moved. Its clock is `time.monotonic`."""

    def __init__(self, stuck_s: float | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`stuck_s`: seconds without a move after which an engine is stuck; None: `STUCK_S` or `STUCK_BLIND_S`; 0 or
        less: never."""
        self._asked = stuck_s
        self._clock = clock
        self._moved_at = clock()
        self._seen: tuple[object, ...] | None = None
        self._counts = False
        self._working = False
        self._longest = 0.0

    def started(self) -> None:
        """A new engine, which has done nothing yet."""
        self._seen, self._longest, self._working = None, 0.0, False
        self._moved_at = self._clock()

    def work(self, waiting: int) -> None:
        """How many requests wait for the engine now; without any it can't be stuck."""
        if not waiting or not self._working:
            self._moved_at = self._clock()
        self._working = waiting > 0

    def observe(self, telemetry: Telemetry | None, pid: int | None) -> None:
        """Counters as they are now; None where the engine sent none."""
        if telemetry is None:
            return
        self._counts = telemetry.expert_hits is not None
        seen = (
            telemetry.prefill_tokens, telemetry.decode_tokens, telemetry.expert_hits, telemetry.expert_misses,
            telemetry.read_bytes, telemetry.n_active, telemetry.n_waiting, _read_bytes(pid),
        )  # fmt: skip
        if seen != self._seen:
            now = self._clock()
            if self._seen is not None and self._working:
                self._longest = max(self._longest, now - self._moved_at)
            self._seen, self._moved_at = seen, now

    @property
    def limit_s(self) -> float:
        """Seconds after which the engine counts as stuck; infinite: never."""
        if self._asked is not None:
            return self._asked if self._asked > 0 else float("inf")
        return max(STUCK_S if self._counts else STUCK_BLIND_S, _LONGEST * self._longest)

    @property
    def still_s(self) -> float:
        """For how many seconds nothing has moved though there is work."""
        return self._clock() - self._moved_at if self._working else 0.0

    @property
    def unwell(self) -> bool:
        """It may well be stuck."""
        return self.still_s > UNWELL_SHARE * self.limit_s

    @property
    def stuck(self) -> bool:
        """It is to be ended."""
        return self.still_s > self.limit_s


def _read_bytes(pid: int | None) -> int | None:
    """What the process has read from storage: where the kernel faults pages in, nothing else moves."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("read_bytes:")).split()[1])
    return None
