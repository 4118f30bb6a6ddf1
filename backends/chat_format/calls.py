"""Tool calls in a model's output: one reader for each way of writing them.

A reader begins at a call's first marker and returns whether it read one. Until a call's name is sure it gives nothing
to `Out`, so that what isn't a call can be read again as text. Afterwards a call that breaks off is given as far as it
came.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

from backends.chat_format import json_text
from backends.chat_format.events import Out
from backends.chat_format.format import Calls, distinctive
from backends.chat_format.json_text import Broken, CutOff
from backends.chat_format.reading import CallStart, Reading
from backends.chat_format.source import Source, Wait

NAME = re.compile(r"[\w.\-:/]")
MAX_NAME = 200
MAX_CALLS = 1000
_NAME_KEYS = ("name", "tool_name", "function_name", "tool", "recipient_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "params", "tool_input", "kwargs")
_ID_KEYS = ("id", "tool_call_id", "call_id")
_OTHER_KEYS = ("type", "index")


class CallWriter:
    """Gives calls on: what readers of calls and of messages share."""

    def __init__(self, reading: Reading, calls: Calls | None = None) -> None:
        self.reading = reading
        self.calls, self.tools, self.src = calls or reading.fmt.calls, reading.tools, reading.src

    @property
    def out(self) -> Out:
        return self.reading.out

    @property
    def truncated(self) -> bool:
        return self.reading.truncated

    def begin(self, name: str, call_id: str | None = None) -> None:
        if not name or len(name) > MAX_NAME or re.search(r"[<>{}\"\n|｜]", name):
            raise Broken("name")
        self.out.begin_call(name, call_id)

    def known_key(self, name: str, key: str) -> bool:
        return self.tools.schema_of(name, key) is not None

    def cut(self, begin: int, ended: bool) -> None:
        """Ends a call that breaks off: whole if only brackets are missing and the model ended by itself."""
        out = self.out
        if ended:
            self.src.at = len(self.src.text)  # half an escape, or half a marker: no text for anybody
        missing = json_text.closing(out.arguments_so_far) if ended and not self.truncated else None
        if missing is not None and out.arguments_so_far:
            out.arguments(missing)
            out.end_call(complete=True)
        else:
            out.end_call(complete=False, raw=self.src.text[begin : self.src.at])


class CallReader(CallWriter, ABC):
    """Reads calls of one format. Subclasses read one call; this has what they share."""

    # -- where calls begin ---------------------------------------------------------------------------------------------

    def triggers(self) -> tuple[str, ...]:
        """Markers that begin a call or a section of calls anywhere in the text."""
        found = [p for p in self.calls.section[:1] if distinctive(p)]
        found += [p for p in self.calls.start if distinctive(p)]
        return tuple(dict.fromkeys(found))

    def bare(self) -> str:
        """Characters that a call may begin with where nothing was said before it; '' where calls have markers."""
        if self.triggers():
            return ""
        return {"json": "{[", "python": "["}.get(self.calls.kind, "")

    def opening(self) -> Wait[bool]:
        """Reads a call's markers; a model may leave out the first of them."""
        start = self.calls.start
        for first in range(len(start)):
            if first and not distinctive(start[first]):
                continue
            if (yield from self.src.pieces(start[first:])):
                return True
        return not start

    def read(self, *, bare: bool = False) -> Wait[bool]:
        """Reads a section of calls; False: there is none, and nothing was read."""
        self.reading.call = CallStart(self.src.place, not bare and self._stands_alone())
        try:
            return (yield from self._read(bare))
        finally:
            self.reading.call = None

    def _stands_alone(self) -> bool:
        """Whether a marker here is no word of a text: it is a special token, or comes first, or first in its line."""
        before, line, rest = self.src.text[: self.src.at].rpartition("\n")
        first_in_line = bool(line and before.strip() and not rest.strip())
        return self.reading.phase == "boundary" or self.src.at_special or first_in_line

    def _read(self, bare: bool) -> Wait[bool]:
        begin, out = self.src.at, self.out
        count = 0
        try:
            yield from self.src.optional(self.calls.section)
            while count < MAX_CALLS:
                here, place = self.src.at, self.src.place
                yield from self.src.space()
                if not bare and not (yield from self.opening()):
                    self.src.at = here
                    if (yield from self._breaks_off()):
                        self.src.at = len(self.src.text)
                        return True
                    break
                after = self.src.at
                if count:
                    self.reading.call = CallStart(place, True)
                if not (yield from self.one(bare)):
                    if not bare and (yield from self._name_cut_off(after)):
                        self.src.at = len(self.src.text)
                        return True
                    self.src.at = here
                    break
                count += 1
                if bare:
                    break
                yield from self.src.optional(self.calls.end)
                yield from self._separator()
        except Broken as problem:
            if not out.in_call:
                if isinstance(problem, CutOff) and self.truncated:
                    self.src.at = len(self.src.text)  # within a call's markers or before its name: no text for anybody
                    return True
                self.src.at = begin if not count else self.src.at
                return count > 0
            if not isinstance(problem, CutOff):
                yield from self._skip_broken()
            self.cut(begin, isinstance(problem, CutOff))
            return True
        if not count:
            self.src.at = begin
        return count > 0

    def _skip_broken(self) -> Wait[None]:
        """Reads on to the end of a call that is broken, or to where another one begins."""
        src = self.src
        ends = tuple(e for e in self.calls.end if distinctive(e))
        found = yield from src.until((*ends, *self.triggers()), lambda _: None)
        if found in ends:
            yield from src.optional(self.calls.end)

    def _name_cut_off(self, start: int) -> Wait[bool]:
        """Whether all that follows a call's marker is a name, perhaps with a piece of what comes after it."""
        src = self.src
        src.at = start
        if len((yield from src.ahead(MAX_NAME))) >= MAX_NAME:
            return False
        return src.cut_off and re.fullmatch(r"\s*[\w.\-:/]*\s*\S{0,40}", src.text[start:]) is not None

    def _breaks_off(self) -> Wait[bool]:
        """Whether the text ends here, or within a marker that would have come next: no text for anybody."""
        src = self.src
        start = src.at
        yield from src.space()
        over = yield from src.at_end()
        src.at = start
        if over:
            return start > 0
        rest = "".join(src.text[start:].split())
        expected = ["".join("".join(self.calls.start[n:]).split()) for n in range(len(self.calls.start))]
        expected += self.calls.end
        return src.ended and src.cut_off and any(e.startswith(rest) for e in expected)

    def _separator(self) -> Wait[None]:
        start = self.src.at
        yield from self.src.space()
        if (yield from self.src.peek()) in (",", ";"):
            self.src.at += 1
            at = self.src.at
            yield from self.src.space()
            for marker in (*self.calls.start[:1], "{"):
                if (yield from self.src.match((marker,))) is not None:
                    self.src.at = at
                    return
            if (yield from self.src.at_end()) or self.src.begins_at_end(self.calls.start[:1]):
                self.src.at = len(self.src.text)
                return
        self.src.at = start

    @abstractmethod
    def one(self, bare: bool) -> Wait[bool]:
        """Reads what follows a call's markers; False: it is no call."""


class JsonReader(CallReader):
    """``{"name": …, "arguments": {…}}``, one after the other or in a list."""

    def one(self, bare: bool) -> Wait[bool]:
        src = self.src
        yield from src.space()
        first = yield from src.peek()
        if first == "[":
            start = src.at
            src.at += 1
            count = 0
            while True:
                yield from src.space()
                char = yield from src.peek()
                if char == "]":
                    src.at += 1
                    break
                if char == "," and count:
                    src.at += 1
                    continue
                if char != "{":
                    if not char:
                        raise CutOff("list")
                    break
                yield from self._call(bare)
                count += 1
            if not count:
                src.at = start
            return count > 0
        if first != "{":
            if not first:
                raise CutOff("call")
            return False
        yield from self._call(bare)
        while True:  # {…}; {…}
            start = src.at
            yield from src.space()
            if (yield from src.peek()) in (";", ","):
                src.at += 1
                yield from src.space()
            if (yield from src.peek()) != "{":
                src.at = start if src.at < len(src.text) else src.at
                return True
            try:
                yield from self._call(bare)
            except Broken as problem:
                if self.out.in_call or (isinstance(problem, CutOff) and self.truncated):
                    raise
                src.at = start  # an object that is none
                return True

    def _call(self, bare: bool) -> Wait[None]:
        state: dict[str, Any] = {"name": "", "id": None, "arguments": None, "begun": False, "done": False}
        yield from self._members(state, bare, 0)
        if not state["name"]:
            raise Broken("no name")
        if not state["done"]:
            self.out.arguments(state["arguments"] or "{}")
        self.out.end_call(complete=True)

    def _members(self, state: dict[str, Any], bare: bool, depth: int) -> Wait[None]:
        src = self.src
        src.at += 1
        while True:
            yield from src.space()
            char = yield from src.peek()
            if char == "}":
                src.at += 1
                return
            if char == ",":
                src.at += 1
                continue
            if not char:
                raise CutOff("member")
            if char not in "\"'":
                raise Broken("key")
            key = yield from self._text()
            yield from src.space()
            if (yield from src.peek()) != ":":
                raise CutOff("colon") if (yield from src.at_end()) else Broken("colon")
            src.at += 1
            yield from src.space()
            first = yield from src.peek()
            if not first:
                raise CutOff("value")
            yield from self._member(state, key, first, bare, depth)

    def _member(self, state: dict[str, Any], key: str, first: str, bare: bool, depth: int) -> Wait[None]:
        calls, text = self.calls, first in "\"'"
        if not state["name"] and text and key in (calls.name_key, *_NAME_KEYS):
            self._named(state, (yield from self._text()), bare)
        elif not state["name"] and key in ("function", "tool_call") and first == "{" and depth < 3:
            yield from self._members(state, bare, depth + 1)
        elif not state["done"] and key in (calls.arguments_key, *_ARGUMENT_KEYS):
            yield from self._arguments(state, first)
        elif key in (calls.id_key, *_ID_KEYS):
            state["id"] = (yield from self._any()).strip('"')
            if state["begun"]:
                self.out.set_id(state["id"])
        elif not state["name"] and first == "{" and (calls.name_is_key or key in self.tools):
            self._named(state, key, bare)
            yield from self._arguments(state, first)
        elif state["name"] or key in _OTHER_KEYS:
            yield from self._any()
        else:
            raise Broken("not a call")

    def _named(self, state: dict[str, Any], name: str, bare: bool) -> None:
        name = name.strip()
        if bare and name not in self.tools:
            raise Broken("no such tool")
        self.begin(name, state["id"])
        state["name"], state["begun"] = name, True
        if state["arguments"] is not None:
            self.out.arguments(state["arguments"])
            state["done"] = True

    def _arguments(self, state: dict[str, Any], first: str) -> Wait[None]:
        if first == "{" and state["begun"]:
            state["done"] = True
            yield from json_text.value(self.src, self.out.arguments)
            return
        whole = yield from self._any()
        if first in "\"'":
            whole = json_text.loads(whole).strip() or "{}"
            inner = Source()
            inner.text, inner.ended = whole, True
            found: list[str] = []
            for _ in json_text.value(inner, found.append):
                pass
            whole = "".join(found)
        if whole == "null":
            whole = "{}"
        if not whole.startswith("{"):
            raise Broken("arguments")
        if state["begun"]:
            self.out.arguments(whole)
            state["done"] = True
        else:
            state["arguments"] = whole

    def _text(self) -> Wait[str]:
        found: list[str] = []
        yield from json_text.string(self.src, found.append)
        return str(json_text.loads("".join(found)))

    def _any(self) -> Wait[str]:
        found: list[str] = []
        yield from json_text.value(self.src, found.append)
        return "".join(found)
