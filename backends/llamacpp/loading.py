"""Loading weights with llama.cpp's own mmap loader: routed experts on the CPU, the rest where the GPU has room."""

from __future__ import annotations

import ctypes as C
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from backends.gguf.file import GgufFile
from backends.interface import EngineError, LoadProgress, LoadRequest, ProgressCallback, Repacked
from backends.llamacpp import abi, native
from backends.llamacpp.mapped import MappedBufferType
from backends.system import libc, procfs

GPU_RESERVE_BYTES = 768 << 20
"""Left free in VRAM for compute buffers and for copies of experts during a prefill."""
LOAD_MODE_NONE = 0
LOAD_MODE_MMAP = 1
LAZY_MODE_OFF = 0


@dataclass
class Weights:
    """A ``llama_model`` with everything that must live as long as it does. The mmap loader makes one, and so does the
    streaming loader; `backends.llamacpp.model.LlamaModel` takes it over and closes it."""

    model: int
    """``llama_model *``."""
    path: str
    n_gpu_layers: int = 0
    load_s: float = 0.0
    load_read_bytes: int | None = None
    vram_bytes: int | None = None
    n_expert_used_trained: int = 0
    lossy: str | None = None
    keep: list[Any] = field(default_factory=list)
    """ctypes objects that llama.cpp points into."""
    on_close: list[Callable[[], None]] = field(default_factory=list)
    """Run after the model was freed, last one first."""

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        if self.model:
            native.lib().llama_model_free(self.model)
            self.model = 0
            while self.on_close:
                self.on_close.pop()()


def model_params(
    request: LoadRequest,
    keep: list[Any],
    *,
    expert_buft: int | None,
    architecture: str,
    vram_layers: Sequence[int] = (),
    repacked: Repacked = "off",
) -> Any:
    """``llama_model_params`` for a request, shared by both loaders: what is `repacked`, experts to `expert_buft`
    (``ggml_backend_buffer_type_t``; None: not overridden) but those of `vram_layers`, ``--experts`` as a metadata
    override."""
    L = native.lib()
    params = L.llama_model_default_params()
    params.use_extra_bufts = repacked != "off"
    params.n_gpu_layers = choose_gpu_layers(request)
    if expert_buft is not None:
        overrides = (abi.TensorOverride * 2)()
        overrides[0] = abi.TensorOverride(abi.expert_pattern(vram_layers), expert_buft)
        params.tensor_buft_overrides = C.addressof(overrides)
        keep.append(overrides)
    if request.n_expert_used is not None:
        overrides_kv = (L.llama_model_kv_override * 2)()
        overrides_kv[0].tag = 0  # LLAMA_KV_OVERRIDE_TYPE_INT
        overrides_kv[0].key = f"{architecture}.expert_used_count".encode()
        overrides_kv[0].value.val_i64 = request.n_expert_used
        params.kv_overrides = overrides_kv
        keep.append(overrides_kv)
    return params


def choose_gpu_layers(request: LoadRequest) -> int:
    """Layers to offload: what was asked for, else all where there is a GPU, else 0."""
    if request.n_gpu_layers is not None:
        return max(0, request.n_gpu_layers)
    return 99 if abi.gpu_devices() else 0


def fit_gpu(request: LoadRequest, gguf: GgufFile, kv: int) -> LoadRequest:
    """The request with the number of GPU layers settled: as many as the free VRAM holds of dense weights and KV cache
    (`kv` bytes), where none was asked for; all of them where a GPU doesn't tell. Experts never go there."""
    free = gpu_free_bytes()
    if request.n_gpu_layers is not None or free is None:
        return request
    layers = gguf.n_layers + 1  # the output matrix counts as one
    room = int(free * 0.92) - GPU_RESERVE_BYTES * len(abi.gpu_devices())
    fits = layers if gguf.bytes.dense + kv <= room else max(0, room * layers // max(1, gguf.bytes.dense + kv))
    return msgspec.structs.replace(request, n_gpu_layers=min(layers, fits))


def gpu_free_bytes() -> int | None:
    """Free bytes of all GPUs together; None without a GPU, and where one doesn't tell."""
    return _free(abi.gpu_devices())


def vram_free_bytes() -> int | None:
    """The same of those with memory of their own: what a GPU in the processor takes is the machine's."""
    return _free(abi.cards())


def _free(devices: Sequence[int]) -> int | None:
    each = abi.free_bytes(devices)
    return None if each is None else sum(each)


def set_progress(params: Any, keep: list[Any], go_on: Callable[[float], bool]) -> None:
    """Installs `go_on(fraction)` as llama.cpp's progress callback; returning False stops the load."""
    L = native.lib()

    def callback(fraction: float, _: object) -> bool:
        return go_on(fraction)

    function = L.llama_progress_callback(callback)
    params.progress_callback = function
    keep.append(function)


class Watcher:
    """Reports load progress from a thread of its own: llama.cpp's callback is silent while MAP_POPULATE reads the file.

    `done_bytes` is what the page cache holds of the file, which is what the load waits for.
    """

    def __init__(self, paths: list[str], progress: ProgressCallback, stage: str) -> None:
        self.cancelled = False
        self._progress = progress
        self._stage = stage
        self._stop = threading.Event()
        self._fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        self._sizes = [os.fstat(fd).st_size for fd in self._fds]
        self._thread = threading.Thread(target=self._run, name="load-progress", daemon=True)

    def __enter__(self) -> Watcher:
        self._report()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for fd in self._fds:
            os.close(fd)

    def _report(self) -> None:
        cached = [libc.cached_bytes(fd, 0, size) for fd, size in zip(self._fds, self._sizes, strict=True)]
        done = sum(c for c in cached if c is not None)
        if not self._progress(LoadProgress(stage=self._stage, done_bytes=done, total_bytes=sum(self._sizes))):
            self.cancelled = True

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self._report()


def load_mmap(
    request: LoadRequest,
    paths: list[str],
    architecture: str,
    progress: ProgressCallback,
    vram_layers: Sequence[int] = (),
    repacked: Repacked = "off",
) -> Weights:
    """Loads a GGUF (`paths`: its parts in order) by mmap. Raises `EngineError`: ``cancelled``,
    ``unknown_architecture``, ``bad_model``, ``no_memory``."""
    L = native.lib()
    keep: list[Any] = []
    experts = abi.cpu_buffer_type()
    if repacked == "dense":
        mapped = MappedBufferType()
        keep.append(mapped)
        experts = mapped.pointer
    params = model_params(
        request, keep, expert_buft=experts, architecture=architecture, vram_layers=vram_layers, repacked=repacked
    )
    params.load_mode = LOAD_MODE_MMAP
    vram_before = vram_free_bytes()
    read_before, started = procfs.read_bytes(), time.perf_counter()
    with Watcher(paths, progress, "mapping the model") as watcher, native.log_tail() as tail:
        set_progress(params, keep, lambda _: not watcher.cancelled)
        model = L.llama_model_load_from_file(paths[0].encode(), params)
    if watcher.cancelled:
        if model:
            L.llama_model_free(model)
        raise EngineError("cancelled", "Loading was cancelled.")
    if not model:
        raise load_error(paths[0], tail)
    read_after = procfs.read_bytes()
    vram_after = vram_free_bytes()
    return Weights(
        model=int(model),
        path=paths[0],
        n_gpu_layers=params.n_gpu_layers,
        load_s=time.perf_counter() - started,
        load_read_bytes=None if read_before is None or read_after is None else read_after - read_before,
        vram_bytes=None if vram_before is None or vram_after is None else max(0, vram_before - vram_after),
        keep=keep,
    )


def load_error(path: str, tail: native.LogTail) -> EngineError:
    """The sentence for a load that llama.cpp refused, from what it logged."""
    name = Path(path).name
    reason = native.last_error(tail)
    if "unknown model architecture" in reason:
        arch = reason.split("'")[1] if "'" in reason else "?"
        return EngineError(
            "unknown_architecture",
            f"{name} has the architecture '{arch}', which this version of llama.cpp does not know",
            "update flashmoe-tui or pick another model.",
        )
    if "alloc" in reason or "out of memory" in reason or "unable to" in reason:
        return EngineError(
            "no_memory",
            f"There is not enough memory to load {name} ({reason})",
            "try fewer GPU layers or a smaller model.",
        )
    detail = f": {reason}" if reason else " and gave no reason"
    return EngineError(
        "bad_model",
        f"llama.cpp can't load {name}{detail}",
        "verify the file: if it is whole, this version of llama.cpp can't run it.",
    )
