"""``flashmoe-tui [MODEL]``: opens the app. The one place of the commands that knows `tui`."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

from flashmoe.cli.common import UsageError, add_load_flags, load_request, positive_int, settings_of


def parser() -> argparse.ArgumentParser:
    """The parser of the app's own command line."""
    from flashmoe.cli.parser import Parser
    from flashmoe.cli.table import PROGRAM

    result = Parser(prog=PROGRAM, description="Opens the app, with MODEL loaded where one is named.")
    result.add_argument("model", nargs="?", metavar="MODEL", help="a GGUF file, a name in the library, or demo")
    add_app_flags(result)
    add_load_flags(result)
    return result


def add_app_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what the app alone understands; `demo` has it too."""
    group = parser.add_argument_group("the app")
    group.add_argument("--calm", action="store_true", help="no animation and fewer repaints, as over SSH")
    group.add_argument("--theme", metavar="NAME", help="use this theme for this session")
    group.add_argument("--chat", metavar="ID", type=positive_int, help="open this chat (flashmoe-tui chats lists them)")
    group.add_argument("--record", metavar="FILE", type=Path, help="record the monitor, for flashmoe-tui replay")


def main(args: argparse.Namespace) -> int:
    """Opens the app."""
    from flashmoe.cli.table import COMMANDS, PROGRAM

    if args.model in COMMANDS:
        raise UsageError(
            f"{args.model} is a command and comes first: {PROGRAM} {args.model} …",
            f"for a file of that name say ./{args.model}.",
        )
    return open_app(args)


def open_app(args: argparse.Namespace) -> int:
    """Opens the app on ``args.model``; needs a terminal on both sides."""
    path = _resolve(args) if args.model else None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the app needs a terminal", "in a pipe, use flashmoe-tui run MODEL PROMPT.")
    if args.chat is not None:
        _check_chat(args.chat)
    gc.disable()  # nothing is garbage before the first paint; the app switches it on
    # Without MODEL the load flags still count, for whatever is loaded in the app.
    loaded = settings_of(args, quiet=True)
    request = load_request(args, path or "")
    from tui.app import AppOptions, run_app

    options = AppOptions(
        request=request if path else None,
        defaults=request,
        demo=args.model == "demo",
        calm=args.calm or None,
        record=args.record,
        theme=args.theme,
        chat=args.chat,
    )
    return run_app(options, loaded)


def _resolve(args: argparse.Namespace) -> Path | str:
    from flashmoe.cli.models import resolve_model

    return resolve_model(args.model, args)


def _check_chat(chat_id: int) -> None:
    from flashmoe.history import History, HistoryError

    with History() as history:
        try:
            history.chat(chat_id)
        except HistoryError as error:
            raise UsageError(f"{error.message} flashmoe-tui chats lists them.") from None
