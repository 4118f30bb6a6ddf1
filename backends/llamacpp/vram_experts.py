"""Loading whole layers' experts to VRAM, and with fewer layers where that memory is short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from backends.gguf.file import GgufFile
from backends.interface import EngineError, LoadRequest, ModelInfo
from backends.llamacpp import abi
from backends.planner.vram import RUNTIME_BYTES, choose_layers
from backends.planner.vram import bytes_of as bytes_of

T = TypeVar("T")


def with_fewer(layers: Sequence[int], load: Callable[[tuple[int, ...]], T]) -> tuple[T, tuple[int, ...], str]:
    """Loads with the experts of `layers` in VRAM, or of fewer where that memory is short: (what `load` gave, the
    layers, a sentence where there are fewer). Raises `EngineError` where it fails without any."""
    now = tuple(layers)
    while True:
        try:
            loaded = load(now)
        except EngineError as error:
            if error.code != "no_memory" or not now:
                raise
            now = now[-(-len(now) // 8) :]
            continue
        if len(now) == len(layers):
            return loaded, now, ""
        return loaded, now, f"VRAM was short: the experts of {len(now)} layers are in it instead of {len(layers)}."


def choose_vram_layers(request: LoadRequest, gguf: GgufFile, info: ModelInfo, kv: int) -> tuple[int, ...]:
    """`choose_layers` for a load whose GPU layers are settled, with the VRAM that is free now. Raises `EngineError`
    ``bad_request`` where layers were asked for and no GPU can have them."""
    if request.vram_expert_bytes == 0 or not gguf.expert_layers:
        return ()
    layers = request.n_gpu_layers or 0
    cards = abi.cards()
    free = abi.free_bytes(cards)
    why = ""
    if not cards:
        why = "the GPU has no memory of its own" if abi.gpu_devices() else "this build of llama.cpp sees no GPU"
    elif not layers:
        why = "no layer is on a GPU"
    elif free is None:
        why = "a GPU doesn't tell how much memory it has"
    if why or free is None:
        if request.vram_expert_bytes is None:
            return ()
        raise EngineError("bad_request", f"Experts can't go to VRAM: {why}", "leave --vram-experts out.")
    return choose_layers(
        gguf, request.vram_expert_bytes, n_gpu_layers=layers, free=free, kv=kv, n_ctx=info.n_ctx, n_ubatch=info.n_ubatch
    )


def vram_room(gguf: GgufFile, others: int) -> int | None:
    """Bytes that the fullest GPU has left for buffers, beside dense weights and `others` (KV cache, experts); None
    without a GPU that has memory of its own and tells how much."""
    free = abi.free_bytes(abi.cards())
    if free is None:
        return None
    return max(0, min(free) - (gguf.bytes.dense + others) // len(free) - RUNTIME_BYTES)
