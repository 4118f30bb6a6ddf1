"""The backend ``mmap``: llama.cpp's own loading. The kernel pages experts in and out; it is the reference for `stream`
and what `auto` falls back to."""

from __future__ import annotations

import msgspec

from backends.gguf.file import GgufFile, read_gguf
from backends.gguf.on_disk import ModelFiles
from backends.interface import EngineError, LoadRequest, ModelInfo, ProgressCallback
from backends.llamacpp.loading import fit_gpu, load_mmap
from backends.llamacpp.model import LlamaModel
from backends.llamacpp.parts import Parts
from backends.llamacpp.repack import sentence, settle
from backends.llamacpp.residency import PageCacheMap
from backends.llamacpp.sizing import allocated_kv_bytes, describe
from backends.llamacpp.vram_experts import bytes_of, choose_vram_layers, with_fewer
from backends.system.disk_probe import disk_bytes_per_second


class MmapBackend:
    """Loads any GGUF that llama.cpp knows, by mmap."""

    name = "mmap"

    def why_not(self, request: LoadRequest) -> str | None:
        """None if the file's header can be read, else why not."""
        try:
            read_gguf(request.path).require_complete()
        except EngineError as error:
            return error.message
        return None

    def load(self, request: LoadRequest, progress: ProgressCallback) -> LlamaModel:
        """Loads the model; raises `EngineError`."""
        gguf = read_gguf(request.path).require_complete()
        base = describe(request, gguf, resident_bytes=0)  # mapped weights can be dropped and read again
        kv = allocated_kv_bytes(request, gguf, base)
        repacked, why = settle(request, gguf, base)
        base = msgspec.structs.replace(base, repacked=repacked, repack_reason=why)
        request = fit_gpu(request, gguf, kv)
        layers = choose_vram_layers(request, gguf, base, kv)
        model, _, short = with_fewer(layers, lambda now: self._load(request, gguf, base, now, progress))
        if short:
            model.info = msgspec.structs.replace(model.info, backend_reason=f"{model.info.backend_reason} {short}")
        return model

    def _load(
        self,
        request: LoadRequest,
        gguf: GgufFile,
        base: ModelInfo,
        vram_layers: tuple[int, ...],
        progress: ProgressCallback,
    ) -> LlamaModel:
        files = ModelFiles(gguf.files)
        try:
            weights = load_mmap(request, list(gguf.files), gguf.architecture, progress, vram_layers, base.repacked)
        except BaseException:
            files.close()
            raise
        weights.on_close.append(files.close)
        weights.lossy = base.lossy
        try:
            files.check("it was loaded")
            experts = PageCacheMap(gguf)
        except BaseException:
            weights.close()
            raise
        weights.on_close.append(experts.close)
        reason = (
            "Plain mmap was asked for."
            if request.backend == self.name
            else "The kernel maps the whole file and pages experts in as they are needed."
        )
        if request.ram_bytes is not None:
            reason += " A limit on the experts' memory has no effect here: the kernel decides what stays."
        if not gguf.n_experts:
            reason = "A dense model: it has no experts to stream, so the kernel maps the whole file."

        def placed(known: ModelInfo) -> ModelInfo:
            size = bytes_of(gguf, vram_layers)
            return msgspec.structs.replace(known, vram_expert_layers=vram_layers, vram_expert_bytes=size)

        parts = Parts(
            backend=self.name,
            reason=reason + sentence(request, base),
            expert_map=experts.snapshot,
            disk_probe=lambda: disk_bytes_per_second(gguf),
            info=placed,
            check_files=files.check,
            fingerprint=files.fingerprint,
        )
        return LlamaModel(weights, request, parts, base)
