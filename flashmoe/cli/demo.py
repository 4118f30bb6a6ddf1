"""``flashmoe-tui demo``: the app on the model that comes along, or one answer of it."""

from __future__ import annotations

import argparse
from typing import Any

from flashmoe.cli.common import UsageError, add_load_flags, load_request, run_async

DESCRIPTION = """Opens the app on the guide, a small Mixture-of-Experts model that comes with the program: no download,
no network. The guide knows this program, and how such models work; ask it what a key does or why it is slow.

With --text it answers on stdout instead."""

EXAMPLES = """examples:
  flashmoe-tui demo
  flashmoe-tui demo --text "What is an expert?"
  flashmoe-tui demo --backend stream"""


def register(subparsers: Any) -> None:
    """Adds the parser of ``demo``."""
    from flashmoe.cli.answer import add_sampling_flags
    from flashmoe.cli.app import add_app_flags

    parser = subparsers.add_parser("demo", help="chat with the guide", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--text", metavar="QUESTION", help="answer this on stdout instead of opening the app")
    parser.add_argument("--stats", action="store_true", help="with --text: end with a line of figures on stderr")
    parser.add_argument("--json", action="store_true", help="with --text: print events as JSON lines")
    add_sampling_flags(parser)
    add_app_flags(parser)
    add_load_flags(parser)
    parser.set_defaults(model="demo", show_thinking=False)


def main(args: argparse.Namespace) -> int:
    """Runs ``demo``."""
    from flashmoe.cli.answer import SAMPLER_FLAGS
    from flashmoe.cli.models import demo_model

    of_the_app = ("calm", "theme", "chat", "record")
    of_the_answer = ("stats", "json", "preset", "max_tokens", "stop", *(flag for flag, *_ in SAMPLER_FLAGS))
    for flag in of_the_answer if args.text is None else of_the_app:
        if getattr(args, flag) not in (None, False, []):
            name = "--" + flag.replace("_", "-")
            raise UsageError(f"{name} {'goes only' if args.text is None else 'does not go'} with --text.")
    if args.text is None:
        from flashmoe.cli.app import open_app

        return open_app(args)
    from backends.interface import ChatMessage, GenerateRequest
    from flashmoe.cli.answer import answer

    if not args.text.strip():
        raise UsageError("the question is empty.")
    request = GenerateRequest(id="demo", messages=(ChatMessage("user", args.text),))
    return run_async(answer(args, load_request(args, demo_model(), kv_budget_bytes=0), request))
