#!/usr/bin/env python3
"""One load and one benchmark in a process of its own, for ratios within one run on a GPU; `gpu_matrix.py` runs many.

    python benchmarks/gpu_runs.py MODEL.gguf '{"backend": "stream", "gpu_layers": 99, "ram_gib": 2.2, "prompt": 64}'

Prints one JSON object. Settings: backend (``asking`` is mmap with a callback that asks for the routers' choices: the
reference for logits on a GPU), store, gpu_layers, ram_gib, vram_gib (null: as much as fits), ubatch, threads, prompt,
tokens, seed, parallel, own_caches, tables (``ssd``: they are never loaded), offload (false: long prompts stay on the
CPU), cold (true: the file is dropped from the page cache first), warm (benchmarks before the one that is told).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from gpu_check import AskingHook, vram_used  # noqa: E402

from backends.interface import BenchRequest, LoadRequest  # noqa: E402

GIB = 2**30


def load(path: str, o: dict[str, Any]) -> Any:
    """The loaded model."""
    from backends.gguf.file import read_gguf
    from backends.llamacpp.backend import MmapBackend
    from backends.llamacpp.loading import load_mmap
    from backends.llamacpp.model import LlamaModel
    from backends.llamacpp.parts import Parts
    from backends.llamacpp.sizing import describe
    from backends.streaming import backend as streaming

    vram = o.get("vram_gib", 0)
    request = LoadRequest(
        path=path, backend="mmap" if o["backend"] == "asking" else o["backend"],
        n_ctx=o.get("ctx") or max(1024, (o.get("prompt", 64) + o.get("tokens", 16)) * o.get("parallel", 1)),
        n_gpu_layers=o.get("gpu_layers"), n_threads=o.get("threads"), n_ubatch=o.get("ubatch"),
        ram_bytes=int(o["ram_gib"] * GIB) if o.get("ram_gib") else None, store=o.get("store", "auto"),
        n_seq_max=o.get("parallel", 1), own_caches=o.get("own_caches", False),
        **({"vram_expert_bytes": None if vram is None else int(vram * GIB)} if vram != 0 else {}),
    )  # fmt: skip
    if o["backend"] == "asking":
        gguf = read_gguf(path)
        base = describe(request, gguf, resident_bytes=0)
        more: tuple[Any, ...] = ()
        if vram != 0:
            from backends.llamacpp.vram_experts import choose_vram_layers

            more = (choose_vram_layers(request, gguf, base, 0),)
        weights = load_mmap(request, list(gguf.files), gguf.architecture, lambda _: True, *more)
        layers = more[0] if more else ()
        if len(layers) == len(gguf.expert_layers):  # nothing of ours is in the way either
            return LlamaModel(weights, request, Parts(backend="mmap", reason=""), base)
        return LlamaModel(weights, request, Parts(backend="mmap", reason="", hook=AskingHook(layers)), base)
    if o.get("offload") is False:
        streaming.offload_from = lambda: None  # type: ignore[assignment]
        made = streaming.Parts

        def on_the_cpu(**parts: Any) -> Any:
            return made(**{**parts, "op_offload": False})

        streaming.Parts = on_the_cpu  # type: ignore[assignment, misc]
    if o.get("tables") == "ssd":  # with all experts in VRAM, too
        streaming.loads_tables = lambda *_: False
    maker = MmapBackend() if o["backend"] == "mmap" else streaming.StreamBackend()
    return maker.load(request, lambda _: True)


def main() -> int:
    path, o = sys.argv[1], json.loads(sys.argv[2])
    if o.get("cold"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    before = vram_used()
    started = time.perf_counter()
    model = load(path, o)
    load_s = time.perf_counter() - started
    request = BenchRequest(
        prompt_tokens=o.get("prompt", 64), tokens=o.get("tokens", 16), seed=o.get("seed", 1),
        parallel=o.get("parallel", 1),
    )  # fmt: skip
    model._parts.disk_probe = lambda: None
    for _ in range(o.get("warm", 0)):
        model.bench(request, lambda _done, _total: True)
    whole = getattr(getattr(model, "pager", None), "whole", None)
    copied = (0, 0.0, 0.0, 0)
    if whole is not None:
        copied = (whole.staging.read_bytes, whole.staging.busy_s, whole.staging.wait_s, whole.passes)
    r = model.bench(request, lambda _done, _total: True)
    used = vram_used()
    row: dict[str, Any] = {
        **o, "logits": r.logits_sha256[:8], "prefill": round(r.prefill_tok_s, 2), "decode": round(r.decode_tok_s, 2),
        "load_s": round(load_s, 2), "hits": r.hit_rate, "read_per_token": r.read_bytes_per_token,
        "stall_ms": None if r.stall_s_per_token is None else round(1e3 * r.stall_s_per_token, 1),
        "hook_ms": None if r.hook_s_per_token is None else round(1e3 * r.hook_s_per_token, 1),
        "used_layers": model.info.n_gpu_layers, "used_store": model.info.store, "n_ubatch": model.info.n_ubatch,
        "vram": None if before is None or used is None else used - before, "vram_told": model.info.vram_bytes,
        "vram_layers": len(getattr(model.info, "vram_expert_layers", ())),
    }  # fmt: skip
    pager = getattr(model, "pager", None)
    if pager is not None:
        row |= {"ahead": pager.ahead_bytes, "kv": model.info.kv_bytes, "compute": model.info.compute_bytes}
    if whole is not None:
        s = whole.staging
        row["staged"] = {
            "passes": whole.passes - copied[3], "read": s.read_bytes - copied[0],
            "busy_s": round(s.busy_s - copied[1], 3), "wait_s": round(s.wait_s - copied[2], 3),
            "pinned": s._unpin is not None,
        }  # fmt: skip
    print(json.dumps(row), flush=True)
    model.close()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
