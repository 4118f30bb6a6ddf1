#!/usr/bin/env python3
"""What products of experts cost by the type of their weights, one token and many, relative to Q4_K.

    python benchmarks/type_speed.py --rounds 5

One thread, timed by what it had of the processor, so that what else runs disturbs little; the least of the rounds,
which go through all types in turn. `many`: seconds for a number of weights and tokens, over Q4_K's for as many; what a
prompt asks. `one`: the same for one token; `bytes_s`: bytes of weights that a core multiplies then. `gain`: how many
times faster one of many tokens is. `dense`: as `many`, of matrices that aren't experts (llamafile's products there).
`PROMPT_COST` in `backends/planner/speed.py` is made of these.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from backends.gguf.types import TENSOR_TYPES  # noqa: E402
from backends.llamacpp.repack_gain import _DENSE, _EMBD, _FF, _USED, _WIDTH, _Ggml  # noqa: E402

NOT_WEIGHTS = (9, 15, *range(24, 29))
"""Types of activations (Q8_1, Q8_K), integers and F64."""


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--tokens", type=int, default=256)
    a.add_argument("--types", nargs="+", help="default: all that a CPU computes with")
    o = a.parse_args()
    ggml = _Ggml(1)
    least: dict[str, dict[str, float]] = {}
    for _ in range(o.rounds):
        for number, (name, _, _) in TENSOR_TYPES.items():
            if number in NOT_WEIGHTS or (o.types and name not in {*o.types, "Q4_K"}):
                continue
            for key, tokens in (("one", 1), ("many", o.tokens), ("dense", o.tokens)):
                with ggml.products(number, ggml.plain, experts=key != "dense", tokens=tokens) as graph:
                    if graph is None:
                        continue
                    for _ in range(4 if tokens == 1 else 1):
                        began = time.thread_time()
                        if ggml.compute(ggml.backend, graph):
                            break
                        took = (time.thread_time() - began) / tokens
                        known = least.setdefault(name, {})
                        known[key] = min(known.get(key, took), took)
    weights = _EMBD * _FF * _USED
    for name, per_block, block_bytes in TENSOR_TYPES.values():
        if name in least:
            one, many = least[name]["one"], least[name]["many"]
            size = weights * block_bytes / per_block
            dense = least[name]["dense"] / (_DENSE // 8 * _EMBD * _WIDTH)
            row = {
                "type": name, "one": round(one / least["Q4_K"]["one"], 2),
                "many": round(many / least["Q4_K"]["many"], 2), "bytes_s": round(size / one / 1e9, 2),
                "many_weights_s": round(weights / many / 1e9, 2), "gain": round(one / many, 2),
                "dense": round(dense / (least["Q4_K"]["many"] / weights), 2),
            }  # fmt: skip
            print(json.dumps(row), flush=True)
    ggml.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
