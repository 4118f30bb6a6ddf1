"""``flashmoe-tui chats``: lists, searches, exports and imports the history."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.cli.common import EXIT_FAILED, EXIT_OK, CliError, UsageError, add_json_flag, note, out, print_json
from flashmoe.figures import day_and_time
from flashmoe.text_safety import visible_line

if TYPE_CHECKING:
    from flashmoe.history import Chat, History

DESCRIPTION = """Lists the chats, the pinned and newest first; TEXT finds those that contain all its words.

Deleted chats stay in the trash for as many days as the configuration says (history.trash_days)."""

EXAMPLES = """examples:
  flashmoe-tui chats
  flashmoe-tui chats experts ram
  flashmoe-tui chats list --deleted
  flashmoe-tui chats export 12 > chat.md
  flashmoe-tui chats export all --json -o chats.json
  flashmoe-tui chats import chats.json
  flashmoe-tui chats delete 12 && flashmoe-tui chats restore 12"""


ACTIONS = ("list", "export", "import", "delete", "restore")


def prepare(argv: list[str]) -> list[str]:
    """``chats``, ``chats --json`` and ``chats TEXT`` mean ``chats list …``."""
    if argv[1:2] and argv[1] in (*ACTIONS, "-h", "--help"):
        return argv
    return [argv[0], "list", *argv[1:]]


def register(subparsers: Any) -> None:
    """Adds the parser of ``chats``."""
    parser = subparsers.add_parser("chats", help="the history", description=DESCRIPTION, epilog=EXAMPLES)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    listing = actions.add_parser("list", help="list or search (the word `list` is optional)", description=DESCRIPTION)
    listing.add_argument("text", nargs="*", metavar="TEXT", help="words to look for; the last may be unfinished")
    listing.add_argument("--deleted", action="store_true", help="list the trash instead")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="show at most this many (default 50)")
    add_json_flag(listing)

    export = actions.add_parser(
        "export", help="write a chat as Markdown or JSON", description="Writes a chat to stdout."
    )
    export.add_argument("ids", nargs="+", metavar="ID", help="the chats' numbers, or all")
    export.add_argument("--json", action="store_true", help="JSON with every branch, which chats import reads")
    export.add_argument("--no-thinking", action="store_true", help="leave the thinking out of the Markdown")
    export.add_argument("-o", "--out", type=Path, metavar="FILE", help="write to this file instead of stdout")

    importing = actions.add_parser(
        "import",
        help="import chats from a JSON export",
        description="Imports chats; those you already have stay as they are.",
    )
    importing.add_argument("file", type=Path, metavar="FILE", help="an export, or a list of messages; - is stdin")

    for name, text in (("delete", "move chats to the trash"), ("restore", "bring chats back from the trash")):
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        action.add_argument("ids", nargs="+", type=int, metavar="ID", help="the chats' numbers")


def main(args: argparse.Namespace) -> int:
    """Runs ``chats``."""
    from flashmoe.history import History

    with History() as history:
        if history.problem and args.action != "export":
            note(history.problem)
            if args.action in ("import", "delete", "restore"):
                return EXIT_FAILED
        if args.action == "export":
            return _export(history, args)
        if args.action == "import":
            return _import(history, args)
        if args.action in ("delete", "restore"):
            for chat_id in args.ids:
                (history.delete_chat if args.action == "delete" else history.restore_chat)(chat_id)
            return EXIT_OK
        return _list(history, args)


def _list(history: History, args: argparse.Namespace) -> int:
    query = " ".join(args.text)
    if query:
        hits = history.search(query, limit=args.limit)
        if args.json:
            print_json(hits)
        for hit in hits if not args.json else ():
            out(_line(hit.chat))
            if hit.snippet:
                out(f"        {visible_line(hit.snippet, 110)}")
        if not hits and not args.json:
            close = difflib.get_close_matches(args.text[0], ACTIONS, n=1)
            note(f"No chat contains {query!r}." + (f" Did you mean chats {close[0]}?" if close else ""))
        return EXIT_OK
    chats = history.chats(limit=args.limit, deleted=args.deleted, empty=False)
    if args.json:
        print_json(chats)
        return EXIT_OK
    for chat in chats:
        out(_line(chat))
    if not chats:
        note("The trash is empty." if args.deleted else "There are no chats yet.")
    elif (more := history.count(deleted=args.deleted) - len(chats)) > 0 and len(chats) == args.limit:
        note(f"{more} more; --limit shows them.")
    return EXIT_OK


def _line(chat: Chat) -> str:
    day = f"{day_and_time(chat.updated):<16}"
    pin = "*" if chat.pinned else " "
    model = f"  ({visible_line(chat.model, 40)})" if chat.model else ""
    return f"{chat.id:>6}{pin} {day}  {chat.messages:>4}  {visible_line(chat.title, 60) or 'Untitled'}{model}"


def _export(history: History, args: argparse.Namespace) -> int:
    from flashmoe.history import exchange

    if args.ids == ["all"]:
        ids = [chat.id for chat in history.chats(limit=1 << 30, empty=False)]
    else:
        try:
            ids = [int(text) for text in args.ids]
        except ValueError:
            raise UsageError(
                "chats go by their numbers, which flashmoe-tui chats lists", "give numbers, or all."
            ) from None
    problems: list[str] = []
    if args.json:
        text = exchange.to_json_text(history, ids, problems)
    else:
        text = exchange.to_markdown_text(history, ids, problems, thinking=not args.no_thinking)
    for problem in problems:
        note(problem)
    if problems and not text:
        return EXIT_FAILED
    if args.out is not None:
        try:
            args.out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CliError(f"{args.out} can't be written: {error.strerror}.") from None
        note(f"Wrote {args.out}.")
    else:
        out(text, end="")
    return EXIT_FAILED if problems else EXIT_OK


def _import(history: History, args: argparse.Namespace) -> int:
    from flashmoe.history import exchange

    try:
        raw = sys.stdin.buffer.read() if str(args.file) == "-" else args.file.read_bytes()
    except OSError as error:
        raise UsageError(f"{args.file} can't be read: {error.strerror}.") from None
    chats = exchange.import_json(history, raw)
    for chat in chats:
        out(_line(chat))
    note(f"Added {len(chats)} chat{'' if len(chats) == 1 else 's'}." if chats else "You already have every chat in it.")
    return EXIT_OK
