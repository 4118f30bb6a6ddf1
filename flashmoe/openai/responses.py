"""OpenAI's response objects for chat and text completions, whole and in chunks."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from backends.chat_format.events import Said
from backends.interface import Delta, Finished

_REASONS = {"stop": "stop", "length": "length", "context": "length", "cancelled": "stop"}


def finish_reason(event: Finished, *, called: bool = False) -> str:
    """OpenAI's word for how an answer ended; `called`: it holds whole tool calls."""
    return "tool_calls" if called and event.reason == "stop" else _REASONS[event.reason]


def call_id(response_id: str, index: int, given: str | None) -> str:
    """A call's id: the model's own, else one made of the response's."""
    return given or f"call_{response_id.rpartition('-')[2]}_{index}"


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

    def whole(self, said: Said, event: Finished) -> dict[str, Any]:
        called = any(c.complete for c in said.calls)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason(event, called=called), "logprobs": None}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": said.content}
            if said.thinking:
                choice["message"]["reasoning_content"] = said.thinking
            if said.calls:
                choice["message"]["content"] = said.content or None
                choice["message"]["tool_calls"] = [
                    {
                        "id": call_id(self.id, i, c.call_id),
                        "type": "function",
                        "function": {"name": c.name, "arguments": c.arguments},
                    }
                    for i, c in enumerate(said.calls)
                ]
        else:
            choice["text"] = said.thinking + said.content
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": usage_of(event)}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        body = {**self._head(kind), "choices": choices}
        return body if usage is None else {**body, "usage": usage}

    def opening(self) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def delta(self, event: Delta) -> dict[str, Any] | None:
        """The chunk of a delta; None where it says nothing in this form."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
        if not self.chat:
            choice["text"] = event.text
            return self._chunk([choice]) if event.kind in ("answer", "thinking") else None
        match event.kind:
            case "call":
                function = {"name": event.name, "arguments": ""}
                identity = call_id(self.id, event.index, event.call_id)
                call = {"index": event.index, "id": identity, "type": "function", "function": function}
                choice["delta"] = {"tool_calls": [call]}
            case "arguments":
                choice["delta"] = {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
            case "call_end":
                return None
            case _:
                choice["delta"] = {"reasoning_content" if event.kind == "thinking" else "content": event.text}
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
