"""Whatever the grammar of a forced call allows is read as calls that match their tools' schemas, in each format."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import llguidance
import pytest

from backends.chat_format.constraint import Matcher, compile_constraint
from backends.chat_format.forcing import begun_calls, forced_calls
from backends.chat_format.parser import parse
from backends.chat_format.variables import tool_of
from backends.interface import ToolSpec
from tests.backends.chat_format.formats import FORMATS

TOKENIZER: Any = llguidance.LLTokenizer("byte")
MARKED = [n for n in FORMATS if FORMATS[n].calls.kind != "none" or FORMATS[n].protocol != "tags"]
AFTER = {"kimi3": "<|open|>response<|sep|>", "functionary": ">>>"}
_NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/T"}, "maxItems": 1}},
    "additionalProperties": False,
}
TOOLS = (
    ToolSpec(
        "get_weather",
        parameters={
            "type": "object",
            "properties": {
                "days": {"type": "integer", "minimum": 1, "maximum": 5},
                "city": {"type": "string", "pattern": "^[A-Z][a-z]{1,5}$"},
                "unit": {"enum": ["c", "f"]},
                "note": {"type": ["string", "null"], "maxLength": 4},
                "when": {"type": "string", "format": "date"},
                "mix": {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 2, "maxLength": 3}]},
                "bounded mix": {"anyOf": [
                    {"type": "integer", "minimum": 3, "maximum": 9}, {"type": "string", "maxLength": 3},
                    {"type": "boolean"},
                ]},
                "quoted": {"const": 'it\'s "x"'},
                "several": {"enum": ["a", 1, None, "null", "5", True]},
                "status": {"anyOf": [{"$ref": "#/$defs/S"}, {"type": "null"}]},
                "at": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 9}, "maxItems": 2},
                "place": {
                    "type": "object", "required": ["name"], "additionalProperties": False,
                    "properties": {
                        "lat": {"type": "number", "minimum": 0, "maximum": 3},
                        "name": {"type": "string", "maxLength": 3},
                    },
                },
                "tree": {"$ref": "#/$defs/T"},
                "option": {"anyOf": [
                    {
                        "type": "object", "required": ["a b"], "additionalProperties": False,
                        "properties": {"a b": {"type": "boolean"}, "n": {"type": ["null", "string"], "maxLength": 2}},
                    },
                    {"type": "null"},
                ]},
            },
            "required": ["days", "city", "mix", "bounded mix", "place", "option"],
            "$defs": {"T": _NODE, "S": {"enum": ["open", "5"]}},
        },
    ),
    ToolSpec("get_time", parameters={"type": "object", "properties": {}}),
    ToolSpec("ways", parameters={
        "oneOf": [
            {"type": "object", "properties": {"a": {"const": "x"}, "n": {"type": "integer"}}, "required": ["a", "n"],
             "additionalProperties": False},
            {"type": "object", "properties": {"b": {"const": "y"}}, "required": ["b"], "additionalProperties": False},
        ],
    }),
)  # fmt: skip
PLAIN = {"python", "gemma"}  # names of parameters without blanks


def tools_for(name: str) -> tuple[ToolSpec, ...]:
    if name not in PLAIN:
        return TOOLS
    return tuple(
        ToolSpec(t.name, parameters=json.loads(json.dumps(t.parameters).replace("bounded mix", "mix2"))) for t in TOOLS
    )


def drawn(lark: str, rng: random.Random) -> str | None:
    """A text by a grammar; None: it didn't come to an end."""
    matcher, out = Matcher(TOKENIZER, compile_constraint("lark", lark)), bytearray()
    while not matcher.over and len(out) < 2500:
        allowed = [int(t) for t in matcher.allowed() if t < 256]
        if matcher.accepting and (not allowed or rng.random() < 0.5):
            break
        plain = [t for t in allowed if 32 < t < 127]
        token = rng.choice(plain if plain and rng.random() < 0.97 else allowed)
        out.append(token)
        matcher.accept(token)
    return out.decode("utf-8", "replace") if matcher.accepting else None


@pytest.mark.parametrize("name", [n for n in MARKED if n != "muse"])
def test_forced_calls_are_read_as_they_must_be(name: str) -> None:
    tools = tools_for(name)
    schemas = {t.name: t.parameters for t in tools}
    lark = forced_calls(FORMATS[name], tools, lambda marker: [(marker, None)], parallel=True)
    whole = 0
    for seed in range(5):
        raw = drawn(lark, random.Random(f"{name} {seed}"))
        if raw is None:
            continue
        whole += 1
        said = parse(FORMATS[name], raw, tools=[tool_of(t) for t in tools], after=AFTER.get(name, ""))
        assert said.calls, raw
        assert not said.content.strip(), raw
        for call in said.calls:
            assert call.complete, raw
            jsonschema.Draft202012Validator(schemas[call.name]).validate(json.loads(call.arguments))
    assert whole >= 2


@pytest.mark.parametrize("name", MARKED)
def test_calls_that_were_begun_have_a_grammar_in_each_format(name: str) -> None:
    found = begun_calls(FORMATS[name], tools_for(name), lambda marker: [(marker, 7 if "<" in marker else None)])
    assert found
    for lark in found.values():
        compile_constraint("lark", lark)


ANYTHING = {
    "coder": "<tool_call>\n<function=any>\n<parameter=x>\na b\n</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>any\n<arg_key>x</arg_key>\n<arg_value>a b</arg_value>\n</tool_call>",
    "invoke": '<x:tool_call>\n<invoke name="any">\n<parameter name="x">a b</parameter>\n</invoke>',
    "dsml": '<｜DSML｜function_calls><｜DSML｜invoke name="any"><｜DSML｜parameter name="x" string="true">a b'
    "</｜DSML｜parameter></｜DSML｜invoke>",
    "python": '<|tool_call_start|>[any(x="a b")]<|tool_call_end|>',
    "gemma": '<|tool_call>call:any{x:<|"|>a b<|"|>}<tool_call|>',
    "minimax": ']<]minimax[>[<tool_call>]<]minimax[>[<invoke name="any">]<]minimax[>[<x>a b]<]minimax[>[</x>'
    "]<]minimax[>[</invoke>",
    "kimi3": '<|open|>call tool="any" index="1"<|sep|><|open|>argument key="x" type="string"<|sep|>a b'
    "<|close|>argument<|sep|><|close|>call<|sep|>",
    "hermes": '<tool_call>\n{"name": "any", "arguments": {"x": "a b"}}\n</tool_call>',
}  # fmt: skip


@pytest.mark.parametrize("name", ANYTHING)
def test_a_tool_that_names_no_parameters_takes_any(name: str) -> None:
    tool = ToolSpec("any", parameters={"type": "object"})
    lark = begun_calls(FORMATS[name], [tool], lambda marker: [(marker, None)])[""]
    assert Matcher(TOKENIZER, compile_constraint("lark", lark)).take(list(ANYTHING[name].encode()))
    (call,) = parse(FORMATS[name], ANYTHING[name], tools=[tool_of(tool)], after=AFTER.get(name, "")).calls
    assert json.loads(call.arguments) == {"x": "a b"}
