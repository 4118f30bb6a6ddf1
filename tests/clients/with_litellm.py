"""litellm: OpenAI's and Anthropic's way in, text, structured output, a call loop, and the errors it tells apart."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from weather import KEY, PARAMETERS, QUESTION, RESULT, Weather, holds, root

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}
FORCED = {"type": "function", "function": {"name": "get_weather"}}
messages: list[Any] = [{"role": "user", "content": QUESTION}]


def check(model: str, base: str) -> None:
    """Everything with one of the two APIs."""
    given: dict[str, Any] = {"model": model, "api_base": base, "api_key": KEY, "num_retries": 0}
    text = {**given, "messages": messages, "max_tokens": 16, "temperature": 0}
    whole = litellm.completion(**text)
    assert whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0
    pieces = litellm.completion(**text, stream=True, stream_options={"include_usage": True})
    assert "".join(c.delta.content or "" for p in pieces for c in p.choices) == whole.choices[0].message.content

    structured = litellm.completion(**{**text, "max_tokens": 300}, response_format=Weather)
    Weather.model_validate_json(structured.choices[0].message.content)

    forced = {
        **given,
        "messages": messages,
        "tools": [TOOL],
        "tool_choice": FORCED,
        "max_tokens": 300,
        "temperature": 0,
    }
    called = litellm.completion(**forced).choices[0]
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    holds(json.loads(call.function.arguments))
    rebuilt = litellm.stream_chunk_builder(list(litellm.completion(**forced, stream=True)), messages=messages)
    (same,) = rebuilt.choices[0].message.tool_calls
    assert same.function.name == "get_weather"
    holds(json.loads(same.function.arguments))
    history = [
        *messages, called.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": RESULT},
    ]  # fmt: skip
    answer = litellm.completion(**{**text, "messages": history}, tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls
    try:
        litellm.completion(**given, messages=[{"role": "user", "content": "word " * 9000}], max_tokens=4)
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("a prompt that is too long was taken")


check("openai/any", root() + "/v1")
check("anthropic/any", root())
