"""What a load decides: the store, its budget, the ubatch; and the sentence that says why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from backends.gguf.file import GgufFile
from backends.interface import EngineError, LoadRequest, ModelInfo
from backends.llamacpp.sizing import memory_for_experts
from backends.planner.machine import Machine
from backends.planner.plan import advised_budget, working_set
from backends.planner.prompts import (
    MEMORY_SHARE,
    USUAL_UBATCH,
    best_ubatch,
    extra_bytes,
    prompt_pace,
    staging_bytes,
)

GIB = 2**30
VRAM_SAFETY = 1.5
"""A GPU's buffers hold copies of what goes from one device to the other, too."""


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
    staging_buffers: int = 0
    """Buffers for reading whole layers (`backends.streaming.staging`); 0: there is no memory for them."""
    n_ubatch: int = USUAL_UBATCH
    ubatch_reason: str = ""


def _gib(n: int) -> str:
    return f"{-(-n * 100 // GIB) / 100:.2f}"


def plan_prompts(
    request: LoadRequest,
    gguf: GgufFile,
    context: ModelInfo,
    choice: Choice,
    machine: Machine,
    *,
    vram_room: int | None = None,
    vram_experts: int = 0,
    token_s: float | None = None,
) -> Choice:
    """The choice with what long prompts need: buffers for whole layers, the ubatch, and a budget that leaves room for
    both. `context` has the ubatch that was asked for, or the usual one. `vram_room`: bytes left in VRAM for buffers of
    larger passes; None: they are computed on the CPU."""
    asked, on_gpu = request.n_ubatch or request.n_batch, vram_room is not None
    if choice.store != "pool" or choice.budget_bytes is None:
        return dataclasses.replace(choice, n_ubatch=context.n_ubatch)
    staging, budget = staging_bytes(gguf), choice.budget_bytes
    room = memory_for_experts(gguf, context)
    spare = max(0, room - budget)
    buffers = staging.best if staging.total(staging.best) <= spare else staging.least
    need = staging.total(buffers)
    if request.ram_bytes is None or need > spare:  # what experts may hold is what memory has: the buffers are a part
        buffers, need = staging.least, staging.total(staging.least)
        if budget + spare - need < max(choice.least_bytes, staging.total(1)):
            return dataclasses.replace(choice, n_ubatch=context.n_ubatch)
        budget = min(budget, budget + spare - need)
    pace = prompt_pace(
        gguf, machine, max(0, gguf.bytes.experts - vram_experts - budget), on_gpu=on_gpu, vram_experts=vram_experts,
        n_used=request.n_expert_used, token_s=token_s,
    )  # fmt: skip
    if asked is not None:
        return dataclasses.replace(choice, budget_bytes=budget, staging_buffers=buffers, n_ubatch=context.n_ubatch)
    beside = max(0, room - budget - need)
    most = beside if request.ram_bytes is not None else max(beside, int(room * MEMORY_SHARE) - need)
    if vram_room is not None:
        most = int(vram_room / VRAM_SAFETY)
    ubatch, why = best_ubatch(pace, context.n_ctx, lambda n: extra_bytes(gguf, context.n_ctx, n) <= max(0, most))
    if not on_gpu and request.ram_bytes is None:
        budget -= max(0, extra_bytes(gguf, context.n_ctx, ubatch) - beside)
    return dataclasses.replace(choice, budget_bytes=budget, staging_buffers=buffers, n_ubatch=ubatch, ubatch_reason=why)


def choose_store(request: LoadRequest, gguf: GgufFile, context: ModelInfo, *, vram_experts: int = 0) -> Choice:
    """Decides by the memory there is. `context`: the sizes of this load; `vram_experts`: bytes of
    experts that are in VRAM. Raises `EngineError` ``budget_too_small`` for
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
    total = gguf.bytes.experts - vram_experts
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
