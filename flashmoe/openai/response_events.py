"""OpenAI's response objects, whole and as events of a stream, in order and numbered."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from backends.interface import ChatMessage, Delta, EngineError, Finished, ToolCall, Usage
from flashmoe.openai.response_requests import Asked
from flashmoe.openai.responses import Frame, engine_error
from flashmoe.openai.said import Block, Said

_PREFIX = {"answer": "msg", "thinking": "rs", "call": "fc"}


def usage_of(usage: Usage) -> dict[str, Any]:
    """The usage object of this API."""
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": usage.reused_tokens or 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
        "total_tokens": prompt + completion,
    }


class ResponseShape:
    """Builds the objects of one response."""

    def __init__(self, asked: Asked, *, id: str, model: str) -> None:
        self._asked = asked
        self.id = id
        self._model = model
        self._created = int(time.time())
        self._numbers = itertools.count()
        self.said = [Said()]
        self._ids: list[str] = []
        self._open: int | None = None

    # -- the response --------------------------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The response as it is now."""
        given, said = self._asked.given, self.said[0]
        done = said.finished is not None
        status = "in_progress" if not done else "incomplete" if said.reason == "length" else "completed"
        form = given.text.format if given.text is not None else None
        return {
            "id": self.id, "object": "response", "created_at": self._created, "status": status, "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": given.instructions, "max_output_tokens": given.max_output_tokens, "model": self._model,
            "output": [self._item(i, done=True) for i in range(len(said.blocks))] if done else [],
            "parallel_tool_calls": given.parallel_tool_calls is not False,
            "previous_response_id": given.previous_response_id,
            "reasoning": msgspec.to_builtins(given.reasoning) if given.reasoning else {"effort": None, "summary": None},
            "store": given.store is not False, "temperature": given.temperature, "top_p": given.top_p,
            "text": {"format": msgspec.to_builtins(form) if form is not None else {"type": "text"}},
            "tool_choice": msgspec.to_builtins(given.tool_choice) if given.tool_choice is not None else "auto",
            "tools": [{k: v for k, v in msgspec.to_builtins(t).items() if v is not None} for t in given.tools or ()],
            "truncation": "disabled", "user": given.user, "metadata": given.metadata or {},
            "usage": usage_of(said.finished.usage) if said.finished is not None else None,
        }  # fmt: skip

    def messages(self) -> tuple[ChatMessage, ...]:
        """The conversation with this answer in it, for `previous_response_id`."""
        said = self.said[0]
        calls = tuple(ToolCall(c.call_id, c.name, c.text) for c in said.calls if c.complete)
        tokens = said.finished.tokens if said.finished is not None else ()
        answer = ChatMessage("assistant", said.answer, said.thinking, tool_calls=calls, tokens=tokens)
        return (*self._asked.messages, answer)

    def _item(self, place: int, *, done: bool) -> dict[str, Any]:
        block = self.said[0].blocks[place]
        while len(self._ids) <= place:
            self._ids.append(f"{_PREFIX[self.said[0].blocks[len(self._ids)].kind]}_{uuid.uuid4().hex}")
        item: dict[str, Any] = {"id": self._ids[place]}
        status = "in_progress" if not done else "completed" if block.complete else "incomplete"
        if block.kind == "answer":
            content = [_part(block)] if done else []
            return {**item, "type": "message", "status": status, "role": "assistant", "content": content}
        if block.kind == "thinking":
            content = [_part(block)] if done else []
            return {**item, "type": "reasoning", "status": status, "summary": [], "content": content}
        arguments = block.text if done else ""
        return {
            **item, "type": "function_call", "status": status, "call_id": block.call_id, "name": block.name,
            "arguments": arguments,
        }  # fmt: skip

    # -- events --------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **data: Any) -> Frame:
        return kind, {"type": kind, "sequence_number": next(self._numbers), **data}

    def opening(self, prompt_tokens: Sequence[int]) -> Iterator[Frame]:
        """``response.created`` and ``response.in_progress``."""
        yield self._event("response.created", response=self.whole())
        yield self._event("response.in_progress", response=self.whole())

    def delta(self, index: int, delta: Delta) -> Iterator[Frame]:
        """Items that begin, grow and end."""
        heard = self.said[0].hear(delta)
        if heard is None:
            return
        block, place, text = heard
        if place != self._open:
            yield from self._close()
            self._open = place
            yield self._event("response.output_item.added", output_index=place, item=self._item(place, done=False))
            if block.kind != "call":
                empty = _part(Block(block.kind))
                yield self._event("response.content_part.added", **self._at(place), content_index=0, part=empty)
        if not text:
            return
        if block.kind == "call":
            yield self._event("response.function_call_arguments.delta", **self._at(place), delta=text)
        elif block.kind == "thinking":
            yield self._event("response.reasoning_text.delta", **self._at(place), content_index=0, delta=text)
        else:
            at = self._at(place)
            yield self._event("response.output_text.delta", **at, content_index=0, delta=text, logprobs=[])

    def _at(self, place: int) -> dict[str, Any]:
        return {"item_id": self._item(place, done=False)["id"], "output_index": place}

    def _close(self) -> Iterator[Frame]:
        if self._open is None:
            return
        place, self._open = self._open, None
        block, at = self.said[0].blocks[place], self._at(place)
        if block.kind == "call":
            kind = "response.function_call_arguments.done"
            yield self._event(kind, **at, name=block.name, arguments=block.text)
        else:
            if block.kind == "thinking":
                yield self._event("response.reasoning_text.done", **at, content_index=0, text=block.text)
            else:
                yield self._event("response.output_text.done", **at, content_index=0, text=block.text, logprobs=[])
            yield self._event("response.content_part.done", **at, content_index=0, part=_part(block))
        yield self._event("response.output_item.done", output_index=place, item=self._item(place, done=True))

    def finished(self, index: int, event: Finished) -> Iterator[Frame]:
        """``response.completed``, or ``response.incomplete`` where the answer was cut short."""
        self.said[0].finished = event
        yield from self._close()
        whole = self.whole()
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, e: EngineError) -> Frame:
        """An error in the middle of a stream."""
        error = engine_error(e)["error"]
        failed = {**self.whole(), "status": "failed", "error": {"code": "server_error", "message": error["message"]}}
        return self._event("response.failed", response=failed)

    end = b""


def _part(block: Block) -> dict[str, Any]:
    if block.kind == "thinking":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
