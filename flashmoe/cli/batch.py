"""``batch``: many prompts overnight; several sequences are decoded together and share each expert read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flashmoe.cli.common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RETRY,
    CliError,
    ProgressLine,
    UsageError,
    add_json_flag,
    add_load_flags,
    duration,
    error,
    load_request,
    log_file,
    note,
    positive_int,
    print_json,
    resolve_model,
    run_async,
    size,
)

if TYPE_CHECKING:
    from flashmoe.batch.runner import Progress, Summary

MAX_PARALLEL = 250
AUTO_PARALLEL = 128

EPILOG = """\
Input lines:
  {"id": "a1", "prompt": "Summarise: …", "max_tokens": 200}
  {"id": "a2", "messages": [{"role": "user", "content": "…"}], "temperature": 0}
  {"custom_id": "a3", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}

Each answer is one line of OUT, on the disk as soon as it is done. Run the same command again to go on where it stopped.

Examples:
  flashmoe-tui batch qwen3.gguf prompts.jsonl -o answers.jsonl
  flashmoe-tui batch qwen3.gguf prompts.jsonl -o answers.jsonl --parallel 16 --ram 12 --price-kwh 0.30
"""


def _parallel(text: str) -> int | None:
    if text == "auto":
        return None
    value = positive_int(text)
    if value > MAX_PARALLEL:
        raise argparse.ArgumentTypeError(f"{value} is more than the {MAX_PARALLEL} sequences that one engine decodes")
    return value


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price") from None
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a price per kWh")
    return value


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "batch",
        help="many prompts, sharing each expert read",
        description="Answers every line of a JSONL file, several at once, so that one read of an expert serves all.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, a name in the library, or demo")
    parser.add_argument("input", metavar="IN.jsonl", type=Path)
    parser.add_argument("-o", "--output", metavar="OUT.jsonl", type=Path, required=True)
    parser.add_argument(
        "--parallel", metavar="N", type=_parallel, default=None,
        help="sequences decoded together; auto (the default) doubles them while that is measured to pay",
    )  # fmt: skip
    parser.add_argument(
        "--seq-ctx", metavar="N", type=positive_int, default=4096,
        help="context of one sequence in tokens, prompt and answer together (default 4096)",
    )  # fmt: skip
    parser.add_argument(
        "--retry-failed", action="store_true", help="run the lines again that failed in an earlier call"
    )
    parser.add_argument("--price-kwh", metavar="PRICE", type=_price, help="price of a kWh, for the cost of the tokens")
    add_load_flags(parser)
    add_json_flag(parser, "print the summary as one JSON object")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from backends.interface import EngineError
    from flashmoe.batch.lines import Item, Problem, read_items
    from flashmoe.batch.output import Output, OutputError
    from flashmoe.batch.runner import Batch
    from flashmoe.batch.sizing import choose

    items: list[Item] = []
    problems: list[Problem] = []
    try:
        for entry in read_items(args.input):
            (items if isinstance(entry, Item) else problems).append(entry)  # type: ignore[arg-type]
    except OSError as e:
        raise UsageError(f"{args.input} can't be read: {e.strerror}") from None
    for problem in problems:
        error(f"{args.input}, line {problem.line}: {problem.message}")
    if args.output.exists() and args.output.samefile(args.input):
        raise UsageError("the output would overwrite the input: name another file after -o")
    path = resolve_model(args.model)
    width: int | None = args.parallel
    room = choose(path, items, args.seq_ctx, width or AUTO_PARALLEL, fixed=width is not None)
    total_ctx = args.ctx if isinstance(args.ctx, int) and args.ctx else room.n_ctx
    request = load_request(args, path, n_seq_max=room.sequences, n_ctx=total_ctx)
    progress = ProgressLine(enabled=not args.json)

    def show(p: Progress) -> None:
        progress.update(_progress_text(p))

    def tell(text: str) -> None:
        progress.clear()
        note(text)

    try:
        with Output(args.output) as output:
            if output.torn_bytes:
                note(f"{args.output}: cut off a torn last line of {output.torn_bytes} bytes; its prompt runs again")
            if args.retry_failed:
                output.forget_failed()
            batch = Batch(
                request, items, output, log_path=log_file("batch.log"),
                width=None if width is None else room.sequences, on_progress=show, on_note=tell,
                per_sequence_ctx=args.seq_ctx, price_kwh=args.price_kwh,
            )  # fmt: skip
            interrupted = False
            try:
                summary = run_async(batch.run())
            except KeyboardInterrupt:
                interrupted, summary = True, batch.interrupted()
            progress.clear()
    except OutputError as e:
        raise CliError(str(e), EXIT_RETRY if e.busy else EXIT_FAILED) from None
    except EngineError:
        progress.clear()
        raise
    summary.bad_lines = len(problems)
    if args.json:
        print_json(summary)
    else:
        _print_summary(summary)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if summary.stopped or summary.failed or problems else EXIT_OK


def _progress_text(p: Progress) -> str:
    parts = [f"{p.done + p.failed} of {p.total}", f"{p.active} at once"]
    parts.append("… tok/s" if p.tok_s is None else f"{p.tok_s:.1f} tok/s")
    if p.eta_s is not None:
        parts.append(f"{duration(p.eta_s)} left")
    if p.hit_rate is not None:
        parts.append(f"hit {p.hit_rate:.0%}")
    if p.read_bytes_per_token is not None:
        parts.append(f"{size(p.read_bytes_per_token)}/token")
    if p.failed:
        parts.append(f"{p.failed} failed")
    return " · ".join(parts)


def _print_summary(s: Summary) -> None:
    line = f"{s.done} answered"
    for n, word in (
        (s.failed, "failed"),
        (s.skipped, "done before"),
        (s.remaining, "left"),
        (s.bad_lines, "bad lines"),
    ):
        line += f", {n} {word}" if n else ""
    note(line + (f" in {duration(s.seconds)}" if s.seconds else ""))
    if s.tokens:
        note(f"{s.tokens} tokens, {s.tokens_per_hour or 0:,.0f} an hour at {s.width} at once")
    if s.read_bytes_per_token is not None:
        hit = "" if s.hit_rate is None else f", hit rate {s.hit_rate:.0%}"
        note(f"{size(s.read_bytes_per_token)} of experts read per token{hit}")
    if s.tokens:
        energy = "energy unknown: this machine has no RAPL counter that can be read here"
        if s.energy_kwh is not None:
            energy = f"{s.energy_kwh:.4f} kWh (processor packages)"
            if s.cost_per_million_tokens is not None:
                energy += f", {s.cost_per_million_tokens:.2f} per million tokens"
        note(energy)
    if s.stopped:
        error(s.stopped)
