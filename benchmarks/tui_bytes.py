#!/usr/bin/env python3
"""Bytes a second that the app writes to the terminal: idle, and while a model answers, with all panes at 120x36.

python benchmarks/tui_bytes.py MODEL.gguf [--seconds 20] [--size 120x36] [--calm]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tui_bench import App, make_home, scratch


def main() -> int:
    """Measures and prints one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--size", default="120x36")
    parser.add_argument("--calm", action="store_true", help="as over SSH")
    options = parser.parse_args()
    columns, rows = (int(part) for part in options.size.split("x"))
    with scratch() as folder:
        make_home(Path(folder))
        app = App(
            Path(folder), columns, rows, model=str(Path(options.model).absolute()), calm=options.calm or None, ctx=4096
        )
        try:
            if not app.read(120, b"is ready after"):
                print("The model was not ready within 120 s.")
                return 1
            app.read(4.0)
            before, began = app.n_bytes, time.monotonic()
            app.read_for(options.seconds)
            idle = (app.n_bytes - before) / (time.monotonic() - began)
            app.write("hi\r")
            if not app.read(120, b"Answering"):
                print("No answer began within 120 s.")
                return 1
            app.read_for(2.0)
            before, began = app.n_bytes, time.monotonic()
            app.read_for(options.seconds)
            busy = (app.n_bytes - before) / (time.monotonic() - began)
            app.tail = b""
            still = app.read(3.0, b"tokens in") or b"tokens" in app.tail
        finally:
            app.close()
    print(
        f"size {options.size}  {'calm' if options.calm else 'not calm'}  idle {idle:.0f} B/s  answering {busy:.0f} B/s"
        f"{'' if still else '  (the answer ended early)'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
