"""What a schema says of a string holds also where it stands raw between markers."""

from __future__ import annotations

from typing import Any

import jsonschema
import llguidance
import pytest

from backends.chat_format.grammar import Rules
from backends.chat_format.raw_text import ANY, text_of
from backends.interface import EngineError

TOKENIZER: Any = llguidance.LLTokenizer("byte")
TEXTS = [
    "", "a", "ab", "abc", "x1", "12", "A-1", "a/b", "é", "2024-02-29", "a\nb", "a]b", "a[b", "-", "foo.bar", "$5",
    "x^y", "555-1234", "call 555-1234 now", 'b/c\n"',
]  # fmt: skip


def allows(start: str, rules: Rules, text: str) -> bool:
    """Whether a grammar takes a text, whole."""
    grammar = llguidance.LLMatcher.grammar_from_lark(rules.text(start))
    failed, problems = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    assert not failed, problems
    matcher = llguidance.LLMatcher(TOKENIZER, grammar, log_level=0)
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def rules() -> Rules:
    return Rules(lambda marker: [(marker, None)])


def text_fits(schema: dict[str, Any], text: str) -> bool:
    expression = text_of(schema, schema)
    if expression is None:
        return False
    made = rules()
    return allows(made.raw(expression, "</end>"), made, text + "</end>")


@pytest.mark.parametrize(
    "schema",
    [
        *({"pattern": p} for p in (
            "^a", "b$", r"^[A-Z]-\d$", r"\d{3}-\d{4}", "^(a|b)+$", "^a$|^foo", "(^a$|^x)", "a/b", "[/]", "^[^/]+$",
            r"^\$\d", r"\W", r"[\]]", "^$", "é|1", r"[\[]", "^(?:a|ab)$", "^.$", r"\.", r"\u00e9", "a\nb",
        )),
        {"minLength": 2}, {"maxLength": 1}, {"minLength": 2, "maxLength": 2.0, "type": "string"},
        {"enum": ["a", 'b/c\n"', 5]}, {"const": "x1"}, {"enum": ["a", "abc"], "maxLength": 1},
        {"anyOf": [{"maxLength": 1}, {"pattern": "^a"}]}, {"allOf": [{"maxLength": 2}, {"pattern": "^a"}]},
        {"oneOf": [{"const": "a"}, {"const": "abc"}]}, {"type": ["string", "null"], "minLength": 3},
        {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d"}]}, {"type": "integer"},
        {"$ref": "#/$defs/s", "maxLength": 2, "$defs": {"s": {"type": "string", "pattern": "^a"}}},
        {"allOf": [{"type": "string"}, {"type": "null"}]},
    ],
    ids=str,
)  # fmt: skip
def test_the_strings_are_those_of_the_schema(schema: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    for text in TEXTS:
        assert text_fits(schema, text) == validator.is_valid(text), text


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", ["2024-02-29", "1999-12-31"], ["2023-02-29", "2024-13-01", "2024-1-1", ""]),
        ("time", ["12:30:00Z", "23:59:59.5+01:00"], ["24:00:00Z", "12:30", "12:30:00"]),
        ("date-time", ["2024-02-29T12:30:00Z"], ["2024-02-29", "2024-02-29 12:30:00Z"]),
        ("duration", ["P1D", "PT5M", "P1W", "P1Y2M", "P1DT2H3M4S"], ["P", "PT", "1D", "P1Y2D"]),
        ("email", ["a@b.c", "x.y+z@example.org"], ["a", "a@", "a b@c", ".a@b"]),
        ("hostname", ["a", "a-b.example"], ["-a", "a_b", "a..b", ""]),
        ("ipv4", ["10.0.0.1"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
        ("ipv6", ["::", "::1", "1::", "fe80::1", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::"], ["1", ":::", "1:2"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567", "123e4567-e89b-12d3-a456-42661417400g"]),
        ("uri", ["http://x.org/a?b=c#d", "mailto:a@b"], ["x", "a b:c", "http://x y"]),
        ("int32", ["anything"], []),
    ],
)  # fmt: skip
def test_formats(name: str, good: list[str], bad: list[str]) -> None:
    schema = {"type": "string", "format": name}
    assert [t for t in good if not text_fits(schema, t)] == []
    assert [t for t in bad if text_fits(schema, t)] == []


@pytest.mark.parametrize("pattern", ["a^b", "(^a|b)c", "a(b$|c)"])
def test_what_cant_be_held_is_named(pattern: str) -> None:
    with pytest.raises(EngineError, match=r"pattern with \^ or \$") as raised:
        text_of({"pattern": pattern}, {})
    assert raised.value.code == "bad_request"


def test_a_text_ends_at_its_marker_whatever_it_holds() -> None:
    made = rules()
    start = made.raw(ANY, "</p>", trail="\n", never=["(?s:.*)<p=(?:x|y)>(?s:.*)"])
    assert allows(start, made, "a < b </pp> </\n</p>")
    assert allows(start, made, "<p=z>\n</p>")
    assert not allows(start, made, "a</p>")  # without what the template writes before the marker
    assert not allows(start, made, "a\n</p>b\n</p>")
    assert not allows(start, made, "<p=x>\n</p>")
