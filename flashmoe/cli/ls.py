"""``ls``: the models on this machine, and downloads that aren't finished."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flashmoe.cli.common import EXIT_OK, add_json_flag, note, out, print_json
from flashmoe.figures import size
from flashmoe.hub.names import readable

if TYPE_CHECKING:
    from flashmoe.hub.downloads.views import JobView
    from flashmoe.hub.scan import Entry


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "ls",
        help="models on this machine",
        description="Lists the models folder, your own folders, Hugging Face's cache and LM Studio's folders.",
    )
    parser.add_argument("text", nargs="?", metavar="TEXT", default="", help="only names that contain TEXT")
    parser.add_argument("--paths", action="store_true", help="print paths only, one a line")
    add_json_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from flashmoe.hub.downloads.setup import open_manager
    from flashmoe.hub.library import Library, closest

    library, wanted = Library(), args.text.lower()
    every = library.scan()
    entries = [e for e in every if wanted in e.name.lower() or wanted in e.reference.lower()]
    manager = open_manager()
    manager.start(resume=False)
    unfinished = [v for v in manager.jobs() if wanted in f"{v.repo}:{v.label}".lower()]
    if args.json:
        print_json({"models": [as_row(e) for e in entries], "downloads": unfinished})
    elif args.paths:
        for entry in entries:
            _print_path(entry.path)
    else:
        _table(entries, unfinished)
        if not entries and not unfinished:
            _nothing(args.text, every, closest(args.text, every))
    for sentence in library.notes:
        note(sentence)
    return EXIT_OK


def _nothing(text: str, every: list[Entry], close: list[str]) -> None:
    from flashmoe.hub.names import show

    if not every:
        note("No models here yet: `flashmoe-tui search` finds some, and `flashmoe-tui demo` needs none.")
    elif close:
        note(f"No model here is called “{show(text, 80)}”; the closest: {', '.join(show(c, 80) for c in close)}.")
    else:
        note(f"None of the {len(every)} models here is called anything like “{show(text, 80)}”.")


def _print_path(path: Path) -> None:
    """For scripts the path as its bytes are, whatever they are."""
    if sys.stdout.isatty():
        out(readable(str(path)))
        return
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), os.fsencode(path) + b"\n")


def as_row(entry: Entry) -> dict[str, object]:
    """An entry for ``--json``."""
    return {
        "name": entry.name, "path": str(entry.path), "reference": entry.reference, "repo": entry.repo or None,
        "quant": entry.quant or None, "size": entry.size, "parts": len(entry.files) + len(entry.missing),
        "missing": entry.missing, "source": entry.source, "modified": entry.modified, "problem": entry.problem or None,
        "facts": None if entry.missing else entry.facts,
    }  # fmt: skip


def _table(entries: list[Entry], unfinished: list[JobView]) -> None:
    from flashmoe.hub.library import SOURCE_NAMES
    from flashmoe.plans import measurements
    from flashmoe.plans.model_list import FIT_WORDS, entry_plan

    if entries:
        width = min(60, max(len(e.name) for e in entries))
        here = measurements.machine(measure=False)
        out(f"{'name':<{width}}  {'size':>9}  {'layers x experts':<20}  {'here':<14}  {'tok/s':>6}  where")
        for entry in entries:
            entry, plan = entry_plan(entry, here)
            facts = entry.facts
            shape = f"{facts.n_layers} x {facts.n_experts} (uses {facts.n_expert_used})" if facts.n_experts else ""
            shape = shape or (f"{facts.n_layers}, dense" if facts.n_layers else "")
            fit = FIT_WORDS[plan.verdict] if plan else "incomplete" if entry.missing else "can't run"
            speed = f"~{plan.speed.expected:.3g}" if plan and plan.speed else ""
            row = f"{entry.name:<{width}}  {size(entry.size):>9}  {shape:<20}  {fit:<14}  {speed:>6}"
            out(f"{row}  {SOURCE_NAMES[entry.source]}")
            if entry.problem:
                out(f"  {entry.problem}")
    for view in unfinished:
        out(f"{view.repo}:{view.label}  {view.share:.0%} of {size(view.size)} downloaded; pull it again to resume")
