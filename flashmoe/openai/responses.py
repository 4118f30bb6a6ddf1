"""OpenAI's response objects for chat and text completions, whole and in chunks."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from backends.interface import Finished

_REASONS = {"stop": "stop", "length": "length", "context": "length", "cancelled": "stop"}


def finish_reason(event: Finished) -> str:
    return _REASONS[event.reason]


def usage_of(event: Finished) -> dict[str, Any]:
    """OpenAI's usage object, plus what this engine measured under ``flashmoe`` (null where unknown)."""
    u = event.usage
    known = u.prompt_tokens is not None and u.completion_tokens is not None
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "total_tokens": (u.prompt_tokens or 0) + (u.completion_tokens or 0) if known else None,
        "prompt_tokens_details": {"cached_tokens": u.reused_tokens},
        "completion_tokens_details": {"reasoning_tokens": u.thinking_tokens},
        "flashmoe": {
            "prefill_s": u.prefill_s, "decode_s": u.decode_s, "hit_rate": u.hit_rate,
            "read_bytes": u.read_bytes, "stall_s": u.stall_s, "seed": u.seed,
        },
    }  # fmt: skip


class Shape(Struct, frozen=True):
    """Builds the objects of one response."""

    chat: bool
    id: str
    created: int
    model: str

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self, answer: str, thinking: str, event: Finished) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason(event), "logprobs": None}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": answer}
            if thinking:
                choice["message"]["reasoning_content"] = thinking
        else:
            choice["text"] = thinking + answer
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": usage_of(event)}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        body = {**self._head(kind), "choices": choices}
        return body if usage is None else {**body, "usage": usage}

    def opening(self) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def delta(self, text: str, *, thinking: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
        if self.chat:
            choice["delta"] = {"reasoning_content" if thinking else "content": text}
        else:
            choice["text"] = text
        return self._chunk([choice])

    def closing(self, reason: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        if self.chat:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        return self._chunk([choice])

    def usage_only(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self._chunk([], usage)
