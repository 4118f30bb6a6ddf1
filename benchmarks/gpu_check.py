#!/usr/bin/env python3
"""stream against mmap with all layers on a GPU: equal logits, VRAM, speed. `gpu_check.sh` builds what it needs.

    python benchmarks/gpu_check.py OUT.json [--layers 12 --experts 64]

The reference is mmap with the experts on the CPU and a callback that asks for the same graph nodes: a callback splits
the graph and turns some fused CUDA kernels off, so mmap without one differs in the last bits.
"""

from __future__ import annotations

import argparse
import ctypes as C
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from backends.interface import BenchRequest, LoadRequest  # noqa: E402
from backends.llamacpp.context import Batch  # noqa: E402


class AskingHook:
    """Asks for the routers' choices and does nothing with them."""

    def __init__(self, others: Sequence[int] = ()) -> None:
        """`others`: layers whose routers nobody asks for, because their experts are in VRAM."""
        from backends.llamacpp import native
        from backends.streaming.abi import Tensor

        at = Tensor.name.offset
        self._at = at
        self._others = {b"ffn_moe_topk-%d" % layer for layer in others}
        self.callback = native.lib().ggml_backend_sched_eval_callback(self._node)

    def _node(self, tensor: int, ask: bool, _: object) -> bool:
        if not ask:
            return True
        name = C.string_at(tensor + self._at)
        return name.startswith(b"ffn_moe_topk-") and name not in self._others

    def begin(self, batch: Batch) -> None:
        """Nothing to prepare."""

    def end(self) -> Literal["ok", "retry", "cancelled"]:
        """Nothing can go wrong."""
        return "ok"


def vram_used() -> int | None:
    """Bytes in use on all GPUs by nvidia-smi; None without one."""
    try:
        text = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return sum(int(line) for line in text.split()) << 20


def one(path: str, backend: str, gpu_layers: int, prompt: int, tokens: int) -> dict[str, Any]:
    """Loads and measures one backend in this process."""
    from backends.gguf.file import read_gguf
    from backends.llamacpp.loading import load_mmap
    from backends.llamacpp.model import LlamaModel
    from backends.llamacpp.parts import Parts
    from backends.llamacpp.sizing import describe
    from backends.streaming.backend import StreamBackend

    before = vram_used()
    request = LoadRequest(path=path, n_ctx=2048, n_gpu_layers=gpu_layers, backend=backend)
    if backend == "stream":
        model = StreamBackend().load(request, lambda _: True)
    else:
        gguf = read_gguf(path)
        base = describe(request, gguf, resident_bytes=0)
        weights = load_mmap(request, list(gguf.files), gguf.architecture, lambda _: True)
        model = LlamaModel(weights, request, Parts(backend="mmap", reason="", hook=AskingHook()), base)
    loaded = vram_used()
    result = model.bench(BenchRequest(prompt_tokens=prompt, tokens=tokens), lambda _done, _total: True)
    during = vram_used()
    info = model.info
    model.close()
    return {
        "backend": backend,
        "logits_sha256": result.logits_sha256,
        "load_s": result.load_s,
        "prefill_tok_s": result.prefill_tok_s,
        "decode_tok_s": result.decode_tok_s,
        "gpu_layers": info.n_gpu_layers,
        "dense_bytes": info.dense_bytes,
        "expert_bytes": info.expert_bytes,
        "vram_bytes_by_engine": info.vram_bytes,
        "vram_loaded_bytes": None if before is None or loaded is None else loaded - before,
        "vram_after_bench_bytes": None if before is None or during is None else during - before,
        "store": info.store,
    }


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", help="the file that gets the figures (with --one: the model)")
    a.add_argument("--one", choices=("mmap", "stream"), help="measure one backend and print it")
    a.add_argument("--gpu-layers", type=int, default=99)
    a.add_argument("--layers", type=int, default=12)
    a.add_argument("--experts", type=int, default=64)
    a.add_argument("--prompt", type=int, default=16)
    a.add_argument("--tokens", type=int, default=48)
    o = a.parse_args()
    if o.one:
        print(json.dumps(one(o.out, o.one, o.gpu_layers, o.prompt, o.tokens)))
        return 0
    from synthetic import Spec, write_model

    rows, same = [], True
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "synthetic.gguf", Spec(layers=o.layers, experts=o.experts))
        for prompt in (16, 256):  # decode, and a prefill wide enough that products go to the GPU
            pair = []
            for backend in ("mmap", "stream"):
                command = [sys.executable, __file__, str(path), "--one", backend, "--gpu-layers", str(o.gpu_layers)]
                done = subprocess.run(
                    [*command, "--prompt", str(prompt), "--tokens", str(o.tokens)], capture_output=True, text=True
                )
                if done.returncode:
                    print(done.stderr[-3000:], file=sys.stderr)
                    return 1
                pair.append({"prompt_tokens": prompt, **json.loads(done.stdout.splitlines()[-1])})
            same &= pair[0]["logits_sha256"] == pair[1]["logits_sha256"]
            rows += pair
    report = {"logits_equal": same, "runs": rows}
    Path(o.out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
