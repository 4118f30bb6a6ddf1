"""Anthropic's message objects, whole and as events of a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from backends.interface import Delta, EngineError, Finished, Usage
from flashmoe.openai.responses import Frame
from flashmoe.openai.said import Block, Said

_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def error_body(status: int, message: str) -> dict[str, Any]:
    """An error in Anthropic's shape."""
    other = "api_error" if status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": _TYPES.get(status, other), "message": message}}


def engine_message(e: EngineError) -> str:
    """An engine's error with the words that clients look for."""
    if e.code != "prompt_too_long":
        return e.message
    counts = f"{e.tokens} tokens > {e.limit} maximum. " if e.tokens is not None and e.limit is not None else ""
    return f"prompt is too long: {counts}{e.message}"


def usage_of(usage: Usage | None) -> dict[str, Any]:
    """The usage object: `input_tokens` are those that were computed, as this API counts them."""
    prompt, reused = (usage.prompt_tokens or 0, usage.reused_tokens or 0) if usage is not None else (0, 0)
    return {
        "input_tokens": prompt - reused,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reused,
        "output_tokens": (usage.completion_tokens or 0) if usage is not None else 0,
    }


class MessageShape:
    """Builds the objects of one response."""

    def __init__(self, *, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self.said = [Said()]
        self._open: int | None = None

    def _message(self, content: list[dict[str, Any]], reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content,
            "stop_reason": reason, "stop_sequence": self._stop_sequence(reason), "usage": usage,
        }  # fmt: skip

    def _stop_sequence(self, reason: str | None) -> str | None:
        finished = self.said[0].finished
        return finished.stop_string if finished is not None and reason == "stop_sequence" else None

    def _reason(self) -> str:
        said = self.said[0]
        if said.called:
            return "tool_use"
        if said.reason == "length":
            return "max_tokens"
        return "stop_sequence" if said.finished is not None and said.finished.stop_string else "end_turn"

    def whole(self) -> dict[str, Any]:
        """The message, once it has finished."""
        said = self.said[0]
        assert said.finished is not None
        return self._message([_block(b) for b in said.blocks], self._reason(), usage_of(said.finished.usage))

    def opening(self, prompt_tokens: Sequence[int]) -> Iterator[Frame]:
        """``message_start``."""
        usage = {**usage_of(None), "input_tokens": sum(prompt_tokens)}
        yield "message_start", {"type": "message_start", "message": self._message([], None, usage)}
        yield "ping", {"type": "ping"}

    def delta(self, index: int, delta: Delta) -> Iterator[Frame]:
        """Blocks that begin, grow and end."""
        heard = self.said[0].hear(delta)
        if heard is None:
            return
        block, place, text = heard
        if place != self._open:
            yield from self._close()
            self._open = place
            start = {"type": "content_block_start", "index": place, "content_block": _empty(block)}
            yield "content_block_start", start
        if text:
            yield "content_block_delta", {"type": "content_block_delta", "index": place, "delta": _delta(block, text)}

    def _close(self) -> Iterator[Frame]:
        if self._open is None:
            return
        place, self._open = self._open, None
        if self.said[0].blocks[place].kind == "thinking":
            signature = {"type": "signature_delta", "signature": ""}
            yield "content_block_delta", {"type": "content_block_delta", "index": place, "delta": signature}
        yield "content_block_stop", {"type": "content_block_stop", "index": place}

    def finished(self, index: int, event: Finished) -> Iterator[Frame]:
        """``message_delta`` with the reason and what it took, then ``message_stop``."""
        self.said[0].finished = event
        yield from self._close()
        reason = self._reason()
        end = {"stop_reason": reason, "stop_sequence": self._stop_sequence(reason)}
        yield "message_delta", {"type": "message_delta", "delta": end, "usage": usage_of(event.usage)}
        yield "message_stop", {"type": "message_stop"}

    def failed(self, e: EngineError) -> Frame:
        """An error in the middle of a stream."""
        return "error", error_body(503 if e.code == "engine_died" else 500, engine_message(e))

    end = b""


def _block(block: Block) -> dict[str, Any]:
    if block.kind == "answer":
        return {"type": "text", "text": block.text}
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    arguments: Any = {}
    with contextlib.suppress(msgspec.DecodeError):
        arguments = msgspec.json.decode(block.text)
    used = arguments if isinstance(arguments, dict) else {}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": used}


def _empty(block: Block) -> dict[str, Any]:
    if block.kind == "call":
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}
    return {"type": "text", "text": ""} if block.kind == "answer" else _block(Block("thinking"))


def _delta(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "answer":
        return {"type": "text_delta", "text": text}
    if block.kind == "thinking":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "input_json_delta", "partial_json": text}
