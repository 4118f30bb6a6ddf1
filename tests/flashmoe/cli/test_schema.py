"""JSON schemas as grammars: what they allow, and hostile ones refused before they cost anything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.interface import EngineError
from backends.llamacpp.json_schema import grammar_of


def test_strings_hold_no_raw_control_characters() -> None:
    for schema in ({}, {"type": "string"}, {"type": "string", "pattern": "^.+$"}):
        grammar = grammar_of(json.dumps(schema))
        assert r'[^"\\\x00-\x1F\x7F]' in grammar
        assert r'[^"\\] ' not in grammar
        assert r"[^\x0A\x0D]" not in grammar


def test_constants_keep_their_backslashes() -> None:
    grammar = grammar_of(json.dumps({"enum": ["a\\b"]}))
    assert '"\\"a\\\\\\\\b\\""' in grammar  # GBNF escapes what JSON escaped


def test_references_within_the_schema_work() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}
    assert "integral-part" in grammar_of(json.dumps(schema))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be an object"),
        ('{"type": "string", "maxLength": 1000000000}', "maxLength"),
        ('{"type": "string", "minLength": 1e300}', "minLength"),
        ('{"type": "array", "maxItems": 1000, "items": {"type": "string", "maxLength": 1000}}', "multiplied"),
        ('{"type": "string", "pattern": "^a{1,99999999}$"}', "repeats"),
        ('{"$ref": "https://example.org/x"}', "only references within"),
        ('{"$ref": "#/nowhere"}', "No grammar"),
        ('{"type": "nosuch"}', "No grammar"),
        (json.dumps(nested(200)), "nested"),
        ('{"enum": [' + ",".join(['"' + "x" * 1000 + '"'] * 300) + "]}", "256 KiB"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_can_be_no_grammar_is_refused(schema: str, words: str) -> None:
    with pytest.raises(EngineError) as caught:
        grammar_of(schema)
    assert caught.value.code == "bad_request"
    assert words in caught.value.message
