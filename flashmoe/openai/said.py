"""What came of one answer, put together from the engine's events: for every API's whole answers and last events."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal

from backends.interface import Delta, Finished, TokenLogprob, Usage


@dataclass
class Block:
    """A stretch of one kind. Of a call `name` and `call_id` are set, and `text` is the JSON of its arguments."""

    kind: Literal["answer", "thinking", "call"]
    text: str = ""
    name: str = ""
    call_id: str = ""
    complete: bool = True


@dataclass
class Said:
    """One answer so far. `hear` says what is new in it, so that streams and whole answers can't differ."""

    blocks: list[Block] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    def hear(self, delta: Delta) -> tuple[Block, int, str] | None:
        """Takes a delta in. Returns the block that it belongs to, its place among all blocks, and its new text; None
        where nothing is to be shown."""
        if delta.kind == "prompt":
            self.prompt_logprobs += delta.logprobs
            return None
        self.logprobs += delta.logprobs
        last = self.blocks[-1] if self.blocks else None
        if delta.kind == "call":
            block = Block(
                "call", name=delta.name, call_id=delta.call_id or f"call_{uuid.uuid4().hex[:24]}", complete=False
            )
            self.blocks.append(block)
            return block, len(self.blocks) - 1, ""
        if delta.kind in ("arguments", "call_end"):
            if last is None or last.kind != "call":
                return None
            text = delta.text if delta.kind == "arguments" else "" if last.text or not delta.complete else "{}"
            last.text += text
            last.complete = delta.kind == "call_end" and delta.complete
            return last, len(self.blocks) - 1, text
        if not delta.text:
            return None
        kind: Literal["answer", "thinking"] = "thinking" if delta.kind == "thinking" else "answer"
        if last is None or last.kind != kind:
            last = Block(kind)
            self.blocks.append(last)
        last.text += delta.text
        return last, len(self.blocks) - 1, delta.text

    def _text(self, kind: str) -> str:
        return "".join(b.text for b in self.blocks if b.kind == kind)

    @property
    def answer(self) -> str:
        return self._text("answer")

    @property
    def thinking(self) -> str:
        return self._text("thinking")

    @property
    def calls(self) -> list[Block]:
        return [b for b in self.blocks if b.kind == "call"]

    @property
    def called(self) -> bool:
        """It ended with calls that can be run."""
        return bool(self.calls) and all(c.complete for c in self.calls) and self.reason != "length"

    @property
    def reason(self) -> Literal["stop", "length"]:
        """Why it ended."""
        return "length" if self.finished is not None and self.finished.reason in ("length", "context") else "stop"


def total(usages: list[Usage]) -> Usage:
    """What several answers took together; a prompt that they share counts once."""
    if len(usages) == 1:
        return usages[0]

    def add(values: list[int | None]) -> int | None:
        return None if any(v is None for v in values) else sum(v or 0 for v in values)

    return Usage(
        prompt_tokens=add([u.prompt_tokens for u in usages]),
        reused_tokens=add([u.reused_tokens for u in usages]),
        completion_tokens=add([u.completion_tokens for u in usages]),
        restored_tokens=sum(u.restored_tokens for u in usages),
        thinking_tokens=sum(u.thinking_tokens for u in usages),
        prefill_s=max(u.prefill_s for u in usages),
        decode_s=max(u.decode_s for u in usages),
    )
