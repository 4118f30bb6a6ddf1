"""What a backend adds to `LlamaModel`: its hook, its counters, its map, its last word on the model's info."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from backends.interface import ExpertMap, ModelInfo
from backends.llamacpp.context import AbortFlag, EvalHook
from backends.llamacpp.pass_meter import PassMeter


class Counters(msgspec.Struct, kw_only=True):
    """What a backend that watches the experts counts since loading; None: it can't know. See `Telemetry`."""

    stall_s: float | None = None
    hook_s: float | None = None
    expert_hits: int | None = None
    expert_misses: int | None = None
    read_bytes: int | None = None
    evictions: int | None = None
    resident_bytes: int | None = None
    budget_bytes: int | None = None
    reuse_bytes_hist: tuple[int, ...] | None = None
    next_token_reuse: float | None = None
    layer_pace: tuple[tuple[float, float], ...] | None = None
    whole_layer_read_s: float | None = None
    """Seconds in which whole layers were being read; None where that isn't done."""
    whole_layer_wait_s: float | None = None
    """Seconds of these that computing waited."""
    layer_s: tuple[float, ...] = ()
    """Seconds of each layer in passes of many tokens."""


@dataclass
class Parts:
    """What a backend adds to `LlamaModel`. The defaults add nothing."""

    backend: str
    reason: str
    """`ModelInfo.backend_reason`."""
    hook: EvalHook | None = None
    abort: AbortFlag | None = None
    """The flag that the hook looks at; the context makes one if the backend doesn't."""
    counters: Callable[[], Counters] = field(default=Counters)
    expert_map: Callable[[], ExpertMap | None] = field(default=lambda: None)
    disk_probe: Callable[[], float | None] = field(default=lambda: None)
    """Measures what the disk gives in expert-sized random reads of the model's file, in bytes per second (about 1
    s)."""
    passes: PassMeter | None = None
    """How far a pass is, where the hook tells."""
    info: Callable[[ModelInfo], ModelInfo] = field(default=lambda info: info)
    """Last word on the model's info (store, budget, dense bytes…)."""
    idle: Callable[[], bool] = field(default=lambda: False)
    """Does a little of what can wait, while nothing is asked; whether there is more of it."""
    before_bench: Callable[[], None] = field(default=lambda: None)
    check_files: Callable[[], None] = field(default=lambda: None)
    """Raises `EngineError` ``io_error`` where the model's files are no longer what was loaded."""
    fingerprint: str = ""
    """What tells the model's files from others; a saved state belongs to it."""
    op_offload: bool = True
    """Whether a GPU may take products of host weights for long batches."""
