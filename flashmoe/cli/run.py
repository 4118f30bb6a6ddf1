"""``flashmoe-tui run``: one answer on stdout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flashmoe.cli.common import UsageError, add_load_flags, load_request, note, run_async
from flashmoe.cli.models import resolve_model

MAX_PROMPT_BYTES = 64 << 20

DESCRIPTION = """\
Answers one prompt. The answer goes to stdout as it is made, everything else to stderr.

The prompt comes from stdin where none is given. In a pipe the answer is written byte for byte; on a terminal control
characters in it are shown instead of executed. Ctrl-C stops within a layer, keeps what was printed, and exits 130."""

EXAMPLES = """\
what goes into the prompt, in this order:
  --system     the system prompt, where the model's template has a place for it
  --file       each file's text under its name, in the order given; - is stdin
  PROMPT       the question, or stdin

--schema and --grammar bind the answer, not the thinking before it: llama.cpp then only draws tokens that keep to the
form. An answer that --max-tokens cuts short isn't complete JSON, so run says so and exits 1.

figures of --stats and of "usage" in --json:
  prompt       tokens that were computed of the prompt, and how many a second (reused_tokens came from a cache)
  answer       tokens, and how many a second, from the first to the last (completion_tokens, decode_s)
  experts      the share of chosen experts that were in RAM (hit_rate), and bytes read from the SSD (read_bytes);
               stall_s is how long computing waited for them. Left out, or null, where the backend can't know
  seed         what repeats this answer with --seed, on this machine with these settings

JSON lines of --json, by "type":
  model        what was loaded, and how
  prefill      done, total, reused: tokens of the prompt
  delta        kind (answer or thinking), text
  finished     reason (stop, length, context, cancelled), text, thinking, usage
  failed       code, message

examples:
  flashmoe-tui run demo "What is an expert?"
  git diff | flashmoe-tui run qwen3.gguf "Review this change." --file - --stats
  flashmoe-tui run qwen3.gguf --system "Answer in German." < question.txt
  flashmoe-tui run qwen3.gguf "Invent a person." --schema person.json --seed 1 | jq .name
  flashmoe-tui run qwen3.gguf "Why is the sky blue?" --json | jq 'select(.type == "finished").usage'
  flashmoe-tui run http://node7:8080/v1 "Hello"

exit codes: 0 done, 1 failed, or cut short by a full context or by --max-tokens within a schema, 2 wrong usage, 3 worth
trying again (the engine was killed, a server can't be reached), 130 interrupted"""


def register(subparsers: Any) -> None:
    """Adds the parser of ``run``."""
    from flashmoe.cli.answer import add_sampling_flags

    parser = subparsers.add_parser("run", help="one answer on stdout", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, a name in the library, a server's URL, or demo")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the question; - or nothing reads it from stdin")
    parser.add_argument("--system", metavar="TEXT", default="", help="system prompt")
    parser.add_argument(
        "-f", "--file", metavar="FILE", type=Path, action="append", default=[], dest="files",
        help="a text file that goes before the question; - is stdin (repeatable)",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--schema", metavar="FILE", type=Path, help="force the answer to this JSON schema")
    form.add_argument("--grammar", metavar="FILE", type=Path, help="force the answer to this GBNF grammar")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument(
        "--think",
        choices=("on", "off", "low", "medium", "high"),
        help="thinking, or how much of it, where the model's template has a switch",
    )
    parser.add_argument("--show-thinking", action="store_true", help="write the thinking to stderr")
    parser.add_argument("--stats", action="store_true", help="end with a line of figures on stderr")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines instead of text")
    parser.add_argument("--record", metavar="FILE", type=Path, help="record the monitor, for flashmoe-tui replay")
    add_sampling_flags(parser)
    add_load_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Runs ``run``."""
    from backends.interface import ChatMessage, GenerateRequest
    from flashmoe.cli.answer import answer, sampling_of

    path = resolve_model(args.model, args)
    sampling_of(args, "")  # a bad flag must not cost a load first
    prompt = _prompt(args)
    if args.raw:
        if args.system:
            raise UsageError("--raw uses no chat template, so --system has nowhere to go", "put it into the prompt.")
        request = GenerateRequest(id="run", prompt=prompt)
    else:
        system = (ChatMessage("system", args.system),) if args.system else ()
        thinking = None if args.think is None else args.think != "off"
        effort = args.think if args.think in ("low", "medium", "high") else None
        request = GenerateRequest(
            id="run", messages=(*system, ChatMessage("user", prompt)), enable_thinking=thinking, effort=effort
        )  # fmt: skip
    return run_async(answer(args, load_request(args, path, kv_budget_bytes=0), request))


def _prompt(args: argparse.Namespace) -> str:
    from flashmoe.cli.answer import read_text

    from_stdin = (args.prompt in (None, "-")) + [str(file) for file in args.files].count("-")
    if from_stdin > 1:
        raise UsageError("stdin can only be read once: pass the prompt or the file another way.")
    parts = []
    for file in args.files:
        text = read_text(file, MAX_PROMPT_BYTES)
        name = "stdin" if str(file) == "-" else file.name
        parts.append(text if args.raw else f"File {name}:\n```\n{text.rstrip()}\n```\n\n")
    if args.prompt in (None, "-"):
        if sys.stdin.isatty():
            note("Type the prompt, then Ctrl-D.")
        text = read_text(Path("-"), MAX_PROMPT_BYTES)
        parts.append(text if args.raw else text.rstrip("\n"))
    else:
        parts.append(args.prompt)
    prompt = "".join(parts)
    if not prompt.strip():
        raise UsageError("the prompt is empty.")
    return prompt
