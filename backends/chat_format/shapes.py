"""A tool's parameters one by one, for formats that write each argument on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backends.chat_format.raw_text import cant
from backends.chat_format.values import resolved

_MAX_SHAPES = 32
_MAX_DEPTH = 16
_ELSEWHERE = ("patternProperties", "propertyNames", "minProperties", "maxProperties", "dependentRequired", "not", "if")


@dataclass(frozen=True)
class Shape:
    """One way to give an object's members."""

    properties: Mapping[str, Any]
    required: frozenset[str]
    others: Any = None
    """The schema of members that aren't named; None: there are none."""
    closed: bool = False
    """The schema says that there are no others."""


def shapes_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Shape]:
    """The ways to give the members of an object. Raises `EngineError` ``bad_request`` that names what can't be held."""
    found = _expanded(schema, root, 0)
    if len(found) > _MAX_SHAPES:
        raise cant("so many alternatives")
    shapes = []
    for shape in found:
        other = {} if shape.others is None else shape.others
        missing = dict.fromkeys(sorted(shape.required - shape.properties.keys()), other)
        if missing and shape.closed:
            continue
        properties = {**shape.properties, **missing}
        open_ended = shape.others is None and not properties and not shape.closed
        shapes.append(replace(shape, properties=properties, others={} if open_ended else shape.others))
    if not shapes:
        raise cant("an object that can't have the members that it must have")
    return shapes


def _expanded(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> list[Shape]:
    if depth > _MAX_DEPTH:
        raise cant("an object whose schema refers to itself")
    odd = next((word for word in _ELSEWHERE if word in schema), None)
    if odd:
        raise cant(odd)
    properties, required, more = (schema.get(k) for k in ("properties", "required", "additionalProperties"))
    found = [
        Shape(
            properties if isinstance(properties, Mapping) else {},
            frozenset(r for r in required if isinstance(r, str)) if isinstance(required, list) else frozenset(),
            {} if more is True else more if isinstance(more, Mapping) else None,
            more is False,
        )
    ]
    parts = [[s] for s in _listed(schema, "allOf")] + [o for k in ("anyOf", "oneOf") if (o := _listed(schema, k))]
    target = resolved(schema, root)
    if "$ref" in schema and target is not schema:
        parts.append([target])
    for options in parts:
        ways = [way for option in options for way in _expanded(option, root, depth + 1)]
        found = [_both(one, other) for one in found for other in ways]
        if len(found) > _MAX_SHAPES:
            break
    return found


def _listed(schema: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = schema.get(key)
    return [s for s in value if isinstance(s, Mapping)] if isinstance(value, list) else []


def _both(one: Shape, other: Shape) -> Shape:
    """The members that two shapes allow together."""
    properties = dict(one.properties)
    for key, schema in other.properties.items():
        properties[key] = {"allOf": [properties[key], schema]} if key in properties else schema
    others = one.others if other.others is None else other.others
    return Shape(properties, one.required | other.required, others, one.closed or other.closed)
