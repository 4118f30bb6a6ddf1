"""JSON as models write it, read piece by piece and given on as JSON that is valid.

What models do and JSON forbids is mended where the meaning is plain: line breaks within strings, single quotes, True
and None, commas before a closing bracket, escapes that JSON doesn't know. Everything else is an error (`Broken`), told
at the character where it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from backends.chat_format.source import Source, Wait

MAX_DEPTH = 64
_LITERAL = re.compile(r"[-+.\w]")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?\Z")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_CONTROL = re.compile(r"[\x00-\x1f]")
_ESCAPES = frozenset('"\\/bfnrt')
Emit = Callable[[str], None]


class Broken(Exception):
    """What stands here is not what must stand here."""


class CutOff(Broken):
    """The text ended in the middle."""


def quoted(text: str) -> str:
    """The inside of a JSON string that means `text`, without its quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def value(src: Source, emit: Emit, depth: int = 0) -> Wait[None]:
    """Reads one value and gives it on as it comes. Raises `Broken` or `CutOff`."""
    if depth > MAX_DEPTH:
        raise Broken("depth")
    yield from src.space()
    first = yield from src.peek()
    if first == "{":
        yield from _items(src, emit, depth, "}")
    elif first == "[":
        yield from _items(src, emit, depth, "]")
    elif first in ('"', "'") and first:
        yield from string(src, emit)
    else:
        yield from _literal(src, emit)


def _items(src: Source, emit: Emit, depth: int, close: str) -> Wait[None]:
    emit(src.text[src.at])
    src.at += 1
    comma = ""
    while True:
        yield from src.space()
        char = yield from src.peek()
        if not char:
            raise CutOff("item")
        if char == close:
            src.at += 1
            emit(close)
            return
        if comma:
            emit(comma)
        if close == "}":
            if char not in "\"'":
                raise Broken("key")
            yield from string(src, emit)
            yield from src.space()
            if (yield from src.peek()) != ":":
                raise CutOff("colon") if (yield from src.at_end()) else Broken("colon")
            src.at += 1
            emit(": ")
        yield from value(src, emit, depth + 1)
        yield from src.space()
        char = yield from src.peek()
        if char == ",":
            src.at += 1
            comma = ", "
        elif char != close:
            raise CutOff("item") if not char else Broken("comma")


def string(src: Source, emit: Emit) -> Wait[None]:
    """Reads a string in double or single quotes; gives on one in double quotes."""
    quote = src.text[src.at]
    src.at += 1
    emit('"')
    plain = re.compile(r"[^\"\\\x00-\x1f]+" if quote == '"' else r"[^'\"\\\x00-\x1f]+")
    while True:
        char = yield from src.peek()
        if not char:
            raise CutOff("string")
        if char == quote:
            src.at += 1
            if quote == '"' or (yield from _over(src)):
                emit('"')
                return
            emit("'")
        elif char == '"':
            src.at += 1
            emit('\\"')
        elif char == "\\":
            yield from _escape(src, emit)
        elif char < " ":
            src.at += 1
            emit(quoted(char))
        else:
            run = plain.match(src.text, src.at)
            assert run
            src.at = run.end()
            emit(run[0])


def _over(src: Source) -> Wait[bool]:
    """Whether a single quote ended a string: an apostrophe has no comma or bracket behind it."""
    start = src.at
    yield from src.space()
    char = yield from src.peek()
    src.at = start
    return not char or char in ",:)]}"


def _escape(src: Source, emit: Emit) -> Wait[None]:
    pair = yield from src.ahead(2)
    if len(pair) < 2:
        raise CutOff("escape")
    if pair[1] in _ESCAPES:
        src.at += 2
        emit(pair)
    elif pair[1] == "'":
        src.at += 2
        emit("'")
    elif pair[1] == "u":
        whole = yield from src.ahead(6)
        if re.fullmatch(r"\\u[0-9a-fA-F]{4}", whole):
            src.at += 6
            emit(whole)
        elif len(whole) < 6 and src.ended:
            raise CutOff("escape")
        else:
            src.at += 2
            emit("\\\\u")
    elif pair[1] == "\n":
        src.at += 2
        emit("\\n")
    else:
        src.at += 1
        emit("\\\\")


def _literal(src: Source, emit: Emit) -> Wait[None]:
    text = yield from src.word(_LITERAL, 400)
    ended = not text or (yield from src.at_end())
    if text in _WORDS:
        emit(_WORDS[text])
    elif _NUMBER.match(text):
        emit(text)
    elif ended and src.ended and src.at >= len(src.text):
        raise CutOff("literal")
    else:
        raise Broken("literal")


def closing(text: str) -> str | None:
    """What completes the start of a JSON value, where only closing brackets are missing; None: more is."""
    stack: list[str] = []
    for found in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', text, re.DOTALL):
        token = found[0]
        if token in "{[":
            stack.append("}" if token == "{" else "]")
        elif token in "}]" and (not stack or stack.pop() != token):
            return None
    end = "".join(reversed(stack))
    try:
        json.loads(text + end)
    except (ValueError, RecursionError):
        return None
    return end


def loads(text: str) -> Any:
    """`json.loads` that refuses NaN and Infinity. Raises ValueError."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("depth") from None
