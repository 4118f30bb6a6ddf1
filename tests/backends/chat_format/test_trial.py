"""Constraints are compiled and tried in a process of their own, under limits, before an engine sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from backends.chat_format.constraint import Kind
from backends.chat_format.trial import Trial
from backends.interface import EngineError

DOUBLING = "root ::= r30\n" + "".join(f"r{i} ::= r{i - 1} r{i - 1}\n" for i in range(1, 31)) + 'r0 ::= "a"?\n'
HOSTILE = {
    "optional": "root ::= " + '"a"? ' * 2000 + '"b"',
    "doubling": DOUBLING,
    "repeated": 'root ::= (("a" | "aa" | "aaa"){1000}){1000}',
    "classes": "root ::= " + " | ".join(f"[a-z]{{{n},{n + 500}}}" for n in range(1, 400)),
}
PATTERNS = ["(a?){500}(a?){500}b", "((a|aa)*)*c", "(.*a){40}", "[^x]{0,9000}y[^x]{0,9000}"]


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    made = Trial()
    yield made
    made.close()


def refusal(trial: Trial, kind: Kind, text: str) -> EngineError | None:
    try:
        trial.compile(kind, text)
    except EngineError as error:
        return error
    return None


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_grammar_costs_nobody_else_anything(trial: Trial, name: str) -> None:
    refused = refusal(trial, "gbnf", HOSTILE[name])
    assert refused is None or refused.code == "bad_request"
    if name in ("optional", "doubling"):
        assert refused is not None
        assert refused.message
    assert trial.compile("gbnf", 'root ::= "yes" | "no"').grammar


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_hostile_pattern_neither(trial: Trial, pattern: str) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}})
    refused = refusal(trial, "json_schema", schema)
    assert refused is None or refused.code == "bad_request"
    assert trial.compile("json_schema", '{"type": "integer", "minimum": 0, "maximum": 9}').grammar


@pytest.mark.parametrize("n", [999, 1000, 1001, 1500, 1999, 2000, 2001])
def test_bounds_of_a_schema_are_held_at_every_size(trial: Trial, n: int) -> None:
    for schema in ({"type": "string", "maxLength": n}, {"type": "array", "items": {"type": "integer"}, "maxItems": n}):
        assert trial.compile("json_schema", json.dumps(schema)).grammar


def test_what_was_refused_is_named_and_what_passed_is_kept(trial: Trial) -> None:
    with pytest.raises(EngineError, match="GBNF"):
        trial.compile("gbnf", "nothing here")
    with pytest.raises(EngineError, match="JSON"):
        trial.compile("json_schema", "{")
    first = trial.compile("gbnf", 'root ::= "kept"')
    assert trial.compile("gbnf", 'root ::= "kept"') is first


def test_a_helper_that_died_is_started_again(trial: Trial) -> None:
    trial.compile("gbnf", 'root ::= "one"')
    process = trial._helper._process
    assert process is not None
    process.kill()
    process.wait()
    assert trial.compile("gbnf", 'root ::= "two"').grammar
