#!/usr/bin/env python3
"""Where all fits into memory: ours against llama.cpp's plain loop, with and without repacked weights, in turn.

    python benchmarks/all_fits.py synth.gguf --kinds raw-off raw-on mmap-off mmap-dense mmap-on stream-off stream-on
    python benchmarks/all_fits.py synth.gguf --kinds raw-off mmap-off stream-off --rounds 6

`raw` is what `llama-bench` does, by llama.cpp's C API: a context of its own, `llama_decode` and `llama_synchronize`,
one random id after the other. The others decode through this program's context, their logits looked at as an answer's
are. `dense` repacks all but the experts, `on` those as well. All models are in one process, so name as many kinds as
memory has room for; each round decodes a stretch with every kind and computes a prompt with it, in turn. Prints medians
of tokens/s and ratios to the first kind round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from backends.engine.launch import let_threads_sleep
from backends.interface import LoadProgress, LoadRequest
from backends.llamacpp import native
from backends.llamacpp.context import Batch
from backends.system import procfs


def go_on(_: LoadProgress) -> bool:
    return True


class Raw:
    """llama.cpp as `llama-bench` runs it."""

    def __init__(self, path: str, n_ctx: int, threads: int, repack: bool) -> None:
        L = self.lib = native.lib()
        params = L.llama_model_default_params()
        params.use_extra_bufts = repack
        params.n_gpu_layers = 0
        self.model = L.llama_model_load_from_file(path.encode(), params)
        settings = L.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = n_ctx, 512, 512
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self.ctx = L.llama_init_from_model(self.model, settings)
        self.memory = L.llama_get_memory(self.ctx)
        self.batch = L.llama_batch_init(512, 0, 1)
        self.n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.memory, True)

    def decode(self, tokens: list[int], at: int) -> None:
        raw = self.batch
        raw.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            raw.token[i], raw.pos[i], raw.n_seq_id[i], raw.logits[i] = token, at + i, 1, i == len(tokens) - 1
            raw.seq_id[i][0] = 0
        if self.lib.llama_decode(self.ctx, raw):
            raise SystemExit("llama_decode failed")
        self.lib.llama_synchronize(self.ctx)


class Ours:
    """A model of this program's."""

    def __init__(self, path: str, n_ctx: int, threads: int, backend: str, repack: str) -> None:
        from backends.registry import load

        few = 1 << 30 if repack == "dense" else None  # a limit keeps experts out of it
        request = LoadRequest(
            path=path, backend=backend, n_ctx=n_ctx, n_threads=threads, ram_bytes=few,
            repack="off" if repack == "off" else "on",
        )  # fmt: skip
        self.model: Any = load(request, go_on)
        self.n_vocab = self.model.context.n_vocab  # type: ignore[attr-defined]
        print(f"{backend} {repack}: repacked {self.model.info.repacked}, {self.model.info.load_s:.1f} s", flush=True)

    def clear(self) -> None:
        self.model.context.clear()

    def decode(self, tokens: list[int], at: int) -> None:
        batch = Batch()
        for i, token in enumerate(tokens):
            batch.add(token, at + i, 0, i == len(tokens) - 1)
        self.model.context.decode(batch)
        self.model.context.logits(-1)


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--kinds", nargs="+", default=["raw-off", "mmap-off", "stream-off"])
    a.add_argument("--threads", type=int, default=procfs.usable_cpus())
    a.add_argument("--rounds", type=int, default=6)
    a.add_argument("--stretch", type=int, default=32, help="tokens decoded in a round")
    a.add_argument("--prompt", type=int, default=256, help="tokens of a round's prompt, 0 for none")
    a.add_argument("--cpu", action="store_true", help="one thread and its processor time: for a busy machine")
    o = a.parse_args()
    clock = time.thread_time if o.cpu else time.perf_counter
    if o.cpu:
        o.threads = 1
    let_threads_sleep(os.environ)
    with open(o.model, "rb", 0) as f:
        while f.read(1 << 24):
            pass
    models: dict[str, Any] = {}
    for kind in o.kinds:
        who, what = kind.split("-")
        made = Raw(o.model, 512, o.threads, what == "on") if who == "raw" else None
        models[kind] = made or Ours(o.model, 512, o.threads, who, what)
    numbers = np.random.default_rng(1)
    decode: dict[str, list[float]] = {kind: [] for kind in models}
    prompt: dict[str, list[float]] = {kind: [] for kind in models}
    for r in range(o.rounds + 1):
        ids = numbers.integers(0, next(iter(models.values())).n_vocab, o.stretch + o.prompt).tolist()
        for kind in list(models) if r % 2 else list(models)[::-1]:
            model = models[kind]
            model.clear()
            began = clock()
            if o.prompt:
                model.decode(ids[: o.prompt], 0)
            middle = clock()
            for i, token in enumerate(ids[o.prompt :]):
                model.decode([token], o.prompt + i)
            if r:  # the first round warms up
                prompt[kind].append(o.prompt / (middle - began))
                decode[kind].append(o.stretch / (clock() - middle))
    first = o.kinds[0]
    for kind in models:
        row = {"kind": kind, "decode": round(statistics.median(decode[kind]), 2)}
        row["decode_x"] = round(statistics.median(x / y for x, y in zip(decode[kind], decode[first], strict=True)), 3)
        if o.prompt:
            row["prompt"] = round(statistics.median(prompt[kind]), 1)
            ratios = [x / y for x, y in zip(prompt[kind], prompt[first], strict=True)]
            row["prompt_x"] = round(statistics.median(ratios), 3)
        print(json.dumps(row), flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
