"""``verify [NAME…]``: compares files with the sha256 that the hub told."""

from __future__ import annotations

import argparse

from flashmoe.cli.common import EXIT_FAILED, EXIT_OK, ProgressLine, add_json_flag, note, out, print_json_line
from flashmoe.figures import size


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "verify",
        help="verify models against the hub's hashes",
        description="Compares the hash of every file of the named models (or of all models) with the hub's.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="names from ls, REPO:QUANT, or paths")
    add_json_flag(parser, "print one JSON line for each file")


def main(args: argparse.Namespace) -> int:
    """Runs the command. 1 where a file is damaged or unreadable or parts are missing."""
    from flashmoe.hub.library import Library, find_entry
    from flashmoe.hub.verify import verify

    library, line, bad = Library(), ProgressLine(enabled=not args.json), 0
    entries = [find_entry(library, name) for name in args.names] if args.names else library.scan(facts=False)
    for entry in entries:

        def progress(done: int, total: int, name: str = entry.name) -> bool:
            line.update(f"{name}  {size(done)} of {size(total)}")
            return True

        for check in verify(entry, library, progress):
            line.clear()
            bad += check.status in ("damaged", "unreadable")
            if args.json:
                print_json_line(check)
            else:
                out(f"{check.status:<10}  {check.path}")
                if check.message:
                    note(check.message)
        if entry.missing:
            bad += 1
            note(f"{entry.name}: {entry.problem}")
    if not entries:
        note("There are no models here yet.")
    return EXIT_FAILED if bad else EXIT_OK
