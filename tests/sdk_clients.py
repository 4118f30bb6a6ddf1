"""The clients' own libraries, pointed at a running server."""

from __future__ import annotations

import anthropic
import openai

from tests.serving import Running


def openai_client(server: Running) -> openai.OpenAI:
    """OpenAI's, which asks once."""
    return openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0)


def anthropic_client(server: Running) -> anthropic.Anthropic:
    """Anthropic's, which asks once."""
    return anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0)
