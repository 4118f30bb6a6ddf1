"""Where an answer begins: in the cache of what was read before, as far as its prompt agrees with that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.llamacpp.answer import Answer
from backends.llamacpp.context import LlamaContext
from backends.llamacpp.keeping import Keeper
from backends.llamacpp.sequences import KvBook, KvSequence, common_prefix

STORED_FROM = 16
"""The store is read where it has so many more tokens than the cache."""
GROWTH = 32
"""An answer that had to give up its place comes back when each running one can grow by so many tokens: less, and it
would be computed again to be sent away again."""


class Placer:
    """Finds a sequence for an answer, with as much of its prompt as there is."""

    def __init__(self, context: LlamaContext, book: KvBook, keeper: Keeper) -> None:
        self._context = context
        self._book = book
        self._keeper = keeper

    def place(self, answer: Answer, active: Sequence[Answer]) -> KvSequence | None:
        """None: there is no room yet."""
        tokens, book = answer.tokens, self._book
        if answer.reads_all:
            if not book.make_room(len(tokens) + answer.reserve + self._promised(answer, active)) and active:
                return None
            return book.open(answer.request.session)
        source, shared = book.longest_match(tokens)
        restored = self._restore(answer, tokens, source, shared, active)
        if restored is not None:
            return restored
        source, shared = book.longest_match(tokens)  # the attempt may have dropped what was found before
        needed = len(tokens) - shared + answer.reserve + self._promised(answer, active)
        if not book.make_room(needed, keep=source):
            if source is not None and not source.active:
                return self._place_without(answer, source, active)
            if active:
                return None  # an active answer will end and make room
        if source is None or not shared:
            return book.open(answer.request.session)
        if self._goes_on_in(source, shared):
            return self._take_over(answer, source, shared)
        return self._branch(answer, source, shared)

    def _restore(
        self, answer: Answer, tokens: Any, source: KvSequence | None, shared: int, active: Sequence[Answer]
    ) -> KvSequence | None:
        store = self._keeper.store
        if store is None:
            return None
        node, length = store.longest(tokens, len(tokens) - 1)
        if node is None or length < shared + STORED_FROM:
            return None
        needed = max(node.end, len(tokens)) + answer.reserve + self._promised(answer, active)
        if not self._book.make_room(needed - shared, keep=source) and active:
            return None
        sequence = self._keeper.restore(node, length, answer.request.session, source)
        if sequence is not None:
            answer.restored = len(sequence.tokens) - shared
        return sequence

    def _promised(self, answer: Answer, active: Sequence[Answer]) -> int:
        """Cells that are free now but that running answers will fill: with the rest of their prompts, and, where
        `answer` was sent back before, with what they grow until it has grown itself."""
        rest = sum(other.todo for other in active if other.prefilling)
        if not answer.sent_back:
            return rest
        return rest + len(active) * (GROWTH + answer.length // self._context.n_batch)

    def _goes_on_in(self, source: KvSequence, shared: int) -> bool:
        """Whether an idle sequence becomes the answer's own: all of its prompt agrees, its answer alone may be cut
        off."""
        return not source.active and shared >= (source.prompt or len(source.tokens))

    def _take_over(self, answer: Answer, source: KvSequence, shared: int) -> KvSequence:
        source.active, source.session = True, answer.request.session
        self._book.truncate(source, shared)
        return source

    def _place_without(self, answer: Answer, source: KvSequence, active: Sequence[Answer]) -> KvSequence | None:
        """There is no room beside the idle sequence that shares the prefix: the answer takes it over."""
        agreed = min(common_prefix(np.asarray(source.tokens, np.int32), answer.tokens), answer.length - 1)
        needed = answer.length - agreed + answer.reserve + self._promised(answer, active)
        if active and self._book.room + len(source.tokens) - agreed < needed:
            return None
        return self._take_over(answer, source, agreed)

    def _branch(self, answer: Answer, source: KvSequence, shared: int) -> KvSequence | None:
        held, source.active = source.active, True  # it must not be evicted to make place for its own branch
        try:
            target = self._book.open(answer.request.session)
        finally:
            source.active = held
        if target is not None:
            self._book.share(source, target, shared)
        elif not source.active:
            return self._take_over(answer, source, shared)
        return target
