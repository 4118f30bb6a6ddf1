"""``plan MODEL|REPO[:QUANT]``: will it run here, what goes where, how fast, and why; before any download."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flashmoe.cli.columns import labelled
from flashmoe.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    ProgressLine,
    UsageError,
    add_json_flag,
    add_load_flags,
    load_request,
    note,
    out,
    positive_int,
    print_json,
    settings_of,
)  # fmt: skip
from flashmoe.cli.models import resolve_model
from flashmoe.figures import duration, rate, size

if TYPE_CHECKING:
    from backends.gguf.file import GgufFile
    from backends.planner.machine import Machine
    from backends.planner.plan import Plan, PlanRequest

LINE_BYTES_S = 100e6 / 8
"""A line of 100 Mbit/s: what the time of a download is told for where nothing was downloaded yet."""


DESCRIPTION = """\
Says whether a model runs on this machine, what of it would be in RAM, in VRAM and on the SSD, how fast it would answer
and what bounds that. Nothing is loaded: the model's header tells it. A model on the hub is planned from its header too
(some MB), before any download."""

EPILOG = """\
what the figures mean:
  Speed        tokens per second of one answer, once its first tokens have warmed the cache. "estimated" is a formula:
               what a token computes and reads by the header, over this machine's cores, memory and disk. "from runs
               here" are this model's own runs on this machine with about as much memory, as run, bench and the app
               remember them. The range goes from even routing on a slow day to the best published hit rates.
  bound by     disk: reading what was not in memory takes longer than computing; compute or memory bandwidth: computing
               does, and a faster disk would bring nothing
  RAM          what the engine's process will hold, beside what is available now: dense weights, as many experts as
               memory (or --ram) has room for, the context's KV cache, compute buffers
  VRAM         dense weights, KV cache and buffers on the GPU, and the experts of --vram-experts. A note says where
               answers come faster without layers on the GPU, so that auto puts none there
  SSD          experts that don't fit: each is read when a router chooses it. The disk's rate is that of random experts
               read as the engine reads them, past the page cache; it is measured once a month, or by bench
  --ram        least: one token's experts, below which nothing would ever be found in memory; advised: from where most
               choices hit; all: everything is in memory, and nothing streams
  Context      KV cache of one token, and the most tokens that fit beside the least experts
  Download     what is still to be downloaded, and how long it takes at 100 Mbit/s

What isn't known is shown as unknown, in --json as null. --json prints the same in bytes and seconds, with the request
and the machine that the plan is for.

examples:
  flashmoe-tui plan ~/models/Qwen3-30B-A3B-Q4_K_M.gguf
  flashmoe-tui plan qwen3.gguf --ram 6 --ctx 32768 --parallel 16
  flashmoe-tui plan unsloth/Qwen3.5-397B-A17B-GGUF:UD-IQ2_XXS
  flashmoe-tui plan qwen3.gguf --no-probe --json | jq '.plan.verdict, .plan.speed.expected'
  flashmoe-tui plan qwen3.gguf > /dev/null && flashmoe-tui qwen3.gguf

exit codes: 0 it runs here, 1 it doesn't (the first line says why and what would help) or the file is damaged,
2 wrong usage, 3 worth trying again (the hub can't be reached), 130 interrupted"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "plan", help="will it run here, and how fast", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument(
        "model", metavar="MODEL|REPO[:QUANT]",
        help="a GGUF file, a name in the library, demo, or a repository on the hub with one of its quantizations",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", metavar="N", type=positive_int, default=1,
        help="sequences decoded together, as batch and serve do: their context is planned for (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--no-probe",
        action="store_true",
        help="don't measure the disk and memory, even if there is no earlier measurement",
    )
    add_load_flags(parser)
    add_json_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from msgspec.structs import replace

    from flashmoe import paths
    from flashmoe.plans import measurements
    from flashmoe.plans.planning import plan_header, request_of

    gguf, folder, to_download = _model(args.model, args)
    load = load_request(args, gguf.path)
    if load.n_expert_used is not None and not 1 <= load.n_expert_used <= max(1, gguf.n_experts):
        raise UsageError(f"--experts {load.n_expert_used}: the model has {gguf.n_experts} experts in a layer.")
    request = replace(
        request_of(load), n_seqs=args.parallel, to_download=to_download,
        download_bytes_s=LINE_BYTES_S if to_download else None,
    )  # fmt: skip
    progress = ProgressLine(enabled=not args.no_probe)
    progress.update("measuring the disk", force=True)
    here = measurements.machine(
        folder or paths.models_dir(), measure=not args.no_probe, files=[] if to_download else gguf.files
    )
    progress.clear()
    result = plan_header(gguf, request, here)
    if args.json:
        print_json({"plan": result, "request": request, "machine": here})
    else:
        _show(result, request, here)
    return EXIT_OK if result.verdict in ("fits", "streams") else EXIT_FAILED


def _model(name: str, args: argparse.Namespace) -> tuple[GgufFile, Path | None, int]:
    """(header, folder of a local model, bytes to download of a remote one)."""
    from backends.gguf.file import read_gguf
    from flashmoe.hub.address import looks_like_reference
    from flashmoe.hub.client import configured_endpoint

    on_hub = looks_like_reference(name, endpoint=configured_endpoint())
    try:
        path = resolve_model(name, args)
    except UsageError:
        if not on_hub:
            raise
        return _remote(name, args)
    if str(path).startswith(("http://", "https://")):
        raise UsageError(f"{name} is a server", "its memory can't be planned from here.")
    return read_gguf(path), Path(path).absolute().parent, 0


def _remote(name: str, args: argparse.Namespace) -> tuple[GgufFile, None, int]:
    from flashmoe.cli.search import say_wait
    from flashmoe.hub.client import HubClient
    from flashmoe.hub.lookup import look_up, read_reference
    from flashmoe.hub.remote_header import read_remote

    client = HubClient()
    found = look_up(client, read_reference(name), models=settings_of(args).config.models_folder(), waiting=say_wait)
    repo, quant = found.repo, found.quant
    if found.why:
        note(f"Taking {found.why}")
    moved, progress = 0, ProgressLine()

    def count(n: int) -> None:
        nonlocal moved
        moved += n
        progress.update(f"reading the header: {size(moved)}")

    try:
        header = read_remote(client, repo.repo, repo.commit, quant, count)
    finally:
        progress.clear()
    return header, None, quant.size


def _show(plan: Plan, request: PlanRequest, here: Machine) -> None:
    experts = f"{plan.n_experts} experts, {plan.n_expert_used} used" if plan.n_experts else "dense"
    out(f"{plan.name}  {plan.quant}  {size(plan.file_bytes)}")
    out(f"{plan.architecture}, {plan.n_layers} layers, {experts}")
    out()
    head = {"fits": "Runs here", "streams": "Runs here, streaming"}.get(plan.verdict, "Does not run here")
    _line("", f"{head}. {plan.sentence}")
    if plan.speed is not None:
        s = plan.speed
        known = "from runs here" if s.source == "measured" else "estimated"
        span = f"range {_rate(s.low)} to {_rate(s.high)}"
        _line("Speed", f"{_rate(s.expected)} tokens/s, {known} ({span}), bound by {s.bound}")
        _line(" ", s.reason)
        if plan.expert_bytes:
            _line(" ", f"The first tokens after a cold start arrive at {_rate(s.cold)} tokens/s.")
    out()
    p = plan.place
    _line("RAM", f"{size(p.rss)} of {size(here.ram_available)} available")
    rows = [("dense weights", p.dense_ram), ("experts", p.experts_ram), (f"context of {plan.n_ctx:,} tokens", p.kv_ram)]
    rows += [("compute buffers", p.compute_ram), ("the engine itself", p.process_ram)]
    for label, n in rows:
        if n:
            out(f"{size(n):>20}  {label}")
    if p.vram:
        held = f", {p.vram_expert_layers} of them with their experts" if p.vram_expert_layers else ""
        _line("VRAM", f"{size(p.vram)} for {p.n_gpu_layers} layers{held or ' without their experts'}")
    elif here.gpus:
        _line("VRAM", "none used")
    if plan.expert_bytes:
        disk = f"disk {rate(here.disk_bytes_s)} ({here.disk_source})"
        stream = f"{size(p.experts_ssd)} of experts are read when chosen" if p.experts_ssd else "nothing streams"
        if p.tables_ssd:
            stream += f"; {size(p.tables_ssd)} of embeddings are read by row"
        _line("SSD", f"{stream}; {disk}")
        b = plan.budgets
        least, advised, every = size(b.least), size(b.advised), size(b.best)
        _line("--ram", f"least {least}, advised {advised}, all {every}; this machine can give {size(b.here)}")
    if plan.first_token_s:
        known = "measured" if plan.first_token_source == "measured" else "estimated"
        waits = ", ".join(f"{duration(s)} for {n // 1000}k tokens" for n, s in plan.first_token_s)
        _line("Prompts", f"first token after {waits} ({known})")
        why = f": {plan.ubatch_reason}" if plan.ubatch_reason else ""
        _line(" ", f"{plan.n_ubatch:,} tokens a pass (--ubatch){why}")
        _line(" ", f"{size(p.prompt_ram)} more of memory while a long prompt is read")
    trained = f"trained with {plan.n_ctx_train:,}" if plan.n_ctx_train else "the trained length is unknown"
    most = f"up to {plan.n_ctx_max:,} tokens fit" if plan.n_ctx_max else "none fits"
    _line("Context", f"{size(plan.kv_bytes_per_token)} a token; {most}, {trained}")
    if plan.to_download:
        _line(
            "Download",
            f"{size(plan.to_download)}, {duration(plan.download_s)} at 100 Mbit/s; "
            f"{size(plan.disk_free)} free on the disk",
        )
    for text in plan.notes:
        _line("Note", text)


def _line(label: str, text: str) -> None:
    labelled(f"{label:<11}" if label else "", text)


def _rate(tokens_s: float) -> str:
    return f"{tokens_s:.0f}" if tokens_s >= 20 else f"{tokens_s:.1f}" if tokens_s >= 1 else f"{tokens_s:.2f}"
