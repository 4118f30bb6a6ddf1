"""Agents with long instructions and many tools: from the second turn on only what is new is computed, and every answer
is the one that its prompt gets from a model that keeps nothing.

The answers are compared at the end, when it is known which prompts begin alike: the judge computes each beginning once,
or it would take ten times as long as what it judges. The last answer of each agent is judged alone as well."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.chat_format.events import Said
from backends.interface import ChatMessage, Delta, Failed, Finished, GenerateRequest, Sampling, ToolCall, ToolSpec
from backends.llamacpp.answer import Answer
from backends.llamacpp.model import LlamaModel
from backends.llamacpp.sequences import common_prefix
from tests.backends.chat_format.formats import TEMPLATES
from tests.backends.llamacpp.test_prompt_reuse import load
from tests.gguf_factory import make_gguf
from tests.storms import check, check_all

SLACK = 64
HARMONY = """{% if tools %}<|start|>developer<|message|># Tools
{% for t in tools %}{{ t | tojson }}
{% endfor %}<|end|>{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' -%}
<|start|>functions.{{ m.name }} to=assistant<|channel|>commentary<|message|>{{ m.content }}<|end|>
{%- elif m.tool_calls -%}
{%- for c in m.tool_calls -%}
<|start|>assistant to=functions.{{ c.function.name }}<|channel|>commentary json<|message|>
{{- c.function.arguments | tojson }}<|call|>
{%- endfor %}
{%- elif m.role == 'assistant' -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>
{%- else -%}
<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|>analysis #}"""
KINDS = {
    "attention": ("qwen3moe", TEMPLATES["hermes"], "Qwen-Qwen3-0.6B.jinja"),
    "hybrid": ("qwen35moe", TEMPLATES["coder"], "Qwen3.5-4B.jinja"),
    "window": ("gpt-oss", HARMONY, "openai-gpt-oss-120b.jinja"),
}
SDIST = os.environ.get("FLASHMOE_LLAMA_SDIST", "")
"""llama-cpp-python's source archive: its templates are used instead of those above."""
TOOLS = tuple(
    ToolSpec(
        f"tool_{i}",
        "It looks something up. " * 4,
        {
            "type": "object",
            "properties": {
                "hours": {"type": "integer", "minimum": 0, "maximum": 9, "description": "How long ago."},
                "place": {"type": "string", "enum": ["here", "there"]},
            },
            "required": ["hours", "place"],
            "additionalProperties": False,
        },
    )
    for i in range(16)
)


def template_of(kind: str) -> str:
    if not SDIST:
        return KINDS[kind][1]
    with tarfile.open(SDIST) as archive:
        for member in archive:
            if member.name.endswith("models/templates/" + KINDS[kind][2]):
                file = archive.extractfile(member)
                assert file is not None
                return file.read().decode()
    raise AssertionError(KINDS[kind][2])


class Place:
    """A model that keeps prompts in a folder, what was read there so far, and the answers that are to be judged."""

    def __init__(self, path: Path, folder: Path, **more: Any) -> None:
        self.path, self.folder, self.more = path, folder, more
        self.read: list[Any] = []
        self.said: list[tuple[str, tuple[int, ...], list[int]]] = []
        self.model = self._load()

    def _load(self) -> LlamaModel:
        return load(self.path, kv_dir=str(self.folder), n_seq_max=3, **self.more)

    def start_again(self) -> None:
        """As after the end of a process."""
        self.model.close()
        self.model = self._load()

    def die(self) -> None:
        """As after a kill: nothing is closed, and there is what the folder had then."""
        self.settled()
        left = self.folder.with_name(self.folder.name + "-left")
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(self.folder, left)
        self.model.close()
        self.folder = left
        self.model = self._load()

    def settled(self) -> None:
        """Until all is written."""
        end = time.monotonic() + 60
        store = self.model._store
        assert store is not None
        while any(not node.on_disk for node in store.nodes()) and time.monotonic() < end:
            time.sleep(0.01)

    def ask(self, *requests: GenerateRequest) -> list[tuple[Said, Finished]]:
        """The answers, each checked for what it computed."""
        answers: list[Answer] = []
        for request in requests:
            answers.append(self.model.prepare(request))
            self.model.submit_prepared(answers[-1])
        said = {a.id: Said() for a in answers}
        ends: dict[str, Finished] = {}
        while self.model.busy():
            for event in self.model.step():
                assert not isinstance(event, Failed), event
                if isinstance(event, Delta):
                    said[event.id].hear(event)
                elif isinstance(event, Finished):
                    ends[event.id] = event
        for answer in answers:
            known = max((common_prefix(each, answer.prompt) for each in self.read), default=0)
            usage = ends[answer.id].usage
            computed = (usage.prompt_tokens or 0) - (usage.reused_tokens or 0)
            if self.read:
                assert computed <= len(answer.prompt) - known + SLACK, (answer.id, len(answer.prompt), known, computed)
            if answer.sampler.matcher is None:
                self.said.append((answer.id, tuple(int(t) for t in answer.prompt), answer.generated))
        self.read += [np.concatenate([a.prompt, np.asarray(a.generated, np.int32)]) for a in answers]
        return [(said[a.id], ends[a.id]) for a in answers]

    def judge(self, judge: LlamaModel) -> None:
        """Whether each answer is the one that its prompt gets from a model that keeps nothing."""
        check_all(judge, self.said)
        for name, (prompt, answer) in {name: (prompt, answer) for name, prompt, answer in self.said}.items():
            check(judge, GenerateRequest(id=name, tokens=prompt), answer)


class Agent:
    def __init__(self, place: Place, name: str, preamble: int) -> None:
        self.place, self.name = place, name
        self.messages = [ChatMessage("system", "You are an agent with many tools. " * (preamble // 17))]
        self.starts: list[int] = []
        """How many messages there were before each turn."""

    def request(self, text: str, *, call: bool = False) -> GenerateRequest:
        """The next turn's: a question, answered with text or with a call that is asked for."""
        self.starts.append(len(self.messages))
        self.messages.append(ChatMessage("user", f"{self.name}: {text}"))
        return self.same(call=call)

    def same(self, *, call: bool = False) -> GenerateRequest:
        return GenerateRequest(
            id=self.name,
            messages=tuple(self.messages),
            tools=TOOLS,
            tool_choice="required" if call else "none",
            forced_tool="tool_3" if call else None,
            parallel_tool_calls=False,
            enable_thinking=False,
            sampling=Sampling(temperature=0.0, max_tokens=100),
        )

    def hear(self, said: Said) -> None:
        """Takes an answer into the history, with the results of its calls."""
        calls = tuple(ToolCall(f"call{i}", c.name, c.arguments) for i, c in enumerate(said.calls) if c.complete)
        self.messages.append(ChatMessage("assistant", said.content, tool_calls=calls))
        for call in calls:
            assert set(json.loads(call.arguments)) == {"hours", "place"}
            self.messages.append(ChatMessage("tool", "12:00, " * 8, tool_call_id=call.id, name=call.name))

    def turn(self, text: str, *, call: bool = False) -> None:
        self.hear(self.place.ask(self.request(text, call=call))[0][0])

    def back(self, turns: int) -> None:
        """Forgets the last turns, for another question in their place."""
        del self.messages[self.starts[-turns] :]
        del self.starts[-turns:]


@pytest.fixture(params=list(KINDS))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    arch = KINDS[request.param][0]
    template = template_of(request.param)
    return make_gguf(tmp_path / "m.gguf", arch=arch, n_ctx_train=24576, chat_template=template, endless=True)


@pytest.fixture
def judge(path: Path) -> Iterator[LlamaModel]:
    model = load(path, n_ctx=24576, n_seq_max=8, kv_budget_bytes=0)
    yield model
    model.close()


@pytest.mark.parametrize(
    ("preamble", "turns"), [(600, 5), pytest.param(8000, 12, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_turns_of_agents(path: Path, judge: LlamaModel, tmp_path: Path, preamble: int, turns: int) -> None:
    place = Place(path, tmp_path / "kv", n_ctx=24576)
    one, two = Agent(place, "one", preamble), Agent(place, "two", preamble)
    for turn in range(turns):  # in turn
        for agent in (one, two):
            agent.turn(f"step {turn} " + "data " * 20, call=turn % 3 == 1)
    many = [Agent(place, name, preamble) for name in ("a", "b", "c")]
    for turn in range(turns // 2):  # side by side
        call = turn % 3 == 1
        for agent, (said, _) in zip(
            many, place.ask(*[a.request(f"step {turn}", call=call) for a in many]), strict=True
        ):
            agent.hear(said)
    place.start_again()
    one.turn("after a restart")
    place.ask(one.same())  # once more, for another answer
    place.die()
    two.turn("after a death")
    for agent in many:
        agent.turn("and after it")
    for agent in (one, two):
        agent.back(3)
        agent.turn("something else")
        agent.turn("and on")
    place.model.close()
    place.judge(judge)
