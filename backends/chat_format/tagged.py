"""Tool calls whose arguments stand between tags of their own, each as text of the type that the schema asks for."""

from __future__ import annotations

import re

from backends.chat_format import json_text
from backends.chat_format.calls import MAX_NAME, NAME, CallReader, JsonReader
from backends.chat_format.json_text import Broken, CutOff
from backends.chat_format.source import Wait
from backends.chat_format.values import is_text, to_json

_CDATA = ("<![CDATA[", "]]>")
_KEY = re.compile(r"[^<>\n\"]")


class TaggedReader(CallReader):
    """``<function=name><parameter=key>value</parameter></function>`` and its kin."""

    def one(self, bare: bool) -> Wait[bool]:
        src, calls, out = self.src, self.calls, self.out
        yield from src.space()
        if (yield from src.peek()) == "{":  # a model that fell back to JSON
            return (yield from JsonReader(self.reading, calls).one(bare))
        name = yield from src.word(NAME, MAX_NAME)
        if not name:
            if (yield from src.at_end()):
                raise CutOff("name")
            return False
        marked = yield from src.optional(calls.name_end)
        if not marked and calls.name_end:
            if (yield from src.at_end()) and (self.truncated or name in self.tools):
                raise CutOff("name")
            return False
        start = src.at
        yield from src.space()
        marks = (*calls.key_start[:1], *calls.end[:1])
        nothing = yield from src.at_end()
        known = (yield from src.match(marks)) is not None
        nothing = nothing or src.begins_at_end(marks)
        src.at = start
        yield from src.space()
        char = yield from src.peek()
        if not known and not nothing and not marked and name not in self.tools:
            src.at = start
            return False
        if nothing and not marked and (self.truncated or name not in self.tools):
            raise CutOff("name")
        if not known and not nothing and char != "{":
            src.at = start
            return False
        self.begin(name)
        if char == "{":
            yield from json_text.value(src, out.arguments)
        else:
            yield from self._parameters(name)
        out.end_call(complete=True)
        return True

    def _parameters(self, name: str) -> Wait[None]:
        src, calls, out = self.src, self.calls, self.out
        out.arguments("{")
        given: set[str] = set()
        while True:
            before = src.at
            yield from src.space()
            if (yield from src.at_end()):
                raise CutOff("parameters")
            if (yield from src.pieces(calls.key_start)):
                key = (yield from src.word(_KEY, MAX_NAME)).strip()
                flags = yield from self._key_end()
                if not key or flags is None:
                    raise CutOff("key") if (yield from src.at_end()) else Broken("key")
                out.arguments(f'{", " if given else ""}"{json_text.quoted(key)}": ')
                given.add(key)
                types = self.tools.types(name, key)
                if 'string="true"' in flags:
                    types = {"string"}
                elif 'string="false"' in flags and is_text(types):
                    types = set()
                if (yield from self._value(name, types, given)):
                    break
                continue
            if not calls.end or (yield from src.match((calls.end[0],))) is not None:
                break
            if (yield from self._next_call()):
                src.at = before
                break
            src.at = max(src.at, before)
            stop = (*calls.key_start[:1], calls.end[0])
            yield from src.until(stop, lambda _: None)  # text between arguments says nothing
        out.arguments("}")

    def _next_call(self) -> Wait[bool]:
        start = self.src.at
        for marker in self.triggers():
            if (yield from self.src.match((marker,))) is not None:
                self.src.at = start
                return True
        return False

    def _key_end(self) -> Wait[str | None]:
        """Reads what stands between a key and its value; returns the attributes in it, None where it isn't there."""
        src = self.src
        pieces = self.calls.key_end
        if pieces and pieces[0].startswith('"'):  # name="key" more="…">
            if (yield from src.match(('"',))) is None:
                return None
            found: list[str] = []
            if (yield from src.until((">",), found.append)) is None:
                return None
            src.at += 1
            return "".join(found)
        for piece in pieces:
            yield from src.space()
            if (yield from src.match((piece,))) is None:
                return None
        return ""

    # -- values --------------------------------------------------------------------------------------------------------

    def _value(self, name: str, types: set[str], given: set[str]) -> Wait[bool]:
        """Reads a value and its end, and gives on its JSON; whether the call ended with it."""
        src, calls = self.src, self.calls
        text = is_text(types)
        held: list[str] = []
        sink = _Trailing(self.out.arguments if text else held.append, calls.value_trail, escape=text)
        if text:
            self.out.arguments('"')
        lead = calls.value_lead
        if lead and (yield from src.match((lead,))) is None and not src.ended:
            pass
        if (yield from src.match(_CDATA[:1])) is not None:
            if (yield from src.until(_CDATA[1:], sink.put)) is None:
                raise CutOff("value")
            src.at += len(_CDATA[1])
        over = yield from self._to_end(name, sink, given)
        sink.finish()
        if text:
            self.out.arguments('"')
        else:
            self.out.arguments(to_json("".join(held), types))
        return over

    def _to_end(self, name: str, sink: _Trailing, given: set[str]) -> Wait[bool]:
        src, calls = self.src, self.calls
        end = calls.value_end[0] if calls.value_end else ""
        stops = tuple(dict.fromkeys(s for s in (end, *calls.end[:1], *calls.key_start[:1]) if s))
        while True:
            found = yield from src.until(stops, sink.put)
            if found is None:
                raise CutOff("value")
            start = src.at
            if found == end:
                src.at += len(end)
                if (yield from self._follows()):
                    return False
            elif calls.end and found == calls.end[0]:
                if (yield from src.optional(calls.end)) and (yield from self._call_over()):
                    return True
            elif (yield from self._next_key(name, given)):
                src.at = start
                return False
            src.at = start
            sink.put(src.text[src.at])
            src.at += 1

    def _follows(self) -> Wait[bool]:
        """Whether what may follow a value stands here: another argument, the call's end, or the end of everything."""
        src, start = self.src, self.src.at
        yield from src.space()
        over = yield from src.at_end()
        markers = (*self.calls.key_start[:1], *self.calls.end, *self.triggers())
        found = over or (yield from src.match(markers)) is not None or src.begins_at_end(markers)
        src.at = start
        return found

    def _call_over(self) -> Wait[bool]:
        """Whether after a call's end nothing comes but more calls: else the end was text within a value."""
        src, start = self.src, self.src.at
        yield from src.space()
        if (yield from src.at_end()):
            src.at = start
            return not self.truncated
        found = (yield from self.opening()) and (yield from src.word(NAME, MAX_NAME)) in self.tools
        src.at = start
        return found

    def _next_key(self, name: str, given: set[str]) -> Wait[bool]:
        """Whether another argument of this tool begins here, though the value before it wasn't closed."""
        src, start = self.src, self.src.at
        found = False
        if (yield from src.pieces(self.calls.key_start)):
            key = (yield from src.word(_KEY, MAX_NAME)).strip()
            found = key not in given and self.known_key(name, key) and (yield from self._key_end()) is not None
        src.at = start
        return found


class _Trailing:
    """Passes text on, but for the white space at its very end that the template puts there."""

    def __init__(self, emit: object, trail: str, *, escape: bool) -> None:
        self._emit, self._trail, self._escape = emit, trail, escape
        self._held = ""

    def put(self, text: str) -> None:
        text = self._held + text
        keep = 0
        for n in range(min(len(self._trail), len(text)), 0, -1):
            if text.endswith(self._trail[:n]):
                keep = n
                break
        self._held = text[len(text) - keep :]
        self._pass(text[: len(text) - keep])

    def _pass(self, text: str) -> None:
        if text:
            assert callable(self._emit)
            self._emit(json_text.quoted(text) if self._escape else text)

    def finish(self) -> None:
        if self._held != self._trail:
            self._pass(self._held)
        self._held = ""
