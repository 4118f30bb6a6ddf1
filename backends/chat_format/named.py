"""Tool calls whose name stands outside of their arguments: between markers, or as a call in Python."""

from __future__ import annotations

import re

from backends.chat_format import json_text
from backends.chat_format.calls import MAX_NAME, NAME, CallReader, JsonReader
from backends.chat_format.json_text import Broken, CutOff
from backends.chat_format.source import Wait

_KIMI_ID = re.compile(r"(?:functions\.)?(.+?):\d+\Z")


class NamedReader(CallReader):
    """The name between markers, then the arguments as JSON."""

    def one(self, bare: bool) -> Wait[bool]:
        src, calls = self.src, self.calls
        yield from src.space()
        if (yield from src.peek()) == "{":  # a model that writes the name into the JSON
            reader = JsonReader(self.reading, calls)
            return (yield from reader.one(bare))
        text = yield from src.word(NAME, MAX_NAME)
        if not text:
            if (yield from src.at_end()):
                raise CutOff("name")
            return False
        call_id = None
        if calls.name_start and (yield from src.pieces(calls.name_start)):
            call_id = text
            yield from src.space()
            text = yield from src.word(NAME, MAX_NAME)
        if calls.id_start and (yield from src.pieces(calls.id_start)):
            yield from src.space()
            call_id = yield from src.word(NAME, MAX_NAME)
        marked = yield from src.optional(calls.name_end)
        yield from src.space()
        char = yield from src.peek()
        if src.begins_at_end(calls.name_end):
            raise CutOff("name")
        if not char and not src.ended:
            raise CutOff("name")
        if not marked and char != "{" and (calls.name_end or char):
            return False
        if not marked and not char and text not in self.tools and not self.truncated:
            return False
        name = text
        if calls.id_is_name:
            call_id = text
            found = _KIMI_ID.match(text)
            name = found[1] if found else text.removeprefix("functions.")
        elif text not in self.tools and text.removeprefix("functions.") in self.tools:
            name = text.removeprefix("functions.")
        self.begin(name, call_id)
        if char == "{":
            yield from json_text.value(src, self.out.arguments)
        elif not char:
            if self.truncated:
                raise CutOff("arguments")
            self.out.arguments("{}")
        else:
            self.out.arguments("{}")
        self.out.end_call(complete=True)
        return True


class PythonReader(CallReader):
    """``[name(key="text", other=1), …]``."""

    def one(self, bare: bool) -> Wait[bool]:
        src = self.src
        yield from src.space()
        if (yield from src.peek()) != "[":
            if (yield from src.at_end()):
                raise CutOff("list")
            return False
        src.at += 1
        count = 0
        while True:
            yield from src.space()
            char = yield from src.peek()
            if char == "]" and count:
                src.at += 1
                return True
            if char == "," and count:
                src.at += 1
                continue
            if not char:
                raise CutOff("list")
            if not (yield from self._call(bare)):
                return count > 0
            count += 1

    def _call(self, bare: bool) -> Wait[bool]:
        src = self.src
        name = yield from src.word(NAME, MAX_NAME)
        if not name:
            return False
        if (yield from src.peek()) != "(":
            if (yield from src.at_end()):
                raise CutOff("name")
            return False
        if bare and name not in self.tools:
            return False
        src.at += 1
        self.begin(name)
        self.out.arguments("{")
        first = True
        while True:
            yield from src.space()
            char = yield from src.peek()
            if char == ")":
                src.at += 1
                break
            if char == ",":
                src.at += 1
                continue
            key = yield from src.word(NAME, MAX_NAME)
            yield from src.space()
            if not key or (yield from src.peek()) != "=":
                raise CutOff("key") if (yield from src.at_end()) else Broken("key")
            src.at += 1
            self.out.arguments(f'{"" if first else ", "}"{json_text.quoted(key)}": ')
            first = False
            yield from json_text.value(src, self.out.arguments)
        self.out.arguments("}")
        self.out.end_call(complete=True)
        return True
