"""``flashmoe-tui top``: watches an engine that runs in another terminal, read-only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    CliError,
    UsageError,
    add_json_flag,
    error,
    out,
    print_json_line,
    run_async,
)

if TYPE_CHECKING:
    from flashmoe.monitor.recording import Recorder

DESCRIPTION = """Shows the monitor of an engine that runs in another terminal: the app, run, batch or serve.

It only watches, over a socket that only its owner can open. Several engines: name the process id."""

EXAMPLES = """examples:
  flashmoe-tui top
  flashmoe-tui top --list
  flashmoe-tui top --once          one line of figures
  flashmoe-tui top --record night.fmrec < /dev/null &
  flashmoe-tui top --json | jq .telemetry.decode_tokens"""


def register(subparsers: Any) -> None:
    """Adds the parser of ``top``."""
    parser = subparsers.add_parser(
        "top", help="watch an engine that runs in another terminal", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("pid", nargs="?", type=int, metavar="PID", help="which engine, if several are running")
    parser.add_argument("--list", action="store_true", help="list the engines that can be watched")
    parser.add_argument("--once", action="store_true", help="print figures once instead of opening the panes")
    parser.add_argument(
        "--record", metavar="FILE", type=Path, help="record while watching; without a terminal, until the engine ends"
    )
    add_json_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from flashmoe.monitor.watching import engines

    found = engines()
    if args.list:
        for pid, path in found:
            out(f"{pid}  {path}")
        return EXIT_OK if found else EXIT_FAILED
    pid, path = _choose(found, args.pid)
    recorder = None
    if args.record is not None:
        from flashmoe.monitor.recording import Recorder, RecordingError

        try:
            recorder = Recorder(args.record)
        except RecordingError as problem:
            raise UsageError(str(problem)) from None
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        if args.once or args.json:
            return run_async(_print(path, recorder, once=args.once, as_json=args.json))
        if not terminal and recorder is not None:
            return run_async(_record(path, recorder))
        if not terminal:
            raise UsageError("top needs a terminal", "in a pipe, use --once, --json or --record.")
        from tui.screens.top import run_top

        return run_top(path, pid, recorder, len(found))
    finally:
        if recorder is not None:
            recorder.close()
            if recorder.problem:
                error(recorder.problem)


def _choose(found: list[tuple[int, Path]], pid: int | None) -> tuple[int, Path]:
    if pid is not None:
        for candidate in found:
            if candidate[0] == pid:
                return candidate
        raise CliError(f"No engine is running as process {pid}", "flashmoe-tui top --list names those that do.")
    if not found:
        raise CliError("No engine is running", "open the app in another terminal, then try again.")
    return found[0]


async def _record(path: Path, recorder: Recorder) -> int:
    from flashmoe.monitor.feed import MonitorFeed
    from flashmoe.monitor.watching import Watcher

    watcher = Watcher(MonitorFeed(), recorder)
    async for _ in watcher.follow(path):
        pass
    if watcher.problem:
        raise CliError(watcher.problem)
    return EXIT_OK


async def _print(path: Path, recorder: Recorder | None, *, once: bool, as_json: bool) -> int:
    from flashmoe import figures
    from flashmoe.monitor.feed import MonitorFeed
    from flashmoe.monitor.sample import Sample
    from flashmoe.monitor.watching import Watcher

    feed = MonitorFeed()
    watcher = Watcher(feed, recorder)
    seen = 0
    async for message in watcher.follow(path):
        if not isinstance(message, Sample):
            continue
        seen += 1
        if as_json and not once:
            print_json_line(message)
            continue
        if seen < 4:  # rates need a window
            continue
        frame = feed.frame
        if as_json:
            print_json_line({"model": feed.model, "frame": frame, "verdict": feed.verdict})
        elif frame is not None:
            name = feed.model.name if feed.model is not None else "no model"
            out(f"{name} · {frame.phase} · {figures.speed(frame.tok_s)} tok/s · {feed.verdict.line}")
            out(
                f"RAM {figures.size(frame.ram_used)} of {figures.size(frame.ram_total)} · "
                f"engine {figures.size(frame.engine_own)} · reads {figures.rate(frame.read_s)}"
            )
            if (t := message.telemetry) is not None:
                out(
                    f"prompt tokens: {t.prefill_tokens:,} computed · {t.reused_tokens:,} from the KV cache · "
                    f"{t.restored_tokens:,} from the store of prompts"
                )
        return EXIT_OK
    if watcher.problem:
        raise CliError(watcher.problem)
    return EXIT_OK if seen and not once else EXIT_FAILED
