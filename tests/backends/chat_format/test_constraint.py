"""Schemas and grammars compiled: hostile ones are refused by name before they cost anything."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from backends.chat_format.constraint import Constraint, check_answer, compile_constraint, grammar_kind
from backends.interface import EngineError


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
        ('{"type": "string", "pattern": "^a{1,99999999}$"}', "repeats"),
        ('{"$ref": "https://example.org/x"}', "only references within"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ('{"type": "nosuch"}', "nosuch"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        (json.dumps(nested(200)), "nested"),
        ('{"enum": [' + ",".join(['"' + "x" * 1000 + '"'] * 300) + "]}", "256 KiB"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_schema_that_cant_hold_is_refused(schema: str, words: str) -> None:
    with pytest.raises(EngineError) as caught:
        compile_constraint("json_schema", schema)
    assert caught.value.code == "bad_request"
    assert words in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= (", "x ::= y", "root ::= x", "root ::= [b-a]", "root ::= " + "(" * 20_000, "", "start: nosuch",
        "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(3000)) + 'r3000 ::= "x"\n',
        'root ::= "' + "x" * (1 << 20) + '"',
    ],
)  # fmt: skip
def test_a_grammar_that_is_none_is_refused(grammar: str) -> None:
    with pytest.raises(EngineError) as caught:
        compile_constraint(grammar_kind(grammar), grammar)
    assert caught.value.code == "bad_request"


def test_a_grammar_with_very_many_ways_costs_little() -> None:
    started = time.monotonic()
    compile_constraint("gbnf", "root ::= " + '"a"? ' * 2000 + '"b"')
    assert time.monotonic() - started < 60


def test_the_kind_of_a_grammar() -> None:
    assert grammar_kind('root ::= "start: x"') == "gbnf"
    assert grammar_kind('%llguidance {}\nstart: "x"') == "lark"


def test_a_request_cant_set_the_guides_own_options() -> None:
    made = compile_constraint("json_schema", '{"type": "integer", "x-guidance": {"lenient": true}}')
    assert "lenient" not in made.grammar


def test_a_name_like_a_keyword_is_a_name() -> None:
    schema = {"type": "object", "properties": {"format": {"type": "string"}, "default": {"type": "integer"}}}
    made = compile_constraint("json_schema", json.dumps(schema))
    assert '"default"' in made.grammar
    assert '"format"' in made.grammar


def test_an_answer_is_checked_once_more() -> None:
    schema = Constraint("", '{"type": "object", "properties": {"n": {"maximum": 3}}, "required": ["n"]}')
    assert check_answer(schema, '{"n": 2}') is None
    assert check_answer(schema, '{"n": 2') == "it isn't complete JSON"
    assert "maximum" in (check_answer(schema, '{"n": 4}') or "")
    assert check_answer(Constraint("start: /x/"), "anything") is None
    assert check_answer(Constraint("", '{"multipleOf": 0.0001, "enum": [0.6, 0.5]}'), "0.6") is None
    assert check_answer(Constraint("", '{"type": "integer", "minimum": 1.5}'), "2") is None
