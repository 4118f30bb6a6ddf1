"""What a load decides: the store, its budget, the ubatch; and the sentence that says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backends.gguf.file import GgufFile
from backends.interface import EngineError, LoadRequest, ModelInfo
from backends.planner.kv import KV_TYPES, kv_bytes
from backends.planner.plan import advised_budget, working_set
from backends.system import procfs

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


def _gib(n: int) -> str:
    return f"{-(-n * 100 // GIB) / 100:.2f}"


def memory_for_experts(gguf: GgufFile, context: ModelInfo) -> int:
    """Bytes of memory left for experts beside dense weights, KV cache and compute buffers, all estimated from above.

    A sixteenth stays free, and a quarter of a GiB at least: this process, the kernel's own, and what else runs.
    """
    available = procfs.available_memory() or 0
    kv = kv_bytes(gguf, context.n_ctx, n_seqs=context.n_seq_max, type_bytes=KV_TYPES[context.kv_type]).total
    widest = max(gguf.n_vocab, 8 * gguf.n_embd, 3 * context.n_expert_used * gguf.n_ff_exp)
    compute = 5 * context.n_ubatch * widest  # float32 and a quarter
    return max(0, available - gguf.bytes.kept - kv - compute - max(256 << 20, available // 16))


def choose_store(request: LoadRequest, gguf: GgufFile, context: ModelInfo, *, uses_gpu: bool) -> Choice:
    """Decides by the memory there is. `context`: the sizes of this load. Raises `EngineError` ``budget_too_small`` for
    a limit under one token's working set."""
    least = working_set(gguf, request.n_expert_used)
    limit = request.ram_bytes
    if limit is not None and limit < least:
        better = advised_budget(gguf, request.n_expert_used)
        raise EngineError(
            "budget_too_small",
            f"--ram {limit / GIB:.2f} is too little: one token uses {_gib(least)} GiB of experts, so nothing would "
            f"ever be found in memory",
            f"give at least {_gib(least)}, better {_gib(better)}.",
        )
    total = gguf.bytes.experts
    room = memory_for_experts(gguf, context)
    fits = total <= (room if limit is None else min(room, limit))
    generous = total + total // 16  # slots are rounded up to whole blocks
    if request.store == "pool":
        return Choice("pool", min(generous, limit or max(least, room)), least, "The pool was asked for.", True, fits)
    if request.store == "pagecache":
        return Choice("pagecache", limit, least, "The page cache was asked for.", True, fits and limit is None)
    size = f"The experts ({_gib(total)} GiB)"
    if fits:
        reason = f"{size} fit into memory: the page cache holds them, warm even across restarts."
        return Choice("pagecache", limit, least, reason, False, limit is None)
    if uses_gpu:
        reason = f"{size} don't fit into memory; with a GPU the page cache holds as many as it can."
        return Choice("pagecache", limit, least, reason, False, False)
    if limit is None and room < least:
        reason = f"{size} are far larger than the {_gib(room)} GiB of memory left: the page cache holds what it can."
        return Choice("pagecache", None, least, reason, False, False)
    budget = room if limit is None else limit
    if limit is not None and limit > room:
        budget = max(least, room)
        reason = f"{size} exceed what --ram allows and memory has: a pool of {_gib(budget)} GiB holds the hottest."
    elif limit is not None:
        reason = f"{size} exceed the limit: a pool of {_gib(budget)} GiB holds the hottest, read past the page cache."
    else:
        reason = (
            f"{size} don't fit into memory: a pool of {_gib(budget)} GiB holds the hottest, read past the page cache."
        )
    return Choice("pool", budget, least, reason, False, False)
