"""What a load decides: the store, its budget, the ubatch; and the sentence that says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backends.gguf_file import GgufFile
from backends.interface import EngineError, LoadRequest
from backends.llamacpp import procfs
from backends.streaming.layout import ExpertLayout
from backends.streaming.stores import Store

GIB = 2**30


@dataclass(frozen=True)
class Choice:
    """How the experts will be held."""

    store: Literal["pagecache", "pool"]
    budget_bytes: int | None
    """None: as much as the kernel keeps."""
    least_bytes: int
    reason: str
    forced: bool
    keep_cached: bool


def working_set(gguf: GgufFile, n_used: int | None) -> int:
    """Bytes of the experts that one token chooses."""
    return sum(layer.expert_bytes * min(n_used or layer.n_used, layer.n_experts) for layer in gguf.expert_layers)


def advised(gguf: GgufFile, least: int) -> int:
    """A limit from which most choices hit: a quarter of the experts, or two tokens' worth if that is more."""
    return min(gguf.bytes.experts, max(2 * least, gguf.bytes.experts // 4))


def _gib(n: int) -> str:
    return f"{-(-n * 100 // GIB) / 100:.2f}"


def choose_store(request: LoadRequest, gguf: GgufFile) -> Choice:
    """Raises `EngineError` ``budget_too_small`` for a limit under one token's working set."""
    least = working_set(gguf, request.n_expert_used)
    limit = request.ram_bytes
    if limit is not None and limit < least:
        raise EngineError(
            "budget_too_small",
            f"--ram {limit / GIB:.2f} is too little: one token uses {_gib(least)} GiB of experts, so nothing would ever "
            f"be found in memory; give at least {_gib(least)}, better {_gib(advised(gguf, least))}.",
        )
    total = gguf.bytes.experts
    available = procfs.available_memory() or 0
    room = max(0, available - gguf.bytes.dense - (512 << 20))
    forced = request.store != "auto"
    fits = total <= (room if limit is None else min(room, limit))
    if request.store == "pool":
        budget = min(total + total // 20, limit if limit is not None else max(least, room))
        return Choice("pool", budget, least, "The pool was asked for.", True, False)
    if request.store == "pagecache":
        return Choice("pagecache", limit, least, "The page cache was asked for.", True, fits and limit is None)
    reason = "All experts fit into memory, where the page cache keeps them warm even across restarts."
    if not fits:
        reason = f"The experts ({_gib(total)} GiB) don't fit into memory; the page cache holds as many as it can."
    if limit is not None and not fits:
        reason = (
            f"The experts ({_gib(total)} GiB) exceed the limit; the page cache holds at most {_gib(limit)} GiB of them."
        )
    return Choice("pagecache", limit, least, reason, forced, fits and limit is None)


def fitting_ubatch(wanted: int, n_used: int, layout: ExpertLayout, store: Store, n_seqs: int) -> int:
    """The largest ubatch up to `wanted` whose experts of any one layer fit the budget together. Raises `EngineError`
    ``budget_too_small`` where not even one token of each of `n_seqs` sequences does."""
    best = wanted
    for row, (r, cost, group) in enumerate(zip(layout.rows, store.cost, store.group, strict=True)):
        limit = store.budget[group]
        if limit is None or limit // cost >= r.n_experts:
            continue
        tokens = limit // cost // max(1, n_used)
        if tokens < max(1, n_seqs):
            raise EngineError(
                "budget_too_small",
                f"The limit holds {limit // cost} experts of layer {layout.rows[row].layer} and {n_seqs} sequences may "
                f"choose {n_seqs * n_used}; give experts more memory (--ram) or decode fewer sequences together.",
            )
        best = min(best, tokens)
    return max(1, best)
