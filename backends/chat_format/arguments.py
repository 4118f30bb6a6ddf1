"""Grammars for the arguments of one call, in formats that write each argument on its own: between tags, or as in
Python."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from backends.chat_format import raw_text
from backends.chat_format.format import Calls
from backends.chat_format.grammar import Rules, either, in_order, parameters_of
from backends.chat_format.raw_text import cant
from backends.chat_format.shapes import Shape, shapes_of
from backends.chat_format.values import types_of
from backends.interface import ToolSpec

Schema = Mapping[str, Any]
_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
_SPACED = r"\s*(?:{})\s*"
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_SCALARS = {"null": (None,), "boolean": (True, False)}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const", "enum", "allOf")


def name_of_others(shape: Shape, rules: Rules) -> str:
    """A name that isn't one of those that a schema has."""
    return rules.terminal(raw_text.without(raw_text.regex(_NAME), *map(raw_text.escaped, shape.properties)))


class RawValues:
    """Values that stand between markers, strings as they are and all else as JSON."""

    def __init__(self, rules: Rules, root: Schema, *, trail: str = "", never: Sequence[str] = ()) -> None:
        """`trail`, `never`: see `Rules.raw`."""
        self._rules, self._root, self._trail, self._never = rules, root, trail, never

    def value(self, schema: Schema, end: str) -> str:
        """A value and the marker after it, where the reader tells by the schema what the text means (`values.to_json`):
        a string mustn't look like another value that the schema allows."""
        types = types_of(schema, self._root)
        if types == {"string"} or raw_text.says_nothing(schema):
            return self.text(schema, end)
        if "string" not in types:
            return self.json(schema, end)
        values = raw_text.values_of(schema, self._root)
        if values is not None:
            return self._raw(raw_text.literals([_as_written(v, types) for v in values]), end)
        number = types & {"integer", "number"}
        bounded = bool(number) and any(f'"{word}"' in json.dumps(schema) for word in _BOUNDS)
        strings = raw_text.text_of(schema, self._root)
        looks = [_QUOTED, *(["null|None"] if "null" in types else [])]
        looks += ["(?i:true|false)"] if "boolean" in types else []
        looks += [_NUMBER] if number else []
        first = ["[\\[{(]"] if types & {"array", "object"} else []
        first += ["[-0-9]"] if bounded else []
        others = [json.dumps(v) for t in _SCALARS.keys() & types for v in _SCALARS[t] if self._valid(v, schema)]
        options = [f"({raw_text.literals(sorted(others))})"] if others else []
        if number and not bounded:
            options.append(raw_text.regex(_NUMBER if "number" in types else r"-?(?:0|[1-9][0-9]*)"))
        if strings is not None:
            never = [_SPACED.format("|".join(looks)), *(rf"\s*{f}(?s:.*)" for f in first)]
            options.append(raw_text.without(strings, *never))
        whole = [self._raw(" | ".join(f"({o})" for o in options), end)] if options else []
        return either([*whole, self.json(schema, end)] if first else whole)

    def types(self, schema: Schema) -> set[str]:
        """The types that a value may have; empty where its schema doesn't say."""
        return types_of(schema, self._root)

    def has_text(self, schema: Schema) -> bool:
        """Whether a value may be a string."""
        types = self.types(schema)
        return (not types or "string" in types) and raw_text.text_of(schema, self._root) is not None

    def text(self, schema: Schema, end: str) -> str:
        """A string and the marker after it."""
        strings = raw_text.text_of(schema, self._root)
        if strings is None:
            raise cant("a value that can't be anything")
        return self._raw(strings, end)

    def json(self, schema: Schema, end: str) -> str:
        """JSON and the marker after it."""
        trail = json.dumps(self._trail) if self._trail else ""
        return in_order([self._rules.json_in(schema, self._root), trail, self._rules.marker(end)])

    def _raw(self, expression: str, end: str) -> str:
        return self._rules.raw(expression, end, trail=self._trail, never=self._never)

    def _valid(self, value: Any, schema: Schema) -> bool:
        return raw_text.valid(value, schema, self._root)


def _as_written(value: Any, types: set[str]) -> str:
    """A value as it stands between tags: a string in quotes where it would mean another value without them."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    looks = rf"{_QUOTED}|null|None|(?i:true|false)|{_NUMBER}|[\[{{(].*"
    return json.dumps(value, ensure_ascii=False) if re.fullmatch(_SPACED.format(looks), value, re.S) else value


class Tagged:
    """``<function=name><parameter=key>value</parameter></function>`` and its kin."""

    def __init__(self, rules: Rules, calls: Calls, tools: Sequence[ToolSpec]) -> None:
        self._rules, self._calls = rules, calls
        names = "|".join(raw_text.escaped(t.name) for t in tools)
        start = raw_text.escaped(calls.start[-1]) if calls.start else ""
        end = raw_text.escaped(calls.end[0]) if calls.end else ""
        self._never = [r"(?s:<!\[CDATA\[.*)"]
        if start and end:  # the end of this call and the beginning of another one, as the reader sees it
            self._never.append(rf"(?s:.*){end}(?s:.*){start}\s*(?:{names})(?s:.*)")

    def call(self, tool: ToolSpec, end: str) -> str:
        """Name and arguments, and what ends the call."""
        root = parameters_of(tool)
        ways = [self._arguments(shape, root) for shape in shapes_of(root, root)]
        name = [json.dumps(tool.name), self._rules.pieces(self._calls.name_end)]
        return in_order([*name, either([f"({w})" for w in ways if w]) if any(ways) else "", "ws", end])

    def _arguments(self, shape: Shape, root: Schema) -> str:
        calls, rules = self._calls, self._rules
        start = r"\s*".join(map(raw_text.escaped, calls.key_start))
        keys = "|".join(map(raw_text.escaped, shape.properties))
        close = raw_text.escaped(calls.key_end[0][:1]) if calls.key_end else ""
        never = [*self._never, *([rf"(?s:.*){start}\s*(?:{keys})\s*{close}(?s:.*)"] if keys else [])]
        values = RawValues(rules, root, trail=calls.value_trail, never=never)
        parts = []
        for key, schema in shape.properties.items():
            if not re.fullmatch(r"[^<>\n\"]+", key) or key.strip() != key:
                raise cant(f"a parameter named {key[:40]!r}")
            argument = self._argument(json.dumps(key, ensure_ascii=False), _mapping(schema), values)
            parts.append(argument if key in shape.required else f"({argument})?")
        if shape.others is not None:
            parts.append(f"({self._argument(name_of_others(shape, rules), _mapping(shape.others), values)})*")
        return in_order(parts)

    def _argument(self, key: str, schema: Schema, values: RawValues) -> str:
        calls, rules, end = self._calls, self._rules, self._calls.value_end[0]
        before = in_order(["ws", rules.pieces(calls.key_start), key])
        lead = json.dumps(calls.value_lead) if calls.value_lead else ""
        if not calls.string_flag:
            return in_order([before, rules.pieces(calls.key_end), lead, values.value(schema, end)])
        types = values.types(schema)
        options = []
        if values.has_text(schema):
            options.append(in_order([rules.marker('" string="true">'), lead, values.text(schema, end)]))
        if types != {"string"}:
            options.append(in_order([rules.marker('" string="false">'), lead, values.json(schema, end)]))
        return f"{before} {either(options)}"


class KimiThree:
    """``<|open|>argument key="name" type="string"<|sep|>value<|close|>argument<|sep|>``, one after the other."""

    open, close, sep = "<|open|>", "<|close|>", "<|sep|>"

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def call(self, tool: ToolSpec) -> str:
        """A whole call."""
        root, rules = parameters_of(tool), self._rules
        head = in_order([rules.marker(f'{self.open}call tool="{_attribute(tool.name)}" index="'), "/[1-9][0-9]?/"])
        ways = [self._arguments(shape, root) for shape in shapes_of(root, root)]
        body = either([f"({w})" for w in ways if w]) if any(ways) else ""
        return in_order([head, rules.marker(f'"{self.sep}'), body, rules.marker(f"{self.close}call{self.sep}")])

    def _arguments(self, shape: Shape, root: Schema) -> str:
        values, parts = RawValues(self._rules, root), []
        for key, schema in shape.properties.items():
            if re.search(r"[<>|\n]", key):
                raise cant(f"a parameter named {key[:40]!r}")
            argument = self._argument(json.dumps(_attribute(key), ensure_ascii=False), _mapping(schema), values)
            parts.append(argument if key in shape.required else f"({argument})?")
        if shape.others is not None:
            key = name_of_others(shape, self._rules)
            parts.append(f"({self._argument(key, _mapping(shape.others), values)})*")
        return in_order(parts)

    def _argument(self, key: str, schema: Schema, values: RawValues) -> str:
        rules, types, end = self._rules, values.types(schema), f"{self.close}argument{self.sep}"
        options = []
        if values.has_text(schema):
            options.append(in_order([rules.marker(f'" type="string"{self.sep}'), values.text(schema, end)]))
        others = sorted({"integer": "number"}.get(t, t) for t in types - {"string"})
        if others or not types:
            kinds = raw_text.literals([*dict.fromkeys(others)] or ["number", "boolean", "null", "object", "array"])
            options.append(in_order(['"\\" type=\\""', kinds, rules.marker(f'"{self.sep}'), values.json(schema, end)]))
        return in_order([rules.marker(f'{self.open}argument key="'), key, either(options)])


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;")


class Pythonic:
    """``name(key="text", other=1)``."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def call(self, tool: ToolSpec) -> str:
        """A whole call."""
        root = parameters_of(tool)
        ways = [self._arguments(shape, root) for shape in shapes_of(root, root)]
        body = either([f"({w})" for w in ways if w]) if any(ways) else ""
        optional = "?" if body and not all(ways) else ""
        return in_order([json.dumps(tool.name), '"("', f"{body}{optional}", '")"'])

    def _arguments(self, shape: Shape, root: Schema) -> str:
        if any(not re.fullmatch(r"[\w.\-:/]+", key) for key in shape.properties):
            raise cant("a parameter's name")
        members = [
            (f"{json.dumps(key + '=')} {self._rules.json_in(_mapping(schema), root)}", key in shape.required)
            for key, schema in shape.properties.items()
        ]
        more = ""
        if shape.others is not None:
            more = f'{name_of_others(shape, self._rules)} "=" {self._rules.json_in(_mapping(shape.others), root)}'
        return separated(self._rules, members, more, '"," ws')


def separated(rules: Rules, members: Sequence[tuple[str, bool]], more: str, comma: str) -> str:
    """Members with commas between them, in their order; those that needn't be there may be left out. `more`: one that
    may come any number of times after them. '' where there are none at all."""
    later = rules.rule(f"({comma} {more})*") if more else ""
    alone = f"({more} {later})?" if more else ""
    for member, needed in reversed(members):
        first = in_order([member, later])
        later = rules.rule(in_order([f"({comma} {member})" if needed else f"({comma} {member})?", later]))
        alone = rules.rule(first if needed else f"{first} | {alone}" if alone else f"({first})?")
    return alone


def _mapping(schema: Any) -> Schema:
    if schema is False:
        raise cant("a parameter that can't be anything")
    return schema if isinstance(schema, Mapping) else {}
