"""JSON schemas as real APIs have them: what pydantic writes, what OpenAPI documents hold, what clients send along."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
NAMES = (
    "id", "name", "kind", "created_at", "updatedAt", "tags", "owner", "größe", "$x", "a.b", "x-trace-id", "名前",
    "notes",    "price", "@type", "url", "count", "is active", "_links",
)  # fmt: skip


def obj(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    """An object; by default everything is required and nothing else may come."""
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False, **more}


def optional(schema: Schema) -> Schema:
    """As pydantic writes ``X | None = None``."""
    return {"anyOf": [schema, {"type": "null"}], "default": None, "title": "Maybe"}


# ---- values ----------------------------------------------------------------------------------------------------------


def _string(rng: random.Random) -> Schema:
    return rng.choice([
        {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 12)},
        {"type": "string", "title": "Name", "maxLength": 8, "example": "Ada", "description": "A name."},
        {"type": "string", "enum": rng.sample(["red", "grün", "a\\b", 'q"', "", "a\nb", "👍"], rng.randrange(1, 6))},
        {"type": "string", "format": rng.choice(["date", "date-time", "uuid", "ipv4", "ipv6", "time", "email", "uri"])},
        {"type": "string", "format": "uri", "minLength": 1, "maxLength": 30},
        {"type": "string", "format": rng.choice(["password", "byte", "binary", "uuid4", "decimal", "country-code"]),
         "maxLength": 6, "writeOnly": True},
        {"type": "string", "pattern": rng.choice([
            r"^[A-Z]{2}\d{4}$", r"^(a|b)+$", r"^\w{1,8}$", r"^#[0-9a-fA-F]{6}$", r"^\+?[1-9]\d{1,14}$",
            r"^[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?$", r"^\S+@\S+$", r"^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]{1,9})?$"])},
        {"const": rng.choice(["circle", "v1", "ü"])},
    ])  # fmt: skip


def _number(rng: random.Random) -> Schema:
    return rng.choice([
        {"type": "integer", "format": rng.choice(["int32", "int64"]), "minimum": rng.randrange(-50, 10),
         "maximum": rng.randrange(10, 999)},
        {"type": "integer", "exclusiveMinimum": 0, "title": "Count"},
        {"type": "integer", "multipleOf": rng.choice([2, 5, 10]), "minimum": 0, "maximum": 200},
        {"type": "integer", "minimum": 100, "maximum": 599},
        {"type": "number", "exclusiveMinimum": 0, "maximum": rng.choice([1, 2.5, 100])},
        {"type": "number", "format": rng.choice(["float", "double"]), "minimum": -180, "maximum": 180},
        {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 5},
        {"enum": [1, 2, 3.5, -7]},
        {"const": rng.choice([1, True, None])},
    ])  # fmt: skip


def _simple(rng: random.Random) -> Schema:
    return rng.choice([_string, _string, _number, lambda _: {"type": "boolean", "default": False}])(rng)


def _any(rng: random.Random, depth: int = 0) -> Schema:
    if depth >= 3 or rng.random() < 0.45:
        return _simple(rng)
    match rng.randrange(7):
        case 0:
            return optional(_any(rng, depth + 1))
        case 1:
            return {"type": "array", "items": _any(rng, depth + 1), "minItems": 0, "maxItems": rng.randrange(1, 4)}
        case 2:
            return {"type": ["string", "null"], "maxLength": 5, "description": "Text, if any."}
        case 3:
            return {
                "type": "array", "prefixItems": [_simple(rng), _simple(rng)], "items": False, "minItems": 2,
                "maxItems": 2,
            }  # fmt: skip
        case 4:
            return {"type": "object", "additionalProperties": _simple(rng), "maxProperties": 2, "title": "Labels"}
        case _:
            names = rng.sample(NAMES, rng.randrange(1, 5))
            return obj({n: _any(rng, depth + 1) for n in names}, rng.sample(names, rng.randrange(len(names) + 1)))


# ---- documents -------------------------------------------------------------------------------------------------------


def _pydantic_model(rng: random.Random) -> Schema:
    names = rng.sample(NAMES, rng.randrange(2, 6))
    properties = {n: {**_any(rng, 1), "title": n.title()} for n in names}
    properties["status"] = {"$ref": "#/$defs/Status", "default": "open"}
    return {
        "$defs": {"Status": {"enum": ["open", "closed"], "title": "Status", "type": "string"}},
        **obj(properties, rng.sample(names, rng.randrange(len(names)))),
        "title": "Item",
    }


def _pydantic_union(rng: random.Random) -> Schema:
    """A discriminated union."""
    kinds = rng.sample(["circle", "square", "polygon", "text"], rng.randrange(2, 4))
    parts = {k.title(): obj({"kind": {"const": k, "type": "string"}, "value": _any(rng, 2)}) for k in kinds}
    refs = [{"$ref": f"#/$defs/{name}"} for name in parts]
    mapping = {k: f"#/$defs/{k.title()}" for k in kinds}
    shape = {"discriminator": {"mapping": mapping, "propertyName": "kind"}, "anyOf": refs}
    return {"$defs": parts, **obj({"shape": shape, "shapes": {"type": "array", "items": shape, "maxItems": 2}})}


def _pydantic_tree(rng: random.Random) -> Schema:
    node = obj(
        {
            "value": _simple(rng),
            "left": optional({"$ref": "#/$defs/Node"}),
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "maxItems": 1, "default": []},
        },
        ["value"],
    )
    return {"$defs": {"Node": node}, "$ref": "#/$defs/Node"}


def _openapi(rng: random.Random) -> Schema:
    """Composed by `allOf`, under ``components``-like definitions."""
    base = {
        "type": "object",
        "properties": {"id": {"type": "integer", "format": "int64", "readOnly": True, "minimum": 1, "example": 10}},
        "required": ["id"],
    }
    own = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 9, "example": "doggie"},
            "status": {"type": "string", "description": "in the store", "enum": ["available", "pending", "sold"]},
            "photoUrls": {"type": "array", "xml": {"wrapped": True}, "items": {"type": "string"}, "maxItems": 2},
            "extra": _any(rng, 2),
        },
        "required": rng.sample(["name", "status", "photoUrls"], rng.randrange(4)),
    }  # fmt: skip
    return {
        "definitions": {"Base": base},
        "allOf": [{"$ref": "#/definitions/Base"}, own],
        "externalDocs": {"url": "https://example.org"},
    }


def _page(rng: random.Random) -> Schema:
    """A list of things with a cursor, as payment and code hosting APIs have it."""
    return obj({
        "object": {"type": "string", "enum": ["list"]},
        "data": {"type": "array", "items": {"$ref": "#/$defs/thing"}, "maxItems": 2},
        "has_more": {"type": "boolean"},
        "next": optional({"type": "string", "pattern": "^cur_[a-z0-9]{4}$"}),
    }, **{"$defs": {"thing": obj({n: _any(rng, 2) for n in rng.sample(NAMES, 3)})}})  # fmt: skip


def _kubernetes(rng: random.Random) -> Schema:
    quantity = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d{1,4}(m|Mi|Gi)?$"}]}
    container = obj({
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,9}[a-z0-9])?$"},
        "image": {"type": "string", "minLength": 1, "maxLength": 12},
        "ports": {"type": "array", "maxItems": 1, "items": obj({
            "containerPort": {"type": "integer", "minimum": 1, "maximum": 65535},
            "protocol": {"enum": ["TCP", "UDP"], "default": "TCP"},
        }, ["containerPort"])},
        "limits": obj({"cpu": quantity, "memory": quantity}, []),
    }, ["name", "image"])  # fmt: skip
    return obj({
        "apiVersion": {"const": "v1"}, "kind": {"const": "Pod"},
        "spec": obj({"containers": {"type": "array", "items": container, "minItems": 1, "maxItems": 2},
                     "replicas": {"type": "integer", "minimum": 0, "maximum": rng.randrange(1, 100)}}, ["containers"]),
    })  # fmt: skip


def _geometry(rng: random.Random) -> Schema:
    position = {
        "type": "array",
        "items": {"type": "number", "minimum": -180, "maximum": 180},
        "minItems": 2,
        "maxItems": 3,
    }
    point = obj({"type": {"const": "Point"}, "coordinates": position})
    line = obj({"type": {"const": "LineString"}, "coordinates": {
        "type": "array", "items": position, "minItems": 2, "maxItems": rng.randrange(2, 4)}})  # fmt: skip
    return obj({"type": {"const": "Feature"}, "geometry": {"anyOf": [point, line, {"type": "null"}]},
                "properties": {"type": ["object", "null"], "additionalProperties": {"type": "string", "maxLength": 3},
                               "maxProperties": 1}})  # fmt: skip


def _patch(rng: random.Random) -> Schema:
    path = {"type": "string", "pattern": "^(/[a-z]{1,4}){0,2}$"}
    operations = [
        obj({"op": {"enum": ["add", "replace", "test"]}, "path": path, "value": _simple(rng)}),
        obj({"op": {"const": "remove"}, "path": path}),
        obj({"op": {"enum": ["move", "copy"]}, "path": path, "from": path}),
    ]
    return {"type": "array", "items": {"anyOf": operations}, "minItems": 1, "maxItems": 3}


def _extraction(rng: random.Random) -> Schema:
    """What is asked of a model: verdicts, steps and amounts."""
    step = obj({"explanation": {"type": "string", "maxLength": 20}, "output": {"type": "string", "maxLength": 9}})
    return obj({
        "reasoning": {"type": "array", "items": step, "maxItems": 2},
        "verdict": {"type": "string", "enum": rng.sample(["yes", "no", "unclear", "n/a"], 3)},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "amount": optional(obj({"value": {"type": "number", "minimum": 0, "maximum": 9999},
                                "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}})),
        "entities": {"type": "array", "maxItems": 2, "items": obj({n: _simple(rng) for n in rng.sample(NAMES, 2)})},
    })  # fmt: skip


_DOCUMENTS: tuple[Callable[[random.Random], Schema], ...] = (
    _any, _pydantic_model, _pydantic_union, _pydantic_tree, _openapi, _page, _kubernetes, _geometry, _patch,
    _extraction,
)  # fmt: skip


def api_schemas(rng: random.Random, count: int) -> Iterator[Schema]:
    """Some schemas, each kind in turn."""
    for number in range(count):
        yield _DOCUMENTS[number % len(_DOCUMENTS)](rng)
