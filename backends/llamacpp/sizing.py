"""What a load decides before it allocates: the context that fits, the batch, how many sequences."""

from __future__ import annotations

from pathlib import Path

from backends.gguf.file import GgufFile
from backends.gguf.types import ARCHITECTURES
from backends.interface import EngineError, LoadRequest, ModelInfo
from backends.llamacpp import lazy_zeros
from backends.llamacpp.abi import cards
from backends.llamacpp.loading import choose_gpu_layers
from backends.planner.compute import router_copies
from backends.planner.kv import CONTEXT_RESERVE_BYTES, KV_TYPES, allocated_cells, kv_bytes, kv_type_obstacle
from backends.planner.prompts import USUAL_UBATCH, extra_bytes
from backends.system import procfs

DEFAULT_CTX = 8192
PARALLEL_CTX = 1024
"""Tokens of context for each of several sequences, where none was asked for."""
DEFAULT_UBATCH = 512
MIN_CTX = 256
MAX_SEQUENCES = 250
"""llama.cpp knows 256 sequences; some are kept for idle chats."""
MAX_THREADS = 512
"""GGML_MAX_N_THREADS: what llama.cpp's pools of threads are made for."""


def choose_context(request: LoadRequest, gguf: GgufFile, *, resident_bytes: int) -> int:
    """Tokens of context for all sequences together. `resident_bytes`: what the weights will take that can't be dropped.

    Raises `EngineError` ``context_too_large`` where what was asked for can't be allocated, with the largest that can.
    """
    cache = kv_bytes(gguf, MIN_CTX, n_seqs=request.n_seq_max, type_bytes=KV_TYPES[request.kv_type])
    per_token = max(1, cache.per_token)
    available = procfs.available_memory()
    fits = None
    in_vram = choose_gpu_layers(request) > 0 and cards()  # then the cache lies there
    if available is not None and not in_vram:
        fits = max(0, available - resident_bytes - cache.recurrent - CONTEXT_RESERVE_BYTES) // per_token
    if request.n_ctx is not None:
        if request.n_ctx < 1:
            raise EngineError("bad_request", f"A context of {request.n_ctx} tokens is not possible.")
        asked = request.n_ctx
        if request.own_caches and fits is not None and not lazy_zeros.available():
            # llama.cpp writes zeros to the cells that no token needs, too; before there are experts
            fits += max(0, resident_bytes - gguf.bytes.kept) // per_token
            asked = allocated_cells(asked, request.n_seq_max, own_caches=True)
        if fits is not None and asked > fits and request.n_ctx > MIN_CTX:
            most = max(MIN_CTX, fits // 256 * 256)
            need = asked * per_token / 2**30
            raise EngineError(
                "context_too_large",
                f"A context of {asked} tokens needs {need:.1f} GiB for its KV cache, more than there is",
                f"at most {most} tokens fit now.",
            )
        return min(request.n_ctx, (gguf.n_ctx_train or request.n_ctx) * request.n_seq_max)
    trained = gguf.n_ctx_train or DEFAULT_CTX
    wanted = min(trained, DEFAULT_CTX)
    if request.n_seq_max > 1:
        wanted = max(wanted, min(trained, PARALLEL_CTX) * request.n_seq_max)
    if fits is not None:  # what the cache takes is lost to the experts
        share = 2 if wanted <= DEFAULT_CTX else 4
        wanted = min(wanted, max(MIN_CTX, fits // share // 256 * 256))
    return wanted


def allocated_kv_bytes(request: LoadRequest, gguf: GgufFile, info: ModelInfo) -> int:
    """Bytes of KV cache and recurrent state that llama.cpp allocates for a load with the decisions `info`."""
    cells = allocated_cells(info.n_ctx, info.n_seq_max, own_caches=request.own_caches)
    return kv_bytes(gguf, cells, n_seqs=info.n_seq_max, type_bytes=KV_TYPES[request.kv_type]).total


def memory_for_experts(gguf: GgufFile, context: ModelInfo) -> int:
    """Bytes of memory left for experts beside dense weights, KV cache and compute buffers, all estimated from above.

    A sixteenth stays free, and a quarter of a GiB at least: this process, the kernel's own, and what else runs.
    """
    available = procfs.available_memory() or 0
    kv = kv_bytes(gguf, context.n_ctx, n_seqs=context.n_seq_max, type_bytes=KV_TYPES[context.kv_type]).total
    widest = max(gguf.n_vocab, 8 * gguf.n_embd, 3 * context.n_expert_used * gguf.n_ff_exp)
    compute = 5 * min(context.n_ubatch, USUAL_UBATCH) * widest  # float32 and a quarter
    compute += extra_bytes(gguf, context.n_ctx, context.n_ubatch) + router_copies(gguf)
    return max(0, available - gguf.bytes.kept - kv - compute - max(256 << 20, available // 16))


def check_request(request: LoadRequest, gguf: GgufFile) -> None:
    """Raises `EngineError` for settings that don't fit the model."""
    name = Path(gguf.path).name
    if gguf.problems and gguf.architecture not in ARCHITECTURES:
        advice = "Update flashmoe-tui or pick another model."
        raise EngineError("unknown_architecture", f"{name}: {gguf.problems[0]} {advice}")
    if gguf.problems:
        raise EngineError("unsupported", f"{name}: {gguf.problems[0]}")
    obstacle = kv_type_obstacle(gguf, request.kv_type)
    if obstacle is not None:
        raise EngineError(
            "bad_request", f"{name} can't have its KV cache in {request.kv_type}: {obstacle}", "take --kv-type f16."
        )
    if not 1 <= request.n_seq_max <= MAX_SEQUENCES:
        raise EngineError(
            "bad_request", f"Between 1 and {MAX_SEQUENCES} sequences are possible, not {request.n_seq_max}."
        )
    used = request.n_expert_used
    if used is not None and (not gguf.n_experts or not 1 <= used <= gguf.n_experts):
        raise EngineError(
            "bad_request",
            f"{used} active experts were asked for, but the model has {gguf.n_experts} experts a layer."
            if gguf.n_experts
            else "The model has no experts, so their number can't be set.",
        )
    for name, what, most in (
        ("n_batch", "the batch", 65536),
        ("n_ubatch", "the ubatch", 65536),
        ("n_threads", "the number of threads", MAX_THREADS),
    ):
        value = getattr(request, name)
        if value is not None and not 1 <= value <= most:
            raise EngineError("bad_request", f"{what.capitalize()} must be from 1 to {most}, not {value}.")


def lossy_sentence(request: LoadRequest, gguf: GgufFile) -> str | None:
    """The sentence that marks fewer active experts than the model was trained with."""
    if request.n_expert_used is None or request.n_expert_used == gguf.n_expert_used:
        return None
    return (
        f"{request.n_expert_used} of the {gguf.n_expert_used} experts that the model was trained to use for each token "
        "are active: answers differ from the full model's."
    )


def describe(request: LoadRequest, gguf: GgufFile, *, resident_bytes: int) -> ModelInfo:
    """What is known of a model before it is loaded, with the decisions for this load. Raises `EngineError`."""
    check_request(request, gguf)
    ubatch = request.n_ubatch or min(request.n_batch or DEFAULT_UBATCH, DEFAULT_UBATCH)
    return ModelInfo(
        name=gguf.name or Path(gguf.path).stem,
        path=gguf.path,
        architecture=gguf.architecture,
        quant=gguf.quant,
        backend="",
        backend_reason="",
        n_layers=gguf.n_layers,
        n_vocab=gguf.n_vocab,
        n_ctx=choose_context(request, gguf, resident_bytes=resident_bytes),
        n_ctx_train=gguf.n_ctx_train,
        n_seq_max=request.n_seq_max,
        n_batch=ubatch,
        n_ubatch=max(ubatch, request.n_seq_max),
        n_experts=gguf.n_experts,
        n_expert_used=request.n_expert_used or gguf.n_expert_used,
        n_expert_used_trained=gguf.n_expert_used,
        file_bytes=gguf.file_bytes,
        expert_bytes=gguf.bytes.experts,
        dense_bytes=gguf.bytes.dense,
        kv_type=request.kv_type,
        lossy=lossy_sentence(request, gguf),
    )
