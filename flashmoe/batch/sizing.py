"""How many sequences a batch may keep, and the context they need together: the KV cache takes RAM from the experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from backends.gguf_file import read_gguf
from backends.interface import EngineError
from backends.planner_kv import kv_bytes
from backends.planner_machine import Machine
from flashmoe.batch.lines import Item

KV_SHARE = 0.25
"""Of the RAM that is free now; the rest belongs to the experts."""
KV_SHARE_STREAMING = 0.5
"""The same where the experts don't fit anyway. A step of N sequences reads E (1 - (1 - k/E)^N) experts of a layer, less
the pool's share: over N that falls faster than the pool's share does when the KV cache takes its place."""
TEMPLATE_TOKENS = 64
"""What a chat template adds to a prompt, generously; token ids have none."""
LIKELY_TOKENS = 256
"""Of an answer without a limit, or with a larger one. Where many grow longer, the engine lets the last ones wait."""


class Width(Struct, frozen=True):
    """Sequences, and the tokens of context that they need together."""

    sequences: int
    n_ctx: int


def tokens_needed(item: Item, per_sequence: int, answer: int | None = None) -> int:
    """Tokens of KV cache that an item may take, at most `per_sequence`, with an answer of at most `answer` tokens.
    Prompts are counted at 2 bytes a token, which is more than any tokenizer makes of prose."""
    request = item.request
    texts = [request.prompt or ""] if request.messages is None else [m.content for m in request.messages]
    prompt = sum(len(t.encode("utf-8", "replace")) for t in texts) // 2
    prompt = len(request.tokens) if request.tokens is not None else prompt + TEMPLATE_TOKENS
    longest = request.sampling.max_tokens or per_sequence
    return min(per_sequence, prompt + (longest if answer is None else min(longest, answer)))


def choose(path: str | Path, items: Sequence[Item], per_sequence: int, wanted: int, *, fixed: bool) -> Width:
    """The most sequences, up to `wanted`, whose KV cache leaves the RAM to the experts; `fixed` keeps `wanted`.

    The context always holds the largest item alone, and `n` of the largest with answers of likely length."""
    needs = sorted((tokens_needed(item, per_sequence, LIKELY_TOKENS) for item in items), reverse=True)
    most = max(1, min(wanted, len(needs)))
    cost = None if fixed else _cost(path)
    total, taken, n = 0, 0, 0
    for need in needs[:most]:
        if cost is not None:
            taken += need * cost.per_token + cost.per_sequence
            if n and taken > cost.room:
                break
        total += need
        n += 1
    alone = max((tokens_needed(item, per_sequence) for item in items), default=0)
    return Width(max(n, 1), max(total, alone, 256))


class _Cost(Struct, frozen=True):
    """Bytes of RAM for caches, and what a token and a sequence (recurrent state) take of them."""

    room: int
    per_token: int
    per_sequence: int


def _cost(path: str | Path) -> _Cost | None:
    """None where it can't be told (a server's address)."""
    if str(path).startswith(("http://", "https://")):
        return None
    try:
        gguf = read_gguf(path)
    except EngineError:
        return None  # loading says what is wrong
    cache = kv_bytes(gguf, 256)
    free = Machine.detect().ram_available
    share = KV_SHARE_STREAMING if gguf.bytes.experts > free else KV_SHARE
    return _Cost(int(free * share), cache.per_token, cache.recurrent)
