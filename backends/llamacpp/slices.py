"""Parts of a sequence's state: read as bytes, and put back after one another until a prompt stands in the cache again.

llama.cpp reads and writes whole sequences alone. In a cache that all sequences share, though, a range of one can be
given to a spare sequence without moving data, and that one's whole state is the range. What can't be cut (a recurrent
state, a sliding window) lies at the end of llama.cpp's form of a state: a slice goes without it and carries it apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from backends.llamacpp.context import LlamaContext

_HEAD = 8
"""Bytes of magic and sequence number before llama.cpp's own state."""


class Slice(Struct, frozen=True):
    """What the cache held of some positions of one sequence."""

    start: int
    end: int
    cells: bytes
    """The range itself, in llama.cpp's form without the part that can't be cut."""
    last: bytes | None
    """Where the model has such a part: as it was after `end` tokens (`LlamaContext.get_partial_state`)."""


def read_slice(context: LlamaContext, seq_id: int, start: int, end: int, last: bytes | None) -> Slice | None:
    """The positions [start, end) of a sequence. `last`: its partial state after `end` tokens, where the model has one
    (`LlamaContext.partial`). None: this model's states aren't laid out so."""
    spare = context.spare
    if spare is None or start >= end or (context.partial and last is None):
        return None
    try:
        context.copy_range(seq_id, spare, start, end)
        whole = context.get_whole_state(spare)
        if whole is None or not context.partial:
            return None if whole is None else Slice(start, end, bytes(whole), None)
        tail = context.get_partial_state(spare)
        if tail is None or whole[len(whole) - len(tail) + _HEAD :] != tail[_HEAD:]:
            return None
        return Slice(start, end, bytes(whole[: len(whole) - len(tail) + _HEAD]), last)
    finally:
        context.remove(spare, 0)


def window_before(context: LlamaContext, seq_id: int, end: int) -> bytes | None:
    """The sliding window of a sequence as it was after `end` tokens; None where it isn't held any more."""
    spare = context.spare
    first = context.first_position(seq_id)
    if spare is None or not 0 <= first <= max(0, end - context.n_swa):
        return None
    context.copy_range(seq_id, spare, 0, end)
    try:
        return context.get_partial_state(spare)
    finally:
        context.remove(spare, 0)


def put_slices(context: LlamaContext, seq_id: int, slices: Iterable[Slice], done: int = 0) -> int:
    """Puts slices that follow each other into a sequence that has the cells of the `done` tokens before them; returns
    how many tokens stand there then, 0 where it can't be done: the sequence is empty then. Of a slice that lies within
    those `done` only what can't be cut is put."""
    spare, last = context.spare, None
    if spare is None:
        return 0
    for part in slices:
        if part.end <= done:
            last = part.last
            continue
        state = bytearray(part.cells)
        if part.last is not None:
            state += part.last[_HEAD:]
        ok = part.start == done and context.set_whole_state(spare, state)
        if ok:
            context.copy_range(spare, seq_id, part.start, part.end)
        context.remove(spare, 0)
        if not ok:
            context.remove(seq_id, 0)
            return 0
        done, last = part.end, part.last
    if context.partial and (last is None or not context.set_partial_state(seq_id, last)):
        context.remove(seq_id, 0)
        return 0
    if context.length(seq_id) != done:
        context.remove(seq_id, 0)
        return 0
    return done
