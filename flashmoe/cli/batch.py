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
    error,
    load_request,
    log_file,
    note,
    positive_int,
    print_json,
    run_async,
)
from flashmoe.cli.models import resolve_model
from flashmoe.figures import duration, size

if TYPE_CHECKING:
    from flashmoe.batch.runner import Progress, Summary

MAX_PARALLEL = 250

DESCRIPTION = """\
Answers every line of a JSONL file. Several prompts are decoded together, so that one read of an expert from the SSD
serves all of them: that is many times faster than one after the other where the model is larger than memory.

Each answer is a line of OUT.jsonl, on the disk as soon as it is done, in the order of their ends. Whatever stops a
batch (Ctrl-C, kill -9, a power cut), the same command resumes: what is in OUT.jsonl is not computed again, what was
under way is. Lines that can't be run are named with their number, and the rest runs. A progress line is shown on a
terminal."""

EPILOG = """\
input, one JSON object a line; settings are those of OpenAI's API, and unknown ones are refused:
  {"id": "a1", "prompt": "Summarise: …", "system": "Be brief.", "max_tokens": 200}
  {"id": "a2", "messages": [{"role": "user", "content": "…"}], "temperature": 0, "seed": 1}
  {"id": "a3", "prompt": [1, 2, 3]}                      token ids, without the chat template
  {"custom_id": "a4", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}

output:
  {"id", "answer", "thinking", "finish_reason", "model", "usage"}, or {"id", "error": {"code", "message"}};
  lines in OpenAI's form are answered in the form of OpenAI's batch output

--parallel auto starts with 8 sequences, or where the experts don't fit into their budget with 64 (with a KV cache each,
as many as memory has room for). It doubles them (up to 250) while that makes the batch's own tokens come at least 5 %
faster, halves them where the first width is too many and four times as many lines wait, and stays at the best width
that it measured; no work is done twice for it. It never takes more sequences than a quarter of
the free RAM (half, where the experts don't fit into it) has room for in the KV cache.

From 16 sequences on each has a KV cache of its own, if memory has room for the longest line so often: a line needs its
prompt and its max_tokens, or --seq-ctx without one. Attention then costs what a sequence's own tokens cost. Else (and
with a GPU, with recurrent states, or with --ctx) they share one, in which each token's attention goes over all of them.
Answers are admitted to that with room for 256 tokens; where many grow longer than that in parallel, the last ones
wait and are computed again up to there.

Prompts with equal beginnings follow each other, so that each is read once; among the next 512 the one whose words are
most like those just taken goes first, since like prompts use more of the same experts. A server that can't answer is
asked again for half a minute; if it stays away the batch ends, and no line fails for it.

At temperature 0 an answer is the one that the prompt gets alone, up to llama.cpp's rounding: at another batch width
its kernels add up in another order (matrix products in F32, F16 and Q8_0; flash attention that splits the KV cache), so
that a near tie between two tokens may break the other way.

The report at the end: answers, tokens an hour, bytes of experts read per token, hit rate, and energy of the processor
packages where RAPL can be read (root, or a readable /sys/class/powercap); with --price-kwh what a million tokens cost.

examples:
  flashmoe-tui batch qwen3.gguf prompts.jsonl -o answers.jsonl
  flashmoe-tui batch qwen3.gguf prompts.jsonl -o answers.jsonl --parallel 16 --ram 12 --price-kwh 0.30
  flashmoe-tui batch http://node7:8080/v1 prompts.jsonl -o answers.jsonl --parallel 64
  flashmoe-tui batch qwen3.gguf prompts.jsonl -o answers.jsonl --retry-failed --json | jq .tokens_per_hour

exit codes: 0 everything is answered, 1 a line failed (in this call or before) or the batch was stopped, 2 wrong usage,
3 worth trying again (another batch writes the same file, a server can't be reached), 130 interrupted
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
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a GGUF file, a name in the library, a server's address, or demo"
    )
    parser.add_argument("input", metavar="IN.jsonl", type=Path, help="the prompts, a line each; - is stdin")
    parser.add_argument(
        "-o", "--output", metavar="OUT.jsonl", type=Path, required=True,
        help="output file; created, or resumed if it exists",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", metavar="N", type=_parallel, default=None,
        help="sequences decoded together, 1 to 250, or auto (the default): whatever measures fastest",
    )  # fmt: skip
    parser.add_argument(
        "--seq-ctx", metavar="N", type=positive_int, default=4096,
        help="context of one sequence in tokens, prompt and answer together (default 4096)",
    )  # fmt: skip
    parser.add_argument("--retry-failed", action="store_true", help="retry the lines that failed in an earlier run")
    parser.add_argument(
        "--price-kwh", metavar="PRICE", type=_price,
        help="price of a kWh in any currency, for the cost of a million tokens",
    )  # fmt: skip
    add_load_flags(parser)
    add_json_flag(parser, "print the summary as one JSON object")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from backends.interface import EngineError
    from flashmoe.batch.lines import Item, Problem, read_items
    from flashmoe.batch.output import Output, OutputError
    from flashmoe.batch.runner import Batch
    from flashmoe.batch.sizing import choose

    source = "stdin" if str(args.input) == "-" else str(args.input)
    if source == "stdin":
        args.input = Path("/dev/stdin")
    items: list[Item] = []
    problems: list[Problem] = []
    try:
        for entry in read_items(args.input):
            (items if isinstance(entry, Item) else problems).append(entry)  # type: ignore[arg-type]
    except OSError as e:
        raise UsageError(f"{source} can't be read: {e.strerror}") from None
    for problem in problems:
        error(f"{source}, line {problem.line}: {problem.message}")
    if args.output.exists() and args.output.samefile(args.input):
        raise UsageError("the output would overwrite the input: name another file after -o")
    path = resolve_model(args.model, args)
    width: int | None = args.parallel
    room = choose(path, items, args.seq_ctx, width or MAX_PARALLEL, fixed=width is not None)
    if room.crowded:
        note(
            f"a line may need {room.crowded:,} tokens of context, too many for a KV cache for each sequence: they "
            "share one, which is slower; a lower max_tokens or --seq-ctx helps"
        )
    given = isinstance(args.ctx, int) and args.ctx > 0
    request = load_request(
        args, path, n_seq_max=room.sequences, n_ctx=args.ctx if given else room.n_ctx,
        own_caches=room.own_caches and not given, max_stall_s=None,  # all answers together count, and nobody waits
    )  # fmt: skip
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
        raise CliError(e.what, e.advice, exit_code=EXIT_RETRY if e.busy else EXIT_FAILED) from None
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
    if summary.retry:
        return EXIT_RETRY
    incomplete = summary.stopped or summary.failed or summary.failed_before or problems
    return EXIT_FAILED if incomplete else EXIT_OK


def _progress_text(p: Progress) -> str:
    parts = [f"{p.done + p.failed} of {p.total}", f"{p.active} in parallel"]
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
        (s.failed_before, "failed before (--retry-failed runs them again)"),
        (s.remaining, "left"),
        (s.bad_lines, "bad line" if s.bad_lines == 1 else "bad lines"),
    ):
        line += f", {n} {word}" if n else ""
    note(line + (f" in {duration(s.seconds)}" if s.seconds else ""))
    if s.tokens:
        note(f"{s.tokens} tokens, {s.tokens_per_hour or 0:,.0f} an hour with {s.width} in parallel")
    if s.measured_tok_s:
        rates = ", ".join(f"{r:.1f} with {width} in parallel" for width, r in s.measured_tok_s.items())
        note(f"measured on the way, tok/s: {rates}")
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
