"""Which layers' experts go to VRAM: whole layers, as many as fit beside what else a load puts there.

llama.cpp spreads layers over GPUs by their free memory; a layer's experts go to the GPU that has the layer, so the
choice is made for each GPU apart.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from backends.gguf.file import EXPERT_WEIGHT, GgufFile
from backends.planner.compute import compute_bytes

RUNTIME_BYTES = 320 << 20
"""What CUDA takes of a GPU beyond what it has taken when its free memory is asked for: cuBLAS, scratch memory, and room
for what else happens on the card."""


TABLE_SHARE = 16
"""The part of the available memory up to which tables are loaded where nothing streams."""


def loads_tables(gguf: GgufFile, layers: Sequence[int], available: int) -> bool:
    """Whether tables that are only looked up are loaded like other weights, where the experts of `layers` are in VRAM:
    with all of them there nobody sees to a row before it is gathered, and reading it then takes a tenth of a token."""
    streams = {x.layer for x in gguf.expert_layers} - set(layers)
    return not streams and gguf.bytes.tables <= available // TABLE_SHARE


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
    spread = layers_of_each_gpu(gguf.n_layers, n_gpu_layers, free)
    each = (gguf.bytes.dense - gguf.bytes.embeddings + kv) / (gguf.n_layers + 1)
    compute = compute_bytes(gguf, n_ctx, n_ubatch).touched
    room = []
    for here, bytes_free in zip(spread, free, strict=True):
        room.append(bytes_free - int(each * (len(here) + 1)) - compute - copied_bytes(gguf, n_ubatch) - runtime)
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


def copied_bytes(gguf: GgufFile, n_ubatch: int) -> int:
    """VRAM for the experts that a pass over a prompt copies there: one matrix at a time, three where the buffers of
    many tokens leave llama.cpp's allocator no place to use again (measured at 4,096 and up)."""
    copy = max((t.nbytes for t in gguf.tensors if EXPERT_WEIGHT.match(t.name)), default=0)
    return copy * (3 if n_ubatch > 2048 else 1)


def bytes_of(gguf: GgufFile, layers: Sequence[int]) -> int:
    """Bytes of the experts of some layers."""
    return sum(x.expert_bytes * x.n_experts for x in gguf.expert_layers if x.layer in layers)
