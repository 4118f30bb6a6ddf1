"""OpenAI's objects for chat and text completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from backends.interface import Delta, EngineError, Finished, TokenLogprob, Usage
from flashmoe.openai.said import Block, Said, total

Frame = tuple[str | None, dict[str, Any]]
"""A server-sent event: its name, where the API names them, and its data."""

_REASONS = {"stop": "stop", "length": "length", "context": "length", "cancelled": "stop"}


def finish_reason(event: Finished, said: Said | None = None) -> str:
    """OpenAI's word for how an answer ended."""
    return "tool_calls" if said is not None and said.called else _REASONS[event.reason]


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object, plus what this engine measured under ``flashmoe`` (null where unknown)."""
    known = usage.prompt_tokens is not None and usage.completion_tokens is not None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": (usage.prompt_tokens or 0) + (usage.completion_tokens or 0) if known else None,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
        "flashmoe": {
            "prefill_s": usage.prefill_s, "decode_s": usage.decode_s, "hit_rate": usage.hit_rate,
            "read_bytes": usage.read_bytes, "stall_s": usage.stall_s, "seed": usage.seed,
            "restored_tokens": usage.restored_tokens,
        },
    }  # fmt: skip


def engine_error(e: EngineError) -> dict[str, Any]:
    """An engine's error in OpenAI's shape, with the words and codes that clients look for."""
    if e.code == "prompt_too_long":
        counted = f"However, your messages resulted in {e.tokens} tokens. " if e.tokens is not None else ""
        limit = f"This model's maximum context length is {e.limit} tokens. " if e.limit is not None else ""
        body = {"message": limit + counted + e.message, "type": "invalid_request_error"}
        return {"error": {**body, "param": "messages", "code": "context_length_exceeded"}}
    asked = e.code in ("bad_request", "bad_template", "unsupported", "context_too_large")
    kind = "invalid_request_error" if asked else "server_error"
    return {"error": {"message": e.message, "type": kind, "param": None, "code": e.code}}


class Shape:
    """Builds the objects of one response to a chat or text completion."""

    def __init__(
        self,
        *,
        chat: bool,
        id: str,
        created: int,
        model: str,
        n: int = 1,
        include_usage: bool = False,
        top_logprobs: int | None = None,
        echo: tuple[str, ...] = (),
        nothing: bool = False,
    ) -> None:
        """`n`: answers. `echo`: the prompt of each, where it is to be told again. `nothing`: of the answers themselves
        nothing was asked for."""
        self._chat = chat
        self._head_of = {"id": id, "created": created, "model": model}
        self.said = [Said() for _ in range(n)]
        self._include_usage = include_usage
        self._top = top_logprobs
        self._echo = echo
        self._nothing = nothing
        self._offsets = [0] * n

    def _head(self, kind: str) -> dict[str, Any]:
        return {"object": kind, **self._head_of}

    # -- whole ---------------------------------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The response, once every answer has finished."""
        kind = "chat.completion" if self._chat else "text_completion"
        choices = [self._choice(i, said) for i, said in enumerate(self.said)]
        return {**self._head(kind), "choices": choices, "usage": usage_of(self._usage())}

    def _usage(self) -> Usage:
        return total([said.finished.usage for said in self.said if said.finished is not None])

    def _choice(self, index: int, said: Said) -> dict[str, Any]:
        assert said.finished is not None
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason(said.finished, said)}
        if not self._chat:
            echo = self._echo[index] if self._echo else ""
            choice["text"] = echo if self._nothing else echo + said.thinking + said.answer
            tokens = [] if self._nothing else said.logprobs
            choice["logprobs"] = self._text_logprobs(index, [*said.prompt_logprobs, *tokens])
            return choice
        message: dict[str, Any] = {"role": "assistant", "content": said.answer or (None if said.calls else "")}
        if said.thinking:
            message["reasoning_content"] = said.thinking
        if said.calls:
            message["tool_calls"] = [
                {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.text}}
                for c in said.calls
            ]
        choice["message"] = message
        choice["logprobs"] = self._chat_logprobs(said.logprobs)
        return choice

    # -- in chunks -----------------------------------------------------------------------------------------------------

    def opening(self, prompt_tokens: Sequence[int]) -> Iterator[Frame]:
        """What comes before any text; `prompt_tokens` of each answer."""
        for index in range(len(self.said)):
            if self._chat:
                yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
            elif self._echo and not self._top:
                yield self._chunk(index, {"text": self._echo[index]})

    def delta(self, index: int, delta: Delta) -> Iterator[Frame]:
        """What one delta adds to an answer."""
        heard = self.said[index].hear(delta)
        shown = self._chat_logprobs(list(delta.logprobs)) if self._chat else None
        if self._nothing and delta.kind != "prompt":
            return
        if not self._chat:
            text = self._echo[index] if delta.kind == "prompt" and self._echo else heard[2] if heard else ""
            told = self._text_logprobs(index, list(delta.logprobs))
            if text or told:
                yield self._chunk(index, {"text": text, "logprobs": told})
        elif heard is not None:
            yield self._chunk(index, {"delta": self._chat_delta(index, delta, *heard), "logprobs": shown})

    def _chat_delta(self, index: int, delta: Delta, block: Block, place: int, text: str) -> dict[str, Any]:
        if block.kind == "answer":
            return {"content": text}
        if block.kind == "thinking":
            return {"reasoning_content": text}
        at = sum(1 for b in self.said[index].blocks[:place] if b.kind == "call")
        if delta.kind == "call":
            function = {"name": block.name, "arguments": ""}
            return {"tool_calls": [{"index": at, "id": block.call_id, "type": "function", "function": function}]}
        return {"tool_calls": [{"index": at, "function": {"arguments": text}}]}

    def finished(self, index: int, event: Finished) -> Iterator[Frame]:
        """The end of one answer, and of all of them what they took."""
        said = self.said[index]
        said.finished = event
        last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        yield self._chunk(index, last, finish_reason(event, said))
        if self._include_usage and all(s.finished is not None for s in self.said):
            yield None, {**self._chunk_head(), "choices": [], "usage": usage_of(self._usage())}

    def _chunk_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self._chat else "text_completion")

    def _chunk(self, index: int, what: dict[str, Any], reason: str | None = None) -> Frame:
        choice = {"index": index, "logprobs": None, "finish_reason": reason, **what}
        return None, {**self._chunk_head(), "choices": [choice]}

    def failed(self, e: EngineError) -> Frame:
        """An error in the middle of a stream."""
        return None, engine_error(e)

    end = b"data: [DONE]\n\n"

    # -- what is told of tokens ----------------------------------------------------------------------------------------

    def _chat_logprobs(self, tokens: list[TokenLogprob]) -> dict[str, Any] | None:
        if self._top is None:
            return None
        content = [{**_told(t), "top_logprobs": [_told(other) for other in t.top[: self._top]]} for t in tokens]
        return {"content": content, "refusal": None}

    def _text_logprobs(self, index: int, tokens: list[TokenLogprob]) -> dict[str, Any] | None:
        if self._top is None or not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.shown)
        return {
            "tokens": [t.shown for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [
                None if t.logprob is None else {other.shown: other.logprob for other in t.top[: self._top]}
                for t in tokens
            ],
            "text_offset": offsets,
        }


def _told(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.shown, "logprob": token.logprob, "bytes": list(token.text)}
