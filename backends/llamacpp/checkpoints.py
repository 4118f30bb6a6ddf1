"""States to go back to: what of a sequence can't be cut back, kept as it was after some of its tokens."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from msgspec import Struct

MAX_CHECKPOINTS = 12
"""Of one sequence; where there are more, the one goes that lies closest behind another."""


class Checkpoint(Struct, frozen=True):
    """The recurrent state, or the sliding window, after `length` tokens."""

    length: int
    state: bytes


class Checkpoints:
    """Those of one sequence, in order."""

    def __init__(self, of: list[Checkpoint] | None = None) -> None:
        self._all: list[Checkpoint] = of or []

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._all)

    def add(self, length: int, state: bytes) -> None:
        """Keeps a state; one of the same length is replaced."""
        at = bisect.bisect_left(self._all, length, key=_length)
        if at < len(self._all) and self._all[at].length == length:
            self._all[at] = Checkpoint(length, state)
            return
        self._all.insert(at, Checkpoint(length, state))
        if len(self._all) > MAX_CHECKPOINTS:
            self.drop_one()

    def drop_one(self) -> bool:
        """Drops the one that is missed least; never the first (a shared preamble) nor the last, while there are
        more."""
        if not self._all:
            return False
        if len(self._all) <= 2:
            del self._all[0]
            return True
        gaps = [self._all[i + 1].length - self._all[i - 1].length for i in range(1, len(self._all) - 1)]
        del self._all[1 + gaps.index(min(gaps))]
        return True

    def before(self, length: int) -> Checkpoint | None:
        """The last one of at most `length` tokens."""
        at = bisect.bisect_right(self._all, length, key=_length)
        return self._all[at - 1] if at else None

    def has(self, length: int) -> bool:
        found = self.before(length)
        return found is not None and found.length == length

    def up_to(self, length: int) -> Checkpoints:
        """A copy of those of at most `length` tokens, for a sequence that begins with them."""
        return Checkpoints(self._all[: bisect.bisect_right(self._all, length, key=_length)])

    def cut(self, length: int) -> None:
        """Forgets those of more than `length` tokens."""
        del self._all[bisect.bisect_right(self._all, length, key=_length) :]


def _length(checkpoint: Checkpoint) -> int:
    return checkpoint.length
