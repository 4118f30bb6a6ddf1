"""Tools as a parser needs them, and arguments between tags turned into JSON of the type that a schema asks for."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from backends.chat_format import json_text

_MAX_REFS = 16


class Tools:
    """The tools of a request: names, and what type an argument may have."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        """`tools` as in a request: ``{"type": "function", "function": {name, parameters}}``, or the inner part."""
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools or ():
            function = tool.get("function") if isinstance(tool, Mapping) else None
            function = function if isinstance(function, Mapping) else tool
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                parameters = function.get("parameters")
                if not isinstance(parameters, Mapping):
                    parameters = function.get("input_schema")
                self._parameters[function["name"]] = parameters if isinstance(parameters, Mapping) else {}

    def __bool__(self) -> bool:
        return bool(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    @property
    def names(self) -> list[str]:
        return list(self._parameters)

    def parameters(self, name: str) -> Mapping[str, Any]:
        """The schema of a tool's arguments; {} where it has none."""
        return self._parameters.get(name, {})

    def schema_of(self, name: str, key: str) -> Mapping[str, Any] | None:
        """The schema of one argument; None where the tool says nothing of it."""
        root = self.parameters(name)
        properties = resolved(root, root).get("properties")
        found = properties.get(key) if isinstance(properties, Mapping) else None
        return resolved(found, root) if isinstance(found, Mapping) else None

    def types(self, name: str, key: str) -> set[str]:
        """The types of one argument, as `types_of`."""
        return types_of(self.schema_of(name, key), self.parameters(name))


def resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with its own reference followed."""
    for _ in range(_MAX_REFS):
        ref = schema.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#"):
            return schema
        node: Any = root
        for part in ref[1:].split("/")[1:]:
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            return schema
        schema = node
    return schema


def types_of(schema: Mapping[str, Any] | None, root: Mapping[str, Any] | None = None, depth: int = 0) -> set[str]:
    """The JSON types that a schema allows; empty where it doesn't say. `root`: what its references are to."""
    if not schema or depth > 8:
        return set()
    if root is not None:
        schema = resolved(schema, root)
    said = schema.get("type")
    if isinstance(said, str):
        return {said}
    if isinstance(said, list):
        return {t for t in said if isinstance(t, str)}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            parts = [types_of(s, root, depth + 1) if isinstance(s, Mapping) else set() for s in schema[key]]
            return set().union(*parts) if all(parts) else set()
    if isinstance(schema.get("allOf"), list):
        found = [t for s in schema["allOf"] if isinstance(s, Mapping) and (t := types_of(s, root, depth + 1))]
        return set.intersection(*found) if found else set()
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list) and values:
        return {type_name(v) for v in values}
    if isinstance(schema.get("properties"), Mapping):
        return {"object"}
    return {"array"} if "items" in schema else set()


def type_name(value: Any) -> str:
    """A value's JSON type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def is_text(types: set[str]) -> bool:
    """Whether a value can only be a string, so that it can be given on as it comes."""
    return types == {"string"}


def to_json(raw: str, types: set[str]) -> str:
    """The JSON of a value that stood between tags: of an allowed type where the text can be read as one, else a
    string."""
    if is_text(types):
        return json.dumps(raw, ensure_ascii=False)
    text = raw.strip()
    value, known = _read(text)
    if known and "string" in types and not _is_json(text):  # Python's own way counts where it can't be a text
        known = isinstance(value, list | dict) or text in ("True", "False", "None")
    if known:
        name = type_name(value)
        fits = not types or name in types or (name == "integer" and "number" in types)
        if name == "number" and types and "number" not in types and "integer" in types and float(value).is_integer():
            return str(int(value))
        if name == "string" and not types:  # quotes that the text brings belong to it where nothing says otherwise
            return json.dumps(value, ensure_ascii=False)
        if fits or "string" not in types:
            return text if _is_json(text) else json.dumps(value, ensure_ascii=False)
    if types and "boolean" in types and text.lower() in ("true", "false"):
        return text.lower()
    return json.dumps(raw if "string" in types or not types else text, ensure_ascii=False)


def _read(text: str) -> tuple[Any, bool]:
    try:
        return json_text.loads(text), True
    except ValueError:
        pass
    if len(text) > 100_000 or not text or text[0] not in "[{(TFN'\"-0123456789":
        return None, False
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError):
        return None, False
    return (list(value), True) if isinstance(value, tuple) else (value, True)


def _is_json(text: str) -> bool:
    try:
        json_text.loads(text)
    except ValueError:
        return False
    return True
