"""Prompts: how many tokens a pass should take (the ubatch), what that needs of memory, how long until the first token.

A pass reads every expert that isn't in memory once, however many tokens it has. So with experts on the SSD a prompt
takes ``passes x max(reading, computing)``, and the best ubatch is where the two are equal: below it the disk is the
bound, above it memory is spent for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from backends.gguf.file import EXPERT_WEIGHT, GgufFile
from backends.planner.compute import compute_bytes
from backends.planner.kv import Attention, attention
from backends.planner.machine import Machine
from backends.planner.speed import ATTENTION_S, MeasuredRun, prompt_token_seconds

USUAL_UBATCH = 512
"""llama.cpp's own, and what is taken where nothing has to be read."""
LARGEST_UBATCH = 8192
COPY_BYTES_S = 20e9
"""What goes from pinned memory to a GPU: for a prompt all experts do, once a pass."""
GPU_TOKEN_S = 0.0003
"""A prompt's token on a GPU, experts there: little beside the copies."""
MEMORY_SHARE = 0.25
"""Of the memory that is left to experts: the most that `auto` takes from it for long prompts."""
USUAL_DISK_BYTES_S = 1.5e9
"""Where the disk was not measured."""


class StagingBytes(Struct, frozen=True):
    """The buffers that whole layers are read into (`backends.streaming.staging`)."""

    buffer: int
    """One tensor of the largest layer."""
    tensors: int
    """Expert tensors of a layer."""

    def total(self, buffers: int) -> int:
        return self.buffer * buffers

    @property
    def least(self) -> int:
        """Buffers without which it doesn't work: a layer's, and one to read ahead into."""
        return self.tensors + 1

    @property
    def best(self) -> int:
        """Two layers'."""
        return 2 * self.tensors


def staging_bytes(gguf: GgufFile) -> StagingBytes:
    """What staging needs for a model."""
    largest, counts = 0, dict[str, int]()
    for tensor in gguf.tensors:
        match = EXPERT_WEIGHT.match(tensor.name)
        if match is not None:
            largest = max(largest, tensor.nbytes)
            counts[match[1]] = counts.get(match[1], 0) + 1
    return StagingBytes(-(-(largest + 8192) // (2 << 20)) * (2 << 20), max(counts.values(), default=0))


class PromptPace(Struct, frozen=True):
    """What a prompt's pass takes."""

    read_s: float
    """Reading what isn't in memory."""
    pass_s: float
    """What a pass takes besides, whatever its tokens: copies of experts to a GPU."""
    token_s: float
    """Computing one token, beside what its attention to earlier ones takes."""
    attention: Attention = Attention(0.0, 0.0, 0)
    attention_s: float = 0.0
    """Seconds of one of its products."""

    def seconds(self, tokens: int, ubatch: int) -> float:
        """Until a prompt's first answer token."""
        return sum(self._one(start, min(tokens, start + ubatch)) for start in range(0, tokens, ubatch))

    def _one(self, start: int, end: int) -> float:
        computing = (end - start) * self.token_s + self.attention.products(start, end) * self.attention_s
        return max(self.read_s, self.pass_s + computing)


def prompt_pace(
    gguf: GgufFile,
    machine: Machine,
    absent_bytes: int,
    *,
    on_gpu: bool = False,
    vram_experts: int = 0,
    n_used: int | None = None,
    token_s: float | None = None,
    measured_at: int = 0,
) -> PromptPace:
    """The pace of prompts with `absent_bytes` of experts on the SSD and `vram_experts` bytes in VRAM; `token_s`: a
    token's seconds as they were measured with this model here, with prompts of `measured_at` tokens (0: so few that
    their attention is nothing)."""
    read_s = absent_bytes / (machine.disk_bytes_s or USUAL_DISK_BYTES_S)
    formula = prompt_token_seconds(gguf, machine, n_used=n_used)
    if on_gpu:
        return PromptPace(
            read_s, (gguf.bytes.experts - vram_experts) / COPY_BYTES_S, token_s or min(formula, GPU_TOKEN_S)
        )
    attends, product_s = attention(gguf), 1 / (ATTENTION_S * machine.cores) / (machine.compute_scale or 1.0)
    if token_s and measured_at:  # some of it was attention
        part = attends.products(0, measured_at) / measured_at * product_s
        share = min(1.0, token_s / (formula + part))  # a faster machine than the formula's is so in both
        product_s, token_s = product_s * share, token_s - part * share
        token_s = max(token_s, formula * share)
    return PromptPace(read_s, 0.0, token_s or formula, attends, product_s)


def best_ubatch(pace: PromptPace, n_ctx: int, fits: Callable[[int], bool]) -> tuple[int, str]:
    """(tokens a pass, why): as many as make reading and computing take equally long, where that `fits`."""
    wanted = max(0.0, pace.read_s - pace.pass_s) / max(pace.token_s, 1e-9)
    if wanted <= USUAL_UBATCH:
        return USUAL_UBATCH, "reading what is on the SSD takes no longer than computing so many tokens."
    sizes = [s for s in (1024, 2048, 4096, LARGEST_UBATCH) if s <= max(USUAL_UBATCH, n_ctx)]
    chosen = USUAL_UBATCH
    for size in sizes:
        if not fits(size):
            return chosen, f"memory beside the experts has room for no more ({round(wanted):,} would be best)."
        chosen = size
        if size >= wanted:
            return chosen, "reading what is on the SSD and computing take about equally long then."
    if sizes and sizes[-1] < LARGEST_UBATCH:
        return chosen, "the context holds no more."
    return chosen, "reading what is on the SSD takes longest, and a pass reads it once."


def extra_bytes(gguf: GgufFile, n_ctx: int, n_ubatch: int) -> int:
    """Bytes of compute buffers that a pass of so many tokens touches beyond those of a usual one."""
    usual = min(n_ubatch, USUAL_UBATCH)
    return compute_bytes(gguf, n_ctx, n_ubatch).touched - compute_bytes(gguf, n_ctx, usual).touched


def first_tokens(
    pace: PromptPace, ubatch: int, prompts: Sequence[int], runs: Sequence[MeasuredRun], *, gpu: bool
) -> tuple[tuple[tuple[int, float], ...], str]:
    """((tokens of a prompt, seconds until its first answer token), whether that is a formula's or measured): a run
    whose prompt had about as many tokens, in passes of about as many, takes the formula's place."""
    out, source = [], "formula"
    for n in prompts:
        alike = [
            r for r in runs
            if n / 2 <= r.prompt_tokens <= 2 * n
            and bool(r.n_gpu_layers) == gpu and ubatch / 2 <= r.n_ubatch <= 2 * ubatch
        ][-3:]  # fmt: skip
        seconds = pace.seconds(n, ubatch)
        if alike:
            source = "measured"
            ratios = [r.prompt_s / max(1e-9, pace.seconds(r.prompt_tokens, ubatch)) for r in alike]
            seconds *= sum(ratios) / len(ratios)
        out.append((n, seconds))
    return tuple(out), source
