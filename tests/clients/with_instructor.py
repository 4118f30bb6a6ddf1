"""instructor: structured output by tools and by JSON schema, whole and in parts; and a call loop."""

from __future__ import annotations

from typing import Any

import instructor
import openai
from weather import KEY, QUESTION, RESULT, Weather, root

plain = openai.OpenAI(base_url=root() + "/v1", api_key=KEY, max_retries=0)
messages: list[Any] = [{"role": "user", "content": QUESTION}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(plain, mode=mode)
    given: dict[str, Any] = {
        "model": "any",
        "messages": messages,
        "max_tokens": 300,
        "temperature": 0,
        "max_retries": 0,
    }
    got, raw = client.chat.completions.create_with_completion(response_model=Weather, **given)
    assert isinstance(got, Weather), mode
    assert raw.usage
    parts = list(client.chat.completions.create_partial(response_model=Weather, **given))
    assert parts[-1].city in ("Paris", "Oslo"), mode
    assert 1 <= parts[-1].days <= 9, mode

# its text, whole and streamed, and the answer to a call, are the client's that it wraps
call, raw = instructor.from_openai(plain).chat.completions.create_with_completion(
    model="any", messages=messages, response_model=Weather, max_tokens=300, temperature=0, max_retries=0
)
(made,) = raw.choices[0].message.tool_calls
history = [
    *messages,
    raw.choices[0].message.model_dump(),
    {"role": "tool", "tool_call_id": made.id, "content": RESULT},
]
answer = instructor.from_openai(plain).chat.completions.create(
    model="any", messages=history, response_model=None, max_tokens=16, temperature=0
)
assert answer.choices[0].message.content
pieces = instructor.from_openai(plain).chat.completions.create(
    model="any", messages=history, response_model=None, max_tokens=16, temperature=0, stream=True
)
assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == answer.choices[0].message.content
