"""What putting whole layers' experts into free VRAM would bring, by this session's own figures."""

from __future__ import annotations

from backends.interface import ModelInfo
from flashmoe.monitor.frame import Frame, Work

_KEEP_FREE = 1 << 30
"""VRAM that the advice leaves: a prompt's buffers grow, and others draw on the card, too."""
_EXPERTS_COMPUTE = 0.7
"""Of the computing, what experts take at least: attention and the rest are small beside them."""


def layers_that_fit(frame: Frame, info: ModelInfo) -> int:
    """How many more layers' experts the free VRAM would hold."""
    layers = info.n_layers - len(info.vram_expert_layers)
    left = info.expert_bytes - info.vram_expert_bytes
    on_gpu = info.n_gpu_layers or info.gpu_reason  # with their experts there, layers belong on a GPU again
    if not frame.gpus or not on_gpu or layers <= 0 or left <= 0 or info.backend not in ("stream", "mmap"):
        return 0
    free = sum(max(0, gpu.total - gpu.used - _KEEP_FREE) for gpu in frame.gpus)
    return min(layers, int(free / (left / layers)))


def vram_advice(frame: Frame, work: Work, info: ModelInfo) -> tuple[str, float] | None:
    """(what to do, tokens/s then), or None where nothing would fit: the layers that go to VRAM neither wait for reads
    nor compute on the CPU."""
    fitting = layers_that_fit(frame, info)
    if not fitting or not work.tokens or work.total_s <= 0:
        return None
    share = fitting / max(1, info.n_layers - len(info.vram_expert_layers))
    stall = work.stall_s or 0.0
    compute = work.compute_s if work.compute_s is not None else work.total_s - stall
    saved = share * (stall + _EXPERTS_COMPUTE * compute)
    total = max(work.total_s - saved, 0.05 * work.total_s)
    return f"--vram-experts auto ({fitting} layers' experts fit)", work.tokens / total
