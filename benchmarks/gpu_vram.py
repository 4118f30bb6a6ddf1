#!/usr/bin/env python3
"""VRAM and speed of both backends through the engine's child process, all layers on a GPU, experts never.

Holds `ModelInfo.vram_bytes` and the planner's prediction against what nvidia-smi and the monitor's meter say.

    python benchmarks/gpu_vram.py OUT.json                 # makes three synthetic models in /tmp, removes them after
    python benchmarks/gpu_vram.py OUT.json --cpu --tiny    # tries the script itself
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from synthetic import Spec, write_model  # noqa: E402

from backends.engine.client import EngineClient  # noqa: E402
from backends.gguf_file import read_gguf  # noqa: E402
from backends.interface import BenchRequest, LoadRequest  # noqa: E402
from backends.planner import PlanRequest, plan  # noqa: E402
from backends.planner_machine import Machine  # noqa: E402
from flashmoe.monitor.gpu import GpuMeter  # noqa: E402

SHAPES: dict[str, tuple[Spec, dict[str, int]]] = {
    "24 x 64": (Spec(layers=24, experts=64), {"n_ctx": 8192}),
    "8 x 64, wide": (
        Spec(layers=8, experts=64, used=4, embd=3072, ff=1024, vocab=64000), {"n_ctx": 2048, "n_ubatch": 128},
    ),
    "16 x 32, long": (
        Spec(layers=16, experts=32, used=4, ff=1024, kv_heads=8), {"n_ctx": 32768, "n_ubatch": 256},
    ),
    "10 x 48": (
        Spec(layers=10, experts=48, used=6, embd=2560, ff=1280, vocab=50176), {"n_ctx": 16384},
    ),
}  # fmt: skip
TINY = {"tiny": (Spec(layers=2, experts=8, used=2, embd=256, ff=256, vocab=512), {"n_ctx": 1024})}


def smi(query: str) -> list[list[str]]:
    """Rows of an nvidia-smi query; [] without one."""
    try:
        text = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [[x.strip() for x in line.split(",")] for line in text.splitlines()]


def used() -> int:
    """Bytes in use on all GPUs by nvidia-smi."""
    return sum(int(row[0]) << 20 for row in smi("--query-gpu=memory.used"))


async def measure(path: Path, backend: str, layers: int, options: dict[str, int], tokens: int) -> dict[str, Any]:
    """One load and two benches in a child of its own."""
    request = LoadRequest(path=str(path), backend=backend, n_gpu_layers=layers, **options)  # type: ignore[arg-type]
    predicted = plan(
        read_gguf(path), Machine.detect(path.parent), PlanRequest(backend=backend, n_gpu_layers=layers, **options)
    ).place  # fmt: skip
    before, meter, log = used(), GpuMeter(), path.with_suffix(f".{backend}.log")
    client = EngineClient(log_path=log)
    try:
        await client.start()
        info = await client.load(request)
        loaded = used()
        await client.bench(BenchRequest(prompt_tokens=256, tokens=8))
        result = await client.bench(BenchRequest(prompt_tokens=256, tokens=tokens, seed=2))
        gpus, note = meter.read(client.pid)
        lines = [x.split(": ", 1)[-1].strip() for x in log.read_text(errors="replace").splitlines()]
        return {
            "backend": info.backend, "store": info.store, "gpu_layers": info.n_gpu_layers, **options,
            "dense_bytes": info.dense_bytes, "expert_bytes": info.expert_bytes, "file_bytes": info.file_bytes,
            "kv_bytes": info.kv_bytes, "compute_bytes": info.compute_bytes,
            "vram_by_engine": info.vram_bytes, "vram_planned": predicted.vram,
            "smi_before": before, "smi_loaded": loaded, "smi_after": used(),
            "smi_processes": smi("--query-compute-apps=pid,used_memory"), "pid": client.pid,
            "meter": [[g.name, g.total, g.used, g.engine_used] for g in gpus], "meter_note": note,
            "load_s": result.load_s, "prefill_tok_s": result.prefill_tok_s, "decode_tok_s": result.decode_tok_s,
            "n_threads": result.n_threads, "hook_s_per_token": result.hook_s_per_token,
            "logits_sha256": result.logits_sha256,
            "buffers": [x for x in lines if "buffer size" in x],
        }  # fmt: skip
    finally:
        await client.stop()
        meter.close()


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=Path)
    a.add_argument("--tiny", action="store_true", help="a tiny model")
    a.add_argument("--cpu", action="store_true", help="nothing on the GPU")
    a.add_argument("--tokens", type=int, default=64)
    a.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    o = a.parse_args()
    shapes, rows = TINY if o.tiny else SHAPES, []
    paths = [o.folder / f"gpu-vram-{i}.gguf" for i in range(len(shapes))]
    try:
        with ProcessPoolExecutor() as pool:
            list(pool.map(write_model, paths, [spec for spec, _ in shapes.values()]))
        for number, (name, (_, options)) in enumerate(shapes.items()):
            runs = [("mmap", 0), ("stream", 0)] if number == 0 else []
            if not o.cpu:
                runs += [("mmap", 99), ("stream", 99)]
            for backend, layers in runs:
                row = asyncio.run(measure(paths[number], backend, layers, options, o.tokens))
                rows.append({"model": name, **row})
                print(json.dumps(rows[-1]), flush=True)
                o.out.write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        for path in paths:
            for file in (path, *path.parent.glob(f"{path.stem}.*.log")):
                file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
