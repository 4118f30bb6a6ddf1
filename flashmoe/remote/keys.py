"""Which key a server is sent: the one that was given to it, never one that belongs to another."""

from __future__ import annotations

import os

from flashmoe.remote.address import origin_of

OURS, OPENAI = "FLASHMOE_REMOTE_KEY", "OPENAI_API_KEY"
_OPENAI_ADDRESSES = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
"""Where OpenAI's own client, and others, send `OPENAI`; the first that is set counts."""
_OPENAI_ADDRESS = "https://api.openai.com/v1"


def key_variable(base: str) -> str | None:
    """The variable whose key the server at `base` is sent; None where there is none for it."""
    if os.environ.get(OURS):
        return OURS
    origin = origin_of(base)
    return OPENAI if os.environ.get(OPENAI) and origin is not None and origin == origin_of(_openai()) else None


def _openai() -> str:
    return next((value for name in _OPENAI_ADDRESSES if (value := os.environ.get(name))), _OPENAI_ADDRESS)


def advice_for(base: str) -> str:
    """What to do where the server at `base` wants a key and was sent none."""
    if os.environ.get(OPENAI) and key_variable(base) is None:
        return f"set {OURS} ({OPENAI} goes to api.openai.com, or where OPENAI_BASE_URL says, and nowhere else)."
    return f"set {OURS}."
