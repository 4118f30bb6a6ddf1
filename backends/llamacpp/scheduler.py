"""Continuous batching: every step decodes one batch with the next token of each answer and a share of waiting prompts.

Greedy answers are those of one sequence alone up to llama.cpp's own rounding: its kernels sum in another order when a
batch has another width (llamafile's matrix product for F32, F16 and Q8_0; flash attention that splits the KV cache), so
that logits may differ in the last bits and a tie may break the other way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from backends.interface import EngineError, Event, Failed, PrefillProgress
from backends.llamacpp.answer import Answer, Reason
from backends.llamacpp.batch_plan import Plan, even_plan, mixed_plan
from backends.llamacpp.context import Batch, DecodeResult, LlamaContext
from backends.llamacpp.keeping import Keeper
from backends.llamacpp.pass_meter import PassMeter
from backends.llamacpp.placing import Placer
from backends.llamacpp.prompt_cut import Deadline, PromptCut
from backends.llamacpp.prompt_store import PromptStore
from backends.llamacpp.sequences import KvBook, common_prefix

WAIT_FOR_PREFIX = 64
"""A prompt waits for a running prefill that will have so many more tokens of it."""


class Scheduler:
    """Runs answers over one context. `cancel` is thread-safe, everything else belongs to one thread."""

    def __init__(
        self,
        context: LlamaContext,
        counters: Callable[[], dict[str, float]],
        max_active: int,
        *,
        store: PromptStore | None = None,
        kept_bytes: int = 0,
        min_kept: int = 0,
        max_stall_s: float | None = None,
        passes: PassMeter | None = None,
    ) -> None:
        """`counters`: the backend's (hits, misses, read_bytes, stall_s), as far as it has them. `store`, `kept_bytes`,
        `min_kept`: see `Keeper`; with 0 bytes nothing is kept of a prompt whose answer has ended. `max_stall_s`: the
        longest that answers wait for another one's prompt; None for no limit. `passes`: times passes, where no hook
        does."""
        self.context = context
        self.book = KvBook(context, keeps_idle=kept_bytes > 0)
        self.keeper = Keeper(context, self.book, store, kept_bytes, min_kept)
        self._placer = Placer(context, self.book, self.keeper)
        self.max_active = max_active
        self.waiting: deque[Answer] = deque()
        self.active: list[Answer] = []
        self.cut = PromptCut(max_stall_s)
        self._passes = passes
        self._decoders_waited = False
        """The last batch had no token of the answers that are being decoded, or was stopped."""
        self.prefill_tokens = self.decode_tokens = self.reused_tokens = self.restored_tokens = 0
        self.prefill_s = self.decode_s = 0.0
        self._counters = counters
        self._lock = threading.Lock()
        self._cancelled: set[str] = set()
        self._known: set[str] = set()
        self._in_batch: dict[str, int] = {}
        self._prefilling: list[tuple[Answer, int]] = []
        """Prompts in the batch that is being computed, with their tokens in it."""

    # -- requests ------------------------------------------------------------------------------------------------------

    def submit(self, answer: Answer) -> None:
        """Queues an answer. Raises `EngineError` ``bad_request`` where its id is in use."""
        with self._lock:
            if answer.id in self._known:
                answer.sampler.free()
                raise EngineError("bad_request", f"A request with the id {answer.id} is running already.")
            self._known.add(answer.id)
        self.waiting.append(answer)

    def cancel(self, request_id: str) -> None:
        """Stops an answer: at once where the batch that is being computed is mostly its, else after that batch."""
        with self._lock:
            if request_id not in self._known:
                return
            self._cancelled.add(request_id)
            own, total = self._in_batch.get(request_id, 0), sum(self._in_batch.values())
            alone = len(self._in_batch) == 1
            if own and (alone or (own * 2 > total and not self.context.recurrent)):
                self.context.abort.set()

    def prefill_progress(self, passes: PassMeter, emit: Callable[[PrefillProgress], None]) -> None:
        """Tells of each prompt in the batch that is being computed how far it is; thread-safe. Nothing is told once the
        batch has ended: its answers come first then."""
        with self._lock:
            if not passes.running:
                return
            share, whole = passes.share(), passes.pass_s()
            for answer, n in self._prefilling:
                done, total = answer.done, len(answer.prompt)
                left = None
                if whole is not None:
                    passes_after = -(-max(0, total - done - n) // max(1, n))
                    left = whole * (1 - share + passes_after)
                told = min(total, done + int(n * share))
                emit(PrefillProgress(id=answer.id, done=told, total=total, reused=answer.reused, eta_s=left))

    def running_prompt(self, passes: PassMeter) -> tuple[float, float]:
        """(tokens, seconds) of prompts that the running batch has computed so far, by its layers; thread-safe."""
        with self._lock:
            tokens = sum(n for _, n in self._prefilling)
            if not tokens:
                return 0.0, 0.0
            return tokens * passes.share(), passes.elapsed_s()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.active)

    # -- a step --------------------------------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Advances every active answer by one batch."""
        events: list[Event] = []
        self.context.abort.clear()
        self._drop_cancelled(events)
        self._admit(events)
        batch, parts = self._compose(events)
        if not parts:
            return events
        with self._lock:
            if any(answer.id in self._cancelled for answer, _, _ in parts):
                return events  # the next step drops it
            self._in_batch = {answer.id: n for answer, n, _ in parts}
            self._prefilling = [(a, n) for a, n, _ in parts if a.prefilling and not a.generated]
        held_up, prompts = self._held_up(parts)
        # where sequences can't be cut back a pass that is stopped would have to be computed again from their start
        cut = held_up and prompts > 1 and self.cut.max_s is not None and not self.context.recurrent
        limit = self.cut.deadline_s if cut else None
        deadline = Deadline(limit, self.context.abort)
        if self._passes is not None:
            self._passes.begin(len(batch))
        try:
            with deadline:
                result = self.context.decode(batch)
        except EngineError as error:
            self._fail_all(parts, error, events)
            return events
        finally:
            with self._lock:
                if self._passes is not None:
                    self._passes.end()
                self._in_batch = {}
                self._prefilling = []
        if deadline.passed and result.status == "cancelled":
            self.cut.overran(prompts)
            self._decoders_waited = True
        elif held_up:
            self.cut.took(prompts, result.seconds)
        elif not prompts and result.status == "ok":
            self.cut.stepped(result.seconds)
        self._count(parts, result)
        if result.status == "ok":
            self._advance(batch, parts, events)
        else:
            self._recover(parts, result, events)
        return events

    def _held_up(self, parts: list[tuple[Answer, int, int]]) -> tuple[bool, int]:
        """(whether answers that are being decoded wait for this batch, tokens of prompts in it)"""
        prompts = sum(n for answer, n, _ in parts if answer.prefilling)
        return bool(prompts) and any(not answer.prefilling for answer in self.active), prompts

    def _plan(self) -> Plan:
        """Tokens of each answer for the next batch. While some decode, prompts get so many that these don't stall
        longer than they may; alone, as many as a batch holds."""
        context, active = self.context, self.active
        decoding = sum(not answer.prefilling for answer in active)
        most = context.n_batch
        if decoding and decoding < len(active) and self.cut.max_s is not None:
            if self._decoders_waited and not context.own_caches:
                return [(answer, 1) for answer in active if not answer.prefilling][:most]
            most = min(most, decoding + self.cut.tokens(decoding))
        if not context.own_caches:
            return mixed_plan(active, most, recurrent=context.recurrent)
        if most < context.n_batch and self._decoders_waited:
            return even_plan(active, 0)  # a block of prompts goes without the others: these have the next pass
        return even_plan(active, most)

    def _drop_cancelled(self, events: list[Event]) -> None:
        with self._lock:
            gone, self._cancelled = self._cancelled, set()
        for answer in [a for a in (*self.active, *self.waiting) if a.id in gone]:
            self._finish(answer, "cancelled", events)

    # -- admission -----------------------------------------------------------------------------------------------------

    def _admit(self, events: list[Event]) -> None:
        if self.context.own_caches:
            # before new prompts come, which then follow each other and can be prefilled together
            self.book.close_gaps([a.sequence for a in self.active if a.sequence is not None and a.todo > 1])
        for answer in list(self.waiting):
            if len(self.active) >= self.max_active:
                return
            if self._worth_waiting(answer):
                continue
            sequence = self._placer.place(answer, self.active)
            if sequence is None:
                return
            self.waiting.remove(answer)
            answer.sequence = sequence
            self.keeper.before_prompt(answer)
            if not answer.generated:
                answer.reused = len(sequence.tokens)
                self.reused_tokens += answer.reused - answer.restored
                self.restored_tokens += answer.restored
            self.active.append(answer)
            events += answer.progress()

    def _worth_waiting(self, answer: Answer) -> bool:
        """Whether a running prefill will soon have a prefix of this prompt that would be computed twice otherwise."""
        for other in self.active if not answer.reads_all else ():
            if other.prefilling:
                ahead = min(common_prefix(other.prompt, answer.prompt), len(answer.prompt) - 1)
                if ahead - other.done >= WAIT_FOR_PREFIX:
                    other.marks.add(ahead)
                    return True
        return False

    # -- the batch -----------------------------------------------------------------------------------------------------

    def _compose(self, events: list[Event]) -> tuple[Batch, list[tuple[Answer, int, int]]]:
        """The batch and, for each answer in it, its number of tokens and the index of its output (-1: none yet)."""
        while True:
            plan = self._plan()
            if self.book.make_room(sum(n for _, n in plan)):
                break
            if not self._preempt(events):
                return Batch(), []
        batch, parts = Batch(), []
        for answer, n in plan:
            assert answer.sequence is not None
            position, index, last = answer.done, -1, n == answer.todo
            for i, token in enumerate(answer.next_tokens(n)):
                output = (last and i == n - 1) or (answer.reads_all and position < len(answer.prompt))
                index = batch.add(token, position + i, answer.sequence.seq_id, output)
            parts.append((answer, n, index if last else -1))
        decoding = [answer for answer in self.active if not answer.prefilling]
        self._decoders_waited = bool(decoding) and all(answer.prefilling for answer, _ in plan)
        batch.more = len(self.active) == len(parts) == 1 and not self.waiting and parts[0][2] < 0
        return batch, parts

    def _preempt(self, events: list[Event]) -> bool:
        """Makes room while nothing is idle: the answer that started last waits again. False: there is only one, which
        ends because the context is full."""
        if not self.active:
            return False
        answer = self.active[-1]
        if len(self.active) == 1:
            self._finish(answer, "context", events)
            return False
        assert answer.sequence is not None
        self.book.release(answer.sequence)
        answer.sequence, answer.sent_back = None, True
        self.active.remove(answer)
        self.waiting.appendleft(answer)
        return True

    # -- results -------------------------------------------------------------------------------------------------------

    def _count(self, parts: list[tuple[Answer, int, int]], result: DecodeResult) -> None:
        prefill = sum(n for answer, n, _ in parts if answer.prefilling)
        if result.status == "ok":
            self.prefill_tokens += prefill
            self.decode_tokens += sum(n for _, n, _ in parts) - prefill
        if prefill:
            self.prefill_s += result.seconds
        else:
            self.decode_s += result.seconds

    def _advance(self, batch: Batch, parts: list[tuple[Answer, int, int]], events: list[Event]) -> None:
        at = 0
        for answer, n, index in parts:
            assert answer.sequence is not None
            before = answer.done
            self.book.append(answer.sequence, batch.tokens[at : at + n])
            if answer.reads_all and before < len(answer.prompt):
                answer.hear_prompt(self.context, before, n, at)
            at += n
            self.keeper.after_batch(answer, before)
            events += answer.progress()
            if index < 0:
                continue
            try:
                reason = answer.sample(self.context, index)
            except EngineError as error:
                self._fail(answer, error, events)
                continue
            if reason is not None:
                self._finish(answer, reason, events)
            else:
                events += answer.deltas()

    def _recover(self, parts: list[tuple[Answer, int, int]], result: DecodeResult, events: list[Event]) -> None:
        """A batch left nothing behind. Sequences that were lost start over."""
        for answer, _, _ in parts:
            sequence = answer.sequence
            if sequence is not None and sequence.seq_id in result.lost:
                self.book.empty(sequence)
        if result.status == "no_room" and not self.book.evict_idle() and not self._preempt(events) and self.active:
            raise EngineError("internal", "The KV cache has no room for a batch though it should", "see the log.")

    def _fail_all(self, parts: list[tuple[Answer, int, int]], error: EngineError, events: list[Event]) -> None:
        for answer, _, _ in parts:
            if answer.sequence is not None and self.context.length(answer.sequence.seq_id) < answer.done:
                self.book.empty(answer.sequence)
            self._fail(answer, error, events)

    def _fail(self, answer: Answer, error: EngineError, events: list[Event]) -> None:
        answer.sampler.free()
        self._let_go(answer)
        events.append(Failed.of(answer.id, error))

    def _finish(self, answer: Answer, reason: Reason, events: list[Event]) -> None:
        events += answer.finish(reason, self._counters())
        if answer.request.messages is not None and reason in ("stop", "length"):
            self.keeper.after_answer(answer)
        self._let_go(answer)

    def _let_go(self, answer: Answer) -> None:
        with self._lock:
            self._known.discard(answer.id)
            self._cancelled.discard(answer.id)
        if answer in self.active:
            self.active.remove(answer)
        if answer in self.waiting:
            self.waiting.remove(answer)
        sequence, answer.sequence = answer.sequence, None
        if sequence is not None:
            sequence.prompt = min(max(answer.marks, default=len(answer.prompt)), len(sequence.tokens))
            self.book.park(sequence)

    def close(self) -> None:
        """Forgets every request and every sequence."""
        for answer in (*self.active, *self.waiting):
            answer.sampler.free()
        self.active.clear()
        self.waiting.clear()
        with self._lock:
            self._known.clear()
            self._cancelled.clear()
        self.book.reset()
