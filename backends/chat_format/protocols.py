"""Answers that are laid out as messages, each with a head that says what it is: harmony (gpt-oss), recipients (Muse),
Kimi K3's tags, and functionary's names before texts."""

from __future__ import annotations

import re

from backends.chat_format import json_text
from backends.chat_format.calls import MAX_NAME, NAME, CallWriter
from backends.chat_format.json_text import Broken, CutOff
from backends.chat_format.reading import CallStart, Reading
from backends.chat_format.source import Wait
from backends.chat_format.tagged import TaggedReader
from backends.chat_format.values import is_text, to_json

HEAD_LIMIT = 300
_HEAD = re.compile(r"\s*(?:a(?:s{1,2}(?:i(?:s(?:t(?:a(?:nt?)?)?)?)?)?)?)?\s*(?:t|to|to=\S*)?\s*(?:<\|?\S*\s*\S*)?")
_ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')


class Messages(CallWriter):
    """What answers made of messages share."""

    message = "<|message|>"
    ends: tuple[str, ...] = ()

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self._said = False

    def _text_to(self, stops: tuple[str, ...], kind: str) -> Wait[str | None]:
        self.reading.phase = "thinking" if kind == "thinking" else "answer"
        out = self.out
        if kind == "drop":
            found = yield from self.src.until(stops, lambda _: None)
        elif kind == "thinking":
            found = yield from self.src.until(stops, out.thinking)
            out.end_thinking()
        else:
            if self._said:
                out.answer("\n\n")  # a text after another one
            self._said = True
            found = yield from self.src.until(stops, out.answer)
        self.reading.phase = "boundary"
        return found

    def _cut_head(self) -> bool:
        """Whether all that is left is a message's head that was cut off."""
        return self.src.cut_off and _HEAD.fullmatch(self.src.text[self.src.at :]) is not None

    def _json_call(self, name: str, stops: tuple[str, ...]) -> Wait[None]:
        """A message that is a call's arguments."""
        src, begin = self.src, self.src.at
        self.reading.call = CallStart(src.place, True, name)
        try:
            yield from src.space()
            self.begin(name)
            if (yield from src.peek()) == "{":
                yield from json_text.value(src, self.out.arguments)
            elif (yield from src.at_end()) and self.truncated:
                raise CutOff("arguments")
            else:
                yield from self._code(name, stops)
            self.out.end_call(complete=True)
        except Broken as problem:
            if self.out.in_call:
                self.cut(begin, isinstance(problem, CutOff))
        finally:
            self.reading.call = None

    def _code(self, name: str, stops: tuple[str, ...]) -> Wait[None]:
        """Text where JSON is expected: the one argument of a tool that has one."""
        properties = self.tools.parameters(name).get("properties")
        keys = list(properties) if isinstance(properties, dict) else []
        found: list[str] = []
        yield from self.src.until(stops, found.append)
        text = "".join(found)
        if not text.strip():
            self.out.arguments("{}")
        elif len(keys) == 1:
            self.out.arguments(f'{{"{json_text.quoted(keys[0])}": "{json_text.quoted(text)}"}}')
        else:
            raise Broken("arguments")


class Harmony(Messages):
    """``<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>``."""

    ends = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")

    def read(self) -> Wait[None]:
        src = self.src
        tail = self.reading.after[self.reading.after.rfind("<|start|>") :]
        head, mark, _ = tail.rpartition(self.message)
        if mark and "<|end|>" not in head:
            yield from self._body(head.removeprefix("<|start|>"))
        while not (yield from src.at_end()):
            yield from src.space()
            if (yield from src.match(self.ends)) is not None:
                continue
            start, found = src.at, list[str]()
            limit = yield from src.stands_ahead(self.message, HEAD_LIMIT)
            stop = None
            if limit or (yield from src.match(("<|channel|>",))) is not None:
                src.at = start
                stop = yield from src.until((self.message, "<|end|>", "<|return|>", "<|call|>"), found.append)
            head = "".join(found)
            if stop == self.message:
                src.at += len(self.message)
                yield from self._body(head)
            elif stop is None and not limit and "<|channel|>" not in head:
                src.at = start
                yield from self._text_to((*self.ends, "<|channel|>"), "drop" if self._cut_head() else "answer")

    def _body(self, head: str) -> Wait[None]:
        named = re.findall(r"<\|channel\|>\s*(\w+)", head)
        channel = named[-1] if named else "final"
        to = [r for r in re.findall(r"to=([\w.\-]+)", head) if r not in ("assistant", "user", "all")]
        stops = (*self.ends, "<|channel|>")
        if to:
            name = to[-1].removeprefix("functions.")
            if self.tools:
                yield from self._json_call(name, stops)
            yield from self._text_to(stops, "drop")
        else:
            yield from self._text_to(stops, "thinking" if channel == "analysis" else "answer")


class Recipients(Messages):
    """`` to=user<|message|>…<|eom|><|start|>assistant to=tool<|message|>…``: to=self is thinking."""

    ends = ("<|eom|>", "<|eot|>", "<|start|>")

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading)
        self._calls = TaggedReader(reading, reading.fmt.calls)

    def read(self) -> Wait[None]:
        src = self.src
        tail = self.reading.after[self.reading.after.rfind("<|start|>") :]
        if self.message in tail:
            yield from self._body(tail)
        while not (yield from src.at_end()):
            if (yield from src.match(self.ends)) is not None:
                continue
            if not (yield from src.stands_ahead(self.message, HEAD_LIMIT)):
                yield from self._text_to(self.ends, "drop" if self._cut_head() else "answer")
                continue
            found: list[str] = []
            yield from src.until((self.message,), found.append)
            src.at += len(self.message)
            yield from self._body("".join(found))

    def _body(self, head: str) -> Wait[None]:
        to = re.findall(r"to=([\w.\-]+)", head)
        if to and to[-1] not in ("user", "self") and self.tools:
            yield from self.src.space()
            yield from self._calls.read()
            yield from self._text_to(self.ends, "drop")
        else:
            yield from self._text_to(self.ends, "thinking" if to and to[-1] == "self" else "answer")


class Kimi3(Messages):
    """``<|open|>response<|sep|>…<|close|>response<|sep|>``, with think, and tools that hold calls and arguments."""

    open, close, sep = "<|open|>", "<|close|>", "<|sep|>"

    def read(self) -> Wait[None]:
        src, after = self.src, self.reading.after
        inside = ""
        at = after.rfind(self.open)
        if at >= 0 and self.close not in after[at:]:
            inside = after[at + len(self.open) :].partition(self.sep)[0].split(" ")[0]
        begun = False
        while not (yield from src.at_end()):
            if inside in ("think", "response") or not inside:
                kind = "thinking" if inside == "think" else "answer"
                if ((yield from src.peek()) and not begun) or inside:
                    self._said = False
                found = yield from self._text_to((self.open, self.close, "<|end_of_msg|>"), kind)
                begun = True
            else:
                found = yield from self._text_to((self.open, self.close, "<|end_of_msg|>"), "drop")
            if found is None:
                break
            place = src.place
            src.at += len(found)
            if found == "<|end_of_msg|>":
                continue
            if found == self.open and self.tools and (yield from src.ahead(5)) == "call ":
                self.reading.call = CallStart(place, True)
            if inside == "think":
                self.reading.phase = "thinking"  # up to the end of the tag that closes it
            head = yield from self._head()
            self.reading.phase = "boundary"
            name = head.partition(" ")[0]
            if found == self.close:
                inside = "tools" if name == "call" else "-"
            elif name == "call":
                yield from self._call(_attributes(head))
                self.reading.call = None
                inside = "tools"
            else:
                inside = name

    def _head(self) -> Wait[str]:
        found: list[str] = []
        if (yield from self.src.until((self.sep,), found.append)) is not None:
            self.src.at += len(self.sep)
        return "".join(found)

    def _call(self, attributes: dict[str, str]) -> Wait[None]:
        src, begin, name = self.src, self.src.at, attributes.get("tool", "")
        if not self.tools:
            return
        try:
            self.begin(name)
            keys, whole = 0, False
            while True:
                yield from src.space()
                mark = yield from src.match((self.open, self.close))
                if mark is None:
                    raise CutOff("call") if (yield from src.at_end()) or self._partial() else Broken("call")
                head = yield from self._head()
                if mark == self.close:
                    break
                if not keys and head.partition(" ")[0] == "json":  # all arguments at once
                    yield from self._whole()
                    whole = True
                    break
                self.out.arguments(", " if keys else "{")
                yield from self._argument(name, _attributes(head))
                keys += 1
            if not whole:
                self.out.arguments("}" if keys else "{}")
            self.out.end_call(complete=True)
        except Broken as problem:
            if self.out.in_call:
                self.cut(begin, isinstance(problem, CutOff))

    def _whole(self) -> Wait[None]:
        yield from json_text.value(self.src, self.out.arguments)
        for tag in ("json", "call"):
            yield from self.src.space()
            yield from self.src.match((f"{self.close}{tag}{self.sep}",))

    def _partial(self) -> bool:
        rest = self.src.text[self.src.at :]
        return self.src.ended and (self.open.startswith(rest) or self.close.startswith(rest))

    def _argument(self, name: str, given: dict[str, str]) -> Wait[None]:
        key = given.get("key", "")
        types = self.tools.types(name, key)
        if given.get("type") == "string":
            types = {"string"}
        elif given.get("type") and is_text(types):
            types = set()
        self.out.arguments(f'"{json_text.quoted(key)}": ')
        stop, found = self.close + "argument" + self.sep, list[str]()
        if is_text(types):
            self.out.arguments('"')
            end = yield from self.src.until((stop,), lambda text: self.out.arguments(json_text.quoted(text)))
        else:
            end = yield from self.src.until((stop,), found.append)
        if end is None:
            raise CutOff("argument")
        self.src.at += len(stop)
        self.out.arguments('"' if is_text(types) else to_json("".join(found), types))


def _attributes(head: str) -> dict[str, str]:
    return {k: v.replace("&quot;", '"').replace("&amp;", "&") for k, v in _ATTRIBUTE.findall(head)}


class Functionary(Messages):
    """``all\\ntext`` or ``name\\n{arguments}``, the next one after ``>>>``."""

    mark = ">>>"

    def read(self) -> Wait[None]:
        src = self.src
        while not (yield from src.at_end()):
            yield from src.space()
            start = src.at
            yield from src.match((self.mark,))
            name = yield from src.word(NAME, MAX_NAME)
            line = yield from src.peek()
            if not line and src.cut_off and any(n.startswith(name) for n in ("all", *self.tools.names)):
                return  # a name that was cut off
            if line not in ("\n", "") or (name != "all" and name not in self.tools):
                src.at = start
                yield from src.match((self.mark,))
                name = "all"
            elif line:
                src.at += 1
            stops = (self.mark, *self.reading.fmt.ends)
            if name == "all":
                yield from self._text_to(stops, "answer")
            else:
                yield from self._json_call(name, stops)
                yield from self._text_to(stops, "drop")
            for end in self.reading.fmt.ends:
                yield from src.match((end,))
