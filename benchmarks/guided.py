"""What a constraint costs: decoding with a JSON schema against decoding without, and reading the vocabulary once.

``python -m benchmarks.guided [--vocab 150000] [--width 1024] [--tokens 60] [--rounds 5]`` makes a model of random
weights whose output matrix takes as long as a model of about 30 tokens a second, and takes turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.model import LlamaModel
from tests.gguf_factory import make_gguf

SCHEMA = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 8}, "n": {"type": "integer", "minimum": 0}},
        "required": ["name", "n"],
        "additionalProperties": False,
    },
}


def rate(model: LlamaModel, tokens: int, schema: str | None) -> float:
    """Tokens per second of one answer, from the first to the last."""
    sampling = Sampling(temperature=0.8, seed=1, max_tokens=tokens, json_schema=schema, top_k=40)
    model.submit(GenerateRequest(id="1", prompt="Hello", sampling=sampling))
    while model.busy():
        for event in model.step():
            if isinstance(event, Finished):
                usage = event.usage
                return ((usage.completion_tokens or 1) - 1) / usage.decode_s
    raise RuntimeError("it never ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=150_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make_gguf(
            Path(folder) / "wide.gguf", arch="qwen3moe", endless=True,
            n_vocab=args.vocab, n_embd=args.width,
        )  # fmt: skip
        model = MmapBackend().load(LoadRequest(path=str(path)), lambda _: True)
        started, spent = time.perf_counter(), time.process_time()
        _ = model._guide.tokenizer
        wall, cpu = time.perf_counter() - started, time.process_time() - spent
        print(f"vocabulary of {args.vocab} tokens read once: {wall:.2f} s, {cpu:.2f} s of processor time")
        free, bound = [], []
        for _ in range(args.rounds):
            free.append(rate(model, args.tokens, None))
            bound.append(rate(model, args.tokens, json.dumps(SCHEMA)))
        ratios = [b / f for b, f in zip(bound, free, strict=True)]
        print(f"free {statistics.median(free):.1f} tok/s, with a schema {statistics.median(bound):.1f} tok/s")
        print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        model.close()


if __name__ == "__main__":
    main()
