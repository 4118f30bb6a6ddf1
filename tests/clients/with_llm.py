"""llm, with the lines that docs/agents.md gives: its command, a schema, and a tool's call, result and answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from weather import PARAMETERS, QUESTION, RESULT, holds, root

folder = tempfile.TemporaryDirectory()
os.environ["LLM_USER_PATH"] = folder.name
LINES = '- {model_id: flashmoe, model_name: MODEL, api_base: "%s/v1", supports_tools: true, supports_schema: true}\n'
(Path(folder.name) / "extra-openai-models.yaml").write_text(LINES % root())

import llm  # noqa: E402 - it reads where its files are when it is imported


def command(*arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run([sys.executable, "-m", "llm", *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


options = ("-m", "flashmoe", "-o", "max_tokens", "16", "-o", "temperature", "0")
whole = command(*options, "--no-stream", QUESTION)
assert whole.strip()
assert command(*options, QUESTION) == whole
schema = command("-m", "flashmoe", "-o", "max_tokens", "300", "--schema", json.dumps(PARAMETERS), QUESTION)
holds(json.loads(schema))

asked: list[dict[str, Any]] = []


def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    asked.append({"city": city, "days": days})
    return RESULT


FORCED = {"type": "function", "function": {"name": "get_weather"}}
model: Any = llm.get_model("flashmoe")
plain = model.build_kwargs


def build_kwargs(prompt: Any, stream: bool) -> dict[str, Any]:
    """llm has no way to ask for a call, which a small model doesn't make by itself."""
    done = any(message.role == "tool" for message in prompt.messages)
    return {**plain(prompt, stream), "tool_choice": "none" if done else FORCED}


model.build_kwargs = build_kwargs
tool = llm.Tool(
    name="get_weather", description="The weather of a city.", input_schema=PARAMETERS, implementation=get_weather
)
for stream in (False, True):
    asked.clear()
    chain = model.chain(QUESTION, tools=[tool], stream=stream, options={"max_tokens": 100})
    assert chain.text().strip()
    for arguments in asked:
        holds(arguments)
    assert asked
