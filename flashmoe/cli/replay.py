"""``flashmoe-tui replay FILE``: a recording in the panes, or as a summary, a table, a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flashmoe import figures
from flashmoe.cli.common import EXIT_OK, CliError, UsageError, add_json_flag, note, out, print_json

DESCRIPTION = """Plays a recording of the monitor (made with --record FILE) in the same panes, without a model.

Space pauses, - and + change the speed, the arrows jump by 10 s, t changes the stretch of the curves, e opens the
expert map, q ends. With --stats, --csv or --plot nothing is opened: the recording is evaluated."""

EXAMPLES = """examples:
  flashmoe-tui replay run.fmrec
  flashmoe-tui replay run.fmrec --speed 8
  flashmoe-tui replay run.fmrec --stats --json
  flashmoe-tui replay run.fmrec --csv > run.csv
  flashmoe-tui replay run.fmrec --plot run.svg"""


def register(subparsers: Any) -> None:
    """Adds the parser of ``replay``."""
    parser = subparsers.add_parser(
        "replay", help="play or evaluate a recording of the monitor", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("file", metavar="FILE", help="a recording (.fmrec)")
    parser.add_argument("--stats", action="store_true", help="print a summary")
    parser.add_argument("--csv", action="store_true", help="print one row a sample on stdout")
    parser.add_argument("--plot", metavar="OUT", help="write the curves to OUT.svg or OUT.png")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="how fast to play (default 1)")
    add_json_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from flashmoe.monitor.recording import Recording, RecordingError

    path = Path(args.file)
    if not path.is_file():
        raise UsageError(f"{args.file} does not exist", "make a recording with --record FILE.")
    if not 0.05 <= args.speed <= 1000:
        raise UsageError(f"--speed {args.speed:g} is not between 0.05 and 1000.")
    try:
        recording = Recording(path)
        if recording.cut:
            note(f"{path.name} ends abruptly (its program was killed); everything before that is intact.")
        if recording.more:
            shown = figures.clock(recording.duration)
            note(f"{path.name} is too long to be held in memory; what comes after {shown} is left out.")
        if recording.unsound:
            note(f"{recording.unsound:,} messages of {path.name} are left out: their numbers are impossible.")
        done = False
        if args.plot:
            from flashmoe.monitor.plot import write_plot

            write_plot(recording, Path(args.plot))
            note(f"Wrote {args.plot}.")
            done = True
        if args.csv:
            from flashmoe.monitor.analysis import write_csv

            write_csv(recording, sys.stdout)
            done = True
        if args.stats or (args.json and not done):
            _print_stats(recording, as_json=args.json)
            done = True
        if done:
            return EXIT_OK
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError("replay needs a terminal", "in a pipe, use --stats, --csv or --plot.")
        from tui.screens.replay import run_replay

        return run_replay(path, speed=args.speed)
    except RecordingError as error:
        raise CliError(error.what, error.advice) from None


def _print_stats(recording: Any, *, as_json: bool) -> None:
    from flashmoe import figures
    from flashmoe.monitor.analysis import stats

    found = stats(recording)
    if as_json:
        print_json(found)
        return
    rows: list[tuple[str, str]] = [
        ("recorded", f"{figures.clock(found.duration_s)}, {found.samples} samples"),
        ("models", ", ".join(found.models) or "none"),
        (
            "prompt",
            f"{found.prefill_tokens} tokens in {found.prefill_s:.1f} s, {figures.speed(found.prefill_tok_s)} tok/s",
        ),
        (
            "answers",
            f"{found.decode_tokens} tokens in {found.decode_s:.1f} s, {figures.speed(found.decode_tok_s)} tok/s",
        ),
        ("waited for reads", figures.duration(found.stall_s)),
        ("router", figures.duration(found.hook_s)),
        ("hit rate", figures.percent(found.hit_rate).strip()),
        ("experts read", f"{figures.size(found.expert_read_bytes)}, {figures.size(found.bytes_per_token)} a token"),
        ("process read", figures.size(found.process_read_bytes)),
        ("major faults", str(found.major_faults) if found.major_faults is not None else figures.UNKNOWN),
        ("peak of engine", figures.size(found.peak_engine_bytes)),
        ("peak of RAM", figures.size(found.peak_ram_used)),
        ("peak of VRAM", figures.size(found.peak_vram_used)),
        ("peak of reads", figures.rate(found.peak_read_bytes_s)),
    ]
    for name, seconds in sorted(found.verdicts.items(), key=lambda item: -item[1]):
        rows.append((name, figures.duration(seconds)))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out(f"{name:<{width}}  {value}")
