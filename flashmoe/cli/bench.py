"""``bench``: teacher-forced random tokens, with the physical bound beside what was measured."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flashmoe.cli.columns import labelled
from flashmoe.cli.common import (
    EXIT_OK,
    ProgressLine,
    UsageError,
    add_json_flag,
    add_load_flags,
    engine,
    load_model,
    load_request,
    out,
    positive_int,
    print_json,
    run_async,
)
from flashmoe.cli.models import resolve_model
from flashmoe.figures import UNKNOWN, duration, rate, size

if TYPE_CHECKING:
    from backends.interface import BenchRequest, BenchResult, LoadRequest, ModelInfo

DESCRIPTION = """\
Feeds random tokens to a model and measures how fast it computes them, what it reads and how long it waits for that, and
how close this comes to what the machine could do at best. The tokens are given, not drawn from the answer: every
backend, store and budget computes the same, which the hash over all logits proves."""

EPILOG = """\
The ids are numpy's default_rng(SEED).integers(0, n_vocab): the prompt first as one batch, then one id a step; with
--parallel as many whole prompts in a batch as it holds, then one id of each sequence a step; from 16 sequences on each
has a KV cache of its own where memory has room, as in batch. Random ids route more
evenly than text does, so hit rates are those of a bad case. The file is not dropped from the page cache first: for a
cold run use a RAM cap or drop it yourself.

what the figures mean (the name in --json):
  load         seconds until the model could compute, and bytes that the disk gave for it (load_s, load_read_bytes)
  prefill      tokens of the prompt a second, and of a pass (prefill_tok_s, prefill_s, n_ubatch); bytes that the disk
               gave for it, seconds waiting for reads, the share of reading whole layers that was beside computing,
               seconds of each layer over all passes (prefill_read_bytes, prefill_stall_s, prefill_overlap,
               prefill_layer_s)
  decode       tokens a second over all steps and sequences (decode_tok_s)
  per token    seconds computing, seconds that computing waited for reads or submitted them, bytes that the disk gave
               (compute_s_per_token, stall_s_per_token, read_bytes_per_token)
  hit rate     the share of chosen experts that were in memory when they were chosen (hit_rate); major faults are pages
               that a thread waited for (major_faults)
  bound        1 / (compute + bytes read / what the disk gives): the speed without any overlap of the two, and how much
               of it was reached (bound_tok_s, bound_share). Above 100 %, reads were hidden behind computing. What the
               disk gives (disk_bytes_s) is measured in the same run, as the engine reads: random experts of the same
               file past the page cache, as many in parallel as a layer wants, into huge pages
  memory       the most that the process held (peak_rss_bytes), and what its experts may hold (budget_bytes)
  logits       SHA-256 over the float32 logits of every step (logits_sha256): equal for two backends on one model,
               seed and number of sequences
What a backend can't know is "-", in --json null. The speed and the disk's rate are remembered for plan.

examples:
  flashmoe-tui bench model.gguf --backend stream --ram 4 --json
  flashmoe-tui bench model.gguf --parallel 8 --tokens 64
  flashmoe-tui bench model.gguf --json | jq '.decode_tok_s, .bound_share'
  for b in mmap stream; do flashmoe-tui bench model.gguf --backend $b --json | jq -r .logits_sha256; done

exit codes: 0 done, 1 failed (also where --ram is below one token's experts), 2 wrong usage, 3 worth trying again (the
engine was killed), 130 interrupted
"""


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _skew(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not an exponent from 0 to 10")
    return value


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "bench",
        help="measure tokens per second, and how close to the hardware's limit",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, a name in the library, or demo")
    parser.add_argument(
        "--prompt-tokens", metavar="N", type=positive_int, default=16, help="tokens of each prompt (default 16)"
    )
    parser.add_argument("--tokens", metavar="N", type=positive_int, default=32, help="steps of decode (default 32)")
    parser.add_argument("--seed", metavar="N", type=_seed, default=1, help="seed of the random ids (default 1)")
    parser.add_argument(
        "--parallel", metavar="N", type=positive_int, default=1, help="sequences decoded together (default 1)"
    )
    parser.add_argument(
        "--skew",
        metavar="S",
        type=_skew,
        default=0.0,
        help="draw ids by a Zipf law of this exponent (default 0: evenly)",
    )
    parser.add_argument(
        "--store", choices=("auto", "pagecache", "pool"), default="auto",
        help="where the backend stream keeps experts (default auto: chosen by the memory there is)",
    )  # fmt: skip
    add_load_flags(parser)
    add_json_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from backends.interface import BenchRequest
    from backends.planner.kv import padded
    from flashmoe.batch.sizing import own_caches_fit
    from flashmoe.plans.measurements import record_bench

    path = resolve_model(args.model, args)
    request = BenchRequest(
        prompt_tokens=args.prompt_tokens, tokens=args.tokens, seed=args.seed, parallel=args.parallel, skew=args.skew
    )
    load = load_request(args, path, n_seq_max=args.parallel, store=args.store, kv_budget_bytes=0)
    need = (args.prompt_tokens + args.tokens) * args.parallel
    if load.n_ctx is None:
        own_caches = own_caches_fit(path, args.parallel, args.prompt_tokens + args.tokens)
        # as llama.cpp pads it: the same for all backends
        n_ctx = need if own_caches else max(padded(need), 1024)
        load = load_request(
            args, path, n_seq_max=args.parallel, store=args.store, n_ctx=n_ctx, own_caches=own_caches,
            kv_budget_bytes=0,
        )  # fmt: skip
    elif load.n_ctx < need:
        raise UsageError(f"--ctx {load.n_ctx} is too small for {need} tokens: raise it or leave it out")
    info, result = run_async(_run(load, request))
    record_bench(result, info)
    if args.json:
        print_json(result)
    else:
        _print(info, result)
    return EXIT_OK


async def _run(load: LoadRequest, request: BenchRequest) -> tuple[ModelInfo, BenchResult]:
    progress = ProgressLine()
    async with engine("bench.log") as client:
        info = await load_model(client, load, progress)
        try:
            result = await client.bench(request, lambda done, total: progress.update(f"{done} of {total} steps"))
        finally:
            progress.clear()
    return info, result


def _prompt_reads(r: BenchResult) -> str:
    """What the prompt read, and how long its layers took; only what is known."""
    parts = [f"{size(r.prefill_read_bytes)} read"] if r.prefill_read_bytes is not None else []
    if r.prefill_stall_s is not None:
        parts.append(f"{duration(r.prefill_stall_s)} waiting for reads")
    if r.prefill_overlap is not None:
        parts.append(f"{r.prefill_overlap:.0%} of the reading beside computing")
    layers = sorted(s for s in r.prefill_layer_s if s > 0)
    if layers:
        middle = layers[len(layers) // 2]
        parts.append(f"a layer {duration(middle)} ({duration(layers[0])} to {duration(layers[-1])})")
    return ", ".join(parts)


def _print(info: ModelInfo, r: BenchResult) -> None:
    store = f", {r.store}" if r.store else ""
    out(f"{r.model} ({info.quant}) · {r.backend}{store} · {r.n_threads or '?'} threads")
    if r.lossy:
        labelled("", r.lossy)
    labelled("", info.backend_reason)
    labelled("load      ", f"{r.load_s:.2f} s, {size(r.load_read_bytes)} read")
    passes = f", {r.n_ubatch} a pass" if r.n_ubatch and r.n_ubatch < r.prompt_tokens * r.parallel else ""
    labelled("prefill   ", f"{r.prefill_tok_s:.1f} tok/s ({r.prompt_tokens} tokens, {r.parallel} in parallel{passes})")
    labelled("          ", _prompt_reads(r))
    labelled("decode    ", f"{r.decode_tok_s:.2f} tok/s ({r.tokens} steps)")
    labelled(
        "per token ",
        f"{duration(r.compute_s_per_token)} compute, {duration(r.stall_s_per_token)} waiting for reads, "
        f"{size(r.read_bytes_per_token)} read",
    )
    faults = UNKNOWN if r.major_faults is None else f"{r.major_faults}"
    labelled("hit rate  ", f"{UNKNOWN if r.hit_rate is None else f'{r.hit_rate:.1%}'}, {faults} major faults")
    if r.bound_tok_s is not None and r.bound_share is not None:
        speed = rate(r.disk_bytes_s)
        labelled("bound     ", f"{r.bound_tok_s:.2f} tok/s without overlap at {speed}: {r.bound_share:.0%} of it")
    else:
        labelled("bound     ", UNKNOWN)
    held = size(r.budget_bytes) if r.budget_bytes else "any"
    labelled("memory    ", f"{size(r.peak_rss_bytes)} at most; experts may hold {held}")
    labelled("logits    ", r.logits_sha256)
