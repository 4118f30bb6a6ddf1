#!/usr/bin/env python3
"""Warm decoding, stream against mmap, in one process and in turn: what the machine does in between hits both alike.

    python benchmarks/warm_pairs.py /tmp/synth.gguf --rounds 12 --stretch 16

Both backends hold the model at once; each round decodes one stretch of the same random ids with either, the first one
changing places. Prints the median time a token of both, their ratio round by round, and whether the logits agreed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from backends.engine.launch import let_threads_sleep
from backends.interface import LoadProgress, LoadRequest
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch
from backends.llamacpp.model import LlamaModel
from backends.streaming.backend import StreamBackend


def go_on(_: LoadProgress) -> bool:
    return True


def stretch(model: LlamaModel, ids: list[int], start: int, digest: hashlib._Hash) -> list[float]:
    """Decodes ids one by one from position `start`; returns the seconds of each."""
    out, context = [], model.context
    for i, token in enumerate(ids):
        batch = Batch()
        batch.add(token, start + i, 0, True)
        began = time.perf_counter()
        context.decode(batch)
        logits = context.logits(-1)
        out.append(time.perf_counter() - began)
        digest.update(np.ctypeslib.as_array(logits, (context.n_vocab,)).tobytes())
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--stretch", type=int, default=16)
    parser.add_argument("--store", default="auto", choices=("auto", "pagecache", "pool"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    let_threads_sleep(os.environ)  # as in the engine's child
    with open(args.model, "rb", 0) as f:
        while f.read(1 << 24):
            pass
    n = (args.rounds + 1) * args.stretch
    request = LoadRequest(path=str(args.model), n_ctx=max(512, n + 16), store=args.store)
    models = {"mmap": MmapBackend().load(request, go_on), "stream": StreamBackend().load(request, go_on)}
    digests = {name: hashlib.sha256() for name in models}
    ids = np.random.default_rng(args.seed).integers(0, models["mmap"].context.n_vocab, n).tolist()
    took: dict[str, list[list[float]]] = {name: [] for name in models}
    for r in range(args.rounds + 1):
        order = list(models) if r % 2 else list(models)[::-1]
        for name in order:
            at = r * args.stretch
            took[name].append(stretch(models[name], ids[at : at + args.stretch], at, digests[name]))
    for rounds in took.values():
        rounds.pop(0)  # the first one warms up
    for name, rounds in took.items():
        flat = sorted(x for r in rounds for x in r)
        print(f"{name:7} median {1e3 * statistics.median(flat):.2f} ms a token, best {1e3 * flat[0]:.2f}")
    ratios = [sum(m) / sum(s) for m, s in zip(took["mmap"], took["stream"], strict=True)]
    whole = sum(map(sum, took["mmap"])) / sum(map(sum, took["stream"]))
    print(f"decode, stream over mmap: {whole:.3f}x in all, median of rounds {statistics.median(ratios):.3f}x,")
    print(f"  rounds {[round(x, 3) for x in ratios]}")
    equal = digests["mmap"].digest() == digests["stream"].digest()
    print(f"logits {'equal' if equal else 'DIFFER'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
