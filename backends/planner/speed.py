"""Expected tokens per second: what a token computes, what it has to fetch from the SSD, and how sure that is.

A token takes at least ``max(compute, miss bytes / disk)`` and without any overlap the sum of the two. How many choices
hit depends on the model's routing: published curves of real models give the expectation, uniform routing (every expert
as likely as any other, which no real text shows) the worst case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from backends.gguf.file import GgufFile
from backends.gguf.types import TENSOR_TYPES
from backends.planner.machine import Machine

CURVES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0.015, 0.0), (0.03, 0.13), (0.06, 0.40), (0.12, 0.62), (0.24, 0.85), (0.48, 0.94), (1.0, 1.0)),  # Kimi-Linear
    ((0.03, 0.0), (0.18, 0.706), (0.24, 0.803), (1.0, 1.0)),  # Qwen3-30B-A3B, 6 used
    ((0.03125, 0.49), (0.0625, 0.59), (0.125, 0.68), (0.25, 0.71), (1.0, 1.0)),  # 512 experts a layer, LRU
)
"""Published hit rates by the share of all experts that the cache holds."""

CORE_BYTES_S: dict[str, float] = {
    "F32": 12e9, "F16": 5e9, "BF16": 5e9, "Q8_0": 9e9, "Q4_0": 8e9, "Q4_1": 8e9, "Q5_0": 6e9, "Q5_1": 6e9,
    "Q2_K": 5.5e9, "Q3_K": 5e9, "Q4_K": 8e9, "Q5_K": 6.5e9, "Q6_K": 6.5e9, "IQ4_NL": 6.5e9, "IQ4_XS": 6.5e9,
    "IQ3_S": 2.6e9, "IQ3_XXS": 2.6e9, "IQ2_S": 2.4e9, "IQ2_XS": 2.4e9, "IQ2_XXS": 2.4e9, "IQ1_S": 2.2e9,
    "IQ1_M": 2e9, "TQ1_0": 3.5e9, "TQ2_0": 5e9, "MXFP4": 6.5e9, "NVFP4": 4e9, "Q1_0": 3e9, "Q2_0": 4e8,
}  # fmt: skip
"""Bytes of weights that one core multiplies per second, by tensor type: between an older core and one with AVX-512 (the
rarer types are estimates by their instruction counts); a machine's own runs correct it."""

PROMPT_WEIGHTS_S = 50e9
"""Weights in Q4_K that one core multiplies per second where each is used by many tokens: between 30e9 with AVX2 on a
busy machine and 100e9 with AVX-512."""
ATTENTION_S = 16e9
"""Products of attention that one core computes per second for a prompt: a third of the above, as measured."""
PROMPT_COST: dict[str, float] = {
    "F32": 3.0, "F16": 2.3, "BF16": 3.2, "Q8_0": 1.9, "Q4_0": 2.2, "Q4_1": 1.9, "Q5_0": 2.4, "Q5_1": 2.5,
    "Q2_K": 1.0, "Q3_K": 1.2, "Q4_K": 1.0, "Q5_K": 1.1, "Q6_K": 1.2, "IQ4_NL": 2.1, "IQ4_XS": 1.3,
    "IQ3_S": 1.5, "IQ3_XXS": 1.5, "IQ2_S": 1.5, "IQ2_XS": 1.4, "IQ2_XXS": 1.4, "IQ1_S": 1.2, "IQ1_M": 1.2,
    "TQ1_0": 1.6, "TQ2_0": 0.7, "MXFP4": 3.0, "NVFP4": 2.7, "Q1_0": 1.5, "Q2_0": 23.0,
}  # fmt: skip
"""How many times as long as in Q4_K that takes by type of experts, measured (`benchmarks/type_speed.py`)."""
DENSE_PROMPT_COST = {"F32": 1.6, "F16": 1.0, "BF16": 1.4, "Q8_0": 1.2, "Q4_0": 1.3, "Q5_0": 1.5, "IQ4_NL": 1.6}
"""The same of matrices that aren't experts, where llama.cpp has faster products for them."""
USUAL_PROMPT_COST = 2.0
"""Of types that aren't listed."""
OUTPUTS = ("output.weight", "token_embd.weight")
"""What may be the output matrix."""

GPU_BYTES_S = 300e9
"""What dense weights in VRAM are computed at, at least: they are no bound beside experts in RAM."""
OVERHEAD_S = 0.002
"""Per token: graph, sampling, the router hook; on a busy machine `OVERHEAD_SLOW_S`."""
OVERHEAD_SLOW_S = 0.008


class Speed(Struct, frozen=True, kw_only=True):
    """Tokens per second of one answer, after the first tokens have warmed the cache."""

    expected: float
    low: float
    """Uniform routing, a slow day."""
    high: float
    """The best published hit rates, reads hidden behind compute."""
    bound: str
    """``compute``, ``disk`` or ``memory bandwidth``."""
    source: str
    """``formula``, or ``measured``: runs of this model on this machine."""
    reason: str
    hit_rate: float | None
    read_bytes_per_token: float
    compute_s: float
    disk_s: float
    cold: float
    """Tokens per second with nothing cached: the first tokens after a start."""


class MeasuredRun(Struct, frozen=True, kw_only=True):
    """One remembered run of a model on this machine."""

    backend: str
    decode_tok_s: float
    n_tokens: int
    expert_ram_bytes: int | None = None
    """Memory that experts could hold then; None: all of them."""
    hit_rate: float | None = None
    compute_s_per_token: float | None = None
    read_bytes_per_token: float | None = None
    n_gpu_layers: int = 0
    vram_expert_bytes: int = 0
    """Experts that were in VRAM."""
    prompt_tokens: int = 0
    """Tokens of the prompt that were computed, 0 where it says nothing about long ones."""
    prompt_s: float = 0.0
    """Seconds until its first answer token."""
    prompt_token_s: float | None = None
    """Of these, seconds of computing for each of its tokens."""
    n_ubatch: int = 0
    when: float = 0.0


def alike_in_vram(runs: Sequence[MeasuredRun], vram_experts: int) -> list[MeasuredRun]:
    """The runs that had about as many bytes of experts in VRAM."""
    return [r for r in runs if abs(r.vram_expert_bytes - vram_experts) <= vram_experts / 8]


def measured_prompt_token(runs: Sequence[MeasuredRun], vram_experts: int) -> tuple[float | None, int]:
    """(seconds of computing for a prompt's token, tokens of the prompt), of the run with the median of the last ones
    that tell; (None, 0) before any."""
    known = [r for r in alike_in_vram(runs, vram_experts) if r.prompt_token_s is not None][-5:]
    if not known:
        return None, 0
    middle = sorted(known, key=lambda r: r.prompt_token_s or 0.0)[len(known) // 2]
    return middle.prompt_token_s, middle.prompt_tokens


def hit_rates(share: float) -> tuple[float, float, float]:
    """(worst, expected, best) share of choices that hit a cache of `share` of all experts."""
    share = min(max(share, 0.0), 1.0)
    if share >= 0.999:
        return 1.0, 1.0, 1.0
    published = [_interpolate(curve, share) for curve in CURVES]
    return min(share, *published), sum(published) / len(published), max(share, *published)


def _interpolate(curve: Sequence[tuple[float, float]], share: float) -> float:
    if share <= curve[0][0]:
        return curve[0][1] * share / curve[0][0]
    for (x0, y0), (x1, y1) in pairwise(curve):
        if share <= x1:
            at = (math.log(share) - math.log(x0)) / (math.log(x1) - math.log(x0))
            return y0 + (y1 - y0) * at
    return 1.0


def compute_seconds(
    gguf: GgufFile,
    machine: Machine,
    *,
    n_used: int | None = None,
    vram_share: float = 0.0,
    vram_experts: float = 0.0,
) -> float:
    """Seconds that one token's matrix products take with every weight in memory; `vram_share` and `vram_experts`: the
    shares of dense weights and of experts that are in VRAM."""
    rates: dict[str, float] = {}
    dense: dict[str, float] = {}
    routed: dict[str, float] = {}
    for tensor in gguf.tensors:
        rate = CORE_BYTES_S.get(tensor.type_name, 4e9) * machine.cores
        if machine.memory_bytes_s:
            rate = min(rate, machine.memory_bytes_s * 1.1)
        rates[tensor.type_name] = rate
        if "_exps." in tensor.name and len(tensor.dims) == 3 and gguf.n_experts:
            active = (n_used or gguf.n_expert_used) / gguf.n_experts
            routed[tensor.type_name] = routed.get(tensor.type_name, 0.0) + tensor.nbytes * active
        elif not gguf.only_looked_up(tensor.name):
            dense[tensor.type_name] = dense.get(tensor.type_name, 0.0) + tensor.nbytes
    nextn = gguf.bytes.nextn / gguf.bytes.total if gguf.bytes.total else 0.0
    seconds = sum(n * ((1 - vram_experts) / rates[kind] + vram_experts / GPU_BYTES_S) for kind, n in routed.items())
    for kind, n in dense.items():
        seconds += n * (1 - nextn) * ((1 - vram_share) / rates[kind] + vram_share / GPU_BYTES_S)
    return float(seconds / (machine.compute_scale or 1.0) + OVERHEAD_S)


def prompt_token_seconds(gguf: GgufFile, machine: Machine, *, n_used: int | None = None) -> float:
    """Seconds that the matrix products of one token of a long prompt take on the CPU, beside its attention. Weights go
    through the caches once for many tokens, so that arithmetic alone counts: by the number of weights and their type,
    not by their bytes. The output matrix is needed for the last token only."""
    cost = 0.0
    for tensor in gguf.tensors:
        share, price = 1.0, PROMPT_COST.get(tensor.type_name, USUAL_PROMPT_COST)
        if "_exps." in tensor.name and len(tensor.dims) == 3 and gguf.n_experts:
            share = (n_used or gguf.n_expert_used) / gguf.n_experts
        elif len(tensor.dims) < 2 or tensor.name in OUTPUTS or gguf.only_looked_up(tensor.name):
            continue
        else:
            price = DENSE_PROMPT_COST.get(tensor.type_name, price)
        _, block, size = TENSOR_TYPES[tensor.type]
        cost += tensor.nbytes / size * block * share * price  # its bytes tell its weights, in a sketch, too
    nextn = gguf.bytes.nextn / gguf.bytes.total if gguf.bytes.total else 0.0
    return cost * (1 - nextn) / (PROMPT_WEIGHTS_S * machine.cores) / (machine.compute_scale or 1.0)


MAPPED_SHARE = 0.025
"""What plain mmap gets out of a disk once memory is short, reading 4 KiB a fault: a fortieth of what the probe's large
reads into huge pages get, measured."""


def streaming_speed(
    gguf: GgufFile,
    machine: Machine,
    share: float,
    *,
    n_used: int | None = None,
    vram_share: float = 0.0,
    vram_experts: float = 0.0,
    mapped: bool = False,
) -> Speed:
    """Speed with a cache of `share` (0 to 1) of the routed experts that aren't in VRAM and the rest on the SSD;
    `mapped`: by plain mmap, where the kernel reads page by page."""
    compute = compute_seconds(gguf, machine, n_used=n_used, vram_share=vram_share, vram_experts=vram_experts)
    sure = machine.compute_scale is not None
    slow, quick = (1.25, 0.8) if sure else (1.9, 0.5)
    per_token = gguf.expert_bytes_per_token * (n_used or gguf.n_expert_used) / max(gguf.n_expert_used, 1)
    per_token *= 1 - vram_experts
    worst, usual, best = hit_rates(share) if per_token else (1.0, 1.0, 1.0)
    disk = machine.disk_bytes_s
    if mapped and disk and share < 1:
        disk, usual = disk * MAPPED_SHARE, worst
    disk_low, disk_mid, disk_high = (disk * 0.8, disk, disk * 1.15) if disk else (0.4e9, 1.5e9, 6e9)
    missed = per_token * (1 - usual)
    disk_s = missed / disk_mid
    low = 1 / (OVERHEAD_SLOW_S + compute * slow + per_token * (1 - worst) / disk_low * 1.15)
    high = 1 / max(compute * quick, per_token * (1 - best) / disk_high)
    expected = 1 / (compute + disk_s)
    memory_bound = machine.memory_bytes_s is not None and machine.memory_bytes_s < 7e9 * machine.cores
    bound = "disk" if disk_s > compute else ("memory bandwidth" if memory_bound else "compute")
    return Speed(
        expected=expected, low=min(low, expected), high=max(high, expected), bound=bound, source="formula",
        reason=_reason(machine.cores, disk, usual, missed, compute, disk_s, bound),
        hit_rate=usual if per_token else None, read_bytes_per_token=missed, compute_s=compute, disk_s=disk_s,
        cold=1 / (compute + per_token / disk_mid),
    )  # fmt: skip


def _reason(
    n_cores: int, disk: float | None, hit: float, missed: float, compute: float, disk_s: float, bound: str
) -> str:
    cores = f"{n_cores} core{'s' if n_cores > 1 else ''}"
    if not missed:
        what = "the memory's bandwidth" if bound == "memory bandwidth" else f"the {cores}"
        return f"Everything is in memory: a token takes {compute * 1e3:.0f} ms of compute, bound by {what}."
    speed = "a disk that was not measured" if disk is None else f"{disk / 1e9:.2f} GB/s"
    return (
        f"About {hit:.0%} of the chosen experts will be in memory; the others are {missed / 2**20:.0f} MiB a token, "
        f"{disk_s * 1e3:.0f} ms at {speed}, besides {compute * 1e3:.0f} ms of compute on {cores}."
    )


def measured_speed(speed: Speed, runs: Sequence[MeasuredRun], backend: str, cache_bytes: int | None) -> Speed:
    """The formula's figure replaced by this model's own runs here, where some used about as much memory for experts
    (within a quarter of `cache_bytes`; None: everything fits)."""
    close = [r for r in runs if r.n_tokens >= 8 and r.decode_tok_s > 0 and backend in ("auto", r.backend)]
    close = [r for r in close if _alike(r, cache_bytes)]
    if not close:
        return speed
    recent = sorted(close, key=lambda r: r.when)[-5:]
    weight = sum(r.n_tokens for r in recent)
    mean = weight / sum(r.n_tokens / r.decode_tok_s for r in recent)
    rates = [r.decode_tok_s for r in recent]
    read = [r.read_bytes_per_token for r in recent if r.read_bytes_per_token is not None]
    hits = [r.hit_rate for r in recent if r.hit_rate is not None]
    times = "once" if len(recent) == 1 else f"{len(recent)} times"
    return Speed(
        expected=mean, low=min(rates) * 0.85, high=max(rates) * 1.15, bound=speed.bound, source="measured",
        reason=f"It ran here {times} with about as much memory: {weight} tokens at {mean:.1f} tokens/s.",
        hit_rate=sum(hits) / len(hits) if hits else speed.hit_rate,
        read_bytes_per_token=sum(read) / len(read) if read else speed.read_bytes_per_token,
        compute_s=speed.compute_s, disk_s=speed.disk_s, cold=min(speed.cold, mean),
    )  # fmt: skip


def _alike(run: MeasuredRun, cache_bytes: int | None) -> bool:
    had = run.expert_ram_bytes
    if had is None or cache_bytes is None:
        return had is None and cache_bytes is None
    return abs(had - cache_bytes) <= cache_bytes / 4
