"""The parts of a grammar in Lark, for llguidance: markers, JSON by a schema, raw texts up to a marker."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backends.chat_format import raw_text
from backends.chat_format.constraint import JSON_OPTIONS, plain_schema
from backends.interface import ToolSpec

Ids = Callable[[str], Sequence[tuple[str, int | None]]]
"""A marker's parts: text and None, or the text and id of a special token."""
_OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")


class Rules:
    """Collects rules; what its methods return stands where a rule is used."""

    def __init__(self, ids: Ids, *, free_space: bool = False) -> None:
        """`free_space`: white space in JSON is as the model likes it, else as most templates write it."""
        self._ids = ids
        self._written: dict[str, Any] = (
            dict(JSON_OPTIONS)
            if free_space
            else {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        )
        self.rules: list[str] = ["ws: /[ \\n]{0,2}/"]
        self._n = 0

    def text(self, start: str) -> str:
        """The whole grammar."""
        return "%llguidance {}\nstart: " + start + "\n" + "\n".join(self.rules) + "\n"

    def rule(self, body: str, name: str = "") -> str:
        """A rule of its own, under a name that `reserve` gave or a new one."""
        name = name or self.reserve()
        self.rules.append(f"{name}: {body}")
        return name

    def reserve(self) -> str:
        """A rule's name, for rules that refer to themselves."""
        self._n += 1
        return f"rule{self._n}"

    def terminal(self, expression: str) -> str:
        """A terminal: text that a regular expression, in Lark's form, allows."""
        self._n += 1
        self.rules.append(f"TEXT{self._n}: {expression}")
        return f"TEXT{self._n}"

    def marker(self, text: str) -> str:
        """A marker: literals, and special tokens by their ids."""
        return " ".join(_part(*part) for part in self._ids(text)) if text else ""

    def pieces(self, pieces: Sequence[str]) -> str:
        """Markers with white space between them."""
        return " ws ".join(self.marker(p) for p in pieces)

    def schema(self, schema: Mapping[str, Any]) -> str:
        """JSON by a schema."""
        self._n += 1
        name = f"value{self._n}"
        self.rules.append(f"{name}: %json {json.dumps({**plain_schema(schema), 'x-guidance': self._written})}")
        return name

    def json_in(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        """JSON by a part of a schema, whose references are to the whole of it."""
        if "$ref" in json.dumps(schema):
            place = "#/$defs/all"
            return self.schema({**moved(schema, place), "$defs": {"all": moved(root, place)}})
        return self.schema(schema)

    def raw(self, expression: str, end: str, *, trail: str = "", never: Sequence[str] = ()) -> str:
        """A text of an expression (`raw_text`) in which a marker doesn't occur, up to and with the marker. `trail`
        stands before the marker, `never` are regular expressions of other texts that it can't be.

        Text and marker are one terminal as far as they can be: what a terminal takes isn't given back, so that a text
        of its own would swallow the beginning of its end."""
        parts = list(self._ids(end))
        literal = trail
        while parts and parts[0][1] is None:
            literal += parts.pop(0)[0]
        inside = raw_text.without(expression, raw_text.holding(end), *never)
        whole = f"({inside}) {json.dumps(literal, ensure_ascii=False)}" if literal else inside
        return " ".join([self.terminal(whole), *(_part(*part) for part in parts)])


def _part(text: str, token: int | None) -> str:
    return json.dumps(text, ensure_ascii=False) if token is None else f"<[{token}]>"


def either(options: Sequence[str]) -> str:
    """One of some."""
    return f"({' | '.join(options)})" if len(options) != 1 else options[0]


def in_order(parts: Sequence[str]) -> str:
    """One after the other, without those that are empty."""
    return " ".join(p for p in parts if p)


def parameters_of(tool: ToolSpec) -> dict[str, Any]:
    """The schema of a tool's arguments. A function takes no others than those that are named, unless its schema says
    so: libraries leave that out, and a model that may add some doesn't come to an end."""
    parameters = dict(tool.parameters) or {"properties": {}}
    parameters.setdefault("type", "object")
    if "properties" in parameters and not any(word in parameters for word in _OPEN):
        parameters["additionalProperties"] = False
    return parameters


def moved(node: Any, place: str) -> Any:
    """A schema whose references into itself are right where it stands within another one."""
    if isinstance(node, list):
        return [moved(item, place) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {
        k: place + v[1:] if k == "$ref" and isinstance(v, str) and v.startswith("#") else moved(v, place)
        for k, v in node.items()
    }
