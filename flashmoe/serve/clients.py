"""How agents are pointed at this server: the lines that each of them needs, filled in."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import NamedTuple

NO_KEY = "local"
"""Most clients want a key though none is needed."""


class Place(NamedTuple):
    """Where the server is, and what it serves."""

    root: str
    """``http://host:port``"""
    model: str
    n_ctx: int
    """Tokens of prompt and answer together."""
    key: str | None


class Client(NamedTuple):
    """One agent: its command, the environment and arguments that point it here, and what else is to be said."""

    command: str
    env: Callable[[Place], dict[str, str]]
    arguments: Callable[[Place], list[str]]
    file: Callable[[Place], tuple[str, str]] | None = None
    """A file to write, where it needs one, and what goes into it."""


def _claude_env(place: Place) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": place.root,
        "ANTHROPIC_AUTH_TOKEN": place.key or NO_KEY,
        "ANTHROPIC_MODEL": place.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": place.model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _codex_arguments(place: Place) -> list[str]:
    settings = {
        "model_provider": "flashmoe",
        "model_providers.flashmoe.name": "flashmoe-tui",
        "model_providers.flashmoe.base_url": f"{place.root}/v1",
        "model_providers.flashmoe.wire_api": "responses",
        "model_context_window": place.n_ctx,
    }
    if place.key:
        settings["model_providers.flashmoe.env_key"] = "FLASHMOE_API_KEY"
    out = ["--model", place.model]
    for name, value in settings.items():
        out += ["--config", f"{name}={json.dumps(value)}"]
    return out


def _opencode_file(place: Place) -> tuple[str, str]:
    limit = {"context": place.n_ctx, "output": place.n_ctx // 4}
    options = {"baseURL": f"{place.root}/v1", **({"apiKey": "{env:FLASHMOE_API_KEY}"} if place.key else {})}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "flashmoe-tui",
        "options": options,
        "models": {place.model: {"name": place.model, "limit": limit}},
    }
    config = {"$schema": "https://opencode.ai/config.json", "provider": {"flashmoe": provider}}
    return "opencode.json", json.dumps({**config, "model": f"flashmoe/{place.model}"}, indent=2, ensure_ascii=False)


def _openai_env(place: Place) -> dict[str, str]:
    return {"OPENAI_API_BASE": f"{place.root}/v1", "OPENAI_API_KEY": place.key or NO_KEY}


def _key_env(place: Place) -> dict[str, str]:
    return {"FLASHMOE_API_KEY": place.key} if place.key else {}


CLIENTS: dict[str, Client] = {
    "claude-code": Client("claude", _claude_env, lambda place: []),
    "codex": Client("codex", _key_env, _codex_arguments),
    "aider": Client("aider", _openai_env, lambda place: ["--model", f"openai/{place.model}"]),
    "opencode": Client("opencode", _key_env, lambda place: [], _opencode_file),
}


def lines_for(name: str, place: Place) -> list[str]:
    """What to type, and what to write where, to use an agent with this server. The key itself is never printed."""
    client = CLIENTS[name]
    shown = place._replace(key="$FLASHMOE_API_KEY") if place.key else place
    out = []
    if client.file is not None:
        path, text = client.file(place)
        out += [f"# in {path}, in the folder that you work in:", *text.splitlines(), ""]
    env = [f"{k}={_quoted(v)}" for k, v in client.env(shown).items() if k != "FLASHMOE_API_KEY"]
    words = [client.command, *map(shlex.quote, client.arguments(place))]
    return [*out, " \\\n  ".join([*env, " ".join(words)])]


def _quoted(value: str) -> str:
    return f'"{value}"' if value.startswith("$") else shlex.quote(value)
