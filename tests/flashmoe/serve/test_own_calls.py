"""A model that calls a tool of its own accord, with nothing forced: the call, its result, the answer, over each API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests import sdk_clients
from tests.clients.weather import PARAMETERS, holds
from tests.scripted_gguf import ANSWER, call_text, called, make_scripted
from tests.serving import Running, serving

ARGUMENTS = {"city": "Paris", "days": 3}
FUNCTION: dict[str, Any] = {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS}
RESULT = "17 degrees"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    twice = call_text("get_weather", ARGUMENTS) + "\n" + call_text("get_weather", {"city": "Oslo", "days": 1})
    says = [
        ("'both' in messages[-1].content and " + called("get_weather"), twice),
        (called("get_weather"), "Let me look.\n" + call_text("get_weather", ARGUMENTS)),
    ]
    with serving(make_scripted(folder / "scripted.gguf", says), folder / "log", n_ctx=4096) as running:
        yield running


@pytest.fixture
def openai_client(server: Running) -> Iterator[openai.OpenAI]:
    with sdk_clients.openai_client(server) as client:
        yield client


@pytest.fixture
def anthropic_client(server: Running) -> Iterator[anthropic.Anthropic]:
    with sdk_clients.anthropic_client(server) as client:
        yield client


@pytest.mark.parametrize("streamed", [False, True])
def test_chat(openai_client: openai.OpenAI, streamed: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "Paris?"}]
    given: dict[str, Any] = {
        "model": "any", "messages": messages, "tools": [{"type": "function", "function": FUNCTION}],
    }  # fmt: skip
    if streamed:
        with openai_client.chat.completions.stream(**given) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        choice = openai_client.chat.completions.create(**given).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.strip() == "Let me look."
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == ARGUMENTS
    holds(json.loads(call.function.arguments))
    function = {"name": call.function.name, "arguments": call.function.arguments}
    said = {"role": "assistant", "content": choice.message.content, "tool_calls": [
        {"id": call.id, "type": "function", "function": function}
    ]}  # fmt: skip
    messages += [said, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    answer = openai_client.chat.completions.create(**given)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_several_calls_have_their_places(openai_client: openai.OpenAI, streamed: bool) -> None:
    given: dict[str, Any] = {
        "model": "any", "messages": [{"role": "user", "content": "Paris and Oslo, both?"}],
        "tools": [{"type": "function", "function": FUNCTION}],
    }  # fmt: skip
    calls: dict[int, dict[str, str]] = {}
    if streamed:
        for chunk in openai_client.chat.completions.create(**given, stream=True):
            for piece in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
                call = calls.setdefault(piece.index, {"id": piece.id or "", "arguments": ""})
                call["arguments"] += piece.function.arguments or "" if piece.function is not None else ""
    else:
        whole = openai_client.chat.completions.create(**given).choices[0].message
        for i, told in enumerate(whole.tool_calls or ()):
            assert told.type == "function"
            calls[i] = {"id": told.id, "arguments": told.function.arguments}
    assert [json.loads(c["arguments"])["city"] for c in calls.values()] == ["Paris", "Oslo"]
    assert list(calls) == [0, 1]
    assert len({c["id"] for c in calls.values()}) == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_messages(anthropic_client: anthropic.Anthropic, streamed: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "Paris?"}]
    tool = {"name": "get_weather", "description": "The weather.", "input_schema": PARAMETERS}
    given: dict[str, Any] = {"model": "any", "max_tokens": 200, "messages": messages, "tools": [tool]}
    if streamed:
        with anthropic_client.messages.stream(**given) as stream:
            message = stream.get_final_message()
    else:
        message = anthropic_client.messages.create(**given)
    assert message.stop_reason == "tool_use"
    assert [b.type for b in message.content] == ["text", "tool_use"]
    used: Any = message.content[1]
    assert used.input == ARGUMENTS
    result = {"type": "tool_result", "tool_use_id": used.id, "content": [{"type": "text", "text": RESULT}]}
    reminder = {"type": "text", "text": "Mind the rules."}  # Claude Code has such beside a result
    messages += [
        {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in message.content]},
        {"role": "user", "content": [result, reminder]},
    ]
    answer = anthropic_client.messages.create(**given)
    assert [b.model_dump(exclude_none=True) for b in answer.content] == [{"type": "text", "text": ANSWER}]
    assert answer.stop_reason == "end_turn"
    assert answer.usage.cache_read_input_tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_responses(openai_client: openai.OpenAI, streamed: bool) -> None:
    items: list[Any] = [{"role": "user", "content": "Paris?"}]
    given: dict[str, Any] = {
        "model": "any", "input": items, "tools": [{"type": "function", **FUNCTION}], "store": False,
    }  # fmt: skip
    if streamed:
        with openai_client.responses.stream(**given) as stream:
            response: Any = stream.get_final_response()
    else:
        response = openai_client.responses.create(**given)
    assert [i.type for i in response.output] == ["message", "function_call"]
    call = response.output[1]
    assert json.loads(call.arguments) == ARGUMENTS
    items += [i.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for i in response.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": RESULT})
    answer = openai_client.responses.create(**given)
    assert answer.output_text == ANSWER
    assert answer.status == "completed"
