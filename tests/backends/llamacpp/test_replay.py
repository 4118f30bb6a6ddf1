"""History as it was sampled: the next turn's prompt begins with the very tokens that the KV cache holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.chat_format.events import Said
from backends.interface import ChatMessage, Delta, Finished, GenerateRequest, LoadRequest, Sampling, ToolCall, ToolSpec
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.model import LlamaModel
from tests.backends.chat_format.formats import TEMPLATES
from tests.gguf_factory import make_gguf

TOOL = ToolSpec(
    "get_time",
    parameters={
        "type": "object",
        "properties": {"hours": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["hours"],
        "additionalProperties": False,
    },
)


@pytest.fixture(scope="module", params=["hermes", "coder", "mistral", "deepseek"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    path: Path = tmp_path_factory.mktemp("replay") / "tiny.gguf"
    make_gguf(path, chat_template=TEMPLATES[request.param], seed=3)
    made = MmapBackend().load(LoadRequest(path=str(path), n_threads=1), lambda _: True)
    yield made
    made.close()


def turn(model: LlamaModel, messages: list[ChatMessage], **more: object) -> tuple[Said, Finished]:
    sampling = Sampling(temperature=1.2, seed=5, max_tokens=60)
    request = GenerateRequest(id="1", messages=tuple(messages), sampling=sampling, **more)  # type: ignore[arg-type]
    model.submit(request)
    said = Said()
    while model.busy():
        for event in model.step():
            if isinstance(event, Delta):
                said.hear(event)
            elif isinstance(event, Finished):
                return said, event
    raise AssertionError("it never ended")


def test_each_turn_reads_only_what_is_new(model: LlamaModel) -> None:
    messages = [ChatMessage("user", "Tell me of the sea, please.")]
    for _ in range(3):
        said, end = turn(model, messages)
        held = (end.usage.prompt_tokens or 0) + (end.usage.completion_tokens or 0)
        messages += [ChatMessage("assistant", said.content), ChatMessage("user", "And then?")]  # without the thinking
        _, after = turn(model, messages)
        assert (after.usage.reused_tokens or 0) >= held - 1
        messages = [*messages[:-1], ChatMessage("user", "Go on.")]


def test_a_call_and_its_result_follow_the_tokens_that_were_sampled(model: LlamaModel) -> None:
    messages = [ChatMessage("user", "What time is it?")]
    said, end = turn(
        model, messages, tools=(TOOL,), tool_choice="required", enable_thinking=False, parallel_tool_calls=False
    )
    if not said.calls or not said.calls[0].complete:
        pytest.skip("this model thought until its limit")
    held = (end.usage.prompt_tokens or 0) + (end.usage.completion_tokens or 0)
    calls = tuple(
        ToolCall(f"abcdefgh{i}", c.name, json.dumps(json.loads(c.arguments), indent=1))
        for i, c in enumerate(said.calls)
    )
    messages.append(ChatMessage("assistant", said.content, tool_calls=calls))
    messages += [ChatMessage("tool", "12:00", tool_call_id=c.id, name=c.name) for c in calls]
    _, after = turn(model, messages, tools=(TOOL,), enable_thinking=False)
    assert (after.usage.reused_tokens or 0) >= held - 1


def test_another_answer_is_rendered_anew(model: LlamaModel) -> None:
    question = ChatMessage("user", "A question of its own?")
    turn(model, [question])
    changed = [question, ChatMessage("assistant", "What somebody else said."), ChatMessage("user", "And then?")]
    prompt = model._prompts.make(GenerateRequest(id="1", messages=tuple(changed)))
    assert prompt.tokens == model._vocab.prompt_tokens(
        model._template.prompt(GenerateRequest(id="1", messages=tuple(changed)))
    )
