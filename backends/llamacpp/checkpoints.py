"""States to go back to: what of a sequence can't be cut back, kept as it was after some of its tokens."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from msgspec import Struct

MAX_CHECKPOINTS = 16
"""Of one sequence."""
NEWEST = 8
"""The last so many stay when there are too many: two or three a turn, so an edit a few turns back finds its own."""


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
        """Drops the one that is missed least: what would be computed again without it, by how far back it lies. Never
        the first (a shared preamble) nor one of the newest, while there are others; the last one at last."""
        if not self._all:
            return False
        if len(self._all) <= 2:
            del self._all[0]
            return True
        lengths = [each.length for each in self._all]
        inner = range(1, len(lengths) - (NEWEST if len(lengths) > NEWEST + 1 else 1))
        del self._all[min(inner, key=lambda i: (lengths[i] - lengths[i - 1]) / (lengths[-1] - lengths[i]))]
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
