#!/usr/bin/env python3
"""Several loads of one model in one process, measured in turn: ratios that a machine's moods don't touch.

    python benchmarks/gpu_pairs.py MODEL.gguf '{"name": "llama.cpp", "backend": "bare"}' \\
        '{"name": "stream", "backend": "stream", "vram_gib": null}' --rounds 6 --prompt 16 --tokens 400

Each argument is a load as `gpu_runs.py` takes it, with a name; ``bare`` is llama.cpp alone, everything on the GPU, its
own defaults, driven by a loop of three calls. Every round measures each load once, with the same ids, first one first
in the first round, second one first in the second. Prints a line for each, then medians and ratios to the first.
"""

from __future__ import annotations

import argparse
import ctypes as C
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from gpu_runs import load  # noqa: E402
from prefill import forget  # noqa: E402

from backends.engine.launch import let_threads_sleep  # noqa: E402
from backends.interface import BenchRequest  # noqa: E402


class Bare:
    """llama.cpp as it comes: default parameters, all layers and experts on the GPU (or none: ``gpu_layers`` 0)."""

    def __init__(self, path: str, o: dict[str, Any]) -> None:
        from backends.llamacpp import native

        L = self._lib = native.lib()
        params = L.llama_model_default_params()
        params.n_gpu_layers = o.get("gpu_layers", 99)
        self._model = L.llama_model_load_from_file(path.encode(), params)
        made = L.llama_context_default_params()
        made.n_ctx, made.no_perf = o.get("ctx", 4096), True
        if o.get("threads"):
            made.n_threads = made.n_threads_batch = o["threads"]
        self._ctx = L.llama_init_from_model(self._model, made)
        self._n_vocab = int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(self._model)))

    def bench(self, request: BenchRequest, _progress: object) -> Any:
        """Decode and prefill rates, timed as `backends.llamacpp.bench` does: until the logits are there."""
        from backends.llamacpp.bench import token_ids

        L = self._lib
        ids = token_ids(request, self._n_vocab)[0].tolist()
        L.llama_memory_clear(L.llama_get_memory(self._ctx), True)
        prompt = (C.c_int32 * request.prompt_tokens)(*ids[: request.prompt_tokens])
        started = time.perf_counter()
        L.llama_decode(self._ctx, L.llama_batch_get_one(prompt, len(prompt)))
        L.llama_get_logits_ith(self._ctx, -1)
        prefill, decode = time.perf_counter() - started, 0.0
        one = (C.c_int32 * 1)()
        for token in ids[request.prompt_tokens :]:
            one[0] = token
            started = time.perf_counter()
            L.llama_decode(self._ctx, L.llama_batch_get_one(one, 1))
            L.llama_get_logits_ith(self._ctx, -1)
            decode += time.perf_counter() - started
        return SimpleNamespace(
            decode_tok_s=request.tokens / decode, prefill_tok_s=request.prompt_tokens / prefill, hit_rate=None,
            read_bytes_per_token=None, stall_s_per_token=None, hook_s_per_token=None, compute_s_per_token=None,
        )  # fmt: skip


def measure(model: Any, request: BenchRequest) -> dict[str, float | None]:
    """One benchmark's figures."""
    r = model.bench(request, lambda _done, _total: True)

    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else round(1e3 * seconds, 2)

    return {
        "decode": round(r.decode_tok_s, 3), "prefill": round(r.prefill_tok_s, 1),
        "hits": None if r.hit_rate is None else round(r.hit_rate, 3),
        "mb_token": None if r.read_bytes_per_token is None else round(r.read_bytes_per_token / 1e6, 1),
        "compute_ms": ms(r.compute_s_per_token), "stall_ms": ms(r.stall_s_per_token), "hook_ms": ms(r.hook_s_per_token),
    }  # fmt: skip


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("loads", nargs="+", type=json.loads, metavar="LOAD")
    a.add_argument("--rounds", type=int, default=6)
    a.add_argument("--prompt", type=int, default=16)
    a.add_argument("--tokens", type=int, default=64)
    a.add_argument("--threads", type=int)
    a.add_argument("--probe", action="store_true", help="measure the disk at the end: the share of the full overlap")
    a.add_argument("--forget", action="store_true", help="drop the file from the page cache before each measurement")
    a.add_argument("--warm", type=int, default=1, help="benchmarks of each load before the first round")
    o = a.parse_args()
    if all(given["backend"] != "bare" for given in o.loads):
        let_threads_sleep(os.environ)  # as in the engine; llama.cpp alone waits as it comes
    models, probes, rows = {}, {}, dict[str, list[dict[str, float | None]]]()
    for given in o.loads:
        told = {"threads": o.threads, "prompt": o.prompt, "tokens": o.tokens, **given}
        started = time.perf_counter()
        model = Bare(o.model, told) if given["backend"] == "bare" else load(o.model, told)
        info = getattr(model, "info", None)
        if info is not None:
            probes[given["name"]], model._parts.disk_probe = model._parts.disk_probe, lambda: None  # type: ignore[union-attr]
        models[given["name"]] = model
        print(json.dumps({
            **given, "load_s": round(time.perf_counter() - started, 1),
            **({} if info is None else {
                "store": info.store, "layers": info.n_gpu_layers, "vram_layers": len(info.vram_expert_layers),
                "n_ubatch": info.n_ubatch, "n_threads": info.n_threads,
            }),
        }), flush=True)  # fmt: skip
    names = list(models)
    for _ in range(o.warm):
        for model in models.values():
            measure(model, BenchRequest(prompt_tokens=o.prompt, tokens=o.tokens, seed=99))
    for number in range(o.rounds):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            request = BenchRequest(prompt_tokens=o.prompt, tokens=o.tokens, seed=number + 1)
            if o.forget:
                forget(o.model)
            row = measure(models[name], request)
            rows.setdefault(name, []).append(row)
            print(json.dumps({"round": number, "name": name, **row}), flush=True)
    for name in names:
        medians: dict[str, Any] = {}
        for key in rows[name][0]:
            values = [x for x in (row[key] for row in rows[name]) if x is not None]
            if values:
                medians[key] = round(statistics.median(values), 3)
        for key in ("decode", "prefill"):
            pairs = zip(rows[name], rows[names[0]], strict=True)
            ratios = [float(mine[key] or 0) / float(first[key] or 1) for mine, first in pairs]
            medians[f"{key}_ratio"] = round(statistics.median(ratios), 3)
        if o.probe and name in probes and medians.get("mb_token"):
            disk = probes[name]()
            bound = 1 / max(medians["compute_ms"] / 1e3, medians["mb_token"] * 1e6 / disk)
            medians |= {"disk_gb_s": round(disk / 1e9, 3), "bound": bound, "share": medians["decode"] / bound}
        print(json.dumps({"median": name, **medians}), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
