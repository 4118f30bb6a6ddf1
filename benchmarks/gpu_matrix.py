#!/usr/bin/env python3
"""Every combination of store, GPU layers, experts in VRAM, prompt length and sequences on a tiny model: equal logits?

    python benchmarks/gpu_matrix.py TINY.gguf [N_LAYERS]

Prints a JSON line before each combination and one with its outcome after it, so that a crash names what caused it. The
reference is mmap with the same layers on the GPU and a callback that asks for the same graph nodes.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from gpu_runs import GIB, load  # noqa: E402

from backends.gguf.file import read_gguf  # noqa: E402
from backends.interface import BenchRequest  # noqa: E402

PROMPTS = ((1, 1), (16, 1), (40, 1), (300, 1), (2048, 1), (24, 4), (2, 40))
"""(tokens of each prompt, sequences)"""


def combinations(layers: int) -> Iterator[dict[str, Any]]:
    """Loads to try: store x layers on the GPU x a cache for all or one each, and some with experts in VRAM."""
    for store, on_gpu, own in itertools.product(("pool", "pagecache"), (0, layers // 2, 99), (False, True)):
        yield {"backend": "stream", "store": store, "gpu_layers": on_gpu, "own_caches": own}
    for store, share in itertools.product(("pool", "pagecache"), (0.3, 0.6, 1.0)):
        yield {"backend": "stream", "store": store, "gpu_layers": 99, "own_caches": False, "vram_share": share}


def main() -> int:
    path = sys.argv[1]
    gguf = read_gguf(path)
    layers = gguf.n_layers
    experts = gguf.bytes.experts
    references: dict[str, str] = {}
    bad = 0
    for combination in combinations(layers):
        share = combination.pop("vram_share", 0.0)
        vram = {"vram_gib": (experts * share + 4096) / GIB} if share else {}
        sizes = {"ctx": 4096, "threads": 2, "ubatch": 512, "parallel": 40}
        print(json.dumps({"trying": combination, "vram_share": share}), flush=True)
        model = load(path, {**combination, **vram, **sizes, "ram_gib": experts * 0.5 / GIB})
        model._parts.disk_probe = lambda: None
        other = load(path, {**combination, **vram, **sizes, "backend": "asking"})
        for prompt, parallel in PROMPTS:
            if combination["own_caches"] and prompt * parallel > 4096 // 40:
                continue
            request = BenchRequest(prompt_tokens=prompt, tokens=3, parallel=parallel)
            key = f"{combination['gpu_layers']} {combination['own_caches']} {share} {prompt} {parallel}"
            if key not in references:
                references[key] = other.bench(request, lambda _done, _total: True).logits_sha256
            same = model.bench(request, lambda _done, _total: True).logits_sha256 == references[key]
            bad += not same
            told = {"prompt": prompt, "parallel": parallel, "equal": same, "vram_layers": model.info.vram_expert_layers}
            print(json.dumps({**combination, **told}), flush=True)
        model.close()
        other.close()
    print(json.dumps({"different": bad}), flush=True)
    sys.stdout.flush()
    os._exit(1 if bad else 0)


if __name__ == "__main__":
    main()
