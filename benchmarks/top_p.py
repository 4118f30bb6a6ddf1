#!/usr/bin/env python3
"""What top_p over the whole vocabulary costs an answer: our way, and llama.cpp's own sampler that sorts all tokens.

    python benchmarks/top_p.py                      # vocabularies of 32,000 and 152,064 tokens; no GPU, some seconds

Answers of a model with next to nothing to compute, in one process and in turn, by the same seeds; its last norm is
scaled so that logits are spread as a real model's are. Prints milliseconds a token of each, and that the draws are the
same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
from synthetic import Spec, write_model  # noqa: E402

from backends import registry  # noqa: E402
from backends.gguf.file import read_gguf  # noqa: E402
from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling  # noqa: E402
from backends.llamacpp import sampling as ours  # noqa: E402

OUR_WAY = ours.nucleus


def sharpen(path: Path, times: float) -> None:
    """Multiplies the last norm's weight, and with it every logit."""
    gguf = read_gguf(path)
    (norm,) = [t for t in gguf.tensors if t.name == "output_norm.weight"]
    with path.open("r+b") as file:
        file.seek(norm.offset)
        values = np.frombuffer(file.read(norm.nbytes), np.float32) * np.float32(times)
        file.seek(norm.offset)
        file.write(values.tobytes())


def answer(model: Any, sampling: Sampling) -> tuple[float, str]:
    """(milliseconds a token, the text) of an answer."""
    model.submit(GenerateRequest(id="a", tokens=(5, 6, 7, 8), sampling=sampling))
    text, done = "", None
    started = time.perf_counter()
    while model.busy():
        for event in model.step():
            text += getattr(event, "text", "")
            done = event if isinstance(event, Finished) else done
    assert done is not None
    return 1e3 * (time.perf_counter() - started) / done.usage.completion_tokens, text


def measure(vocab: int, o: argparse.Namespace, folder: Path) -> None:
    path = folder / f"{vocab}.gguf"
    write_model(
        path,
        Spec(layers=2, experts=8, used=2, embd=256, ff=256, heads=4, kv_heads=2, head_dim=64, vocab=vocab),
    )
    sharpen(path, o.sharper)
    model = registry.load(LoadRequest(path=str(path), backend="mmap", n_ctx=1024, n_threads=o.threads), lambda _: True)
    ways: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "top_k 1": (OUR_WAY, {"top_k": 1, "top_p": 1.0}),
        "top_k 40, top_p": (OUR_WAY, {"top_k": 40, "top_p": o.top_p}),
        "top_p, ours": (OUR_WAY, {"top_k": 0, "top_p": o.top_p}),
        "top_p, all sorted": (lambda *_: None, {"top_k": 0, "top_p": o.top_p}),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    same = True
    for seed in range(o.rounds + 1):
        said = {}
        for name, (way, settings) in ways.items():
            ours.nucleus = way
            sampling = Sampling(temperature=0.8, min_p=0.0, seed=seed, max_tokens=o.tokens, **settings)
            ms, said[name] = answer(model, sampling)
            if seed:  # the first round warms up
                took[name].append(ms)
        same &= said["top_p, ours"] == said["top_p, all sorted"]
    model.close()
    print(f"{vocab:,} tokens, medians of {o.rounds} answers of {o.tokens} tokens, ms a token; the same draws: {same}")
    for name, values in took.items():
        print(f"  {name:<18} {statistics.median(values):7.2f}   ({min(values):.2f} to {max(values):.2f})")


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--vocab", type=int, nargs="+", default=[32000, 152064])
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--tokens", type=int, default=60)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--top-p", type=float, default=0.95)
    a.add_argument("--sharper", type=float, default=40.0, help="times which logits are multiplied")
    o = a.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for vocab in o.vocab:
            measure(vocab, o, Path(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
