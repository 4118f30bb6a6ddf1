"""Answers under constraints, made by a model of random weights: whatever it would say, what it says holds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backends.chat_format.events import Said
from backends.interface import (
    ChatMessage,
    Delta,
    EngineError,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    LoadRequest,
    Sampling,
    ToolSpec,
)
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.model import LlamaModel
from tests.backends.chat_format.formats import TEMPLATES
from tests.backends.llamacpp.answering import TOOLS, answer, hold, hot, request
from tests.gguf_factory import make_gguf

Load = Callable[[str], LlamaModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    folder, loaded = tmp_path_factory.mktemp("guided"), dict[str, LlamaModel]()

    def get(name: str) -> LlamaModel:
        if name not in loaded:
            path = make_gguf(folder / f"{name}.gguf", chat_template=TEMPLATES[name], seed=3)
            loaded[name] = MmapBackend().load(LoadRequest(path=str(path), n_threads=1), lambda _: True)
        return loaded[name]

    yield get
    for model in loaded.values():
        model.close()


def ask(model: LlamaModel, **more: Any) -> tuple[Said, Finished | Failed]:
    """One answer of the model to a question."""
    return answer(model, request(more.pop("tools", ()), **{"sampling": hot(), **more}))


def by_schema(schema: Any, seed: int = 1, limit: int = 400) -> Sampling:
    return hot(seed, limit, json_schema=json.dumps(schema))


SCHEMAS: dict[str, dict[str, Any]] = {
    "bounds": {"type": "integer", "minimum": 0, "maximum": 9},
    "exclusive": {"type": "number", "exclusiveMinimum": 1, "maximum": 2.5},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 10, "maximum": 30},
    "pattern": {"type": "string", "pattern": r"^\d{3}-\d{4}$"},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "lengths": {"type": "string", "minLength": 2.0, "maxLength": 5},
    "anything": {"type": "array", "items": {}, "maxItems": 2},
    "a property that is true": {
        "type": "object", "properties": {"a": True, "b": {"type": "null"}}, "required": ["b"],
        "additionalProperties": False, "maxProperties": 2,
    },
    "enum": {"enum": ["a\\b", 1, None, {"x": [1]}]},
    "const": {"const": {"kind": "circle"}},
    "anyOf": {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]},
    "oneOf": {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "integer", "maximum": 3, "minimum": 0}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}]},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x"]}], "items": False, "minItems": 2},
    "references": {
        "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 3}},
        "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"], "additionalProperties": False,
    },
    "a note for people": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 5, "title": "N", "default": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_hold_to_the_schema(name: str, load: Load) -> None:
    model = load("mistral")  # its template knows no thinking
    for seed in range(3):
        said, end = ask(model, sampling=by_schema(SCHEMAS[name], seed))
        assert isinstance(end, Finished), end
        if end.reason == "length" and name == "anything":
            continue
        assert end.reason == "stop", said.content
        jsonschema.Draft202012Validator(SCHEMAS[name]).validate(json.loads(said.content))


def api_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema as APIs and pydantic write them."""
    simple: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": "string", "title": "Name", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 12)},
        lambda: {
            "type": "integer",
            "format": "int64",
            "minimum": rng.randrange(-50, 10),
            "maximum": rng.randrange(10, 999),
        },
        lambda: {"type": "number", "exclusiveMinimum": 0, "maximum": rng.choice([1, 2.5, 100])},
        lambda: {"type": "boolean", "default": False},
        lambda: {"type": "string", "enum": rng.sample(["red", "grün", "a\\b", 'q"', ""], rng.randrange(1, 5))},
        lambda: {"type": "string", "format": rng.choice(["date", "date-time", "uuid", "ipv4", "time"])},
        lambda: {"type": "string", "pattern": rng.choice([r"^[A-Z]{2}\\d{4}$", r"^(a|b)+$", r"^\\w{1,8}$"])},
        lambda: {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}], "default": None},
        lambda: {"const": rng.choice(["circle", 1, True])},
        lambda: {"$ref": "#/$defs/Status"},
    ]
    if depth >= 3 or rng.random() < 0.5:
        return rng.choice(simple)()
    if rng.random() < 0.3:
        return {"type": "array", "items": api_schema(rng, depth + 1), "minItems": 0, "maxItems": rng.randrange(1, 4)}
    names = rng.sample(["id", "name", "kind", "created_at", "tags", "owner", "größe", "$x", "a.b"], rng.randrange(1, 5))
    properties = {name: api_schema(rng, depth + 1) for name in names}
    required = rng.sample(names, rng.randrange(len(names) + 1))
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_schemas_as_apis_have_them(count: int, load: Load) -> None:
    model, rng = load("mistral"), random.Random(19)
    whole = 0
    for number in range(count):
        schema = api_schema(rng)
        schema["$defs"] = {"Status": {"type": "string", "enum": ["open", "closed"]}}
        said, end = ask(model, sampling=by_schema(schema, number, limit=600))
        assert isinstance(end, Finished), (schema, end)
        if end.reason == "stop":
            whole += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(said.content))
    assert whole > count * 0.8


RECURSIVE = {
    "$defs": {
        "Tree": {
            "type": "object",
            "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Tree"}, "maxItems": 1}},
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/Tree",
}


def test_a_recursive_schema_holds(load: Load) -> None:
    said, end = ask(load("mistral"), sampling=by_schema(RECURSIVE, seed=2))
    assert isinstance(end, Finished)
    if end.reason == "stop":
        jsonschema.Draft202012Validator(RECURSIVE).validate(json.loads(said.content))


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "contains": {"type": "string"}}, "contains"),
        ({"if": {"type": "string"}}, "if"),
        ({"type": "nosuch"}, "nosuch"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "https://example.org/x"}, "only references within"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "regex"}, "regex"),
    ],
)
def test_what_cant_hold_is_refused_by_name(schema: dict[str, Any], word: str, load: Load) -> None:
    with pytest.raises(EngineError, match=word) as raised:
        ask(load("hermes"), sampling=by_schema(schema))
    assert raised.value.code == "bad_request"


def test_thinking_is_free_then_the_schema_binds(load: Load) -> None:
    model = load("coder")  # its template opens thinking
    sampling = by_schema({"type": "boolean"}, limit=30)
    said, end = ask(model, sampling=sampling)
    assert isinstance(end, Finished)
    assert said.thinking
    if end.reason == "stop":
        assert said.content in ("true", "false")
    model.submit(
        GenerateRequest(
            id="1",
            messages=(ChatMessage("user", "Well?"), ChatMessage("assistant", "", "Hm.")),
            continue_final=True,
            sampling=sampling,
        )
    )
    thought = [e for e in _drain(model) if isinstance(e, Delta) and e.kind == "thinking"]
    assert thought


def _drain(model: LlamaModel) -> list[Event]:
    events: list[Event] = []
    while model.busy():
        events += model.step()
    return events


def test_gbnf_and_lark_bind(load: Load) -> None:
    for grammar, allowed in (('root ::= "yes" | "n\\u00f6"', {"yes", "nö"}), ('start: "A" | "BB"', {"A", "BB"})):
        said, end = ask(load("mistral"), sampling=Sampling(temperature=1.5, seed=1, grammar=grammar))
        assert isinstance(end, Finished)
        assert said.content in allowed


@pytest.mark.parametrize(
    "name",
    [
        "hermes", "coder", "glm", "mistral", "deepseek", "list", "bare", "invoke", "kimi", "harmony", "dsml", "plain",
        "python", "gemma", "minimax", "kimi3", "functionary",
    ],
)  # fmt: skip
def test_a_call_is_forced_in_every_format(name: str, load: Load) -> None:
    model = load(name)
    for forced in (None, "get_weather"):
        said, end = ask(
            model, tools=TOOLS, tool_choice="required", forced_tool=forced, parallel_tool_calls=False,
            enable_thinking=False, sampling=hot(limit=600),
        )  # fmt: skip
        assert isinstance(end, Finished), end
        if end.reason == "length":  # a thought that never ended
            continue
        assert len(said.calls) == hold(said) == 1, (said, end)
        assert forced in (None, said.calls[0].name)
        assert not said.content


@pytest.mark.parametrize("name", ["mistral", "plain"])
def test_a_tool_that_is_named_is_called_once_with_the_arguments_that_are_named(name: str, load: Load) -> None:
    """Libraries ask for one call with one word, and leave out that there are no other arguments."""
    parameters = {k: v for k, v in TOOLS[0].parameters.items() if k != "additionalProperties"}
    said, end = ask(
        load(name), tools=(ToolSpec("get_weather", parameters=parameters),), tool_choice="required",
        forced_tool="get_weather", sampling=hot(limit=300),
    )  # fmt: skip
    assert isinstance(end, Finished), end
    assert end.reason == "stop"
    (call,) = said.calls
    named = TOOLS[0].parameters
    assert set(named["required"]) <= set(json.loads(call.arguments)) <= set(named["properties"])


def test_a_call_that_cant_be_forced_is_refused(load: Load) -> None:
    with pytest.raises(EngineError, match="recipients") as raised:
        ask(load("muse"), tools=TOOLS, tool_choice="required")
    assert raised.value.code == "unsupported"


def test_the_vocabulary_is_read_once(tmp_path: Path, load: Load) -> None:
    model = load("hermes")
    ask(model, sampling=by_schema({"type": "boolean"}))
    first = model._guide.tokenizer
    ask(model, sampling=by_schema({"type": "null"}))
    assert model._guide.tokenizer is first
