"""Grammars for the arguments of one call, in formats that write objects and lists in a way of their own: Gemma's braces
and MiniMax's tags within tags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from backends.chat_format import raw_text
from backends.chat_format.arguments import RawValues, Schema, name_of_others, separated
from backends.chat_format.grammar import Rules, either, in_order, parameters_of
from backends.chat_format.raw_text import cant
from backends.chat_format.shapes import Shape, shapes_of
from backends.chat_format.values import resolved, types_of
from backends.interface import ToolSpec

_SCALARS = ("integer", "number", "boolean", "null")
_OF_LISTS = ("prefixItems", "contains", "uniqueItems", "unevaluatedItems")


class _Nested:
    """What both share: parts of a schema are rules, so that one may refer to itself."""

    def __init__(self, rules: Rules, root: Schema) -> None:
        self._rules, self._root = rules, root
        self._known: dict[str, str] = {}

    def _plain(self, schema: Schema) -> Schema:
        """A schema whose own reference was followed, and a single part of which was taken in."""
        for _ in range(8):
            rest = {k: v for k, v in schema.items() if k != "$ref"}
            target = resolved(schema, self._root)
            if target is not schema:
                schema = {**target, **rest}
            elif isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
                schema = {**schema["allOf"][0], **{k: v for k, v in schema.items() if k != "allOf"}}
            else:
                break
        return schema

    def _once(self, key: str, write: Any) -> str:
        """The rule that `write` makes, once for each key."""
        if key not in self._known:
            name = self._known[key] = self._rules.reserve()
            self._rules.rule(write(), name)
        return self._known[key]

    def _items(self, schema: Schema) -> tuple[Schema, int, int | None] | None:
        """What a list holds, and how many; None: that can't be held but as JSON."""
        if any(word in schema for word in _OF_LISTS) or schema.get("items") is False:
            return None
        items = schema.get("items")
        high = schema.get("maxItems")
        return (
            items if isinstance(items, Mapping) else {},
            int(schema.get("minItems") or 0),
            None if high is None else int(high),
        )


class Gemma(_Nested):
    """``{key:<|"|>text<|"|>,other:[1,2]}``."""

    quote = '<|"|>'

    def members(self) -> str:
        """The arguments of the call."""
        return self._object(self._root)

    def _value(self, schema: Any) -> str:
        if not isinstance(schema, Mapping):
            return self._anything()
        return self._once(json.dumps(schema, sort_keys=True), lambda: self._written(schema))

    def _written(self, given: Schema) -> str:
        schema = self._plain(given)
        values = raw_text.values_of(schema, self._root)
        if values is not None:
            return " | ".join(self._literal(v) for v in values)
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                rest = {k: v for k, v in schema.items() if k != key}
                return " | ".join(self._value({**rest, **o} if isinstance(o, Mapping) else rest) for o in schema[key])
        types = types_of(schema, self._root)
        if not types:
            return self._anything() if raw_text.says_nothing(schema) else self._json(schema)
        return " | ".join(self._of_type(schema, t) for t in sorted(types))

    def _of_type(self, schema: Schema, kind: str) -> str:
        if kind == "string":
            strings = raw_text.text_of({**schema, "type": "string"}, self._root)
            if strings is None:
                raise cant("a value that can't be anything")
            return self._text(strings)
        if kind in _SCALARS or "allOf" in schema:
            return self._json({**schema, "type": kind})
        if kind == "object":
            return self._object(schema)
        found = self._items(schema)
        if found is None:
            return self._json({**schema, "type": kind})
        items, low, high = found
        if high == 0:
            return '"[" "]"'
        item = self._value(items)
        more = f'("," {item}){{{max(0, low - 1)},{"" if high is None else high - 1}}}' if high != 1 else ""
        return in_order(['"["', f"({item} {more})" + ("" if low else "?"), '"]"'])

    def _object(self, schema: Schema) -> str:
        ways = []
        for shape in shapes_of(schema, self._root):
            members = [
                (f"{_gemma_key(key)} {self._value(s)}", key in shape.required)
                for key, s in sorted(shape.properties.items(), key=lambda kv: kv[0].lower())  # as its template has them
            ]
            more = ""
            if shape.others is not None:
                more = f'{name_of_others(shape, self._rules)} ":" {self._value(shape.others)}'
            ways.append(in_order(['"{"', separated(self._rules, members, more, '","'), '"}"']))
        return either([f"({w})" for w in ways])

    def _anything(self) -> str:
        return either([self._text(raw_text.ANY), self._json({})])

    def _json(self, schema: Schema) -> str:
        return self._rules.json_in(schema, self._root)

    def _text(self, strings: str) -> str:
        return f"({self._rules.marker(self.quote)} {self._rules.raw(strings, self.quote)})"

    def _literal(self, value: Any) -> str:
        if isinstance(value, str) and self.quote not in value:
            quote = self._rules.marker(self.quote)
            return f"({in_order([quote, json.dumps(value, ensure_ascii=False) if value else '', quote])})"
        return json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False)


def _gemma_key(key: str) -> str:
    plain = re.fullmatch(r"[^:{}\[\],\n\"<]+", key) and key.strip() == key
    return json.dumps((key if plain else json.dumps(key, ensure_ascii=False)) + ":", ensure_ascii=False)


class Minimax(_Nested):
    """Tags that each follow a marker, nested as the arguments are."""

    def __init__(self, rules: Rules, root: Schema, mark: str) -> None:
        super().__init__(rules, root)
        self._mark = mark
        self._raw = RawValues(rules, root, never=[raw_text.holding(mark)])

    def members(self) -> str:
        """The arguments of the call, and its end."""
        return self._object(self._root, "invoke")

    def _tag(self, name: str) -> str:
        return self._rules.marker(f"{self._mark}<{name}>")

    def _value(self, schema: Any, tag: str) -> str:
        """A value with the tag that ends it."""
        schema = schema if isinstance(schema, Mapping) else {}
        return self._once(json.dumps([schema, tag], sort_keys=True), lambda: self._written(schema, tag))

    def _written(self, given: Schema, tag: str) -> str:
        schema, end = self._plain(given), f"{self._mark}</{tag}>"
        types = types_of(schema, self._root)
        alone = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf", "allOf")} == schema
        if types == {"object"} and raw_text.values_of(schema, self._root) is None:
            return self._object(schema, tag)
        if types == {"array"} and alone and raw_text.values_of(schema, self._root) is None:
            found = self._items(schema)
            if found is not None:
                return self._list(*found, tag)
        return self._raw.value(schema, end)

    def _list(self, items: Schema, low: int, high: int | None, tag: str) -> str:
        item = f"{self._tag('item')} {self._value(items, 'item')}" if high != 0 else ""
        some = f"({item}){{{low},{'' if high is None else high}}}" if item else ""
        return in_order([some, self._tag("/" + tag)])

    def _object(self, schema: Schema, tag: str) -> str:
        shapes = shapes_of(schema, self._root)
        if any(shape.others is not None and not shape.properties for shape in shapes):  # each name stands there twice
            end = f"{self._mark}</{tag}>"
            return self._rules.raw(raw_text.ANY, end) if tag == "invoke" else self._raw.json(schema, end)
        return either([f"({self._members(shape)} {self._tag('/' + tag)})" for shape in shapes])

    def _members(self, shape: Shape) -> str:
        parts = []
        for key, schema in shape.properties.items():
            if not re.fullmatch(r"[^</>\n][^<>\n]*", key):
                raise cant(f"a parameter named {key[:40]!r}")
            member = f"{self._tag(key)} {self._value(schema, key)}"
            parts.append(member if key in shape.required else f"({member})?")
        return in_order(parts)


def gemma_call(rules: Rules, tool: ToolSpec, end: str) -> str:
    """Name and arguments, and what ends the call."""
    return in_order([json.dumps(tool.name), Gemma(rules, parameters_of(tool)).members(), end])


def minimax_call(rules: Rules, tool: ToolSpec, mark: str) -> str:
    """Name and arguments, and what ends the call."""
    return in_order([json.dumps(tool.name + '">'), Minimax(rules, parameters_of(tool), mark).members()])
