#!/usr/bin/env python3
"""VRAM and speed of both backends through the engine's child process, all layers on a GPU, experts never.

Holds the monitor's VRAM (as its recording has it) against nvidia-smi, and the plan's prediction against both. Each run
is recorded as `--record` would; `python docs/pictures.py --replay FILE.fmrec OUT.svg` makes a picture of one anywhere.

    python benchmarks/gpu_vram.py OUT.json --record FOLDER   # makes synthetic models in /tmp, removes them after
    python benchmarks/gpu_vram.py OUT.json --cpu --tiny      # tries the script itself

The last run limits the experts to 45 % of theirs (`--ram`), so that its recording shows reads, too. Prints a table, and
fails where the monitor is more than 2 % off nvidia-smi or the plan more than 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
from synthetic import Spec, write_model  # noqa: E402

from backends.engine.client import EngineClient  # noqa: E402
from backends.gguf.file import read_gguf  # noqa: E402
from backends.interface import BenchRequest, Finished, GenerateRequest, LoadRequest, Sampling  # noqa: E402
from flashmoe.monitor.engine import MonitoredEngine  # noqa: E402
from flashmoe.monitor.recording import Recording  # noqa: E402
from flashmoe.plans import measurements  # noqa: E402
from flashmoe.plans.planning import plan_header, request_of  # noqa: E402

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


class Run(NamedTuple):
    """One load: `layers` on the GPU, answers for `seconds`, experts limited to `ram_share` of theirs (0: no limit), and
    `vram_share` of them on the GPU."""

    backend: str
    layers: int
    seconds: float
    ram_share: float = 0.0
    vram_share: float = 0.0


def smi(query: str) -> list[list[str]]:
    """Rows of an nvidia-smi query; [] without one."""
    try:
        text = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [[x.strip() for x in line.split(",")] for line in text.splitlines()]


def each_used() -> list[int]:
    """Bytes in use on each GPU by nvidia-smi."""
    return [int(row[0]) << 20 for row in smi("--query-gpu=memory.used")]


def used() -> int:
    """Bytes in use on all GPUs by nvidia-smi."""
    return sum(each_used())


async def answer(engine: EngineClient, n_vocab: int, seconds: float) -> tuple[int, float]:
    """Answers to random prompts, drawn without any cut so that routing spreads; (tokens, seconds of decoding)."""
    rng, tokens, spent = np.random.default_rng(3), 0, 0.0
    deadline = asyncio.get_running_loop().time() + seconds
    for number in itertools.count():
        request = GenerateRequest(
            id=f"answer-{number}", tokens=tuple(int(x) for x in rng.integers(0, n_vocab - 2, 192)),
            sampling=Sampling(temperature=1, top_p=1, top_k=0, min_p=0, seed=number, max_tokens=64),
        )  # fmt: skip
        async for event in engine.generate(request):
            if isinstance(event, Finished):
                tokens += event.usage.completion_tokens
                spent += event.usage.decode_s
        if asyncio.get_running_loop().time() > deadline:
            return tokens, spent
    raise AssertionError


def vram_seen(file: Path) -> dict[str, Any]:
    """The GPUs as the recording has them at the end: of its last samples the fullest, since the very last one may be of
    a process that is ending."""
    samples = [s for s in Recording(file).samples if s.telemetry is not None]
    last = max(samples[-6:], key=lambda s: sum(g.used for g in s.gpus))
    return {
        "samples": len(samples), "meter_note": last.gpu_note,
        "meter": [[g.name, g.total, g.used, g.engine_used] for g in last.gpus],
    }  # fmt: skip


async def measure(path: Path, run: Run, options: dict[str, int], tokens: int, file: Path) -> dict[str, Any]:
    """One load, two benches and some seconds of answers in a child of its own, recorded."""
    gguf = read_gguf(path)
    ram = int(gguf.bytes.experts * run.ram_share) if run.ram_share else None
    vram = int(gguf.bytes.experts * run.vram_share)
    request = LoadRequest(
        path=str(path), backend=run.backend, n_gpu_layers=run.layers, ram_bytes=ram, vram_expert_bytes=vram, **options
    )  # type: ignore[arg-type]
    # as `plan` tells it: by what is remembered of the disk and of earlier runs, as the load chooses its ubatch
    predicted = plan_header(gguf, request_of(request), measurements.machine(path.parent, measure=False)).place
    before, log = used(), path.with_suffix(f".{run.backend}.log")
    engine = MonitoredEngine(log_path=log, record=file)
    try:
        await engine.start()
        info = await engine.load(request)
        loaded = used()
        await engine.watch(0.5, 2.0)
        probed = await asyncio.to_thread(engine.monitor.probe_disk)
        if probed is not None:
            engine.monitor.probed(probed)
        await engine.bench(BenchRequest(prompt_tokens=256, tokens=8))
        short = 16 if run.ram_share else tokens  # it reads from the disk all the time
        result = await engine.bench(BenchRequest(prompt_tokens=256, tokens=short, seed=2))
        done, spent = await answer(engine, info.n_vocab, run.seconds)
        await asyncio.sleep(1.5)  # a sample that holds the last token
        smi_gpus, processes, pid = each_used(), smi("--query-compute-apps=pid,used_memory"), engine.pid
        lines = [x.split(": ", 1)[-1].strip() for x in log.read_text(errors="replace").splitlines()]
        row = {
            "backend": info.backend, "store": info.store, "gpu_layers": info.n_gpu_layers, **options,
            "ram_bytes": ram, "vram_expert_layers": len(info.vram_expert_layers), "n_ubatch": info.n_ubatch,
            "dense_bytes": info.dense_bytes, "expert_bytes": info.expert_bytes,
            "file_bytes": info.file_bytes, "kv_bytes": info.kv_bytes, "compute_bytes": info.compute_bytes,
            "vram_by_engine": info.vram_bytes, "vram_planned": predicted.vram,
            "smi_before": before, "smi_loaded": loaded, "smi_after": sum(smi_gpus), "smi_gpus": smi_gpus,
            "asked": run.backend, "reason": info.backend_reason,
            "smi_processes": processes, "pid": pid,
            "load_s": result.load_s, "prefill_tok_s": result.prefill_tok_s, "decode_tok_s": result.decode_tok_s,
            "answer_tokens": done, "answer_tok_s": done / spent if spent else None,
            "n_threads": result.n_threads, "hook_s_per_token": result.hook_s_per_token,
            "logits_sha256": result.logits_sha256,
            "buffers": [x for x in lines if "buffer size" in x],
        }  # fmt: skip
    finally:
        await engine.stop()
    return {**row, **vram_seen(file), "recording": file.name}


def table(rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """(Markdown, whether the monitor is within 2 % of nvidia-smi and the plan within 5 %) of the runs on a GPU."""
    lines = [
        "| model | backend | store | nvidia-smi, device | monitor | off (worst GPU) | nvidia-smi, process | monitor "
        "| off | planned | off | decode, tok/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    good = True
    for row in rows:
        if not row["gpu_layers"] or not row["meter"]:
            continue
        device, engine = sum(g[2] for g in row["meter"]), sum(g[3] or 0 for g in row["meter"])
        # in a container nvidia-smi knows the process by another number: the only one there, or what the load added
        by_process = [int(p[1]) << 20 for p in row["smi_processes"] if len(p) == 2 and p[1].isdigit()]
        gpus = len(row["smi_gpus"])  # the engine has a context on each of them
        process = sum(by_process) if len(by_process) == gpus else row["smi_after"] - row["smi_before"]
        each = [g[2] / theirs - 1 for g, theirs in zip(row["meter"], row["smi_gpus"], strict=True) if theirs]
        offs = [
            max(each, key=abs, default=0.0),
            engine / process - 1 if engine else None,
            row["vram_planned"] / process - 1,
        ]
        good &= abs(offs[0]) <= 0.02 and (offs[1] is None or abs(offs[1]) <= 0.02) and abs(offs[2]) <= 0.05
        mib = [f"{x / 2**20:.0f}" for x in (row["smi_after"], device, process, engine, row["vram_planned"])]
        shown = [f"{o * 100:+.2f} %" if o is not None else "–" for o in offs]
        if not engine:
            mib[3] = "–"
        lines.append(
            f"| {row['model']} | {row['backend']} | {row['store'] or '–'} | {mib[0]} | {mib[1]} | {shown[0]} "
            f"| {mib[2]} | {mib[3]} | {shown[1]} | {mib[4]} | {shown[2]} | {row['answer_tok_s'] or 0:.1f} |"
        )
    return "\n".join(lines), good


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=Path)
    a.add_argument("--tiny", action="store_true", help="a tiny model")
    a.add_argument("--cpu", action="store_true", help="nothing on the GPU")
    a.add_argument("--tokens", type=int, default=64)
    a.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    a.add_argument("--record", type=Path, help="the folder that gets the recordings")
    a.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many of the models")
    a.add_argument("--vram", action="store_true", help="only loads with a part of the experts in VRAM, and all of them")
    o = a.parse_args()
    shapes = TINY if o.tiny else dict(itertools.islice(SHAPES.items(), o.shapes))
    rows: list[dict[str, Any]] = []
    scratch = Path(tempfile.mkdtemp(prefix="gpu-vram-", dir=o.folder))
    os.environ["FLASHMOE_HOME"] = str(scratch / "home")  # what is measured here is nobody's memory
    recordings = o.record or scratch
    recordings.mkdir(parents=True, exist_ok=True)
    paths = [scratch / f"{i}.gguf" for i in range(len(shapes))]
    layers, seconds = (0, 2.0) if o.cpu else (99, 15.0)
    try:
        with ProcessPoolExecutor() as pool:
            list(pool.map(write_model, paths, [spec for spec, _ in shapes.values()]))
        for number, (name, (_, options)) in enumerate(shapes.items()):
            runs = [Run(backend, layers, seconds if number == 0 else 3.0) for backend in ("mmap", "stream")]
            if o.vram:
                runs = [
                    Run("mmap", layers, 3.0, vram_share=0.501), Run("stream", layers, 3.0, vram_share=1.0),
                    Run("stream", layers, seconds, ram_share=0.3, vram_share=0.34),
                ]  # fmt: skip
            elif number == 0:
                runs.append(Run("stream", layers, 2 * seconds, ram_share=0.45))
                if not o.cpu:
                    runs += [Run("mmap", 0, 3.0), Run("stream", 0, 3.0), Run("auto", layers, 3.0)]
            for run in runs:
                kind = (
                    f"-vram{run.vram_share:.1f}"
                    if run.vram_share
                    else "-limited"
                    if run.ram_share
                    else ""
                    if run.layers
                    else "-cpu"
                )
                file = recordings / f"{number}-{run.backend}{kind}.fmrec"
                file.unlink(missing_ok=True)
                row = asyncio.run(measure(paths[number], run, options, o.tokens, file))
                rows.append({"model": name, **row})
                print(json.dumps(rows[-1]), flush=True)
                o.out.write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text, good = table(rows)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
