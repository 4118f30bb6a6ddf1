"""The clients' own libraries against the server: what they send is taken, and what they get they understand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests import sdk_clients
from tests.gguf_factory import make_gguf
from tests.serving import Running, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    model = make_gguf(folder / "tiny.gguf", n_ctx_train=4096, endless=True)
    with serving(model, folder / "log", n_ctx=4096) as running:
        yield running


@pytest.fixture
def anthropic_client(server: Running) -> Iterator[anthropic.Anthropic]:
    with sdk_clients.anthropic_client(server) as client:
        yield client


@pytest.fixture
def openai_client(server: Running) -> Iterator[openai.OpenAI]:
    with sdk_clients.openai_client(server) as client:
        yield client


ASK: dict[str, Any] = {
    "model": "claude-any", "max_tokens": 12, "extra_body": {"temperature": 0.0},
    "messages": [{"role": "user", "content": "Hello there"}],
}  # fmt: skip


def test_anthropic_whole_and_streamed_are_the_same(anthropic_client: anthropic.Anthropic) -> None:
    whole = anthropic_client.messages.create(**ASK)
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 12
    assert whole.content[0].type == "text"
    with anthropic_client.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.content[0].model_dump() == whole.content[0].model_dump()
    assert final.usage.output_tokens == 12
    assert final.model == "claude-any"


def test_anthropic_stop_sequences_and_instructions(anthropic_client: anthropic.Anthropic) -> None:
    whole = anthropic_client.messages.create(**ASK)
    assert whole.content[0].type == "text"
    stop = whole.content[0].text[4:6]
    stopped = anthropic_client.messages.create(**ASK, stop_sequences=["never said", stop])
    assert stopped.stop_reason == "stop_sequence"
    assert stopped.stop_sequence == stop
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=12345;\nBe brief."},
        {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}},
    ]
    one = anthropic_client.messages.create(**ASK, system=system)  # type: ignore[arg-type]
    system[0]["text"] = "x-anthropic-billing-header: cch=99999;\nBe brief."
    two = anthropic_client.messages.create(**ASK, system=system)  # type: ignore[arg-type]
    assert two.content == one.content
    assert two.usage.cache_read_input_tokens
    assert two.usage.input_tokens <= 8  # the line that changes isn't part of the prompt


def test_anthropic_counts_what_a_message_takes(anthropic_client: anthropic.Anthropic) -> None:
    given = {"model": "any", "messages": ASK["messages"], "system": "Be brief."}
    count = anthropic_client.messages.count_tokens(**given).input_tokens  # type: ignore[arg-type]
    usage = anthropic_client.messages.create(**{**ASK, **given}).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_anthropic_errors_have_their_classes(anthropic_client: anthropic.Anthropic) -> None:
    long = {**ASK, "messages": [{"role": "user", "content": "word " * 5000}]}
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        anthropic_client.messages.create(**long)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"), anthropic_client.messages.stream(**long):
        pass
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        anthropic_client.messages.create(**{**ASK, "messages": [{"role": "user", "content": [image]}]})


def test_responses_whole_and_streamed_are_the_same(openai_client: openai.OpenAI) -> None:
    given: dict[str, Any] = {
        "model": "any", "input": "Hello there", "instructions": "Be brief.", "max_output_tokens": 12, "temperature": 0,
    }  # fmt: skip
    whole = openai_client.responses.create(**given, store=False)
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 12
    numbers, kinds, text = [], [], ""
    for event in openai_client.responses.create(**given, stream=True):
        numbers.append(event.sequence_number)
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert numbers == list(range(len(numbers)))
    assert text == whole.output_text
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert last.type == "response.incomplete"
    assert last.response.output_text == text


def test_a_response_goes_on_from_the_one_before(openai_client: openai.OpenAI) -> None:
    first = openai_client.responses.create(model="any", input="Hello", max_output_tokens=8, temperature=0)
    second = openai_client.responses.create(
        model="any", input="And now?", previous_response_id=first.id, max_output_tokens=8, temperature=0
    )
    items: list[Any] = [
        {"role": "user", "content": "Hello"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": first.output_text}]},
        {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
    ]
    same = openai_client.responses.create(model="any", input=items, max_output_tokens=8, temperature=0, store=False)
    assert second.usage is not None
    assert same.usage is not None
    assert abs(second.usage.input_tokens - same.usage.input_tokens) <= 8  # sampled tokens may not be the canonical ones
    assert second.usage.input_tokens_details.cached_tokens > 0
    with pytest.raises(openai.BadRequestError) as raised:
        openai_client.responses.create(model="any", input="x", previous_response_id=same.id)
    assert raised.value.code == "previous_response_not_found"


def test_openai_errors_have_their_codes(openai_client: openai.OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "word " * 5000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            openai_client.chat.completions.create(model="any", messages=long, stream=stream)  # type: ignore[call-overload]
        assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as raised:
        openai_client.responses.create(model="any", input="word " * 5000)
    assert raised.value.code == "context_length_exceeded"


@pytest.mark.parametrize("streamed", [False, True])
def test_structured_output(openai_client: openai.OpenAI, streamed: bool) -> None:
    import json

    schema = {
        "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False,
    }  # fmt: skip
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    given: dict[str, Any] = {"model": "any", "input": "Is it so?", "text": form, "max_output_tokens": 200}
    if streamed:
        with openai_client.responses.stream(**given) as stream:
            for _ in stream:
                pass
            answer = stream.get_final_response()
    else:
        answer = openai_client.responses.create(**given)
    if answer.status == "completed":
        assert set(json.loads(answer.output_text)) == {"ok"}
