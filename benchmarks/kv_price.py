#!/usr/bin/env python3
"""What a KV cache in q8_0 costs and saves: the logits on a text against those of f16, memory, and tokens per second.

python benchmarks/kv_price.py MODEL.gguf [TEXT_FILE] --tokens 1000 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from backends.interface import LoadRequest
from backends.llamacpp.context import Batch
from backends.llamacpp.model import LlamaModel
from backends.registry import load

KINDS = ("f16", "q8_0")


def score(model: Any, ids: list[int]) -> tuple[Any, float]:
    """Log-probabilities after each token, float32 of tokens x vocabulary, and tokens per second."""
    model.forget()
    started, out = time.perf_counter(), []
    for i, token in enumerate(ids):
        batch = Batch()
        batch.add(token, i, 0, True)
        model.context.decode(batch)
        out.append(np.ctypeslib.as_array(model.context.logits(0), (model.context.n_vocab,)).copy())
    took = time.perf_counter() - started
    logits = np.array(out)
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True)), len(ids) / took


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="?", default=Path(__file__).parent.parent / "README.md")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    models: dict[str, LlamaModel] = {}
    for kind in KINDS:
        request = LoadRequest(path=str(args.model), n_ctx=args.tokens + 16, kv_type=kind)  # type: ignore[arg-type]
        models[kind] = load(request, lambda _: True)  # type: ignore[assignment]
    ids = models["f16"]._vocab.prompt_tokens(args.text.read_text(encoding="utf-8"))[: args.tokens]
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    logs = {}
    for _ in range(args.rounds):
        for kind, model in models.items():
            logs[kind], rate = score(model, ids)
            rates[kind].append(rate)
    plain, packed = logs["f16"], logs["q8_0"]
    true = np.array(ids[1:])
    at = np.arange(len(true))
    print("| KV cache | bytes | tok/s | perplexity of the text |\n|---|---|---|---|")
    for kind, model in models.items():
        perplexity = float(np.exp(-logs[kind][at, true].mean()))
        print(f"| {kind} | {model.info.kv_bytes:,} | {statistics.median(rates[kind]):.1f} | {perplexity:.4f} |")
    divergence = (np.exp(plain) * (plain - packed)).sum(axis=1)
    same = float((plain.argmax(axis=1) == packed.argmax(axis=1)).mean())
    print(f"\n{len(ids)} tokens: mean divergence {divergence.mean():.2e}, largest {divergence.max():.2e}; ", end="")
    print(f"the likeliest token is the same after {same:.2%} of them.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
