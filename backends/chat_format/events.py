"""What a parser finds in a model's output, in order, and the collecting of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from backends.chat_format.source import SPACE
from backends.interface import Delta

Kind = Literal["answer", "thinking", "call", "arguments", "call_end"]


@dataclass
class Piece:
    """Some text of one kind, or a step of a tool call.

    ``call`` begins one (`name`, and `call_id` where the model wrote it by then), ``arguments`` adds `text` to the JSON
    of its arguments, ``call_end`` ends it: `complete` says whether the JSON is whole, `call_id` is the model's own id.
    """

    kind: Kind
    text: str = ""
    name: str = ""
    call_id: str | None = None
    complete: bool = True
    raw: str = ""
    """call_end: what the model wrote, where the call isn't complete."""


@dataclass
class ToolCall:
    """A whole call; `arguments` is JSON text, cut where `complete` is False."""

    name: str
    arguments: str = ""
    call_id: str | None = None
    complete: bool = True
    raw: str = ""


@dataclass
class Said:
    """All that a model said in one answer."""

    content: str = ""
    thinking: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        match piece.kind:
            case "answer":
                self.content += piece.text
            case "thinking":
                self.thinking += piece.text
            case "call":
                self.calls.append(ToolCall(piece.name, call_id=piece.call_id, complete=False))
            case "arguments":
                self.calls[-1].arguments += piece.text
            case "call_end":
                call = self.calls[-1]
                call.complete, call.raw = piece.complete, piece.raw
                call.call_id = piece.call_id if piece.call_id is not None else call.call_id

    def hear(self, delta: Delta) -> None:
        """Adds what an engine told."""
        if delta.kind == "prompt":
            return
        raw = delta.text if delta.kind == "call_end" else ""
        text = "" if raw else delta.text
        self.add(Piece(delta.kind, text, delta.name, delta.call_id, delta.complete, raw))


class Out:
    """Where a parser puts what it finds. White space around thinking and calls isn't shown."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.in_call = False
        self.calls = 0
        self._space: dict[str, str] = {"answer": "", "thinking": ""}
        self._shown = {"answer": False, "thinking": False}
        self._trim = {"answer": False, "thinking": True}
        self._arguments = ""
        self._call_id: str | None = None

    def text(self, kind: Literal["answer", "thinking"], text: str) -> None:
        """Some text; white space at its end is held until more comes."""
        if (kind == "answer" and self._shown["thinking"]) or self.calls:
            self._trim["answer"] = True
        text = self._space[kind] + text
        if not self._shown[kind] and self._trim[kind]:
            text = text.lstrip(SPACE)
        bare = text.rstrip(SPACE)
        self._space[kind] = text[len(bare) :]
        if bare:
            self._shown[kind] = True
            self._put(Piece(kind, bare))

    def answer(self, text: str) -> None:
        self.text("answer", text)

    def thinking(self, text: str) -> None:
        self.text("thinking", text)

    def end_thinking(self) -> None:
        """A block of thinking ended; another one is set apart from it."""
        self._trim["answer"] = True
        self._space["thinking"] = "\n" if self._shown["thinking"] else ""

    def begin_call(self, name: str, call_id: str | None = None) -> None:
        self.in_call, self._arguments, self._call_id = True, "", call_id
        self.calls += 1
        self._put(Piece("call", name=name, call_id=call_id))

    def set_id(self, call_id: str) -> None:
        """The call's id, where it comes after the beginning."""
        self._call_id = call_id

    def arguments(self, text: str) -> None:
        self._arguments += text
        self._put(Piece("arguments", text))

    @property
    def arguments_so_far(self) -> str:
        return self._arguments

    def end_call(self, *, complete: bool, raw: str = "") -> None:
        self.in_call = False
        self._put(Piece("call_end", call_id=self._call_id, complete=complete, raw="" if complete else raw))

    def _put(self, piece: Piece) -> None:
        last = self.pieces[-1] if self.pieces else None
        if last is not None and last.kind == piece.kind and piece.kind in ("answer", "thinking", "arguments"):
            last.text += piece.text
        else:
            self.pieces.append(piece)

    def adopt(self, other: Out) -> None:
        """Takes over the calls that another one collected."""
        for piece in other.pieces:
            self._put(piece)
        self.calls += other.calls

    def finish(self) -> None:
        """The answer is over: white space at its end belongs to it unless a call came after it."""
        if self._shown["answer"] and not self.calls and self._space["answer"]:
            self._put(Piece("answer", self._space["answer"]))
        self._space = {"answer": "", "thinking": ""}

    def take(self) -> list[Piece]:
        """What was found since the last time."""
        pieces, self.pieces = self.pieces, []
        return pieces
