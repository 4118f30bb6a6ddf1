"""One parser for what models write: text, thinking and tool calls, from pieces that are cut anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from backends.chat_format.events import Piece, Said
from backends.chat_format.format import ChatFormat
from backends.chat_format.protocols import Functionary, Harmony, Kimi3, Recipients
from backends.chat_format.reading import CallStart, Phase, Reading
from backends.chat_format.tags import TagAnswer
from backends.chat_format.values import Tools

_PROTOCOLS: dict[str, Callable[[Reading], Any]] = {
    "tags": TagAnswer, "harmony": Harmony, "recipients": Recipients, "kimi3": Kimi3, "functionary": Functionary,
}  # fmt: skip


class Parser:
    """Parses one answer. `feed` and `finish` never raise, whatever the text is."""

    def __init__(
        self, fmt: ChatFormat, *, tools: Any = None, after: str = "", special_texts: frozenset[str] = frozenset()
    ) -> None:
        """`tools`: the request's, as in the OpenAI API. `after`: the end of the prompt, which the template opened the
        answer with. `special_texts`: special tokens of the vocabulary, if `feed` says which pieces are such."""
        self.fmt = fmt
        self.reading = Reading(fmt, tools if isinstance(tools, Tools) else Tools(tools), after)
        self.reading.src.special_texts = special_texts
        self._out = self.reading.out  # the reading's own may be another one for a while: a call that may be a mention
        self._failed = False
        self._run: Iterator[None] = iter(_PROTOCOLS[fmt.protocol](self.reading).read())
        self._step()

    @property
    def phase(self) -> Phase:
        """Where the answer stands."""
        return "call" if self._out.in_call else self.reading.phase

    @property
    def call_begun(self) -> CallStart | None:
        """The tool call that is being written; None where there is none, or what looks like one may be text."""
        call = self.reading.call
        if call is None or self.reading.phase == "thinking":
            return None
        return call if call.sure or self._out.in_call else None

    def feed(self, text: str, *, special: bool = False) -> list[Piece]:
        """What is known after some more text."""
        if text:
            self.reading.src.feed(text, special=special)
            self._step()
        return self._out.take()

    def finish(self, *, truncated: bool = False) -> list[Piece]:
        """What is known at the end. `truncated`: the answer was cut off, it didn't end by itself."""
        self.reading.truncated = truncated
        self.reading.src.cut_off = truncated
        self.reading.src.end()
        self._step()
        out = self._out
        if out.in_call:
            out.end_call(complete=False)
        out.finish()
        return out.take()

    def _step(self) -> None:
        if not self._failed:
            try:
                next(self._run, None)
                return
            except (RecursionError, ValueError, AssertionError, IndexError):  # text must never end an answer
                self._failed = True
        out, src = self._out, self.reading.src
        if out.in_call:
            out.end_call(complete=False)
        out.answer(src.text[src.at :])
        src.at = len(src.text)


def parse(
    fmt: ChatFormat, raw: str, *, tools: Any = None, after: str = "", truncated: bool = False, step: int = 0
) -> Said:
    """All of an answer at once; `step` feeds so many characters at a time. Never raises."""
    parser, said = Parser(fmt, tools=tools, after=after), Said()
    size = step or max(1, len(raw))
    for at in range(0, len(raw), size):
        for piece in parser.feed(raw[at : at + size]):
            said.add(piece)
    for piece in parser.finish(truncated=truncated):
        said.add(piece)
    return said
