"""The backend ``stream``: experts stay on the SSD and come to memory as the router chooses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from backends.gguf.file import GgufFile, read_gguf
from backends.gguf.on_disk import ModelFiles
from backends.interface import EngineError, LoadProgress, LoadRequest, ModelInfo, ProgressCallback
from backends.llamacpp.abi import gpu_devices
from backends.llamacpp.context import AbortFlag
from backends.llamacpp.loading import Weights, choose_gpu_layers, fit_gpu
from backends.llamacpp.model import LlamaModel
from backends.llamacpp.parts import Counters, Parts
from backends.llamacpp.repack import sentence, settle
from backends.llamacpp.sizing import allocated_kv_bytes, describe, memory_for_experts
from backends.llamacpp.vram_experts import bytes_of, choose_vram_layers, vram_room, with_fewer
from backends.planner.machine import Machine
from backends.planner.plan import working_set
from backends.planner.vram import loads_tables
from backends.streaming import abi
from backends.streaming.hook import RouterHook
from backends.streaming.layout import ExpertLayout
from backends.streaming.loader import load_stream
from backends.streaming.pagecache import PageCacheStore
from backends.streaming.pager import Pager
from backends.streaming.pinned import no_pin, offload_from, pin
from backends.streaming.pool import PoolStore
from backends.streaming.predictor import Predictor
from backends.streaming.staging import Staging
from backends.streaming.store_choice import Choice, choose_store, plan_prompts
from backends.streaming.stores import Store
from backends.streaming.tables import Tables
from backends.streaming.warmth import HeatFile, Warmth
from backends.system import procfs
from backends.system.disk_probe import disk_bytes_per_second


class StreamBackend:
    """Loads MoE models from GGUF files and streams their routed experts."""

    name = "stream"

    def why_not(self, request: LoadRequest) -> str | None:
        """None where streaming can run this model here, else one sentence; reads headers only."""
        obstacle = abi.check()
        if obstacle is not None:
            return obstacle
        try:
            gguf = read_gguf(request.path).require_complete()
        except EngineError as error:
            return error.message
        if not gguf.expert_layers:
            return f"{Path(gguf.path).name} is a dense model: it has no routed experts to stream."
        return None

    def why_mmap(self, request: LoadRequest) -> str | None:
        """One sentence where mmap is faster than streaming although streaming would work, else None.

        That is with a GPU and room in memory for all experts, no limit asked for: nothing is left to stream, and an
        evaluation callback makes the CPU wait for the GPU at each layer (benchmarks/results/gpu.md).
        """
        if request.ram_bytes is not None or request.store != "auto":
            return None
        if choose_gpu_layers(request) <= 0 or not gpu_devices():
            return None
        gguf = read_gguf(request.path)
        base = describe(request, gguf, resident_bytes=gguf.bytes.kept + gguf.bytes.experts)
        if gguf.bytes.experts > memory_for_experts(gguf, base):
            return None
        return "mmap, because all experts fit into memory beside the GPU's work, and there is nothing to stream."

    def load(self, request: LoadRequest, progress: ProgressCallback) -> LlamaModel:
        """Loads the model; raises `EngineError` (``budget_too_small`` with the least and the advised limit)."""
        obstacle = abi.check()
        if obstacle is not None:
            raise EngineError("unsupported", obstacle)
        gguf = read_gguf(request.path).require_complete()
        if not gguf.expert_layers:
            raise EngineError(
                "unsupported", f"{Path(gguf.path).name} is a dense model: it has no routed experts to stream."
            )
        least = working_set(gguf, request.n_expert_used)
        base = describe(request, gguf, resident_bytes=gguf.bytes.kept + least)
        kv = allocated_kv_bytes(request, gguf, base)
        repacked, why = settle(request, gguf, base)
        base = msgspec.structs.replace(base, repacked=repacked, repack_reason=why)
        request = fit_gpu(request, gguf, kv)
        layers = choose_vram_layers(request, gguf, base, kv)
        model, _, short = with_fewer(layers, lambda now: self._load(request, gguf, base, kv, now, progress))
        if short:
            model.info = msgspec.structs.replace(model.info, backend_reason=f"{model.info.backend_reason} {short}")
        return model

    def _load(
        self,
        request: LoadRequest,
        gguf: GgufFile,
        base: ModelInfo,
        kv: int,
        vram_layers: tuple[int, ...],
        progress: ProgressCallback,
    ) -> LlamaModel:
        if loads_tables(gguf, vram_layers, procfs.available_memory() or 0):
            gguf = gguf.without_tables()
        in_vram = bytes_of(gguf, vram_layers)
        choice = choose_store(request, gguf, base, vram_experts=in_vram)
        here = Machine(
            ram_total=0,
            ram_available=0,
            cores=request.n_threads or procfs.usable_cpus(),
            disk_bytes_s=request.disk_bytes_s,
        )
        choice = plan_prompts(
            request,
            gguf,
            base,
            choice,
            here,
            vram_room=vram_room(gguf, kv + in_vram),
            vram_experts=in_vram,
            token_s=request.prompt_token_s,
        )
        if request.n_ubatch is None:
            ubatch = max(choice.n_ubatch, base.n_seq_max)
            base = msgspec.structs.replace(base, n_ubatch=ubatch, n_batch=ubatch)
        files = ModelFiles(gguf.files)
        try:
            loaded = load_stream(
                request, gguf, progress, keep_cached=choice.keep_cached, vram_layers=vram_layers, repacked=base.repacked
            )
        except BaseException:
            files.close()
            raise
        weights, layout = loaded.weights, loaded.layout
        weights.on_close.append(files.close)
        weights.lossy = base.lossy

        def placed(known: ModelInfo) -> ModelInfo:
            return msgspec.structs.replace(
                known,
                dense_bytes=gguf.bytes.kept,
                ubatch_reason=choice.ubatch_reason,
                vram_expert_layers=vram_layers,
                vram_expert_bytes=in_vram,
            )

        if layout is None:  # nothing of ours is in the way of llama.cpp
            reason = "All experts are in VRAM, so nothing streams."
            if base.repacked == "all":
                reason = "All experts fit into memory, repacked for this processor, so nothing streams."
            parts = Parts(
                backend=self.name,
                reason=reason,
                info=placed,
                check_files=files.check,
                fingerprint=files.fingerprint,
            )
            return LlamaModel(weights, request, parts, base)
        return self._stream(request, gguf, base, weights, layout, loaded.tables, choice, files, placed, progress)

    def _stream(
        self,
        request: LoadRequest,
        gguf: GgufFile,
        base: ModelInfo,
        weights: Weights,
        layout: ExpertLayout,
        tables: Tables,
        choice: Choice,
        files: ModelFiles,
        placed: Callable[[ModelInfo], ModelInfo],
        progress: ProgressCallback,
    ) -> LlamaModel:
        try:
            files.check("it was loaded")
            store, reason = _open_store(choice, layout)
            weights.on_close.append(store.close)
            pager = Pager(layout, store)
            weights.on_close.append(pager.close)
            abort = AbortFlag()
            if isinstance(store, PoolStore) and choice.staging_buffers:
                # a GPU that takes products of many tokens reads experts by the tensors' own layout: staging gives it
                staging = Staging(
                    layout, store, store.home,
                    buffers=choice.staging_buffers, pin=pin if gpu_devices() else no_pin, stopped=abort.is_set,
                )  # fmt: skip
                pager.read_whole_layers(staging, base.n_expert_used, offload_from())
            pager.adopt(lambda done, total: progress(_mapping(done, total)))
            threads = request.n_threads or procfs.usable_cpus()
            predictor = Predictor(len(layout.rows), base.n_expert_used, n_threads=threads)
            weights.on_close.append(predictor.close)
            warmth = _warmth(request, pager, files.fingerprint)
            if warmth is not None:
                weights.on_close.append(warmth.save)
            hook = RouterHook(layout, pager, abort, predictor, tables=tables)
            weights.on_close.append(hook.close)
        except EngineError:
            weights.close()
            raise
        except OSError as e:
            weights.close()
            raise EngineError("io_error", f"{Path(gguf.path).name} can't be streamed: {e.strerror or e}.") from e
        limits = store.budget
        budget = sum(b for b in limits if b is not None) if None not in limits else None

        def counters() -> Counters:
            return Counters(
                stall_s=pager.stall_s,
                hook_s=hook.hook_s,
                expert_hits=pager.ledger.hits,
                expert_misses=pager.ledger.misses,
                read_bytes=pager.read_bytes,
                evictions=pager.ledger.evictions,
                resident_bytes=pager.ledger.resident_bytes,
                budget_bytes=budget,
                reuse_bytes_hist=pager.meter.histogram(),
                next_token_reuse=pager.meter.next_token_reuse(),
                layer_pace=pager.pace.table(),
                whole_layer_read_s=None if pager.whole is None else pager.whole.staging.busy_s,
                whole_layer_wait_s=None if pager.whole is None else pager.whole.staging.wait_s,
                layer_s=tuple(hook.passes.layer_s),
            )

        def info(known: ModelInfo) -> ModelInfo:
            return placed(
                msgspec.structs.replace(known, store=store.name, budget_bytes=budget, table_bytes=tables.bytes)
            )

        parts = Parts(
            backend=self.name,
            reason=reason + sentence(request, base),
            hook=hook,
            abort=abort,
            passes=hook.passes,
            counters=counters,
            expert_map=pager.snapshot,
            disk_probe=lambda: disk_bytes_per_second(gguf),
            info=info,
            check_files=files.check,
            fingerprint=files.fingerprint,
            idle=warmth.idle if warmth is not None else lambda: False,
            # without buffers for whole layers a GPU would read experts by a layout that the pool doesn't have
            op_offload=store.name != "pool" or pager.whole is not None,
        )
        model = LlamaModel(weights, request, parts, base)
        model.pager = pager  # type: ignore[attr-defined]
        return model


def _mapping(done: int, total: int) -> LoadProgress:
    return LoadProgress(stage="mapping experts that are in memory", done_bytes=done, total_bytes=total)


def _warmth(request: LoadRequest, pager: Pager, fingerprint: str) -> Warmth | None:
    if not request.heat_folder:
        return None
    shape = pager.ledger.rows, pager.ledger.width
    return Warmth(pager, HeatFile(Path(request.heat_folder), fingerprint, shape))


def _open_store(choice: Choice, layout: ExpertLayout) -> tuple[Store, str]:
    if choice.store == "pool" and choice.budget_bytes is not None:
        try:
            return PoolStore(layout, choice.budget_bytes), choice.reason
        except OSError as e:
            if choice.forced:
                raise
            reason = f"{choice.reason} The pool can't be used here ({e.strerror or e}), so the page cache holds them."
            return PageCacheStore(layout, choice.budget_bytes), reason
    return PageCacheStore(layout, choice.budget_bytes), choice.reason
