"""Answers of models of random weights to one question, and the tools that they are given."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from backends.chat_format.events import Said
from backends.interface import (
    ChatMessage,
    Delta,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    Sampling,
    ToolSpec,
)
from backends.llamacpp.model import LlamaModel

TOOLS = (
    ToolSpec(
        "get_weather",
        parameters={
            "type": "object",
            "properties": {
                "days": {"type": "integer", "minimum": 1, "maximum": 5, "format": "int32"},
                "unit": {"enum": ["c", "f"]},
                "city": {"type": "string", "pattern": "^[A-Z][a-z]{1,5}$"},
                "note": {"type": ["string", "null"], "maxLength": 3},
                "exact": {"type": "boolean"},
                "at": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 9}, "maxItems": 2},
            },
            "required": ["days", "unit", "city"],
            "additionalProperties": False,
        },
    ),
    ToolSpec("get_time", parameters={"type": "object", "properties": {}, "additionalProperties": False}),
)
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}


def hot(seed: int = 1, limit: int | None = 400, **more: Any) -> Sampling:
    """Anything that is allowed, whatever the model makes of it."""
    return Sampling(temperature=1.5, top_p=1.0, top_k=0, min_p=0.0, seed=seed, max_tokens=limit, **more)


def request(tools: tuple[ToolSpec, ...] = (), **more: Any) -> GenerateRequest:
    """A question."""
    return GenerateRequest(id="1", messages=(ChatMessage("user", "Well?"),), tools=tools, **more)


def answer(model: LlamaModel, asked: GenerateRequest) -> tuple[Said, Finished | Failed]:
    """All of an answer, and how it ended."""
    model.submit(asked)
    events, said = list[Event](), Said()
    while model.busy():
        events += model.step()
    for event in events:
        if isinstance(event, Delta):
            said.hear(event)
    end = events[-1]
    assert isinstance(end, Finished | Failed), end
    return said, end


def hold(said: Said) -> int:
    """How many whole calls there are, each as its tool wants it."""
    whole = [call for call in said.calls if call.complete]
    assert len(said.calls) - len(whole) <= 1  # the last one was cut off by the length
    for call in whole:
        jsonschema.Draft202012Validator(SCHEMAS[call.name]).validate(json.loads(call.arguments))
    return len(whole)
