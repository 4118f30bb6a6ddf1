"""A JSON schema as a grammar that the sampler keeps to, through llama-cpp-python's converter.

The converter trusts its input: it writes repetitions out, so one large number makes gigabytes of grammar, and its
strings may hold raw control characters, which JSON forbids. Both are mended here.
"""

from __future__ import annotations

import json
import re
from typing import Any

from backends.interface import EngineError

MAX_SCHEMA_BYTES = 256 << 10
MAX_DEPTH = 48
MAX_REPETITIONS = 2000
"""Of one string or array, and of all of them multiplied along a path."""
MAX_GRAMMAR_BYTES = 1 << 20

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_LOOSE_CHAR = re.compile(r'^char ::= \[\^"\\\\\]', re.MULTILINE)
_LOOSE_DOT = re.compile(r"^dot ::= .*$", re.MULTILINE)
_STRICT = r'[^"\\\x00-\x1F\x7F]'


def grammar_of(schema: str) -> str:
    """GBNF with the rule ``root`` for a schema given as JSON text. Raises `EngineError` ``bad_request``."""
    if len(schema.encode("utf-8", "replace")) > MAX_SCHEMA_BYTES:
        raise EngineError("bad_request", "The JSON schema is larger than 256 KiB.")
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise EngineError("bad_request", f"The JSON schema is not valid JSON ({error}).") from None
    if parsed is True:
        parsed = {}
    if not isinstance(parsed, dict):
        raise EngineError("bad_request", 'The JSON schema must be an object, such as {"type": "object"}.')
    _check(parsed, 0, 1)
    try:
        grammar = _convert(parsed)
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EngineError("bad_request", f"No grammar can be made of the JSON schema: {reason}.") from None
    grammar = _LOOSE_CHAR.sub(lambda _: f"char ::= {_STRICT}", grammar)
    grammar = _LOOSE_DOT.sub(lambda _: f"dot ::= {_STRICT}", grammar)
    if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
        raise EngineError("bad_request", "The JSON schema makes a grammar larger than 1 MiB", "make it smaller.")
    return grammar


def _convert(schema: dict[str, Any]) -> str:
    from llama_cpp import llama_grammar

    make: Any = llama_grammar.SchemaConverter
    converter = make(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    format_literal = converter._format_literal

    def format_escaped(literal: str) -> str:
        # Of constants and keys, which come as JSON text, the original leaves backslashes as they are.
        return str(format_literal(literal.replace("\\", "\\\\") if literal.startswith('"') else literal))

    converter._format_literal = format_escaped
    converter.visit(converter.resolve_refs(schema, "schema"), "")
    return str(converter.format_grammar())


def _check(node: Any, depth: int, factor: int) -> None:
    """Bounds the depth and the repetitions of a schema."""
    if depth > MAX_DEPTH:
        raise EngineError("bad_request", f"The JSON schema is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(node, list):
        for item in node:
            _check(item, depth + 1, factor)
        return
    if not isinstance(node, dict):
        return
    here = 1
    for key in _COUNTS:
        value = node.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value != int(value) or value < 0 or value * factor > MAX_REPETITIONS:
                raise EngineError(
                    "bad_request",
                    f"The JSON schema asks for {key} {value}",
                    f"at most {MAX_REPETITIONS} work, nested ones multiplied.",
                )
            here = max(here, int(value))
    pattern = node.get("pattern")
    if isinstance(pattern, str) and any(int(n) > MAX_REPETITIONS for n in re.findall(r"(?<=[{,])\d+", pattern)):
        raise EngineError("bad_request", f"A pattern of the JSON schema repeats more than {MAX_REPETITIONS} times.")
    ref = node.get("$ref")
    if isinstance(ref, str) and not ref.startswith("#"):
        raise EngineError(
            "bad_request", f"The JSON schema refers to {ref[:100]!r}", "only references within it (#/…) are followed."
        )
    for value in node.values():
        _check(value, depth + 1, factor * here)
