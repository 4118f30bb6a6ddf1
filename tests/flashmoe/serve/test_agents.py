"""Agents' loops with the clients' own libraries: a forced call, its result, an answer; streamed and whole alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests import sdk_clients
from tests.backends.chat_format.formats import TEMPLATES
from tests.clients.weather import PARAMETERS, holds
from tests.gguf_factory import make_gguf
from tests.serving import Running, serving

FUNCTION: dict[str, Any] = {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS}
OTHER: dict[str, Any] = {"name": "now", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module", params=["hermes", "mistral"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    model = make_gguf(folder / "tiny.gguf", n_ctx_train=4096, chat_template=TEMPLATES[request.param])
    with serving(model, folder / "log", n_ctx=4096) as running:
        yield running


def test_openai_calls_gets_the_result_and_answers(server: Running) -> None:
    with sdk_clients.openai_client(server) as client:
        messages: list[Any] = [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "Paris?"}]
        tools: list[Any] = [{"type": "function", "function": f} for f in (FUNCTION, OTHER)]
        forced: Any = {"type": "function", "function": {"name": "get_weather"}}
        given: dict[str, Any] = {
            "model": "any", "messages": messages, "tools": tools, "tool_choice": forced, "temperature": 0,
            "parallel_tool_calls": False,
        }  # fmt: skip
        whole = client.chat.completions.create(**given).choices[0]
        assert whole.finish_reason == "tool_calls"
        (call,) = whole.message.tool_calls or ()
        assert call.type == "function"
        assert call.function.name == "get_weather"
        holds(json.loads(call.function.arguments))
        # streamed: one head with index, id and name, then pieces of the same arguments
        heads, arguments, reasons = [], "", []
        for chunk in client.chat.completions.create(**given, stream=True):
            for choice in chunk.choices:
                reasons.append(choice.finish_reason)
                for piece in choice.delta.tool_calls or ():
                    assert piece.index == 0
                    assert piece.function is not None
                    if piece.id:
                        heads.append((piece.id, piece.function.name))
                    arguments += piece.function.arguments or ""
        assert [name for _, name in heads] == ["get_weather"]
        assert arguments == call.function.arguments
        assert reasons[-1] == "tool_calls"
        messages += [
            whole.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "17 degrees"},
        ]
        answer = client.chat.completions.create(
            model="any", messages=messages, tools=tools, tool_choice="none", max_tokens=8
        )
        assert answer.choices[0].message.content
        assert not answer.choices[0].message.tool_calls
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens
        required = client.chat.completions.create(**{**given, "tool_choice": "required"}).choices[0]
        assert required.message.tool_calls


def test_anthropic_calls_gets_the_result_and_answers(server: Running) -> None:
    with sdk_clients.anthropic_client(server) as client:
        tools: list[Any] = [
            {"name": f["name"], "description": f.get("description", ""), "input_schema": f["parameters"]}
            for f in (FUNCTION, OTHER)
        ]
        messages: list[Any] = [{"role": "user", "content": "Paris?"}]
        given: dict[str, Any] = {
            "model": "any", "max_tokens": 200, "system": "Use tools.", "messages": messages, "tools": tools,
            "tool_choice": {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
            "extra_body": {"temperature": 0},
        }  # fmt: skip
        whole = client.messages.create(**given)
        assert whole.stop_reason == "tool_use"
        (used,) = [b for b in whole.content if b.type == "tool_use"]
        holds(used.input)
        with client.messages.stream(**given) as stream:
            final = stream.get_final_message()
        (same,) = [b for b in final.content if b.type == "tool_use"]
        assert (same.name, same.input) == (used.name, used.input)
        assert final.stop_reason == "tool_use"
        messages += [
            {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in whole.content]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "17 degrees"}]},
        ]
        more = {**given, "messages": messages, "tool_choice": {"type": "none"}, "max_tokens": 8}
        answer = client.messages.create(**more)
        assert answer.stop_reason in ("end_turn", "max_tokens")
        assert not [b for b in answer.content if b.type == "tool_use"]
        assert answer.usage.cache_read_input_tokens
        counted = client.messages.count_tokens(
            model="any", system="Use tools.", messages=messages, tools=tools
        ).input_tokens
        assert counted == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


def test_responses_call_get_the_result_and_answer(server: Running) -> None:
    with sdk_clients.openai_client(server) as client:
        tools: list[Any] = [{"type": "function", **f} for f in (FUNCTION, OTHER)]
        items: list[Any] = [{"role": "user", "content": "Paris?"}]
        given: dict[str, Any] = {
            "model": "any", "input": items, "instructions": "Use tools.", "tools": tools, "temperature": 0,
            "tool_choice": {"type": "function", "name": "get_weather"}, "parallel_tool_calls": False,
        }  # fmt: skip
        whole = client.responses.create(**given)
        assert whole.status == "completed"
        (call,) = [i for i in whole.output if i.type == "function_call"]
        holds(json.loads(call.arguments))
        kinds, arguments = [], ""
        for event in client.responses.create(**given, stream=True):
            kinds.append(event.type)
            if event.type == "response.function_call_arguments.delta":
                arguments += event.delta
            if event.type == "response.function_call_arguments.done":
                assert event.arguments == arguments
        assert arguments == call.arguments
        assert kinds[-3:] == [
            "response.function_call_arguments.done", "response.output_item.done", "response.completed",
        ]  # fmt: skip
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "17 degrees"}
        answer = client.responses.create(
            model="any", tools=tools, tool_choice="none", max_output_tokens=8, instructions="Use tools.",
            input=[output], previous_response_id=whole.id,
        )  # fmt: skip
        assert answer.output_text
        stateless = client.responses.create(
            model="any", tools=tools, tool_choice="none", max_output_tokens=8, instructions="Use tools.", store=False,
            input=[*items, *[i.model_dump(exclude_none=True) for i in whole.output], output],
        )  # fmt: skip
        assert answer.usage is not None
        assert stateless.usage is not None
        assert abs(stateless.usage.input_tokens - answer.usage.input_tokens) <= 8


def test_a_call_that_is_cut_off_is_given_as_far_as_it_came(server: Running) -> None:
    with sdk_clients.openai_client(server) as client:
        cut = client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "Paris?"}], max_tokens=12, temperature=0,
            tools=[{"type": "function", "function": FUNCTION}],  # type: ignore[list-item]
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
        ).choices[0]  # fmt: skip
        assert cut.finish_reason == "length"


def test_forty_thousand_characters_of_tools_and_results(server: Running) -> None:
    tools = [
        {"type": "function", "function": {**FUNCTION, "name": f"tool_{i}", "description": "It helps. " * 3}}
        for i in range(12)
    ]
    with sdk_clients.openai_client(server) as client:
        answer = client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "hello"}], tools=tools, tool_choice="none", max_tokens=4,  # type: ignore[arg-type]
        )  # fmt: skip
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 500
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "hello"}], tools=tools * 30,  # type: ignore[arg-type]
            )  # fmt: skip
