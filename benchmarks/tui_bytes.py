#!/usr/bin/env python3
"""Bytes a second that the app writes to the terminal, idle and while it answers, with all panes at 120x36.

    python benchmarks/tui_bytes.py [MODEL.gguf] [--seconds 20] [--size 120x36] [--calm]

With a model: its own answer, in a new chat. Always: prose and lists at 10 tokens/s at the end of a chat of 500 messages
of 2 kB, which scrolls all the time (`prose_server.py`, through the backend `remote`).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from prose_server import serving_prose
from tui_bench import App, make_home, scratch

SAID_S = 14.0
"""What is said of the load goes after 10 s, and the chat moves by a line: that repaint is none of an idle app's."""


def measure(model: str, options: argparse.Namespace, *, messages: int, settle: float) -> str:
    """One row: bytes a second idle and answering, and the app's CPU time while it answers."""
    columns, rows = (int(part) for part in options.size.split("x"))
    with scratch() as folder:
        chat = make_home(Path(folder), messages=messages)
        ctx = None if model.startswith("http") else 4096
        app = App(Path(folder), columns, rows, model=model, calm=options.calm or None, ctx=ctx, chat=chat)
        try:
            if not app.read(120, b" is ready"):
                return "The model was not ready within 120 s."
            app.read_for(SAID_S)
            before, began = app.n_bytes, time.monotonic()
            app.read_for(options.seconds)
            idle = (app.n_bytes - before) / (time.monotonic() - began)
            app.write("hi\r")
            if not app.read(120, b"Answering"):
                return "No answer began within 120 s."
            app.read_for(settle)
            before, cpu, began = app.n_bytes, app.cpu_s(), time.monotonic()
            app.read_for(options.seconds)
            taken = time.monotonic() - began
            busy, share = (app.n_bytes - before) / taken, (app.cpu_s() - cpu) / taken
            still = app.progress() is not None
        finally:
            app.close()
    return (
        f"idle {idle:.0f} B/s  answering {busy:.0f} B/s  app CPU {share:.1%} of a core"
        f"{'' if still else '  (the answer ended early)'}"
    )


def main() -> int:
    """Measures and prints a line of figures for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--size", default="120x36")
    parser.add_argument("--calm", action="store_true", help="as over SSH")
    parser.add_argument("--rate", type=float, default=10.0, help="tokens/s of the prose")
    options = parser.parse_args()
    how = f"{options.size}  {'calm' if options.calm else 'not calm'}"
    if options.model:
        row = measure(str(Path(options.model).absolute()), options, messages=0, settle=2.0)
        print(f"{how}  {Path(options.model).name}, a new chat: {row}", flush=True)
    with serving_prose(options.rate) as address:
        # The screen is full after 30 s at most, and everything scrolls from then on.
        row = measure(address, options, messages=500, settle=30.0)
    print(f"{how}  prose and lists at {options.rate:g} tokens/s, 500 messages: {row}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
