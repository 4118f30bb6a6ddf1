#!/usr/bin/env python3
"""A model split over several GPUs (llama.cpp's own split by layers), and the VRAM pane of each held against nvidia-smi.

    python benchmarks/gpu_panes.py OUT_FOLDER [MODEL.gguf] [--backend mmap,stream] [--seconds 20]

Without a model a synthetic one is made in OUT_FOLDER and removed after. Every second of answering, what the pane holds
of each GPU (in use, and the engine's part) is taken with what nvidia-smi says of it right before; the medians are
printed and kept in OUT_FOLDER/gpu_panes.json with the recording (BACKEND.fmrec) and the panes as pictures
(BACKEND.svg, the memory pane with a line for each GPU). Fails where a GPU is more than 2 % off, or where fewer than two
GPUs hold anything of the engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from gpu_vram import answer, smi  # noqa: E402
from monitor_cost import PaneApp  # noqa: E402
from monitored import relay, void  # noqa: E402
from synthetic import Spec, write_model  # noqa: E402

from backends.engine.client import EngineClient  # noqa: E402
from backends.interface import LoadRequest  # noqa: E402
from flashmoe.monitor.feed import MonitorFeed  # noqa: E402
from flashmoe.monitor.live import LiveMonitor  # noqa: E402
from flashmoe.monitor.recording import Recording  # noqa: E402

CLOSE = 0.02
_LEAST_BYTES = 64 << 20
"""An engine's part of a GPU under this is a context without layers."""


def per_gpu() -> tuple[list[int], list[int]]:
    """Bytes in use and bytes of all compute processes on each GPU, by nvidia-smi and in its order."""
    rows = smi("--query-gpu=uuid,memory.used")
    held = dict.fromkeys((row[0] for row in rows), 0)
    for uuid, amount in smi("--query-compute-apps=gpu_uuid,used_memory"):
        if uuid in held and amount.isdigit():
            held[uuid] += int(amount) << 20
    return [int(row[1]) << 20 for row in rows], list(held.values())


async def run(model: Path, backend: str, out: Path, seconds: float) -> list[dict[str, Any]]:
    """One load and its answers; a row for each GPU."""
    feed, looks = MonitorFeed(), []
    record = out / f"{backend}.fmrec"
    record.unlink(missing_ok=True)
    before = per_gpu()[0]
    live = LiveMonitor(lambda sample: void(feed.push(sample)), watchable=False)
    engine = EngineClient(log_path=out / f"{backend}.log", on_event=relay(feed, live))
    await live.start()
    try:
        live.record(record)
        await engine.start()
        live.engine_started(engine.pid)
        info = await engine.load(LoadRequest(path=str(model), backend=backend, n_ctx=8192, n_gpu_layers=99))
        feed.set_model(live.model_loaded(info))
        await engine.watch(0.5, 2.0)
        answering = asyncio.ensure_future(answer(engine, info.n_vocab, seconds))
        while not answering.done():
            await asyncio.sleep(1.0)
            said = await asyncio.to_thread(per_gpu)
            await asyncio.sleep(1.6)  # the meter looks once a second, and a sample comes twice
            if feed.frame is not None and feed.frame.gpus:
                looks.append((said, feed.frame.gpus))
        tokens, spent = answering.result()
        picture(feed, out / f"{backend}.svg")
    finally:
        await engine.stop()
        await live.stop()
    if not looks:
        return []
    rows: list[dict[str, Any]] = []
    for index in range(len(before)):
        seen = [next((g for g in gpus if g.index == index), None) for _, gpus in looks]
        engine_used = [g.engine_used for g in seen if g is not None and g.engine_used is not None]
        rows.append({
            "backend": backend, "gpu": index, "name": next((g.name for g in seen if g is not None), None),
            "smi_before": before[index],
            "smi_used": statistics.median(said[0][index] for said, _ in looks),
            "pane_used": statistics.median([g.used for g in seen if g is not None] or [0]),
            "smi_processes": statistics.median(said[1][index] for said, _ in looks),
            "pane_engine": statistics.median(engine_used) if engine_used else None,
            "looks": len(looks), "tok_s": tokens / spent if spent else None,
            "recorded_gpus": len(Recording(record).samples[-2].gpus),
        })  # fmt: skip
    return rows


def picture(feed: MonitorFeed, file: Path) -> None:
    """The panes as an SVG. In a thread of its own: an app needs an event loop of its own."""

    async def draw() -> None:
        app = PaneApp(feed, with_map=True)
        async with app.run_test(size=(120, 44)) as pilot:
            await pilot.pause()
            app.save_screenshot(file.name, path=str(file.parent))

    thread = threading.Thread(target=lambda: asyncio.run(draw()))
    thread.start()
    thread.join()


def table(rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """(Markdown in MiB, whether every GPU is within 2 % and two at least hold the engine's layers)."""
    lines = [
        "| backend | GPU | nvidia-smi, in use | the pane | off | nvidia-smi, processes | the pane's engine | off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    good = True
    for backend in dict.fromkeys(row["backend"] for row in rows):
        mine = [row for row in rows if row["backend"] == backend]
        good &= sum(row["smi_used"] - row["smi_before"] > _LEAST_BYTES for row in mine) >= 2
    for row in rows:
        used = row["pane_used"] / row["smi_used"] - 1 if row["smi_used"] else 0.0
        own = row["pane_engine"]
        off = own / row["smi_processes"] - 1 if own is not None and row["smi_processes"] else None
        good &= abs(used) <= CLOSE and (off is None or abs(off) <= CLOSE)
        shown = ["–" if x is None else f"{x / 2**20:.0f}" for x in
                 (row["smi_used"], row["pane_used"], row["smi_processes"], own)]  # fmt: skip
        lines.append(
            f"| {row['backend']} | {row['gpu']} {row['name']} | {shown[0]} | {shown[1]} | {used * 100:+.2f} % "
            f"| {shown[2]} | {shown[3]} | {f'{off * 100:+.2f} %' if off is not None else '–'} |"
        )
    return "\n".join(lines), good


def main() -> int:
    """Parses the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that gets figures, recordings and pictures")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--backend", default="mmap,stream")
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = len(per_gpu()[0])
    if found < 2:
        print(f"This needs two GPUs at least; nvidia-smi says {found}.", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gpu-panes-", dir=args.out) as scratch:
        os.environ["FLASHMOE_HOME"] = str(Path(scratch) / "home")  # what is measured here is nobody's memory
        model = args.model or Path(scratch) / "split.gguf"
        if args.model is None:
            write_model(model, Spec(layers=24, experts=64))
        for backend in args.backend.split(","):
            rows += asyncio.run(run(model, backend, args.out, args.seconds))
            (args.out / "gpu_panes.json").write_text(json.dumps(rows, indent=1) + "\n")
    text, good = table(rows)
    print(text)
    return 0 if rows and good else 1


if __name__ == "__main__":
    raise SystemExit(main())
