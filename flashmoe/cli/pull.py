"""``pull REPO[:QUANT|:FILE]``: downloads a model; the same command resumes where an earlier one was stopped."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from flashmoe.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_RETRY,
    ProgressLine,
    UsageError,
    add_json_flag,
    error,
    note,
    out,
    positive_int,
    print_json_line,
)  # fmt: skip
from flashmoe.cli.search import say_wait
from flashmoe.figures import MIB, duration, rate, size
from flashmoe.text_safety import visible

if TYPE_CHECKING:
    from flashmoe.hub.downloads.manager import DownloadManager
    from flashmoe.hub.downloads.views import JobView
    from flashmoe.hub.listing import HubQuant, HubRepo


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "pull",
        help="download a model",
        description=(
            "Downloads a model from the hub into the models folder. Interrupted in any way, the same\n"
            "command resumes where it stopped. Every file is verified against the hub's hash.\n"
            "The path is printed on stdout."
        ),
        epilog="example: flashmoe-tui pull unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M",
    )
    parser.add_argument(
        "model", metavar="REPO[:QUANT|:FILE]",
        help="a repository (owner/name, or with @REVISION) or an address on the hub; without a quant, the usual one",
    )  # fmt: skip
    parser.add_argument("--parallel", metavar="N", type=positive_int, default=None, help="connections in parallel")
    parser.add_argument("--limit", metavar="MIB_S", type=_mib_s, default=None, help="at most this many MiB a second")
    parser.add_argument(
        "-y", "--yes", action="store_true", help="don't ask before using more than half of the free disk space"
    )
    add_json_flag(parser, "print the state as JSON lines on stdout while it runs")


def _mib_s(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of MiB a second") from None
    if not 0 < value < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text} isn't a bandwidth")
    return value * MIB


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from flashmoe.hub.downloads.jobs import free_bytes, job_id
    from flashmoe.hub.downloads.setup import open_manager
    from flashmoe.hub.errors import HubError
    from flashmoe.hub.lookup import is_large, look_up, read_reference

    if args.parallel is not None and args.parallel > 16:
        raise UsageError("--parallel: 16 connections are the most; more would only burden the server.")
    try:
        wanted = read_reference(args.model)
    except HubError as problem:
        raise UsageError(problem.what, problem.advice) from None
    manager = open_manager(connections=args.parallel, limit_bytes_s=args.limit)

    def begun(repo: HubRepo, quant: HubQuant) -> bool:
        return manager.store.load(job_id(repo.repo, quant.label, repo.revision)) is not None

    found = look_up(manager.client, wanted, models=manager.root, waiting=say_wait, known=begun)
    repo, quant = found.repo, found.quant
    if found.why:
        note(f"Taking {found.why}")
    free = free_bytes(manager.root)
    asks = is_large(quant.size, free) and not begun(repo, quant)
    if asks and not _sure(repo.repo, quant.label, quant.size, free, yes=args.yes):
        note("Nothing was downloaded.")
        return EXIT_FAILED
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    id = manager.add(repo, quant)
    try:
        view = _follow(manager, id, as_json=args.json)
    except KeyboardInterrupt:
        manager.pause(id)
        stopped = manager.wait(id, 10.0)
        manager.close()
        if stopped.state == "done":
            return _report(stopped, args.json)
        note(f"Paused at {stopped.share:.0%} ({size(stopped.done)} downloaded); the same command resumes.")
        raise
    manager.close()
    return _report(view, args.json)


def _sure(repo: str, label: str, nbytes: int, free: int, *, yes: bool) -> bool:
    """Asks before more than half of the free disk is taken."""
    what = f"{repo}:{label} has {size(nbytes)}, more than half of the {size(free)} free on the disk"
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{what}", "that needs a confirmation, and there is no terminal to ask on: add --yes")
    sys.stderr.write(visible(f"{what}. Download it? [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _follow(manager: DownloadManager, id: str, *, as_json: bool) -> JobView:
    line, told = ProgressLine(enabled=not as_json), ""
    try:
        while True:
            view = manager.wait(id, 0.5)
            if view.message and view.message != told and view.state not in ("failed", "paused"):
                told = view.message
                line.clear()
                note(told)
            if as_json:
                print_json_line(view)
            else:
                line.update(progress_text(view))
            if view.state in ("done", "failed", "paused", "cancelled"):
                return view
    finally:
        line.clear()


def progress_text(view: JobView) -> str:
    """One line: how far, how fast, how long still."""
    parts = f" · {sum(f.state == 'done' for f in view.files)} of {len(view.files)} parts" if len(view.files) > 1 else ""
    head = f"{view.label} {view.share:4.0%}  {size(view.done)} of {size(view.size)}{parts}"
    if view.state == "verifying" or (view.done == view.size and view.size):
        return f"{head}  verifying {view.verified / max(view.size, 1):.0%}"
    if view.bytes_s:
        return f"{head}  {rate(view.bytes_s)}  {duration(view.eta_s)} left"
    return f"{head}  {view.state}"


def _report(view: JobView, as_json: bool) -> int:
    if view.state == "done":
        if not as_json:
            note(f"{view.repo}:{view.label}: {size(view.size)}, {view.checked}.")
            out(view.path)
        return EXIT_OK
    error(view.message or f"{view.repo}:{view.label} stopped ({view.state}).")
    from flashmoe.retry import PASSING

    return EXIT_RETRY if view.code in PASSING else EXIT_FAILED
