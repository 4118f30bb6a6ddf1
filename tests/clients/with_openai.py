"""openai in the version that the other libraries ask for: its helpers for structured output and calls."""

from __future__ import annotations

import json
from typing import Any

import openai
from weather import KEY, QUESTION, RESULT, Weather, holds, root

client = openai.OpenAI(base_url=root() + "/v1", api_key=KEY, max_retries=0)
messages: list[Any] = [{"role": "user", "content": QUESTION}]
text: dict[str, Any] = {"model": "any", "messages": messages, "max_tokens": 16, "temperature": 0}
whole = client.chat.completions.create(**text).choices[0].message.content
assert whole
streamed = client.chat.completions.create(**text, stream=True, stream_options={"include_usage": True})
chunks = list(streamed)
assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == whole
assert chunks[-1].usage
assert chunks[-1].usage.completion_tokens > 0

parsed = client.chat.completions.parse(
    model="any", messages=messages, response_format=Weather, max_tokens=200, temperature=0
)
assert isinstance(parsed.choices[0].message.parsed, Weather)
with client.chat.completions.stream(
    model="any", messages=messages, response_format=Weather, max_tokens=200, temperature=0
) as stream:
    stream.until_done()
    assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)

tools: list[Any] = [openai.pydantic_function_tool(Weather, name="get_weather")]
forced: Any = {"type": "function", "function": {"name": "get_weather"}}
called = client.chat.completions.parse(model="any", messages=messages, tools=tools, tool_choice=forced).choices[0]
calls = called.message.tool_calls or []
assert calls
assert isinstance(calls[0].function.parsed_arguments, Weather)
with client.chat.completions.stream(model="any", messages=messages, tools=tools, tool_choice=forced) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_completion().choices[0].message
assert "tool_calls.function.arguments.done" in kinds
assert final.tool_calls
assert isinstance(final.tool_calls[0].function.parsed_arguments, Weather)
holds(json.loads(calls[0].function.arguments))
messages += [called.message.model_dump(exclude_none=True)]
messages += [{"role": "tool", "tool_call_id": call.id, "content": RESULT} for call in calls]
last = client.chat.completions.create(model="any", messages=messages, tools=tools, tool_choice="none", max_tokens=16)
assert last.choices[0].message.content
assert not last.choices[0].message.tool_calls
