"""Answers in which thinking, text and tool calls stand between tags: what most models write."""

from __future__ import annotations

from backends.chat_format.calls import CallReader, JsonReader
from backends.chat_format.events import Out
from backends.chat_format.format import KNOWN_TAGS, ChatFormat, Thinking, control_like
from backends.chat_format.json_text import Emit
from backends.chat_format.named import NamedReader, PythonReader
from backends.chat_format.nested import GemmaReader, MinimaxReader
from backends.chat_format.reading import Reading
from backends.chat_format.source import Wait
from backends.chat_format.tagged import TaggedReader

MENTION_LIMIT = 2000
"""A call within thinking is a mention where thinking ends, or goes on for so many characters, after it."""
READERS: dict[str, type[CallReader]] = {
    "json": JsonReader, "named": NamedReader, "tagged": TaggedReader, "python": PythonReader, "gemma": GemmaReader,
    "minimax": MinimaxReader,
}  # fmt: skip


class TagAnswer:
    """Reads an answer from its beginning to its end."""

    def __init__(self, reading: Reading) -> None:
        self.reading, self.src, self.fmt = reading, reading.src, reading.fmt
        self.tags = reading.fmt.thinking
        kind = self.fmt.calls.kind
        self.calls: CallReader | None = READERS[kind](reading) if reading.tools and kind in READERS else None
        self.triggers = self.calls.triggers() if self.calls is not None else ()

    def read(self) -> Wait[None]:
        """The whole answer."""
        src, fmt = self.src, self.fmt
        yield from self._repeated_opener()
        if opens_thinking(fmt, self.reading.after):
            yield from self._thinking()
        elif fmt.thinking is not None:  # a block that was never opened, or closed already
            start = src.at
            yield from src.space()
            if (yield from src.match((fmt.thinking.end,))) is None:
                src.at = start
        first = True
        while not (yield from src.at_end()):
            src.compact()
            spaces = yield from src.space()
            if (yield from self._thinking_starts()):
                yield from self._thinking()
            elif first and (yield from self._bare_call()):
                pass
            else:
                if fmt.wrapper and (yield from src.optional(fmt.wrapper)):
                    spaces = ""
                if fmt.wrapper and src.begins_at_end(fmt.wrapper):
                    src.at = len(src.text)
                yield from self._text(spaces)
            first = False

    def _repeated_opener(self) -> Wait[None]:
        """A model that writes again what the template wrote."""
        for start in range(len(self.fmt.opener)):
            rest = self.fmt.opener[start:]
            if control_like(rest[0]) and (yield from self.src.pieces(rest)):
                return
            if control_like(rest[0]) and self.src.begins_at_end(rest[:1]):
                self.src.at = len(self.src.text)

    def _bare_call(self) -> Wait[bool]:
        if self.calls is None or not self.calls.bare():
            return False
        char = yield from self.src.peek()
        return bool(char) and char in self.calls.bare() and (yield from self.calls.read(bare=True))

    def _thinking_starts(self) -> Wait[bool]:
        """Reads a tag that opens thinking: the format's, or, where none could be learnt, one that other models use."""
        if self.fmt.thinking is not None:
            found = yield from self.src.match((self.fmt.thinking.start,))
            if found is None and self.src.begins_at_end((self.fmt.thinking.start,)):
                self.src.at = len(self.src.text)
            return found is not None
        found = yield from self.src.match(start for start, _ in KNOWN_TAGS)
        if found is not None:
            self.tags = Thinking(found, dict(KNOWN_TAGS)[found])
        return found is not None

    # -- thinking ------------------------------------------------------------------------------------------------------

    def _thinking(self) -> Wait[None]:
        """Reads thinking up to its end."""
        src, tags = self.src, self.tags
        assert tags is not None
        self.reading.phase = "thinking"
        while True:  # tags that the model writes again
            yield from src.space()
            if (yield from src.match((tags.start,))) is None:
                break
        while True:
            found = yield from src.until((tags.end, *self.triggers), self.reading.out.thinking)
            if found is None:
                break
            if found == tags.end:
                src.at += len(found)
                yield from src.optional(tags.after)
                break
            if (yield from self._call_in_thinking()):
                break
        self.reading.out.end_thinking()
        self.reading.phase = "boundary"

    def _call_in_thinking(self) -> Wait[bool]:
        """At a call's marker within thinking: whether it is a call, which then ended the thinking. It isn't one where
        thinking goes on after it and ends later."""
        src, tags, reading = self.src, self.tags, self.reading
        assert tags is not None
        assert self.calls is not None
        start, out, tentative = src.at, reading.out, Out()
        reading.out = tentative
        try:
            real = yield from self.calls.read()
        finally:
            reading.out = out
        nothing_left = src.ended and src.at >= len(src.text)
        if real and not nothing_left and any(p.kind == "call_end" and not p.complete for p in tentative.pieces):
            real = False
        while real and not nothing_left:
            at = src.text.find(tags.end, src.at, src.at + MENTION_LIMIT)
            if at >= 0 or len(src.text) - src.at > MENTION_LIMIT:
                real = False
            elif src.ended:
                break
            else:
                yield
        if real:
            out.end_thinking()
            out.adopt(tentative)
            return True
        inside = src.text.find(tags.end, start, src.at)
        src.at = max(start + 1, src.at if inside < 0 else inside)
        out.thinking(src.text[start : src.at])
        return False

    # -- text ----------------------------------------------------------------------------------------------------------

    def _text(self, spaces: str) -> Wait[None]:
        """Reads text up to a marker, and what the marker begins."""
        src, fmt, reading = self.src, self.fmt, self.reading
        tags = fmt.thinking
        lines = tuple(f"\n{char}" for char in self.calls.bare()) if self.calls is not None else ()
        stops = (*fmt.ends, *self.triggers, *lines)
        if tags is not None and tags.control:
            stops += (tags.start, tags.end)

        def emit(text: str) -> None:
            reading.phase = "answer"
            reading.out.answer(text)

        reading.phase = "boundary"
        if spaces:
            reading.out.answer(spaces)
        found = yield from src.until(stops, emit)
        if found is None:
            return
        if found in lines:
            yield from self._call_in_line(emit)
            return
        if found in self.triggers and self.calls is not None and (yield from self.calls.read()):
            reading.phase = "boundary"
        elif tags is not None and found == tags.start:
            src.at += len(found)
            yield from self._thinking()
        elif found in fmt.ends or (tags is not None and found == tags.end):
            src.at += len(found)
            yield from self._repeated_opener()
        else:
            emit(src.text[src.at])
            src.at += 1

    def _call_in_line(self, emit: Emit) -> Wait[None]:
        """A call without markers, at the beginning of a line: not in a fence, where it is an example."""
        src = self.src
        assert self.calls is not None
        fences = sum(line.lstrip().startswith("```") for line in src.text[: src.at].split("\n"))
        start = src.at
        src.at += 1
        if fences % 2 or not (yield from self.calls.read(bare=True)):
            src.at = start + 1
            emit("\n")


def opens_thinking(fmt: ChatFormat, after: str) -> bool:
    """Whether the end of a prompt leaves a block of thinking open."""
    tags = fmt.thinking
    at = after.rfind(tags.start) if tags is not None and after else -1
    return tags is not None and at >= 0 and after.find(tags.end, at + len(tags.start)) < 0
