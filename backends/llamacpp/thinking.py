"""Separates thinking from the answer while both stream.

Three forms: tags (``<think>…</think>`` and its kin, also where the template opened the tag), Gemma's
``<|channel>thought…<channel|>``, which is a pair of tags too, and the channels of harmony (gpt-oss). How the text is
cut into pieces never changes the result.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

from backends.llamacpp.detok import held_back

Kind = Literal["answer", "thinking"]
Piece = tuple[Kind, str]
Phase = Literal["boundary", "thinking", "answer", "header"]

TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<|channel>thought", "<channel|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)


class ThinkingParser(Protocol):
    """Feeds on text, gives pieces of one kind each."""

    phase: Phase
    """Where the stream stands: ``boundary`` before the first visible character of an answer."""

    def feed(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


class PlainParser:
    """All is answer: raw prompts."""

    def __init__(self) -> None:
        self.phase: Phase = "answer"

    def feed(self, text: str) -> list[Piece]:
        return [("answer", text)] if text else []

    def finish(self) -> list[Piece]:
        return []


class TagParser:
    """Thinking between tags. A tag opens only before the first visible character, so that an answer may talk of
    tags."""

    def __init__(self, opened: str | None = None) -> None:
        """`opened`: the closing tag to wait for, where the prompt ended inside a thinking block."""
        self.phase: Phase = "thinking" if opened else "boundary"
        self._close = opened or ""
        self._buffer = ""
        self._trim_start = bool(opened)  # whitespace at the start of what comes next is not shown
        self._shown = False  # whether this block has shown anything yet

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def _advance(self, pieces: list[Piece]) -> bool:
        if self.phase == "boundary":
            return self._at_boundary()
        if self.phase == "thinking":
            return self._in_thinking(pieces)
        self._emit(pieces, "answer", self._buffer)
        self._buffer = ""
        return False

    def _at_boundary(self) -> bool:
        text = self._buffer.lstrip()
        if not text:
            return False
        for start, close in TAGS:
            if text.startswith(start):
                self.phase, self._close, self._buffer = "thinking", close, text[len(start) :]
                self._trim_start, self._shown = True, False
                return True
        if any(start.startswith(text) for start, _ in TAGS):
            return False  # may become a tag yet
        self.phase = "answer"
        return True

    def _in_thinking(self, pieces: list[Piece]) -> bool:
        at = self._buffer.find(self._close)
        if at >= 0:
            self._emit(pieces, "thinking", self._buffer[:at].rstrip())
            self._buffer = self._buffer[at + len(self._close) :]
            self.phase, self._trim_start, self._shown = "boundary", True, False
            return True
        keep = held_back(self._buffer, (self._close,))
        ready = self._buffer[: len(self._buffer) - keep].rstrip()  # whitespace before the tag is not shown
        self._emit(pieces, "thinking", ready)
        self._buffer = self._buffer[len(ready) :]
        return False

    def _emit(self, pieces: list[Piece], kind: Kind, text: str) -> None:
        if self._trim_start and not self._shown:
            text = text.lstrip()
        if text:
            self._shown = True
            pieces.append((kind, text))

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self.phase == "thinking":
            self._emit(pieces, "thinking", self._buffer.rstrip())
        elif self._buffer.strip() or not self._trim_start:
            self._emit(pieces, "answer", self._buffer)
        self._buffer = ""
        return pieces


class HarmonyParser:
    """gpt-oss: ``<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>``.

    ``final`` is the answer, every other channel is thinking. A stream that doesn't follow the form is all answer.
    """

    _ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
    _HEADER_LIMIT = 200

    def __init__(self, channel: str | None = None) -> None:
        """`channel`: the channel whose message the prompt left open."""
        self.phase: Phase = "header" if channel is None else self._phase_of(channel)
        self._buffer = ""

    @staticmethod
    def _phase_of(channel: str) -> Phase:
        return "answer" if channel == "final" else "thinking"

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def _advance(self, pieces: list[Piece]) -> bool:
        if self.phase == "header":
            head, mark, rest = self._buffer.partition("<|message|>")
            if mark:
                named = re.findall(r"<\|channel\|>\s*(\w+)", head)
                self.phase, self._buffer = self._phase_of(named[-1] if named else "final"), rest
                return True
            if len(head) > self._HEADER_LIMIT:
                self.phase = "answer"
                return True
            return False
        found = [(at, mark) for mark in self._ENDS if (at := self._buffer.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._emit(pieces, self._buffer[:at])
            # a channel marker belongs to the header that it begins
            self._buffer = self._buffer[at if mark == "<|channel|>" else at + len(mark) :]
            self.phase = "header"
            return True
        keep = held_back(self._buffer, self._ENDS)
        self._emit(pieces, self._buffer[: len(self._buffer) - keep])
        self._buffer = self._buffer[len(self._buffer) - keep :]
        return False

    def _emit(self, pieces: list[Piece], text: str) -> None:
        if text:
            pieces.append(("answer" if self.phase == "answer" else "thinking", text))

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self.phase == "header":
            text = re.sub(r"<\|\w+\|>", "", self._buffer)
            if text.strip() not in ("", "assistant") and "<|channel|>" not in self._buffer:
                pieces.append(("answer", text))
        else:
            self._emit(pieces, self._buffer)
        self._buffer = ""
        return pieces


def parser_for(template: str, prompt: str) -> ThinkingParser:
    """The parser for what follows a rendered prompt of a chat template."""
    if "<|channel|>" in template and "<|message|>" in template:
        tail = prompt[prompt.rfind("<|start|>") :]
        open_message = re.search(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>[^<]*$", tail)
        return HarmonyParser(open_message[1] if open_message else None)
    for start, close in TAGS:
        at = prompt.rfind(start)
        if at >= 0 and prompt.find(close, at) < 0 and _same_turn(prompt[at:]):
            return TagParser(close)
    return TagParser()


def _same_turn(tail: str) -> bool:
    """Whether no new turn began after an opened tag: a user may have typed one."""
    return (
        re.search(r"<\|im_(start|end)\|>|<\|(user|assistant|end|eot_id|start_header_id)\|>|<turn\|>|\[/INST\]", tail)
        is None
    )


def can_think(template: str) -> bool:
    """Whether a template knows a switch for thinking or opens a thinking block."""
    if "enable_thinking" in template or ("<|channel|>" in template and "analysis" in template):
        return True
    return any(start in template for start, _ in TAGS)
