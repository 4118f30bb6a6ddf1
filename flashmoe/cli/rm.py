"""``rm NAME``: deletes a model of the models folder, or an unfinished download."""

from __future__ import annotations

import argparse
import sys

from flashmoe.cli.common import EXIT_FAILED, EXIT_OK, UsageError, add_json_flag, note, print_json
from flashmoe.figures import size


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "rm",
        help="delete a model",
        description="Deletes a model of the models folder (all parts), or an unfinished download (as REPO:QUANT).",
    )
    parser.add_argument("name", metavar="NAME", help="a name from ls, REPO:QUANT, or a path in the models folder")
    parser.add_argument("-y", "--yes", action="store_true", help="don't ask")
    add_json_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from flashmoe.hub.errors import HubError
    from flashmoe.hub.inuse import check_unused
    from flashmoe.hub.library import Library, find_entry, undeletable

    library = Library()
    try:
        entry = find_entry(library, args.name)
    except HubError as problem:
        if problem.code == "not_found" and _drop_download(args.name, yes=args.yes, as_json=args.json):
            return EXIT_OK
        raise
    why_not = undeletable(entry)
    if why_not:
        raise HubError("io_error", why_not)
    check_unused(entry.path, entry.name)
    if not _sure(f"Delete {entry.name} ({len(entry.files)} file(s), {size(entry.size)})?", yes=args.yes):
        note("Nothing was deleted.")
        return EXIT_FAILED
    freed = library.delete(entry)
    if args.json:
        print_json({"deleted": [str(f) for f in entry.files], "freed_bytes": freed})
    else:
        note(f"Deleted {entry.name}, freeing {size(freed)}.")
    return EXIT_OK


def _drop_download(name: str, *, yes: bool, as_json: bool) -> bool:
    """Cancels the unfinished download called `name`; False where there is none."""
    from flashmoe.hub.downloads.setup import open_manager

    manager = open_manager()
    manager.start(resume=False)
    view = next((v for v in manager.jobs() if name.lower() in (f"{v.repo}:{v.label}".lower(), v.id.lower())), None)
    if view is None:
        return False
    if not _sure(f"Delete the unfinished download {view.repo}:{view.label} ({size(view.done)} downloaded)?", yes=yes):
        note("Nothing was deleted.")
        return True
    manager.cancel(view.id)
    manager.wait(view.id, 30.0)
    if as_json:
        print_json({"deleted": [f.path for f in view.files], "freed_bytes": view.done})
    else:
        note(f"Deleted the unfinished download {view.repo}:{view.label}, freeing about {size(view.done)}.")
    return True


def _sure(question: str, *, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("Deleting asks for confirmation, but there is no terminal to ask on: add --yes.")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
