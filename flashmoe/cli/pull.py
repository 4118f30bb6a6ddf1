"""``pull REPO[:QUANT|:FILE]``: downloads a model; the same command goes on where an earlier one was stopped."""

from __future__ import annotations

import argparse
import signal
from types import FrameType
from typing import TYPE_CHECKING

from flashmoe.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_RETRY,
    MIB,
    ProgressLine,
    UsageError,
    add_json_flag,
    duration,
    error,
    note,
    out,
    positive_int,
    print_json_line,
    rate,
    size,
)  # fmt: skip
from flashmoe.cli.search import say_wait

if TYPE_CHECKING:
    from flashmoe.hub.downloads.manager import DownloadManager
    from flashmoe.hub.downloads.views import JobView


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "pull",
        help="download a model",
        description=(
            "Downloads a model from the hub into the models folder. Interrupted in any way, the same\n"
            "command goes on where it stopped. Every file's sha256 is compared with the hub's. The path is\n"
            "printed on stdout."
        ),
        epilog="example: flashmoe-tui pull unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M",
    )
    parser.add_argument(
        "model", metavar="REPO[:QUANT|:FILE]", help="a repository; without a quant the usual one is taken"
    )
    parser.add_argument("--parallel", metavar="N", type=positive_int, default=None, help="connections at once")
    parser.add_argument("--limit", metavar="MIB_S", type=_mib_s, default=None, help="at most so many MiB a second")
    add_json_flag(parser, "print the state as JSON lines on stdout while it runs")


def _mib_s(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of MiB a second") from None
    if not 0 < value < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text} is no bandwidth")
    return value * MIB


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from flashmoe.hub.downloads.jobs import free_bytes
    from flashmoe.hub.downloads.setup import open_manager
    from flashmoe.hub.errors import HubError
    from flashmoe.hub.names import parse_reference
    from flashmoe.hub.patience import patiently
    from flashmoe.hub.selection import choose

    if args.parallel is not None and args.parallel > 16:
        raise UsageError("--parallel: more than 16 connections only annoy the server.")
    try:
        name, wanted = parse_reference(args.model)
    except HubError as problem:
        raise UsageError(problem.message) from None
    manager = open_manager(connections=args.parallel, limit_bytes_s=args.limit)
    repo = patiently(lambda: manager.client.repo(name), waiting=say_wait)
    quant, why = choose(repo, wanted, free=free_bytes(manager.root))
    if why:
        note(f"Taking {why}")
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
        note(f"Paused at {stopped.share:.0%} ({size(stopped.done)} are here); the same command goes on.")
        raise
    manager.close()
    return _report(view, args.json)


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
        return f"{head}  checking sha256 {view.verified / max(view.size, 1):.0%}"
    if view.bytes_s:
        return f"{head}  {rate(view.bytes_s)}  {duration(view.eta_s)} left"
    return f"{head}  {view.state}"


def _report(view: JobView, as_json: bool) -> int:
    if view.state == "done":
        if not as_json:
            note(f"{view.repo}:{view.label}: {size(view.size)}, sha256 checked.")
            out(view.path)
        return EXIT_OK
    error(view.message or f"{view.repo}:{view.label} stopped ({view.state}).")
    from flashmoe.hub.errors import TRY_AGAIN

    return EXIT_RETRY if view.code in TRY_AGAIN else EXIT_FAILED
