"""What of a prompt is kept while it is read, so that the next one that begins alike goes on from there."""

from __future__ import annotations

import numpy as np

from backends.llamacpp.answer import Answer
from backends.llamacpp.context import LlamaContext
from backends.llamacpp.prompt_store import Node, PromptStore
from backends.llamacpp.sequences import KvBook, KvSequence, common_prefix
from backends.llamacpp.slices import put_slices, read_slice, window_before

CHECKPOINT_EVERY = 4096
"""Tokens of a long prompt between two states to go back to, where the model needs such: each may have 200 MiB."""
STORE_EVERY = 1024
"""Tokens of a long prompt that go to the store together."""
MIN_PART = 16
"""Fewer tokens aren't worth a part of their own in the store."""
MIN_ANSWER = 48
"""Fewer tokens since what was kept before (what opened an answer, and the answer) are computed again with the prompt
that follows, where nothing but the store has them."""


class Keeper:
    """Takes checkpoints and fills the store, at the marks of each prompt and every so many tokens between them."""

    def __init__(
        self,
        context: LlamaContext,
        book: KvBook,
        store: PromptStore | None,
        checkpoint_bytes: int,
        min_tokens: int = 0,
    ) -> None:
        """`store`: None keeps nothing beyond the sequences that are in the cache. `min_tokens`: shorter prompts don't
        go there."""
        self._min = min_tokens
        self._context = context
        self._book = book
        self.store = store
        self._most = checkpoint_bytes
        self._every = CHECKPOINT_EVERY if context.partial else STORE_EVERY

    def before_prompt(self, answer: Answer) -> None:
        """An answer has its sequence: where its last message begins far behind the last state that there is, one is
        kept there, too, for the question that comes in this one's place."""
        sequence, context = answer.sequence, self._context
        if sequence is None or not context.partial or self._most <= 0 or answer.turn <= len(sequence.tokens):
            return
        # a batch ends there, which is a pass more: dear where the experts are read for each
        if self._since(sequence, answer.turn) >= (MIN_ANSWER if context.hook is None else context.n_batch):
            answer.marks.add(answer.turn)

    def after_batch(self, answer: Answer, before: int) -> None:
        """Part of a prompt was computed: the sequence had `before` tokens and has more now."""
        sequence, done = answer.sequence, min(answer.done, len(answer.prompt))
        if sequence is None or self._most <= 0 or before >= len(answer.prompt) or self._context.own_caches:
            return
        for mark in sorted(m for m in answer.marks if before < m <= done):
            self._keep(sequence, mark)
        if self._since(sequence, done) >= self._every and done == len(sequence.tokens):
            self._keep(sequence, done)

    def after_answer(self, answer: Answer) -> None:
        """An answer ended: the next prompt of its conversation begins with its prompt and what it says."""
        sequence = answer.sequence
        if sequence is None or self._most <= 0 or self._context.own_caches:
            return
        if self._since(sequence, len(sequence.tokens)) >= MIN_ANSWER:
            self._keep(sequence, len(sequence.tokens))

    def _since(self, sequence: KvSequence, at: int) -> int:
        """Tokens before `at` that would have to be computed again."""
        if self._context.partial:
            last = sequence.checkpoints.before(at)
            return at - (last.length if last is not None else 0)
        return at - sequence.stored if self.store is not None else 0

    def _keep(self, sequence: KvSequence, at: int) -> None:
        state = self._checkpoint(sequence, at) if self._context.partial else None
        if self.store is None or at < self._min:
            return
        tokens = np.asarray(sequence.tokens[:at], np.int32)
        known = self.store.last_within(tokens)
        sequence.stored = known.end
        if at - known.end < MIN_PART:
            return
        part = read_slice(self._context, sequence.seq_id, known.end, at, state)
        if part is not None:
            self.store.add(known, tokens[known.end :], part, sequence.session)
            sequence.stored = at

    def _checkpoint(self, sequence: KvSequence, at: int) -> bytes | None:
        known = sequence.checkpoints.before(at)
        if known is not None and known.length == at:
            return known.state
        if at == len(sequence.tokens):
            state = self._context.get_partial_state(sequence.seq_id)
        elif self._context.recurrent:
            return None
        else:
            state = window_before(self._context, sequence.seq_id, at)
        if state is not None:
            sequence.checkpoints.add(at, state)
            self._book.thin_checkpoints(self._most)
        return state

    def restore(self, node: Node, length: int, session: str | None, base: KvSequence | None) -> KvSequence | None:
        """A new sequence with the first `length` tokens of what the store has up to a node; what `base` has of them
        isn't read. None where the store has them no more, or the cache no room."""
        assert self.store is not None
        chain, book = node.chain(), self._book
        agreed = 0
        if base is not None:
            tokens = np.concatenate([each.tokens for each in chain])
            agreed = common_prefix(np.asarray(base.tokens, np.int32), tokens)
        start = max((each.end for each in chain if each.end <= agreed), default=0)
        # the last one is read in any case: `base` may have all of its cells, but not the state after them any more
        slices = self.store.slices(node, min(start, node.start))
        if not slices:
            return None
        held = base.active if base is not None else False
        if base is not None:
            base.active = True  # it must not be evicted for what begins with it
        try:
            sequence = book.open(session) if book.make_room(node.end - start) else None
        finally:
            if base is not None:
                base.active = held
        if sequence is None:
            # where the base has the only number that is free, it gives way to what is read whole
            return None if base is None or held else self.restore(node, length, session, None)
        if base is not None and start:
            book.begin_with(base, sequence, start)
        if put_slices(self._context, sequence.seq_id, slices, start) != node.end:
            book.release(sequence)
            return None
        for each in chain:
            if each.start >= start:
                book.append(sequence, (int(t) for t in each.tokens))
        for part in slices:
            if part.last is not None:
                sequence.checkpoints.add(part.end, part.last)
        book.thin_checkpoints(self._most)
        sequence.stored = node.end
        book.truncate(sequence, length)
        return sequence
