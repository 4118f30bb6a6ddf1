"""Odd requests of the clients' own libraries, and of those that use none: taken, or refused in their API's shape."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests import sdk_clients
from tests.backends.chat_format.formats import TEMPLATES
from tests.gguf_factory import make_gguf
from tests.serving import Running, serving

USER: list[Any] = [{"role": "user", "content": "hi"}]
ASK: dict[str, Any] = {"model": "any", "messages": USER, "max_tokens": 4, "temperature": 0}
JSON = {"content-type": "application/json"}


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    model = make_gguf(folder / "tiny.gguf", n_ctx_train=4096, endless=True, chat_template=TEMPLATES["hermes"])
    with serving(model, folder / "log", n_ctx=4096) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with sdk_clients.openai_client(server) as client:
        yield client


@pytest.fixture
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with sdk_clients.anthropic_client(server) as client:
        yield client


def test_several_streamed_answers_with_logprobs_and_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, n=2, logprobs=True, top_logprobs=2)
    texts, told = ["", ""], [0, 0]
    usage = None
    for chunk in client.chat.completions.create(
        **ASK, n=2, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            told[choice.index] += len(choice.logprobs.content or ()) if choice.logprobs else 0
        usage = chunk.usage or usage
    assert texts == [c.message.content for c in whole.choices]
    assert told == [4, 4]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 8


def test_only_the_allowed_tools_are_called(client: openai.OpenAI) -> None:
    tools: list[Any] = [tool("one"), tool("two")]
    named = [{"type": "function", "function": {"name": "two"}}]
    choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    given: dict[str, Any] = {**ASK, "tools": tools, "tool_choice": choice, "max_tokens": 100}
    calls = client.chat.completions.create(**given).choices[0].message.tool_calls or ()
    assert calls
    assert {c.function.name for c in calls if c.type == "function"} == {"two"}
    flat: list[Any] = [{"type": "function", **t["function"]} for t in tools]
    response = client.responses.create(
        model="any", input="hi", tools=flat, max_output_tokens=100,
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "two"}]},
    )  # fmt: skip
    assert {i.name for i in response.output if i.type == "function_call"} == {"two"}
    named[0]["function"]["name"] = "three"  # type: ignore[index]
    with pytest.raises(openai.BadRequestError, match="three"):
        client.chat.completions.create(**given)
    with pytest.raises(openai.BadRequestError, match="web_search runs on"):
        client.responses.create(model="any", input="hi", tools=flat, tool_choice={"type": "web_search"})  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "f", "parameters": {}}]}, "functions"),
    ],
)
def test_what_isnt_supported_is_said_plainly(client: openai.OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**ASK, **more)
    assert raised.value.code == "unsupported_parameter"
    assert raised.value.param == param
    assert f"{param} is not supported here" in str(raised.value)


def test_a_limit_of_nothing_is_named_as_it_was_given(client: openai.OpenAI) -> None:
    given = {k: v for k, v in ASK.items() if k != "max_tokens"}
    for ask, param in (
        (lambda: client.chat.completions.create(**given, max_completion_tokens=0), "max_completion_tokens"),
        (lambda: client.chat.completions.create(**given, max_tokens=0), "max_tokens"),
        (lambda: client.responses.create(model="any", input="hi", max_output_tokens=0), "max_output_tokens"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            ask()
        assert raised.value.param == param
        assert param in str(raised.value)


def test_an_image_in_a_tools_result_doesnt_end_the_conversation(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    call_id = "call_" + "x" * 2000  # some clients keep a model's own signature in it
    call = {"id": call_id, "type": "function", "function": {"name": "one", "arguments": '{"a": 1}'}}
    image: dict[str, Any] = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages: list[Any] = [
        *USER, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": [{"type": "text", "text": "seen"}, image]},
    ]  # fmt: skip
    assert client.chat.completions.create(**{**ASK, "messages": messages}).choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="image_url is not understood"):  # shown by a person it is refused
        client.chat.completions.create(**{**ASK, "messages": [{"role": "user", "content": [image]}]})
    items: list[Any] = [
        {"role": "user", "content": "hi"}, {"type": "function_call", "call_id": "c", "name": "one", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "data:x"}]},
    ]  # fmt: skip
    assert client.responses.create(model="any", input=items, max_output_tokens=4).output
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}
    turns: list[Any] = [
        *USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "one", "input": {}}]},
        {"role": "user", "content": [result]},
    ]  # fmt: skip
    assert claude.messages.create(model="any", messages=turns, max_tokens=4).content


def test_errors_and_lists_in_anthropics_shape(server: Running, claude: anthropic.Anthropic) -> None:
    found = claude.models.list()
    assert [m.display_name for m in found.data] == ["tiny qwen3moe"]
    assert found.has_more is False
    for response, status in (
        (httpx2.get(server.url + "/v1/messages", timeout=300), 405),
        (httpx2.post(server.url + "/v1/messages", content=b"{}", headers={"content-type": "text/plain"}), 415),
        (httpx2.post(server.url + "/v1/messages", content=b'{"a": "\xff"}', headers=JSON, timeout=300), 400),
    ):
        assert response.status_code == status
        assert response.json()["type"] == "error"
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert httpx2.get(server.url + "/v1/messages", timeout=300).headers["allow"] == "POST"
    assert "GET" in httpx2.delete(server.url + "/v1/models", timeout=300).headers["allow"]


def test_pieces_of_bodies_and_requests_one_after_the_other_on_one_connection(server: Running) -> None:
    body = json.dumps({"messages": USER, "max_tokens": 2}).encode()
    pieces = (body[i : i + 7] for i in range(0, len(body), 7))
    url = server.url + "/v1/chat/completions"
    assert httpx2.post(url, content=pieces, headers=JSON, timeout=300).status_code == 200
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    one = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 300) as connection:
        connection.sendall(one * 3)
        got = b""
        while got.count(b"HTTP/1.1 200") < 3 and (data := connection.recv(1 << 16)):
            got += data
    assert got.count(b"HTTP/1.1 200") == 3


def test_a_stream_that_is_closed_leaves_nothing_running(server: Running, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**{**ASK, "max_tokens": 3000}, stream=True)
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 300
    while server.engine.in_flight and time.monotonic() < end:
        time.sleep(0.05)
    assert server.engine.in_flight == 0
