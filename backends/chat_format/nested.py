"""Two forms of tool calls that no template shows piece by piece: Gemma's braces and MiniMax's tags within tags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from backends.chat_format import json_text
from backends.chat_format.calls import MAX_NAME, NAME, CallReader
from backends.chat_format.json_text import Broken, CutOff, Emit
from backends.chat_format.source import Wait
from backends.chat_format.values import is_text, resolved, to_json, types_of

_QUOTE = '<|"|>'
_KEY = re.compile(r"[^:{}\[\],\n]")


class GemmaReader(CallReader):
    """``<|tool_call>call:name{key:<|"|>text<|"|>,other:1}<tool_call|>``."""

    def one(self, bare: bool) -> Wait[bool]:
        src = self.src
        yield from src.space()
        name = yield from src.word(NAME, MAX_NAME)
        yield from src.space()
        if not name or (yield from src.peek()) != "{":
            if (yield from src.at_end()):
                raise CutOff("name")
            return False
        self.begin(name)
        yield from self._value(self.out.arguments, 0)
        self.out.end_call(complete=True)
        return True

    def _value(self, emit: Emit, depth: int) -> Wait[None]:
        src = self.src
        if depth > json_text.MAX_DEPTH:
            raise Broken("depth")
        yield from src.space()
        if (yield from src.match((_QUOTE,))) is not None:
            emit('"')
            if (yield from src.until((_QUOTE,), lambda text: emit(json_text.quoted(text)))) is None:
                raise CutOff("text")
            src.at += len(_QUOTE)
            emit('"')
            return
        char = yield from src.peek()
        if char not in ("{", "["):
            yield from json_text.value(src, emit, depth)
            return
        close = "}" if char == "{" else "]"
        src.at += 1
        emit(char)
        first = True
        while True:
            yield from src.space()
            char = yield from src.peek()
            if char == close:
                src.at += 1
                emit(close)
                return
            if not char:
                raise CutOff("item")
            if char == ",":
                src.at += 1
                continue
            if close == "}":
                key = yield from self._key()
                emit(f'{"" if first else ", "}"{json_text.quoted(key)}": ')
            elif not first:
                emit(", ")
            first = False
            yield from self._value(emit, depth + 1)

    def _key(self) -> Wait[str]:
        src, found = self.src, list[str]()
        if (yield from src.match((_QUOTE,))) is not None:
            if (yield from src.until((_QUOTE,), found.append)) is None:
                raise CutOff("key")
            src.at += len(_QUOTE)
            key = "".join(found)
        elif (yield from src.peek()) == '"':
            yield from json_text.string(src, found.append)
            key = str(json_text.loads("".join(found)))
        else:
            key = (yield from src.word(_KEY, MAX_NAME)).strip()
        yield from src.space()
        if not key or (yield from src.peek()) != ":":
            raise CutOff("key") if (yield from src.at_end()) else Broken("key")
        src.at += 1
        return key


class MinimaxReader(CallReader):
    """Tags that each follow a marker, nested as the arguments are: ``<invoke name="f"><key>value</key></invoke>``."""

    @property
    def _mark(self) -> str:
        return self.calls.key_start[0]

    def one(self, bare: bool) -> Wait[bool]:
        src = self.src
        name = yield from src.word(NAME, MAX_NAME)
        if not name or (yield from src.match(('">',))) is None:
            if (yield from src.at_end()):
                raise CutOff("name")
            return False
        self.begin(name)
        root = self.tools.parameters(name)
        yield from self._object(self.out.arguments, root, root, "invoke", 0)
        self.out.end_call(complete=True)
        return True

    def _tag(self) -> Wait[str]:
        """The tag that stands here after its marker, such as ``key`` or ``/key``; '' where there is none."""
        src, start = self.src, self.src.at
        yield from src.space()
        if (yield from src.match((self._mark + "<",))) is None:
            src.at = start
            return ""
        name = yield from src.word(re.compile(r"[^<>\n]"), MAX_NAME)
        if (yield from src.match((">",))) is None:
            src.at = start
            return ""
        return name

    def _object(
        self, emit: Emit, schema: Mapping[str, Any], root: Mapping[str, Any], tag: str, depth: int
    ) -> Wait[None]:
        if depth > json_text.MAX_DEPTH:
            raise Broken("depth")
        properties = resolved(schema, root).get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        emit("{")
        first = True
        while True:
            key = yield from self._tag()
            if key == "/" + tag:
                break
            if not key or key.startswith("/"):
                raise CutOff("tag") if (yield from self._nothing()) else Broken("tag")
            emit(f'{"" if first else ", "}"{json_text.quoted(key)}": ')
            first = False
            found = properties.get(key)
            yield from self._value(emit, found if isinstance(found, Mapping) else {}, root, key, depth + 1)
        emit("}")

    def _nothing(self) -> Wait[bool]:
        yield from self.src.space()
        rest = yield from self.src.ahead(len(self._mark) + 1)
        return (self.src.ended and (self._mark + "<").startswith(rest)) or ("\n" not in rest and self.src.ended)

    def _value(
        self, emit: Emit, schema: Mapping[str, Any], root: Mapping[str, Any], tag: str, depth: int
    ) -> Wait[None]:
        src = self.src
        schema = resolved(schema, root)
        types = types_of(schema, root)
        start = src.at
        nested = yield from self._tag()
        src.at = start
        if nested and not nested.startswith("/") and not is_text(types):
            if (not types and nested == "item") or ("array" in types and (nested == "item" or "object" not in types)):
                yield from self._array(emit, _part(schema, root, "array"), root, tag, depth)
            else:
                yield from self._object(emit, _part(schema, root, "object"), root, tag, depth)
            return
        close = f"{self._mark}</{tag}>"
        if is_text(types):
            emit('"')
        found: list[str] = []
        put = (lambda text: emit(json_text.quoted(text))) if is_text(types) else found.append
        if (yield from src.until((close,), put)) is None:
            raise CutOff("value")
        src.at += len(close)
        if is_text(types):
            emit('"')
        elif not found and types <= {"array", "object"} and types:
            emit("[]" if "array" in types else "{}")
        else:
            emit(to_json("".join(found), types))

    def _array(
        self, emit: Emit, schema: Mapping[str, Any], root: Mapping[str, Any], tag: str, depth: int
    ) -> Wait[None]:
        if depth > json_text.MAX_DEPTH:
            raise Broken("depth")
        items = schema.get("items")
        emit("[")
        first = True
        while True:
            name = yield from self._tag()
            if name == "/" + tag:
                break
            if not name or name.startswith("/"):
                raise CutOff("tag") if (yield from self._nothing()) else Broken("tag")
            if not first:
                emit(", ")
            first = False
            yield from self._value(emit, items if isinstance(items, Mapping) else {}, root, name, depth + 1)
        emit("]")


def _part(schema: Mapping[str, Any], root: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The part of a union that is of a kind."""
    for key in ("anyOf", "oneOf"):
        for part in schema.get(key) or ():
            if isinstance(part, Mapping) and kind in types_of(part, root):
                return resolved(part, root)
    return schema
