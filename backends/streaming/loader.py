"""Loading a model without reading an expert: llama.cpp reads a virtual file into buffers of ours."""

from __future__ import annotations

import ctypes as C
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.gguf.file import GgufFile
from backends.interface import EngineError, LoadProgress, LoadRequest, ProgressCallback, Repacked
from backends.llamacpp import abi as llama_abi
from backends.llamacpp import native
from backends.llamacpp.loading import LAZY_MODE_OFF, LOAD_MODE_NONE, Weights, load_error, model_params, vram_free_bytes
from backends.streaming import abi
from backends.streaming.buffers import ExpertBufferType
from backends.streaming.layout import ExpertLayout
from backends.streaming.tables import Tables
from backends.streaming.virtual_file import EXPERT_PATTERN, CookieStream, VirtualGguf
from backends.system import libc, procfs

_WORTH_HUGE = 16 << 20


@dataclass
class Loaded:
    """A model whose experts have no bytes yet: a store must place them before anything is computed."""

    weights: Weights
    layout: ExpertLayout | None
    """None: no expert streams."""
    tables: Tables
    """What is only looked up, mapped already."""
    dense_read_bytes: int
    dense_read_s: float


def load_stream(
    request: LoadRequest,
    gguf: GgufFile,
    progress: ProgressCallback,
    *,
    keep_cached: bool,
    vram_layers: Sequence[int] = (),
    repacked: Repacked = "off",
) -> Loaded:
    """Loads all but the experts; those of `vram_layers` go to GPUs. `repacked`: with ``all`` nothing streams.
    `keep_cached`: leave the dense ranges in the page
    cache for the next load.

    Raises `EngineError`: ``cancelled``, ``unsupported`` (mmap may still load it), ``io_error``, ``no_memory`` and what
    a bad file gives.
    """
    L = native.lib()
    started, read_before, vram_before = time.perf_counter(), procfs.read_bytes(), vram_free_bytes()
    whole = [layer.layer for layer in gguf.expert_layers] if repacked == "all" else vram_layers
    virtual = VirtualGguf([Path(p) for p in gguf.files], gguf.tables, whole)
    load_from_ptr = L._lib.llama_model_load_from_file_ptr
    load_from_ptr.restype, load_from_ptr.argtypes = C.c_void_p, [C.c_void_p, L.llama_model_params]
    buft = ExpertBufferType()
    keep: list[Any] = []
    params = model_params(request, keep, expert_buft=None, architecture=gguf.architecture, repacked=repacked)
    params.load_mode = LOAD_MODE_NONE
    params.lazy_mode = LAZY_MODE_OFF  # llama.cpp would map the file behind the stream, and there is none
    ours = [
        llama_abi.expert_pattern(whole, EXPERT_PATTERN),
        *(f"^{re.escape(name)}$".encode() for name in gguf.tables),
    ]
    overrides = (llama_abi.TensorOverride * (len(ours) + 2))()
    for i, pattern in enumerate(ours):
        overrides[i] = llama_abi.TensorOverride(pattern, buft.pointer)
    # experts' biases and whatever else mmap loading keeps on the CPU
    overrides[len(ours)] = llama_abi.TensorOverride(llama_abi.expert_pattern(vram_layers), llama_abi.cpu_buffer_type())
    params.tensor_buft_overrides = C.addressof(overrides)
    keep += [overrides, buft]

    def tell(done: int, total: int) -> bool:
        return progress(LoadProgress(stage="reading dense weights", done_bytes=done, total_bytes=total))

    if not tell(0, virtual.dense_bytes):
        raise EngineError("cancelled", "Loading was cancelled.")
    before = libc.anonymous_ranges(0)

    def allocated() -> None:
        # dense weights are read for every token: huge pages spare TLB misses then, and page faults now
        for start, end in libc.anonymous_since(before, _WORTH_HUGE):
            libc.prefer_huge(start, end)

    try:
        stream = CookieStream(virtual, tell, allocated, keep_cached)
    except OSError as e:
        raise EngineError("io_error", f"{Path(gguf.path).name} can't be read: {e.strerror or e}.") from e
    dense_started = time.perf_counter()
    try:
        with native.log_tail() as tail:
            model = load_from_ptr(stream.pointer, params)
        dense_s = time.perf_counter() - dense_started
    finally:
        stream.close()
    weights = Weights(
        model=int(model or 0), path=gguf.path, n_gpu_layers=params.n_gpu_layers, keep=keep, on_close=[buft.close]
    )
    try:
        error = stream.error or buft.error
        if stream.cancelled:
            raise EngineError("cancelled", "Loading was cancelled.")
        if isinstance(error, EngineError):
            raise error
        if isinstance(error, OSError):
            raise EngineError("io_error", f"{Path(gguf.path).name} can't be read: {error.strerror or error}.")
        if error is not None:
            raise EngineError("internal", f"Loading failed ({type(error).__name__}: {error})", "see the log.")
        if not model:
            raise load_error(gguf.path, tail)
        buft.loaded()
        layout = None
        if virtual.expert_bytes:
            layout = ExpertLayout(virtual, {n: p for n, p in buft.tensors.items() if n not in gguf.tables})
            _check(layout)
        tables = Tables(virtual, {n: p for n, p in buft.tensors.items() if n in gguf.tables})
        weights.on_close.append(tables.close)
    except BaseException as e:
        if weights.model:
            weights.close()
        else:
            buft.close()
        if isinstance(e, OSError):
            raise EngineError("io_error", f"{Path(gguf.path).name} can't be mapped: {e.strerror or e}.") from e
        raise
    read_after, vram_after = procfs.read_bytes(), vram_free_bytes()
    weights.load_s = time.perf_counter() - started
    if read_before is not None and read_after is not None:
        weights.load_read_bytes = read_after - read_before
    if vram_before is not None and vram_after is not None:
        weights.vram_bytes = max(0, vram_before - vram_after)
    return Loaded(weights, layout, tables, stream.read_bytes, dense_s)


def _check(layout: ExpertLayout) -> None:
    """That ggml sees each expert tensor as the file has it."""
    g = abi.ggml()
    for row in layout.rows:
        for t in row.tensors:
            tensor = abi.Tensor.from_address(t.pointer)
            same = tensor.type == t.entry.type and tuple(tensor.ne[:3]) == t.entry.dims and tensor.ne[3] == 1
            if not same or g.nbytes(t.pointer) != t.entry.bytes or tensor.nb[2] != t.slice_bytes:
                raise EngineError(
                    "unsupported", f"llama.cpp changed the layout of {t.entry.name}", "use --backend mmap."
                )
