"""One answer in the making: its prompt, its sampler, and the way from tokens to events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from backends.chat_format.constraint import Matcher, check_answer
from backends.chat_format.events import Piece, Said
from backends.chat_format.parser import Parser
from backends.interface import (
    Delta,
    EngineError,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    PrefillProgress,
    TokenLogprob,
    Usage,
)
from backends.llamacpp.context import LlamaContext
from backends.llamacpp.detok import StopStrings, Utf8Stream
from backends.llamacpp.held_calls import HeldCalls
from backends.llamacpp.logprobs import told
from backends.llamacpp.sampling import Sampler
from backends.llamacpp.sequences import KvSequence
from backends.llamacpp.vocab import Vocab

Reason = Literal["stop", "length", "context", "cancelled"]

RESERVE_TOKENS = 256
MAX_FREE_TOKENS = 4
"""White space, and pieces that come before a text, are free for so many tokens before a constraint binds."""
EMIT_INTERVAL_S = 1 / 60
"""Deltas of one answer come at most this often."""


class Answer:
    """A request from `submit` to `Finished`. The scheduler decodes `todo` tokens; `accept` takes what was sampled."""

    def __init__(
        self,
        request: GenerateRequest,
        prompt: list[int],
        *,
        vocab: Vocab,
        parser: Parser | None,
        n_ctx: int,
        marks: Iterable[int] = (),
        turn: int = 0,
        matcher: Matcher | None = None,
        held_calls: HeldCalls | None = None,
        notices: tuple[str, ...] = (),
        remember: Callable[[Sequence[int], Sequence[int], Said], None] | None = None,
    ) -> None:
        """`parser`: None where everything is text. `n_ctx`: tokens that prompt and answer may have together. `marks`:
        how much of the prompt later ones will begin with; `turn`: see `Prompt`. Raises `EngineError` ``bad_request``
        for bad sampler settings."""
        self.request = request
        self.id = request.id
        self.prompt = np.asarray(prompt, np.int32)
        self.n_ctx = n_ctx
        self.notices = notices
        self.marks = set(marks)
        """Lengths of the prompt at which what was read is kept; a batch must end there where the model's state is
        recurrent."""
        self.turn = turn
        self.sampler = Sampler(vocab, request.sampling, prompt, matcher)
        self.counters: dict[str, float] = {}
        """The backend's, as they were when it was queued."""
        self.sequence: KvSequence | None = None
        self.generated: list[int] = []
        self.cancelled = False
        self.sent_back = False
        """It had to give up its place once, because the KV cache was full."""
        self.reused = 0
        self.restored = 0
        """Of the reused tokens those that came from the store of prompts."""
        self.started = time.perf_counter()
        self.first_token = 0.0
        self.max_tokens = request.sampling.max_tokens
        self._vocab = vocab
        self._parser = parser
        self._held_calls = held_calls if matcher is None else None
        self._holds_call = False
        """The matcher holds a call, and nothing after it."""
        self._utf8 = Utf8Stream()
        self._stops = StopStrings(request.sampling.stop)
        self._free = vocab.free_before_text(parser.fmt) if parser is not None and matcher is not None else frozenset()
        self._free_left = MAX_FREE_TOKENS
        self._said = Said()
        self._remember = remember
        self._calls = 0
        self._pending: list[Delta] = []
        self._logprobs: list[TokenLogprob] = []
        self._told_prompt: list[TokenLogprob] = []
        self._tokens_pending = 0
        self._last_emit = 0.0
        self._thinking_tokens = 0
        self._reported = -1

    @property
    def n_tokens(self) -> int:
        """Of the prompt."""
        return len(self.prompt)

    # -- tokens to decode ------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> Any:
        """All tokens that have to be in the KV cache before the next one can be sampled (int32)."""
        return np.concatenate([self.prompt, np.asarray(self.generated, np.int32)]) if self.generated else self.prompt

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def done(self) -> int:
        """Tokens that are in the KV cache."""
        return len(self.sequence.tokens) if self.sequence is not None else 0

    @property
    def todo(self) -> int:
        """Tokens to decode before the next one can be sampled; 1 while decoding, more while prefilling."""
        return self.length - self.done

    @property
    def prefilling(self) -> bool:
        return not self.generated or self.todo > 1

    @property
    def reserve(self) -> int:
        """Cells to keep free for what the answer will still grow, when it is admitted. Most answers end long before
        their limit, so no more than `RESERVE_TOKENS` are: where all grow long after all, the one that came last waits
        again and is prefilled anew."""
        left = min(self.max_tokens or RESERVE_TOKENS, self.n_ctx - len(self.prompt)) - len(self.generated)
        return max(0, min(left, RESERVE_TOKENS))

    def next_tokens(self, n: int) -> list[int]:
        """The next `n` tokens to decode."""
        done = self.done
        if done >= len(self.prompt):
            start = done - len(self.prompt)
            return self.generated[start : start + n]
        return [int(t) for t in self.tokens[done : done + n]]

    @property
    def reads_all(self) -> bool:
        """Every token of the prompt has to be computed, because it is asked how likely each was."""
        return self.request.sampling.prompt_logprobs

    def hear_prompt(self, context: LlamaContext, before: int, n: int, at: int) -> None:
        """Notes how likely the prompt's tokens were: `n` of them, from `before` on, were computed as the batch's tokens
        from `at` on."""
        top = self.request.sampling.logprobs or 0
        if before == 0:
            first = int(self.prompt[0])
            self._told_prompt.append(TokenLogprob(first, self._vocab.text(first), None))
        for i in range(n):
            if before + i + 1 < len(self.prompt):
                token = int(self.prompt[before + i + 1])
                self._told_prompt.append(told(context, self._vocab, at + i, token, top))
        if before + n >= len(self.prompt):
            self._pending.append(
                Delta(id=self.id, text="", kind="prompt", n_tokens=0, logprobs=tuple(self._told_prompt))
            )
            self._told_prompt.clear()

    # -- sampled tokens ----------------------------------------------------------------------------------------------

    def sample(self, context: LlamaContext, index: int) -> Reason | None:
        """Draws the next token from the batch's output `index`; returns why the answer ended, None if it goes on."""
        if not self.first_token:
            self.first_token = time.perf_counter()
        sampler = self.sampler
        if self._holds_call:
            token = self._draw_held(context, index)
        elif sampler.matcher is not None and self._bound():
            free = self._free if not sampler.begun and self._free_left > 0 else frozenset()
            token = sampler.draw_bound(context, index, free)
            self._free_left -= not sampler.begun
        elif sampler.matcher is not None:
            token = sampler.draw_on(context, index)
        else:
            token = sampler.draw(context, index)
        if self._vocab.is_end(token):
            return "stop"
        if self.request.sampling.logprobs is not None:
            self._logprobs.append(told(context, self._vocab, index, token, self.request.sampling.logprobs))
        over = not self._holds_call and sampler.matcher is not None and sampler.matcher.over  # only the end can follow
        return self._accept(token) or ("stop" if over else None)

    def _draw_held(self, context: LlamaContext, index: int) -> int:
        """Draws a token of a call that is held, and lets go of the call at its end."""
        try:
            token = self.sampler.draw_bound(context, index, frozenset())
        except EngineError:  # the vocabulary has no way on: better a call that is not as asked than none
            self._hold(None)
            return self.sampler.draw(context, index)
        matcher = self.sampler.matcher
        if matcher is not None and (matcher.accepting or matcher.over):
            self._hold(None)
        return token

    def _hold(self, matcher: Matcher | None) -> None:
        self.sampler.matcher, self.sampler.begun, self._holds_call = matcher, matcher is not None, matcher is not None

    def _bound(self) -> bool:
        """Whether the constraint binds the next token: not within thinking, nor in the head of a message."""
        if self.sampler.begun or self._parser is None:
            return True
        if self.phase == "boundary":
            return self._parser.fmt.protocol == "tags" or bool(self.request.tools)
        return self.phase != "thinking"

    def _accept(self, token: int) -> Reason | None:
        self.generated.append(token)
        if self.phase == "thinking":
            self._thinking_tokens += 1
        self._tokens_pending += 1
        text = self._utf8.feed(self._vocab.piece(token))
        special = self._vocab.shown.get(token)
        if special and text.endswith(special):
            self._take(text[: len(text) - len(special)])
            self._take(special, special=token)
        else:
            self._take(text)
        if self._held_calls is not None and not self._holds_call and not self._utf8.held:
            assert self._parser is not None
            self._hold(self._held_calls.begun(self._parser))
        if self._stops.stopped:
            return "stop"
        if self.max_tokens is not None and len(self.generated) >= self.max_tokens:
            return "length"
        return "context" if self.length >= self.n_ctx else None

    @property
    def phase(self) -> str:
        """Where the answer stands (`chat_format.reading.Phase`)."""
        return self._parser.phase if self._parser is not None else "answer"

    def _take(self, text: str, *, special: int | None = None) -> None:
        if not text:
            return
        if self._held_calls is not None:
            self._held_calls.saw(text, special)
        if self._parser is None:
            self._hear([Piece("answer", text)])
        else:
            self._hear(self._parser.feed(text, special=special is not None))

    def _hear(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if self._stops.stopped:
                return
            self._said.add(piece)
            if piece.kind == "answer":
                self._queue(Delta(id=self.id, text=self._stops.feed(piece.text)))
            elif piece.kind == "call":
                self._queue(Delta(id=self.id, text=self._stops.finish()))  # no stop string goes across a call
                index, self._calls = self._calls, self._calls + 1
                call_id = piece.call_id
                self._queue(Delta(id=self.id, text="", kind="call", index=index, name=piece.name, call_id=call_id))
            elif piece.kind == "call_end":
                self._queue(
                    Delta(
                        id=self.id, text=piece.raw, kind="call_end", index=self._calls - 1, call_id=piece.call_id,
                        complete=piece.complete,
                    )
                )  # fmt: skip
            else:
                self._queue(Delta(id=self.id, text=piece.text, kind=piece.kind, index=max(0, self._calls - 1)))

    def _queue(self, delta: Delta) -> None:
        if not delta.text and delta.kind in ("answer", "thinking", "arguments"):
            return
        n, self._tokens_pending = self._tokens_pending, 0
        delta = msgspec.structs.replace(delta, n_tokens=n, logprobs=tuple(self._logprobs))
        self._logprobs.clear()
        last = self._pending[-1] if self._pending else None
        if last is not None and last.joins(delta):
            self._pending[-1] = last.joined(delta)
        else:
            self._pending.append(delta)

    # -- events --------------------------------------------------------------------------------------------------------

    def progress(self) -> list[Event]:
        """How far the prompt is, if that changed."""
        done = min(self.done, len(self.prompt))
        if self.generated or done == self._reported:
            return []
        self._reported = done
        return [PrefillProgress(id=self.id, done=done, total=len(self.prompt), reused=self.reused)]

    def deltas(self, *, force: bool = False) -> list[Event]:
        """New text, at most sixty times a second unless forced."""
        if not self._pending:
            return []
        now = time.perf_counter()
        if not force and now - self._last_emit < EMIT_INTERVAL_S:
            return []
        self._last_emit = now
        events: list[Event] = list(self._pending)
        self._pending.clear()
        return events

    def finish(self, reason: Reason, counters: dict[str, float]) -> list[Event]:
        """The last text and `Finished`; `counters` as the backend has them now."""
        if not self._stops.stopped:
            rest = self._utf8.finish()
            self._take(rest if reason == "stop" else "")  # half a character is none where the answer was cut off
        if not self._stops.stopped and self._parser is not None:
            self._hear(self._parser.finish(truncated=reason != "stop"))
        self._queue(Delta(id=self.id, text=self._stops.finish()))
        self.sampler.free()
        if self._remember is not None and reason in ("stop", "length") and not self._stops.stopped:
            self._remember(self.prompt.tolist(), self.generated, self._said)
        matcher = self.sampler.matcher
        if reason == "stop" and matcher is not None and not self._stops.stopped and not self._said.calls:
            problem = check_answer(matcher.constraint, self._said.content)
            if problem is not None:
                what = f"The answer doesn't match its JSON schema ({problem})"
                return [*self.deltas(force=True), Failed(id=self.id, code="constraint", what=what, advice="try again.")]
        now = time.perf_counter()
        first = self.first_token or now
        spent = {k: counters[k] - v for k, v in self.counters.items() if k in counters}
        seen = spent.get("hits", 0) + spent.get("misses", 0)
        usage = Usage(
            prompt_tokens=len(self.prompt),
            reused_tokens=self.reused,
            restored_tokens=self.restored,
            completion_tokens=len(self.generated),
            thinking_tokens=self._thinking_tokens,
            prefill_s=first - self.started,
            decode_s=now - first,
            hit_rate=spent["hits"] / seen if seen and "hits" in spent else None,
            read_bytes=int(spent["read_bytes"]) if "read_bytes" in spent else None,
            stall_s=spent.get("stall_s"),
            seed=self.sampler.seed,
        )
        return [
            *self.deltas(force=True),
            Finished(
                id=self.id,
                reason=reason,
                usage=usage,
                tokens=tuple(self.generated),
                stop_string=self._stops.stopped_by,
            ),
        ]
