"""How many sequences a batch may keep, and the context they need together: the KV cache takes RAM from the experts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from backends.gguf.file import read_gguf
from backends.interface import EngineError
from backends.planner.kv import CONTEXT_RESERVE_BYTES, kv_bytes, padded
from backends.planner.machine import Machine
from flashmoe.batch.lines import Item

KV_SHARE = 0.25
"""Of the RAM that is free now; the rest belongs to the experts."""
KV_SHARE_STREAMING = 0.5
"""The same where the experts don't fit anyway. A step of N sequences reads E (1 - (1 - k/E)^N) experts of a layer, less
the pool's share: over N that falls faster than the pool's share does when the KV cache takes its place."""
OWN_FROM = 16
"""Sequences from which on a cache for each is worth that prompts are prefilled in passes of their own. In a cache for
all each token's attention goes over the cells of all (benchmarks/results/batch.md)."""
ALLOCATED_SHARE = 0.9
"""Of what the dense weights leave, where llama.cpp writes zeros to all cells that it allocates, 256 at least for a
sequence. On Linux cells that no token needs take no memory (`backends.llamacpp.lazy_zeros`)."""
TEMPLATE_TOKENS = 64
"""What a chat template adds to a prompt, generously; token ids have none."""
LIKELY_TOKENS = 256
"""Of an answer without a limit, or with a larger one. Where many grow longer, the engine lets the last ones wait."""


class Width(Struct, frozen=True):
    """Sequences, and the tokens of context that they need together."""

    sequences: int
    n_ctx: int
    own_caches: bool = False
    """See `LoadRequest.own_caches`."""
    crowded: int = 0
    """Tokens that the largest sequence may need, where they share a cache because memory hasn't room for so many
    each."""


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

    Each gets a cache of its own where the largest item's fits into memory so often. Else they share one, which holds
    the largest item alone, and `n` of the largest with answers of likely length."""
    cost = _cost(path)
    shared = _shared(None if fixed else cost, items, per_sequence, wanted)
    if cost is None or not cost.gains or shared.sequences < OWN_FROM:
        return shared
    largest = max(tokens_needed(item, per_sequence) for item in items)
    n = min(shared.sequences, cost.own_caches(largest))
    if n < (shared.sequences if fixed else max(OWN_FROM, shared.sequences // 2)):
        return replace(shared, crowded=largest)
    return Width(n, n * largest, own_caches=True)


def own_caches_fit(path: str | Path, sequences: int, tokens: int) -> bool:
    """Whether so many sequences of so many tokens are better off with a KV cache each, and memory has room for it."""
    cost = _cost(path)
    return cost is not None and cost.gains and sequences >= OWN_FROM and cost.own_caches(tokens) >= sequences


def _shared(cost: _Cost | None, items: Sequence[Item], per_sequence: int, wanted: int) -> Width:
    needs = sorted((tokens_needed(item, per_sequence, LIKELY_TOKENS) for item in items), reverse=True)
    most = max(1, min(wanted, len(needs)))
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
    """Bytes of RAM, and what a token and a sequence (recurrent state) take of them."""

    room: int
    """For caches."""
    allocated: int
    """For caches as llama.cpp allocates them, most of it never used."""
    per_token: int
    per_sequence: int
    gpu: bool
    spread: bool
    """Values lie across the cells, so those of one token touch every page."""

    @property
    def gains(self) -> bool:
        """Whether a cache for each sequence is worth it at all. A recurrent state each has anyway, and a GPU, whose
        memory such caches would fill, wasn't measured."""
        return bool(self.per_token) and not (self.per_sequence or self.gpu or self.spread)

    def own_caches(self, tokens: int) -> int:
        """How many sequences of so many tokens memory has room for, with a cache each."""
        return min(self.room // (tokens * self.per_token), self.allocated // (padded(tokens) * self.per_token))


def _cost(path: str | Path) -> _Cost | None:
    """None where it can't be told (a server's address)."""
    if str(path).startswith(("http://", "https://")):
        return None
    try:
        gguf = read_gguf(path)
    except EngineError:
        return None  # loading says what is wrong
    cache = kv_bytes(gguf, 256)
    machine = Machine.detect()
    free = machine.ram_available
    share = KV_SHARE_STREAMING if gguf.bytes.experts > free else KV_SHARE
    if sys.platform == "linux":
        allocated = machine.ram_total  # the kernel refuses to promise more than there is
    else:
        allocated = int(max(0, free - gguf.bytes.dense - CONTEXT_RESERVE_BYTES) * ALLOCATED_SHARE)
    spread = gguf.architecture == "grok"  # the one that llama.cpp computes without flash attention
    return _Cost(int(free * share), allocated, cache.per_token, cache.recurrent, bool(machine.gpus), spread)
