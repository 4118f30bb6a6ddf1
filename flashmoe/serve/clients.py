"""How agents are pointed at this server: the lines that each of them needs, filled in."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

NO_KEY = "local"
"""Most clients want a key though none is needed."""
_CLAUDE_PLACES = ("BEDROCK", "VERTEX", "FOUNDRY", "MANTLE", "GATEWAY", "ANTHROPIC_AWS", "ANTHROPIC_GOOGLE_CLOUD")
"""Clouds that Claude Code would ask instead."""


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
    install: str
    """How to get it."""
    env: Callable[[Place], dict[str, str]]
    arguments: Callable[[Place], list[str]]
    file: Callable[[Place], tuple[str, str]] | None = None
    """A file to write, where it needs one, and what goes into it."""
    inline: Callable[[Place], dict[str, str]] | None = None
    """What stands for that file in the environment of an agent that is started from here."""
    foreign: tuple[str, ...] = ()
    """Variables that would point it, or a key of the user's, elsewhere."""


def _claude_env(place: Place) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": place.root,
        "ANTHROPIC_AUTH_TOKEN": place.key or NO_KEY,
        "ANTHROPIC_MODEL": place.model,
        **{f"ANTHROPIC_DEFAULT_{size}_MODEL": place.model for size in ("HAIKU", "SONNET", "OPUS")},
        # it takes a model that it doesn't know for one with a million tokens
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(place.n_ctx),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(place.n_ctx // 4),
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
    name = f"flashmoe/{place.model}"
    # titles come from the small model: without it opencode may ask one of its own, elsewhere
    config = {"$schema": "https://opencode.ai/config.json", "provider": {"flashmoe": provider}}
    return "opencode.json", json.dumps({**config, "model": name, "small_model": name}, indent=2, ensure_ascii=False)


def _openai_env(place: Place) -> dict[str, str]:
    return {"OPENAI_API_BASE": f"{place.root}/v1", "OPENAI_API_KEY": place.key or NO_KEY}


def _key_env(place: Place) -> dict[str, str]:
    return {"FLASHMOE_API_KEY": place.key} if place.key else {}


def _opencode_env(place: Place) -> dict[str, str]:
    return {"OPENCODE_CONFIG_CONTENT": _opencode_file(place)[1]}


CLIENTS: dict[str, Client] = {
    "claude-code": Client(
        "claude", "npm install -g @anthropic-ai/claude-code", _claude_env, lambda place: [],
        foreign=(
            "ANTHROPIC_API_KEY", "ANTHROPIC_CUSTOM_HEADERS", "ANTHROPIC_SMALL_FAST_MODEL", "CLAUDE_CODE_OAUTH_TOKEN",
            *(f"CLAUDE_CODE_USE_{place}" for place in _CLAUDE_PLACES),
        ),
    ),
    "codex": Client("codex", "npm install -g @openai/codex", _key_env, _codex_arguments),
    "aider": Client(
        "aider", "pip install aider-chat", _openai_env, lambda place: ["--model", f"openai/{place.model}"],
        foreign=("OPENAI_BASE_URL", "AIDER_OPENAI_API_BASE", "AIDER_OPENAI_API_KEY"),
    ),
    "opencode": Client(
        "opencode", "npm install -g opencode-ai", _key_env, lambda place: [], _opencode_file, _opencode_env
    ),
}  # fmt: skip


def environment_for(client: Client, place: Place, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of an agent that is started from here; the key is in it and in no argument."""
    env = {name: value for name, value in base.items() if name not in client.foreign}
    env |= client.env(place) | (client.inline(place) if client.inline is not None else {})
    host = urlsplit(place.root).hostname or ""
    for name in ("NO_PROXY", "no_proxy"):  # a proxy for the rest of the world can't reach this machine's own addresses
        env[name] = ",".join(part for part in (base.get(name), host) if part)
    return env


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
