"""An agent's prompt at its largest: 40,000 tokens with 64 tools, through the SDKs of OpenAI and Anthropic."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.backends.llamacpp.test_agent_turns import template_of
from tests.gguf_factory import make_gguf
from tests.sdk_clients import anthropic_client, openai_client
from tests.serving import Running, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SLACK = 64
N_CTX = 49_152
WORDS = "read the file and say what it holds before you change a line of it; "
SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "enum": ["here", "there"], "description": "What is looked at."},
        "lines": {"type": "integer", "minimum": 0, "maximum": 9, "description": "How many lines of it are wanted."},
    },
    "required": ["path", "lines"],
    "additionalProperties": False,
}
NAMES = [f"tool_{i}" for i in range(64)]
ABOUT = "Looks something up in the files of this project. " * 3


def openai_tools() -> list[Any]:
    return [
        {"type": "function", "function": {"name": name, "description": ABOUT, "parameters": SCHEMA}} for name in NAMES
    ]


def anthropic_tools() -> list[Any]:
    return [{"name": name, "description": ABOUT, "input_schema": SCHEMA} for name in NAMES]


def instructions(server: Running, first: str) -> str:
    """Instructions that begin with a word of their own and make a prompt of 40,000 tokens with the tools."""
    client = anthropic_client(server)

    def tokens(n: int) -> int:
        messages: list[Any] = [{"role": "user", "content": "Begin."}]
        system = first + " " + WORDS * n
        return client.messages.count_tokens(
            model="any", system=system, messages=messages, tools=anthropic_tools()
        ).input_tokens

    base, more = tokens(0), tokens(100)
    n = -(-(40_000 - base) * 100 // (more - base))
    assert 40_000 <= tokens(n) < 41_000
    return first + " " + WORDS * n


@pytest.fixture(scope="module", params=["attention", "hybrid"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("long")
    arch = {"attention": "qwen3moe", "hybrid": "qwen35moe"}[request.param]
    model = make_gguf(
        folder / "m.gguf", arch=arch, chat_template=template_of(request.param), n_ctx_train=131_072, endless=True
    )
    with serving(model, folder / "log", parallel=2, n_ctx=N_CTX, kv_dir=str(folder / "kv")) as running:
        yield running


def cached_of(usage: Any) -> int:
    return int(usage.prompt_tokens_details.cached_tokens)


def test_openai_calls_and_answers(server: Running) -> None:
    """Streamed, then whole: the second turn computes what is new alone, and asking once more computes next to
    nothing."""
    client = openai_client(server)
    system = instructions(server, "One:")
    messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": "Begin."}]
    tools = openai_tools()
    forced: Any = {"type": "function", "function": {"name": "tool_63"}}
    given: dict[str, Any] = {"model": "any", "tools": tools, "temperature": 0}
    arguments, call_id, usage = "", "", None
    for chunk in client.chat.completions.create(
        **given, messages=messages, tool_choice=forced, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                call_id = call.id or call_id
                arguments += (call.function.arguments if call.function else "") or ""
    assert set(json.loads(arguments)) == {"path", "lines"}
    assert usage is not None
    assert usage.prompt_tokens > 40_000
    function = {"name": "tool_63", "arguments": arguments}
    messages += [
        {"role": "assistant", "tool_calls": [{"id": call_id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call_id, "content": "Nothing is there."},
    ]
    second = client.chat.completions.create(**given, messages=messages, tool_choice="none", max_tokens=8)
    assert second.usage is not None
    new = second.usage.prompt_tokens - usage.prompt_tokens
    assert second.usage.prompt_tokens - cached_of(second.usage) <= new + SLACK
    assert second.choices[0].message.content is not None
    again = client.chat.completions.create(**given, messages=messages, tool_choice="none", max_tokens=8)
    assert again.choices[0].message == second.choices[0].message
    assert again.usage is not None
    assert again.usage.prompt_tokens - cached_of(again.usage) <= SLACK


def test_anthropic_calls_and_answers(server: Running) -> None:
    client = anthropic_client(server)
    system = instructions(server, "One:")
    messages: list[Any] = [{"role": "user", "content": "Begin."}]
    given: dict[str, Any] = {
        "model": "any", "tools": anthropic_tools(), "system": system, "extra_body": {"temperature": 0.0},
    }  # fmt: skip
    whole = client.messages.create(
        **given, messages=messages, max_tokens=200, tool_choice={"type": "tool", "name": "tool_63"}
    )
    call = next(block for block in whole.content if block.type == "tool_use")
    assert set(call.input) == {"path", "lines"}  # type: ignore[call-overload]
    usage = whole.usage
    prompt = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert prompt > 40_000
    messages += [
        {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Nothing is there."}],
        },
    ]
    with client.messages.stream(**given, messages=messages, max_tokens=8, tool_choice={"type": "none"}) as stream:
        for _ in stream:
            pass
        second = stream.get_final_message().usage
    new = second.input_tokens + (second.cache_read_input_tokens or 0) - prompt
    assert second.input_tokens <= new + SLACK
    assert second.cache_read_input_tokens


def test_a_client_that_leaves_in_the_middle_of_its_prompt(server: Running) -> None:
    """Its place is free soon, others are answered, and what it read isn't read again where the model can go back."""
    messages: list[Any] = [{"role": "user", "content": "Begin."}]
    tools = openai_tools()
    for tool in tools:
        tool["function"]["name"] += "_too"  # nothing of this prompt has been read
    body = {"messages": messages, "tools": tools, "max_tokens": 4, "temperature": 0}
    seen = 0
    with httpx2.stream("POST", server.url + "/v1/chat/completions", json={**body, "stream": True}, timeout=900) as got:
        assert got.status_code == 200
        for line in got.iter_lines():
            if line.startswith("data: {"):  # the first one opens the answer, before its prompt is read
                assert not json.loads(line[6:])["choices"][0]["delta"].get("content")
            if line.startswith(": prompt: ") and (seen := int(line.split()[2])) > 6000:
                break
        assert seen > 6000, "the answer came before the prompt was told to be so far"
    end = time.monotonic() + 300
    while "flashmoe_requests_in_flight 0.0" not in httpx2.get(server.url + "/metrics", timeout=60).text:
        assert time.monotonic() < end
        time.sleep(0.1)
    short = httpx2.post(server.url + "/v1/chat/completions", json={"messages": messages, "max_tokens": 4})
    assert short.status_code == 200
    whole = httpx2.post(server.url + "/v1/chat/completions", json=body, timeout=900).json()
    cached = whole["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= seen // 2


def test_a_prompt_that_is_too_long_is_refused_as_each_api_has_it(server: Running, tmp_path: Path) -> None:
    """Before the status line, with the counts; nothing of it is computed."""
    system = instructions(server, "Four:")
    messages: list[Any] = [{"role": "user", "content": "Begin."}]
    path = Path(server.engine.request.path)
    with serving(path, tmp_path / "log", parallel=2, n_ctx=8192, kv_dir=None) as small:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as raised:
                openai_client(small).chat.completions.create(
                    model="any", messages=[{"role": "system", "content": system}, *messages], tools=openai_tools(),
                    stream=stream,
                )  # fmt: skip
            assert raised.value.code == "context_length_exceeded"
            assert raised.value.param == "messages"
            with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: 4\d{4} tokens > \d+ maximum"):
                anthropic_client(small).messages.create(
                    model="any", messages=messages, system=system, tools=anthropic_tools(), max_tokens=8, stream=stream
                )
        with pytest.raises(openai.BadRequestError) as raised:
            openai_client(small).responses.create(model="any", input="Begin.", instructions=system)
        assert raised.value.code == "context_length_exceeded"
        metrics = httpx2.get(small.url + "/metrics", timeout=60).text.splitlines()
        assert "flashmoe_prefill_tokens_total 0.0" in metrics
