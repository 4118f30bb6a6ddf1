"""Calls that a model begins of its own accord are held to their tools' schemas from there on; all else is free."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from backends.chat_format.events import Said
from backends.chat_format.parser import Parser
from backends.chat_format.variables import tool_of
from backends.interface import (
    EngineError,
    Finished,
    LoadRequest,
    Sampling,
    ToolSpec,
)
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.detok import Utf8Stream
from backends.llamacpp.model import LlamaModel
from tests.backends.chat_format.formats import FORMATS, TEMPLATES
from tests.backends.llamacpp.answering import TOOLS, answer, hold, hot, request
from tests.gguf_factory import make_gguf, tokenizer

N_VOCAB = 512
HELD = [
    "hermes", "glm", "mistral", "deepseek", "list", "invoke", "kimi", "dsml", "python", "gemma", "minimax", "kimi3",
]  # fmt: skip
Load = Callable[..., LlamaModel]


# (coder's template opens thinking, which a model of random weights never ends)


def begins(name: str) -> str:
    """The first marker of a call in a format."""
    calls = FORMATS[name].calls
    return (calls.section or calls.start)[0]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    folder, loaded = tmp_path_factory.mktemp("held"), dict[str, LlamaModel]()

    def get(name: str, plain: bool = False) -> LlamaModel:
        key = f"{name} {plain}"
        if key not in loaded:
            tokens, types, merges = tokenizer(N_VOCAB)
            if not plain:  # its marker is a token, so that a model can be made to like it
                place = len(tokens) - types[::-1].index(1) - 1  # the last one that merges make
                tokens[place], types[place] = begins(name), 4
                merges.pop()
            kv = {"tokens": tokens, "token_type": types, "merges": merges}
            path = make_gguf(
                folder / f"{key}.gguf",
                chat_template=TEMPLATES[name],
                seed=3,
                n_vocab=N_VOCAB,
                extra_kv={f"tokenizer.ggml.{key}": value for key, value in kv.items()},
            )
            loaded[key] = MmapBackend().load(LoadRequest(path=str(path), n_threads=1), lambda _: True)
        return loaded[key]

    yield get
    for model in loaded.values():
        model.close()


@pytest.mark.parametrize("name", HELD)
def test_calls_of_a_model_that_writes_anything(name: str, load: Load) -> None:
    """Random weights at temperature 1.5, with a liking for a call's first marker: text, then one call after another."""
    model = load(name)
    (marker,) = model._vocab.tokenize(begins(name))
    whole = 0
    for seed, liking in ((1, 12.0), (2, 40.0)):
        sampling = hot(seed, 400, logit_bias=((marker, liking),))
        said, _ = answer(model, request(TOOLS, sampling=sampling, enable_thinking=False))
        whole += hold(said)
    assert whole >= 2


class Writer:
    """Writes an answer: some of it by heart, the rest as the guide lets it."""

    def __init__(self, model: LlamaModel, name: str, after: str = "", tools: tuple[ToolSpec, ...] = TOOLS) -> None:
        self._model = model
        self._rng = random.Random(name)
        fmt = model._template.format
        self.said, self._utf8 = Said(), Utf8Stream()
        self.parser = Parser(fmt, tools=[tool_of(t) for t in tools], after=after)
        held = model._guide.held_calls(request(tools), fmt)
        assert held is not None
        self._held = held

    def _feed(self, text: str) -> None:
        self._held.saw(text)
        for piece in self.parser.feed(text):
            self.said.add(piece)

    def write(self, text: str, size: int = 1) -> bool:
        """By heart; whether a call was held at its end."""
        for at in range(0, len(text), size):
            self._feed(text[at : at + size])
            matcher = self._held.begun(self.parser)
            if matcher is not None:
                self._go_on(matcher, text[at + size :])
                return True
        return False

    def _go_on(self, matcher: Any, expected: str) -> None:
        """To the call's end: first as expected, then anything that is allowed."""
        assert matcher.take(self._model._guide.tokenizer.greedy_tokenize(expected)), expected
        if expected:
            self._feed(expected)
        while not matcher.accepting:
            token = int(self._rng.choice(matcher.allowed()))
            matcher.accept(token)
            self._feed(self._utf8.feed(self._model._vocab.piece(token)))

    def end(self) -> Said:
        for piece in self.parser.finish():
            self.said.add(piece)
        return self.said


BEGUN = {
    "hermes": ("", 'One moment.\n<tool_call>\n{"name": "get_weather", "argu'),
    "coder": ("<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\n<tool_call>\n<function=get_weather>\n<par"),
    "glm": ("", "<tool_call>get_weather\n<arg_key>days</arg_key>"),
    "mistral": ("", "[TOOL_CALLS]get_weather"),
    "deepseek": ("", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"),
    "list": ("", '[TOOL_CALLS][{"name":"get_weather",'),
    "bare": ("", '{"name": "get_weather", "parameters": {"days"'),
    "invoke": ("", '<x:tool_call>\n<invoke name="get_weather">\n<parameter name="days">'),
    "kimi": ("", "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"),
    "dsml": (
        "",
        'One moment.\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="da',
    ),
    "python": ("", "<|tool_call_start|>[get_weather(days="),
    "gemma": ("", "<|tool_call>call:get_weather{at:["),
    "minimax": ("", ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="get_weather">]<]minimax[>[<days>'),
    "kimi3": (
        "<|open|>response<|sep|>",
        '<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument',
    ),
    "functionary": ("<|start_header_id|>assistant\n>>>", 'get_weather\n{"days": '),
    "harmony": (
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"days": ',
    ),
}


@pytest.mark.parametrize("name", BEGUN)
@pytest.mark.parametrize("size", [1, 11])
def test_a_call_that_was_begun_is_held(name: str, size: int, load: Load) -> None:
    after, begun = BEGUN[name]
    writer = Writer(load(name, plain=True), name, after)
    assert writer.write(begun, size)
    said = writer.end()
    assert said.calls[0].name == "get_weather"
    assert hold(said) == len(said.calls)
    assert said.content in ("", "One moment.")


@pytest.mark.parametrize(
    "text",
    [
        "You write <tool_call> before a call.",
        "Text with {braces} and [brackets].",
        '<tool_call>{"name": "another_tool", "arguments": {"x": ',  # none of the request's
    ],
)
def test_what_is_no_call_of_a_tool_is_free(text: str, load: Load) -> None:
    assert not Writer(load("hermes", plain=True), "hermes").write("Well: " + text)


def test_thinking_is_free(load: Load) -> None:
    writer = Writer(load("coder", plain=True), "coder", "<|im_start|>assistant\n<think>\n")
    assert not writer.write("Shall I write <tool_call>\n<function=get_weather>\nor not?")


def test_a_schema_that_cant_be_held(load: Load) -> None:
    model = load("hermes", plain=True)
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    strict = ToolSpec("odd", parameters=parameters, strict=True)
    with pytest.raises(EngineError, match="uniqueItems") as raised:
        model.prepare(request((strict,)))
    assert raised.value.code == "bad_request"
    assert "odd" in raised.value.message
    writer = Writer(model, "hermes", tools=(ToolSpec("odd", parameters=parameters),))  # any object will do
    assert writer.write('<tool_call>{"name": "odd", "arguments": {')
    (call,) = writer.end().calls
    assert isinstance(json.loads(call.arguments), dict)


def test_formats_that_show_no_calls_are_left_alone(load: Load) -> None:
    model = load("no calls", plain=True)
    assert model._guide.held_calls(request(TOOLS), model._template.format) is None
    answer(model, request(TOOLS, sampling=Sampling(max_tokens=5)))


ODD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "uniqueItems": True},
        "code": {"type": "string", "pattern": "(^a|b)c"},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["tags", "code", "unit"],
}


def test_where_one_parameter_cant_be_held_the_others_are(load: Load) -> None:
    model = load("invoke", plain=True)
    begun = '<x:tool_call>\n<invoke name="odd">\n<parameter name="tags">[1, 1]</parameter>\n'
    begun += '<parameter name="code">whatever</parameter>\n<parameter name="unit">'
    writer = Writer(model, "invoke", tools=(ToolSpec("odd", parameters=ODD),))
    assert writer.write(begun)
    (call,) = writer.end().calls
    given = json.loads(call.arguments)
    assert given["tags"] == [1, 1]
    assert given["code"] == "whatever"
    assert given["unit"] in ("c", "f")
    strict = ToolSpec(
        "odd", parameters={"type": "object", "properties": {"code": ODD["properties"]["code"]}}, strict=True
    )
    with pytest.raises(EngineError, match="pattern") as raised:
        model.prepare(request((strict,)))
    assert raised.value.code == "bad_request"


@pytest.mark.parametrize("name", ["hermes", "glm", "kimi"])
def test_an_answer_by_a_schema_or_calls(name: str, load: Load) -> None:
    model = load(name)
    (marker,) = model._vocab.tokenize(begins(name))
    schema: dict[str, Any] = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    for liking, calls in ((-40.0, False), (40.0, True)):
        sampling = hot(1, 400, logit_bias=((marker, liking),), json_schema=json.dumps(schema))
        said, end = answer(model, request(TOOLS, sampling=sampling, enable_thinking=False))
        assert isinstance(end, Finished)
        if calls:
            assert hold(said)
            assert not said.content
        elif end.reason == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(said.content))
            assert not said.calls
