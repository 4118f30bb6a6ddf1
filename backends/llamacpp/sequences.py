"""Which sequences hold what in the KV cache: sessions, shared prefixes, and the room that is left.

llama.cpp knows sequences by number and cells by position. This book keeps the tokens beside them, so that a prompt
finds the sequence that agrees with it longest, and counts cells that several sequences share once.

Where each sequence has a cache of its own (`LlamaContext.own_caches`), a shared prefix is copied, no idle sequence is
kept, and `close_gaps` moves sequences so that their numbers follow each other.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backends.llamacpp.checkpoints import Checkpoints
from backends.llamacpp.context import LlamaContext


@dataclass(eq=False)
class KvSequence:
    """One sequence of the KV cache and the tokens it holds."""

    seq_id: int
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    """A number for each token's cell; sequences that share a prefix share the numbers."""
    session: str | None = None
    active: bool = False
    last_used: int = 0
    used_at: float = field(default_factory=time.monotonic)
    prompt: int = 0
    """How many of its tokens an answer was asked for with; what follows was generated."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """Models with recurrent states or sliding windows: what can be gone back to."""
    stored: int = 0
    """How many of its tokens are in the store of prompts."""

    @property
    def worth(self) -> float:
        """What it would cost to compute again, by how long nobody has asked for it."""
        return len(self.tokens) / (60.0 + time.monotonic() - self.used_at)


def common_prefix(a: Any, b: Any) -> int:
    """Number of leading tokens in which two int32 arrays agree."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


class KvBook:
    """Sequences over a `LlamaContext`. Every change goes to both."""

    def __init__(self, context: LlamaContext, *, keeps_idle: bool = True) -> None:
        """`keeps_idle`: sequences stay for later prompts when their answers have ended."""
        self._context = context
        self._keeps_idle = keeps_idle
        self._free = list(range(context.n_seqs))
        self._clock = itertools.count(1)
        self._cell = itertools.count()
        self._shares: dict[int, int] = {}
        self.sequences: list[KvSequence] = []

    @property
    def used(self) -> int:
        """Cells that hold a token."""
        return len(self._shares)

    @property
    def room(self) -> int:
        """Cells that are free."""
        return self._context.n_ctx - self.used

    def of_session(self, session: str | None) -> KvSequence | None:
        """The idle sequence that a session used last."""
        own = [s for s in self.sequences if s.session == session and not s.active]
        return max(own, key=lambda s: s.last_used) if session is not None and own else None

    def open(self, session: str | None) -> KvSequence | None:
        """A new, empty, active sequence; an idle one is dropped where no number is free. None: all are active."""
        if not self._free and not self.evict_idle():
            return None
        sequence = KvSequence(heapq.heappop(self._free), session=session, active=True, last_used=next(self._clock))
        self.sequences.append(sequence)
        return sequence

    def longest_match(self, prompt: Any) -> tuple[KvSequence | None, int]:
        """The sequence that has most of a prompt (int32 array) in a state that can be gone on from, and how much: of
        the last token, which has to be computed for its logits, nothing. Of equals an idle one."""
        best, length = None, 0
        for sequence in self.sequences:
            if len(sequence.tokens) > length or (best is not None and best.active and len(sequence.tokens) == length):
                n = min(common_prefix(np.asarray(sequence.tokens, np.int32), prompt), len(prompt) - 1)
                n = self.usable(sequence, n)
                if n > length or (n and n == length and best is not None and best.active and not sequence.active):
                    best, length = sequence, n
        return best, length

    def usable(self, sequence: KvSequence, length: int) -> int:
        """How many of its first `length` tokens a sequence can be cut back to, or shared up to."""
        if length >= len(sequence.tokens):
            return len(sequence.tokens)
        if length <= 0 or (not self._context.recurrent and self._window_holds(sequence, length)):
            return max(0, length)
        saved = sequence.checkpoints.before(length)
        return saved.length if saved is not None else 0

    def append(self, sequence: KvSequence, tokens: Iterable[int]) -> None:
        """Notes tokens that a decode has put into the KV cache."""
        for token in tokens:
            cell = next(self._cell)
            self._shares[cell] = 1
            sequence.cells.append(cell)
            sequence.tokens.append(token)
        self.touch(sequence)

    def touch(self, sequence: KvSequence) -> None:
        """Notes that a sequence is of use now."""
        sequence.last_used, sequence.used_at = next(self._clock), time.monotonic()

    def truncate(self, sequence: KvSequence, length: int) -> int:
        """Cuts a sequence to at most `length` tokens; returns how many are left, fewer where the model can't go back
        that far (recurrent states, sliding windows)."""
        if length >= len(sequence.tokens):
            return len(sequence.tokens)
        if length > 0 and self._roll_back(sequence, length):
            self._forget(sequence, length)
            return length
        saved = sequence.checkpoints.before(length)
        if (
            saved is not None
            and self._context.set_partial_state(sequence.seq_id, saved.state)
            and self._context.remove(sequence.seq_id, saved.length)
        ):
            self._forget(sequence, saved.length)
            return saved.length
        self.empty(sequence)
        return 0

    def _roll_back(self, sequence: KvSequence, length: int) -> bool:
        context = self._context
        return (
            not context.recurrent and self._window_holds(sequence, length) and context.remove(sequence.seq_id, length)
        )

    def _window_holds(self, sequence: KvSequence, length: int) -> bool:
        """Whether the positions that a token at `length` looks back on are all still there."""
        n_swa = self._context.n_swa
        return not n_swa or 0 <= self._context.first_position(sequence.seq_id) <= max(0, length - n_swa)

    def share(self, source: KvSequence, target: KvSequence, length: int) -> bool:
        """Lets an empty sequence begin with the first `length` tokens of another; False where the model can't."""
        state = None
        if length < len(source.tokens) and not self._context.own_caches:
            if self._context.recurrent or not self._window_holds(source, length):
                saved = source.checkpoints.before(length)
                if saved is None or saved.length != length:
                    return False
                state = saved.state
        elif not self._window_holds(source, length) or (self._context.recurrent and length != len(source.tokens)):
            return False
        if not self._context.copy(source.seq_id, target.seq_id, length, state):
            return False
        if self._context.own_caches:
            if not self._window_holds(target, length):  # a state has what the source's last token looks back on
                self._context.remove(target.seq_id, 0)
                return False
            self.append(target, source.tokens[:length])
            return True
        self._note_shared(source, target, length)
        return True

    def begin_with(self, source: KvSequence, target: KvSequence, length: int) -> None:
        """Gives an empty sequence the cells of another's first `length` tokens, in a cache that all share, without what
        else it takes to go on from there: that is put after it."""
        self._context.copy_range(source.seq_id, target.seq_id, 0, length)
        self._note_shared(source, target, length)

    def _note_shared(self, source: KvSequence, target: KvSequence, length: int) -> None:
        target.tokens = source.tokens[:length]
        target.cells = source.cells[:length]
        for cell in target.cells:
            self._shares[cell] += 1
        target.checkpoints = source.checkpoints.up_to(length)
        target.stored = min(source.stored, length)
        self.touch(source)

    def empty(self, sequence: KvSequence) -> None:
        """Drops all tokens of a sequence, keeps the sequence."""
        self._context.remove(sequence.seq_id, 0)
        self._forget(sequence, 0)

    def _forget(self, sequence: KvSequence, length: int) -> None:
        for cell in sequence.cells[length:]:
            left = self._shares[cell] - 1
            if left:
                self._shares[cell] = left
            else:
                del self._shares[cell]
        del sequence.cells[length:]
        del sequence.tokens[length:]
        sequence.checkpoints.cut(length)
        sequence.prompt = min(sequence.prompt, length)
        sequence.stored = min(sequence.stored, length)

    def release(self, sequence: KvSequence) -> None:
        """Drops a sequence and its tokens."""
        self.empty(sequence)
        self.sequences.remove(sequence)
        heapq.heappush(self._free, sequence.seq_id)

    def close_gaps(self, stay: Collection[KvSequence] = ()) -> None:
        """Moves sequences of the highest numbers into gaps, those of `stay` last. A sequence that can't be moved is
        emptied in its new place."""
        taken = {s.seq_id: s for s in self.sequences}
        while (gap := next(i for i in itertools.count() if i not in taken)) < len(taken):
            above = [s for s in self.sequences if s.seq_id > gap]
            sequence = max(above, key=lambda s: (s not in stay, s.seq_id))
            number = sequence.seq_id
            moved = self._context.copy(number, gap, len(sequence.tokens))
            self._context.remove(number, 0)
            if not moved:
                self._forget(sequence, 0)
            sequence.seq_id = gap
            taken[gap] = taken.pop(number)
            self._free.remove(gap)
            self._free.append(number)
            heapq.heapify(self._free)

    def park(self, sequence: KvSequence) -> None:
        """A sequence became idle: it is kept for whoever asks for what it begins with."""
        if self._context.own_caches or not sequence.tokens or not self._keeps_idle:
            self.release(sequence)
            return
        sequence.active = False
        self.touch(sequence)
        for other in [s for s in self.sequences if s is not sequence and not s.active]:
            if self._holds_all_of(sequence, other):
                self.release(other)
            elif self._holds_all_of(other, sequence):
                other.session = other.session or sequence.session
                self.release(sequence)
                return

    def _holds_all_of(self, longer: KvSequence, shorter: KvSequence) -> bool:
        n = len(shorter.tokens)
        return (
            longer.tokens[:n] == shorter.tokens
            and self.usable(longer, n) == n
            and (shorter.session is None or shorter.session == longer.session)
        )

    def evict_idle(self, keep: KvSequence | None = None) -> bool:
        """Drops the idle sequence that is worth least, whoever it belongs to; False: none was idle."""
        idle = [s for s in self.sequences if not s.active and s is not keep]
        if not idle:
            return False
        self.release(min(idle, key=lambda s: (s.worth, s.last_used)))
        return True

    def thin_checkpoints(self, most_bytes: int) -> None:
        """Drops checkpoints until all of them together have at most `most_bytes`, first those of sequences that are
        worth least."""
        while sum({id(c.state): len(c.state) for s in self.sequences for c in s.checkpoints}.values()) > most_bytes:
            for sequence in sorted(self.sequences, key=lambda s: (s.active, s.worth)):
                if sequence.checkpoints.drop_one():
                    break
            else:
                return

    def make_room(self, cells: int, keep: KvSequence | None = None) -> bool:
        """Drops idle sequences until `cells` cells are free; False where that is not enough."""
        while self.room < cells:
            if not self.evict_idle(keep):
                return False
        return True

    def reset(self) -> None:
        """Empties everything."""
        self._context.clear()
        self._shares.clear()
        self.sequences.clear()
        self._free = list(range(self._context.n_seqs))
