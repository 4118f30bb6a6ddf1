"""Which layers' experts go to VRAM: whole layers, as many as fit beside what else a load puts there.

llama.cpp spreads layers over GPUs by their free memory; a layer's experts go to the GPU that has the layer, so the
choice is made for each GPU apart.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

from backends.gguf.file import GgufFile
from backends.interface import EngineError, LoadRequest, ModelInfo
from backends.llamacpp import abi
from backends.planner.compute import compute_bytes

T = TypeVar("T")

RUNTIME_BYTES = 320 << 20
"""What CUDA takes of a GPU beyond what it has taken when its free memory is asked for: cuBLAS, scratch memory, and room
for what else happens on the card."""


def layers_of_each_gpu(n_layers: int, n_gpu_layers: int, free: Sequence[int]) -> list[list[int]]:
    """The layers on each GPU, as llama.cpp spreads the last `n_gpu_layers` of `n_layers` and the output by the GPUs'
    `free` bytes."""
    out: list[list[int]] = [[] for _ in free]
    total = sum(free)
    active = min(n_gpu_layers, n_layers + 1)
    if not total or active <= 0:
        return out
    splits = [part / total for part in itertools.accumulate(free)]
    first = max(0, n_layers + 1 - n_gpu_layers)
    for layer in range(first, n_layers):
        gpu = bisect.bisect_right(splits, (layer - first) / active)
        out[min(gpu, len(free) - 1)].append(layer)
    return out


def choose_layers(
    gguf: GgufFile,
    wanted: int | None,
    *,
    n_gpu_layers: int,
    free: Sequence[int],
    kv: int,
    n_ctx: int,
    n_ubatch: int,
    runtime: int = RUNTIME_BYTES,
) -> tuple[int, ...]:
    """Layers whose experts go to VRAM, in order: at most `wanted` bytes of them (None: as many as fit). `free`: bytes
    of each GPU; `kv`: bytes of the whole cache."""
    if wanted == 0 or not gguf.expert_layers:
        return ()
    sizes = {x.layer: x.expert_bytes * x.n_experts for x in gguf.expert_layers}
    largest = max(sizes.values())
    spread = layers_of_each_gpu(gguf.n_layers, n_gpu_layers, free)
    each = (gguf.bytes.dense - gguf.bytes.embeddings + kv) / (gguf.n_layers + 1)
    compute = compute_bytes(gguf, n_ctx, n_ubatch).touched
    room = []
    for here, bytes_free in zip(spread, free, strict=True):
        # a pass over a prompt copies one matrix of a layer whose experts are not here
        copy = largest if any(x not in sizes for x in here) or wanted is not None else largest // 2
        room.append(bytes_free - int(each * (len(here) + 1)) - compute - copy // 2 - runtime)
    left = sum(sizes.values()) if wanted is None else wanted
    chosen: list[int] = []
    for here, bytes_free in sorted(zip(spread, room, strict=True), key=lambda x: -x[1]):
        share = left if len(spread) == 1 else min(left, -(-left * len(here) // max(1, sum(map(len, spread)))))
        left_here, budget = bytes_free, share if wanted is not None else left
        for layer in reversed(here):
            size = sizes.get(layer)
            if size is None or size > left_here or size > budget:
                continue
            chosen.append(layer)
            left_here, budget = left_here - size, budget - size
    return tuple(sorted(chosen))


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


def bytes_of(gguf: GgufFile, layers: Sequence[int]) -> int:
    """Bytes of the experts of some layers."""
    return sum(x.expert_bytes * x.n_experts for x in gguf.expert_layers if x.layer in layers)


def choose_vram_layers(request: LoadRequest, gguf: GgufFile, info: ModelInfo, kv: int) -> tuple[int, ...]:
    """`choose_layers` for a load whose GPU layers are settled, with the VRAM that is free now. Raises `EngineError`
    ``bad_request`` where layers were asked for and no GPU can have them."""
    if request.vram_expert_bytes == 0 or not gguf.expert_layers:
        return ()
    devices = abi.gpu_devices()
    layers = request.n_gpu_layers or 0
    if not devices or not layers:
        if request.vram_expert_bytes is None:
            return ()
        why = "this build of llama.cpp sees no GPU" if not devices else "no layer is on a GPU"
        raise EngineError("bad_request", f"Experts can't go to VRAM: {why}", "leave --vram-experts out.")
    free = [abi.device_memory(d)[0] for d in devices]
    return choose_layers(
        gguf, request.vram_expert_bytes, n_gpu_layers=layers, free=free, kv=kv, n_ctx=info.n_ctx, n_ubatch=info.n_ubatch
    )


def vram_room(gguf: GgufFile, others: int) -> int | None:
    """Bytes that the fullest GPU has left for buffers, beside dense weights and `others` (KV cache, experts); None
    without a GPU."""
    free = [abi.device_memory(d)[0] for d in abi.gpu_devices()]
    if not free:
        return None
    return max(0, min(free) - (gguf.bytes.dense + others) // len(free) - RUNTIME_BYTES)
