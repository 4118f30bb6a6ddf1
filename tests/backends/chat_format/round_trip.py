"""Round trips: an answer is rendered by a template as a part of the history, and what the template wrote is parsed.

A model writes what its template shows it, so what comes out must be what went in, whatever the template is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from backends.chat_format.events import Said
from backends.chat_format.parser import parse
from backends.chat_format.tags import opens_thinking
from backends.chat_format.template_env import render
from backends.chat_format.templates import ChatTemplate
from backends.chat_format.variables import tool_of
from backends.interface import ChatMessage, EngineError, GenerateRequest, ToolCall, ToolSpec
from tests.backends.chat_format.formats import ENVIRONMENT

Call = tuple[str, dict[str, Any]]
STEPS = (0, 1, 5)


class DirectRenderer:
    """Renders in this process: for templates that are known to be harmless."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def render(self, source: str, variables: dict[str, Any]) -> str:
        answer = render(ENVIRONMENT, source, json.loads(json.dumps(variables)), self._kept)
        if "text" not in answer:
            raise EngineError("bad_template", str(answer))
        return answer["text"]


def _tool(name: str, /, **properties: Any) -> ToolSpec:
    return ToolSpec(name, f"Does {name}.", {"type": "object", "properties": properties})


_TEXT = {"type": "string"}
TOOLS = (
    _tool(
        "get_weather", city=_TEXT, days={"type": "integer"}, exact={"type": "boolean"}, ratio={"type": "number"},
        tags={"type": "array", "items": _TEXT}, note={"type": ["string", "null"]}, code=_TEXT,
        place={"type": "object", "properties": {"lat": {"type": "number"}, "name": _TEXT}},
    ),
    _tool("get_time"),
    _tool("get_weather_alerts", city=_TEXT),
    _tool("get", x={"type": "integer"}),
    _tool("fs-read_file", path=_TEXT, limit={"type": "integer"}),
    _tool("mcp.server.search", query=_TEXT, filters={
        "type": "array", "items": {"type": "object", "properties": {"k": _TEXT, "v": {"type": "integer"}}}}),
    _tool("edit", path=_TEXT, old=_TEXT, new=_TEXT),
    _tool("anything", v={}),
    _tool("set_size", **{"user-id": {"type": "integer"}, "größe": _TEXT, "x.y": {"type": ["integer", "string"]}}),
)  # fmt: skip
W = "get_weather"


@dataclass(frozen=True)
class Case:
    """An answer."""

    content: str = ""
    thinking: str = ""
    calls: list[Call] = field(default_factory=list)


CASES = {
    "text": Case("Hello, world."),
    "lines": Case("Line one.\n\n- two\n- three\n\n```python\nprint('<b>')\n```"),
    "an object as text": Case('{"name": "Bob", "age": 3}'),
    "a list as text": Case('[1, 2, {"a": null}]'),
    "tags as text": Case("<answer>yes</answer> & <b>no</b>"),
    "unicode": Case("Zürich 👍🏽 — “ok” 日本語"),
    "thinking": Case("The answer is 4.", "Let me think: 2+2=4."),
    "thinking in lines": Case("Done.", "First.\n\nSecond <b>step</b>.\n1. a\n2. b"),
    "a call": Case(calls=[(W, {"city": "Paris"})]),
    "thinking and a call": Case("", "I should call.", [(W, {"city": "Paris"})]),
    "text and a call": Case("Let me look.", "", [(W, {"city": "Paris", "days": 2})]),
    "thinking, text and a call": Case("Let me look.", "Need the tool.", [(W, {"city": "Paris", "days": 2})]),
    "two calls": Case(calls=[(W, {"city": "Paris"}), ("get_weather_alerts", {"city": "Rome"})]),
    "three calls": Case(calls=[(W, {"city": "Paris"}), ("get_time", {}), (W, {"city": "Rome", "days": 1})]),
    "no arguments": Case(calls=[("get_time", {})]),
    "none of the arguments": Case(calls=[(W, {})]),
    "every type": Case(calls=[(W, {"city": "Paris", "days": 3, "exact": True, "ratio": 0.5, "tags": ["a", "b"],
                                   "place": {"lat": 1.5, "name": "x"}, "note": None})]),
    "empty values": Case(calls=[(W, {"city": "12", "days": -1, "exact": False, "ratio": 2, "tags": [], "place": {},
                                     "note": "null-ish"})]),
    "texts like values": Case(calls=[(W, {"city": "true", "code": "null"}), (W, {"city": "[1]", "code": '{"a": 1}'})]),
    "nested": Case(calls=[("mcp.server.search", {"query": "q", "filters": [{"k": "a", "v": 1}, {"k": "b", "v": 2}]})]),
    "unicode in a value": Case(calls=[(W, {"city": "Zürich 👍🏽 日本"})]),
    "lines in a value": Case(calls=[("edit", {"path": "a.py", "old": "def f():\n    return 1\n",
                                              "new": "def f():\n\treturn 2\n\n"})]),
    "quotes": Case(calls=[("edit", {"path": "a\"b'c", "old": "\\d+\\n", "new": "it's \"x\""})]),
    "tags in a value": Case(calls=[("edit", {"path": "a", "old": '<div class="x">a &amp; b</div>',
                                             "new": "<parameter>x</parameter>"})]),
    "markers in a value": Case(calls=[("edit", {"path": "a", "old": "</tool_call> <tool_call> </think>",
                                                "new": "[TOOL_CALLS] <|im_end|> }}"})]),
    "brackets in a value": Case(calls=[("edit", {"path": "}", "old": '{"name": "x"}', "new": "]["})]),
    "blanks in a value": Case(calls=[("edit", {"path": " lead", "old": "trail ", "new": ""})]),
    "a long value": Case(calls=[("edit", {"path": "p", "old": "lorem ipsum <x> " * 20, "new": "y" * 300})]),
    "a dash in a name": Case(calls=[("fs-read_file", {"path": "/etc/hosts", "limit": 5})]),
    "points in a name": Case(calls=[("mcp.server.search", {"query": "x"})]),
    "a name that begins another": Case(calls=[("get", {"x": 1}), ("get_weather_alerts", {"city": "a"})]),
    "any type": Case(calls=[("anything", {"v": 5}), ("anything", {"v": "five"}), ("anything", {"v": {"a": [1]}})]),
    "a key that the tool doesn't know": Case(calls=[(W, {"city": "a", "other": "b"})]),
    "texts like values where other types are allowed": Case(calls=[
        (W, {"note": "5"}), (W, {"note": "true"}), (W, {"note": "[1]"}), (W, {"note": "Don't"})]),
    "numbers": Case(calls=[(W, {"days": 12345678901234567890, "ratio": 1e-07}), (W, {"days": 0, "ratio": -2.5})]),
    "odd characters": Case(calls=[("edit", {"path": "a\tb", "old": "x\r\ny", "new": "\u2028 \u00a0\\u0041 \\"})]),
    "odd keys": Case(calls=[("set_size", {"user-id": 7, "größe": "L", "x.y": 3})]),
    "ends of markup in a value": Case(calls=[("edit", {"path": "</p>", "old": "a\n</parameter>\nb",
                                                       "new": "x</arg_value>y</function>z"})]),
    "a call as a value": Case(calls=[("edit", {"path": "a", "old": '{"name": "get_time", "arguments": {}}',
                                               "new": 'get_time({"x": 1})'})]),
    "a value of blank lines": Case(calls=[("edit", {"path": "\n", "old": "\n\n", "new": "  "})]),
    "code": Case(calls=[("edit", {"path": "a.c", "old": 'if (a < b && c > d) { puts("<%s>\\n"); }',
                                  "new": "#include <x>\n'it'\n"})]),
    "six calls": Case(calls=[("get", {"x": i}) for i in range(6)]),
    "a fence before a call": Case("```json\n{\"name\": \"x\"}\n```", "", [(W, {"city": "P"})]),
    "thinking about calls": Case("", 'Maybe {"name": "get_time"} or <b>get_time</b>(x=1)?', [("get_time", {})]),
    "braces in a text before a call": Case('See: {"a": 1}', "", [(W, {"city": "P"})]),
}  # fmt: skip


@dataclass(frozen=True)
class Trip:
    """What a template made of a case, and what of it must come back."""

    name: str
    raw: str
    after: str
    tools: list[dict[str, Any]]
    want: Case
    whole: bool
    """The template wrote all of the case."""


def trips(template: ChatTemplate) -> Iterator[Trip]:
    """Every case that the template can write."""
    for name, case in CASES.items():
        seen: list[Trip] = []
        for think in (True, None) if case.thinking else (None, False):
            trip = _trip(template, name, case, think)
            if trip is not None and trip not in seen:
                seen.append(trip)
                yield trip


def _agreeing(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _trip(template: ChatTemplate, name: str, case: Case, think: bool | None) -> Trip | None:
    user = ChatMessage("user", "What is up?")
    calls = tuple(ToolCall(f"call{i:05}", n, json.dumps(a, ensure_ascii=False)) for i, (n, a) in enumerate(case.calls))
    answer = ChatMessage("assistant", case.content, case.thinking, calls)
    results = tuple(ChatMessage("tool", "QzNextQz", tool_call_id=c.id, name=c.name) for c in calls)
    following = results or (ChatMessage("user", "QzNextQz"),)
    tools = TOOLS if calls else ()
    asked = GenerateRequest(id="1", messages=(user,), tools=tools, enable_thinking=think)
    try:
        head = template.rendered(asked)
        told = GenerateRequest(id="1", messages=(user, answer), tools=tools, enable_thinking=think)
        try:
            whole = template.rendered(told, opens=False).text
        except EngineError:
            more = GenerateRequest(id="1", messages=(user, answer, *following), tools=tools, enable_thinking=think)
            whole = template.rendered(more, opens=False).text.partition("QzNextQz")[0]
    except EngineError:
        return None
    closing = _agreeing(whole[::-1], (head.head or "")[::-1])
    if closing > 100 or head.text == head.head:  # instructions, or an opener, that the template puts after every turn
        whole = whole[: len(whole) - closing]
    agreed = _agreeing(head.text, whole)
    begins = len(head.text) - len(head.after)
    if agreed < len(head.text):  # what opened the answer is written in another way
        opener = head.text[:agreed]
        tag = re.search(r"[<\[][^<>\[\]\s]*\Z", opener)
        if tag:
            agreed = tag.start()
        elif opener[-1:].isalnum():
            agreed = max(opener.rfind("\n") + 1, opener.rfind(">") + 1)
        begins = min(begins, agreed)
    after, raw = head.text[begins:agreed], whole[agreed:]
    if opens_thinking(template.format, head.after) and not opens_thinking(template.format, after) and case.thinking:
        after = head.after  # the history has the thinking without what opened it
    if any(raw.count(n) < sum(m == n for m, _ in case.calls) for n, _ in case.calls):
        return None
    tags = template.format.thinking
    if tags is not None and opens_thinking(template.format, after) and tags.end not in raw:
        return None  # it was told to think, and the history doesn't say that it did
    content = case.content if _squeezed(case.content) in _squeezed(raw) else ""
    thinking = case.thinking if _squeezed(case.thinking) in _squeezed(raw) else ""
    want = Case(content, thinking, case.calls)
    return Trip(name, raw, after, [tool_of(t) for t in tools], want, want == case)


def differs(template: ChatTemplate, trip: Trip) -> list[str]:
    """What comes back otherwise than it went in."""
    found = [parse(template.format, trip.raw, tools=trip.tools, after=trip.after, step=step) for step in STEPS]
    if any(said != found[0] for said in found):
        return ["cut differently, it differs"]
    return _compared(found[0], trip.want)


def _compared(said: Said, want: Case) -> list[str]:
    wrong = []
    if said.content.strip() != want.content.strip():
        wrong.append(f"content {said.content!r} instead of {want.content!r}")
    if said.thinking.strip() != want.thinking.strip():
        wrong.append(f"thinking {said.thinking!r} instead of {want.thinking!r}")
    calls: list[Any] = []
    for call in said.calls:
        try:
            calls.append((call.name, json.loads(call.arguments)) if call.complete else (call.name, "incomplete"))
        except ValueError:
            calls.append((call.name, "no JSON"))
    if calls != want.calls:
        wrong.append(f"calls {calls!r} instead of {want.calls!r}")
    return wrong


def unsound(template: ChatTemplate, trip: Trip, every: int = 1) -> list[str]:
    """What is wrong with the answer cut off after each `every`th character: all that is given must be the beginning of
    what went in."""
    wrong, want = [], trip.want
    for cut in range(0, len(trip.raw), every):
        said = parse(template.format, trip.raw[:cut], tools=trip.tools, after=trip.after, truncated=True)
        if not _squeezed(want.content).startswith(_squeezed(said.content)):
            wrong.append(f"after {cut} characters: content {said.content!r}")
        if not _squeezed(want.thinking).startswith(_squeezed(said.thinking)):
            wrong.append(f"after {cut} characters: thinking {said.thinking!r}")
        names = [c.name for c in said.calls]
        whole = [n for n, _ in want.calls[: len(names)]]
        if names[:-1] != whole[:-1] or (names and not (whole and whole[-1].startswith(names[-1]))):
            wrong.append(f"after {cut} characters: calls {names}")
        for call, (_, arguments) in zip(said.calls, want.calls, strict=False):
            if call.complete and json.loads(call.arguments) != arguments:
                wrong.append(f"after {cut} characters: {call.arguments!r} as a whole call")
    return wrong
