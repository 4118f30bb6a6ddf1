"""What a plan is asked and what it answers. See `backends.planner.plan`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from backends.interface import KvType, RepackChoice, Repacked
from backends.planner.prompts import USUAL_UBATCH
from backends.planner.speed import Speed

Verdict = Literal["fits", "streams", "no_memory", "no_disk", "unsupported"]


class PlanRequest(Struct, frozen=True, kw_only=True):
    """What the plan is for. None means what a load would choose."""

    backend: str = "auto"
    n_ctx: int | None = None
    n_seqs: int = 1
    n_ubatch: int | None = None
    """Tokens of a pass over a prompt (``--ubatch``)."""
    ram_bytes: int | None = None
    """The limit on what experts may hold (``--ram``)."""
    n_gpu_layers: int | None = None
    vram_expert_bytes: int | None = 0
    """The most bytes of experts in VRAM (``--vram-experts``); None: as many as fit."""
    n_expert_used: int | None = None
    kv_type: KvType = "f16"
    repack: RepackChoice = "off"
    """Whether weights are repacked for this processor (``--repack``)."""
    to_download: int = 0
    """Bytes of the model that aren't on this machine yet."""
    download_bytes_s: float | None = None


class Placement(Struct, frozen=True, kw_only=True):
    """Where the bytes go."""

    dense_ram: int
    experts_ram: int
    """Experts that memory will hold."""
    kv_ram: int
    compute_ram: int
    process_ram: int
    vram: int
    """Dense weights, KV cache, buffers, the GPU's runtime and the experts that were asked for on GPUs."""
    n_gpu_layers: int
    vram_expert_layers: int = 0
    """Layers whose experts are in VRAM."""
    vram_experts: int = 0
    """Bytes of these experts."""
    prompt_ram: int = 0
    """What a long prompt takes for a while: buffers for whole layers, and larger compute buffers."""
    experts_ssd: int
    """Experts that are read from the SSD when they are chosen."""
    tables_ssd: int = 0
    """Tables that stay on the SSD, of which rows are read."""
    anonymous: int
    """Memory that can't be taken back while the model is loaded: what an answer needs besides experts."""
    rss: int
    """What the engine's process will show as resident once warm."""


class Budgets(Struct, frozen=True):
    """Memory for experts, in bytes."""

    least: int
    """One token's experts: below this nothing is ever found in memory."""
    advised: int
    """A quarter of all, from where most choices hit."""
    best: int
    """All of them."""
    here: int
    """What this machine can give now, after everything else and a reserve; the limit of the request included."""


class Plan(Struct, frozen=True, kw_only=True):
    """The answer to "will it run here, and how"."""

    name: str
    path: str
    architecture: str
    quant: str
    verdict: Verdict
    sentence: str
    """The verdict in one sentence, with what to do where it won't run."""
    backend: str
    n_layers: int
    n_experts: int
    n_expert_used: int
    n_ctx: int
    n_ctx_train: int
    n_ctx_max: int
    """The largest context that fits beside one token's experts."""
    file_bytes: int
    expert_bytes: int
    dense_bytes: int
    expert_bytes_per_token: int
    kv_bytes_per_token: int
    place: Placement
    budgets: Budgets
    speed: Speed | None
    """None where it won't run."""
    n_ubatch: int = USUAL_UBATCH
    """Tokens of a pass over a prompt."""
    ubatch_reason: str = ""
    """Why so many, where they weren't asked for; a half sentence."""
    first_token_s: tuple[tuple[int, float], ...] = ()
    """(tokens of a prompt, seconds until its first answer token), for `PROMPTS`."""
    first_token_source: str = "formula"
    """``formula``, or ``measured``: prompts of about that size here."""
    repacked: Repacked = "off"
    """What of the weights is repacked for this processor: they can't be dropped from memory then."""
    gpu_reason: str = ""
    """Why nothing is put on a GPU although there is one and nobody asked for that; a sentence."""
    to_download: int
    disk_free: int | None
    download_s: float | None
    notes: tuple[str, ...] = ()
    """Further sentences: a lossy choice, a missing measurement, a context beyond training."""
