#!/usr/bin/env python3
"""Keypress to echo, and the app's CPU time, while a model answers in a chat of 500 messages of 2 kB.

Types single letters into the running app through a pseudo-terminal and times how long each takes to come back on it.

    python benchmarks/tui_latency.py MODEL.gguf [--messages 500] [--keys 150] [--size 120x36] [--idle] [--calm]

`prose` in place of a model: prose and lists at 10 tokens/s (`prose_server.py`), which scroll all the time.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from prose_server import serving_prose
from tui_bench import App, make_home, percentile, scratch


def main() -> int:
    """Measures and prints one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of about 10 tokens/s, as the requirement names it, or: prose")
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--keys", type=int, default=150)
    parser.add_argument("--size", default="120x36")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long CPU time is measured")
    parser.add_argument("--idle", action="store_true", help="type without an answer under way")
    parser.add_argument("--calm", action="store_true", help="as over SSH")
    options = parser.parse_args()
    prose = options.model == "prose"
    columns, rows = (int(part) for part in options.size.split("x"))
    with scratch() as folder, serving_prose(10.0) if prose else contextlib.nullcontext("") as address:
        home = Path(folder)
        chat = make_home(home, messages=options.messages)
        model, ctx = address or str(Path(options.model).absolute()), None if prose else options.ctx
        app = App(home, columns, rows, model=model, chat=chat, ctx=ctx, calm=options.calm or None)
        try:
            if not app.read(60, b" is ready"):
                print("The model was not ready within 60 s.")
                return 1
            app.read(3.0)
            if not options.idle:
                app.write("hi\r")
                if app.read(20, b"The context is full"):  # 500 messages don't fit: leave out the oldest
                    app.read(1.0)
                    app.write("\r")
                if not app.read(300, b"Answering"):
                    print("No answer began within 300 s.")
                    return 1
                app.read_for(30.0 if prose else 2.0)  # until the screen is full and scrolls
            cpu, began = app.cpu_s(), time.monotonic()
            app.read_for(options.seconds)
            quiet = (app.cpu_s() - cpu) / (time.monotonic() - began)
            times: list[float] = []
            rng = random.Random(1)
            for number in range(options.keys):
                key = chr(0x10D0 + number % 32)  # Georgian letters: nothing else on the screen is written with them
                app.tail = b""
                start = time.monotonic()
                app.write(key)
                app.read(2.0, key.encode())
                times.append(time.monotonic() - start)
                if number % 32 == 31:
                    app.write("\x15")  # ^U empties the line
                app.read(rng.uniform(0.08, 0.25))
            app.read_for(1.5)
            progress = app.progress()
        finally:
            app.close()
    rate = "" if options.idle else "  (the answer ended before the last key)"
    if progress is not None:
        rate = f"  at {progress[0] / max(progress[1], 1):.1f} tokens/s"
    print(
        f"messages {options.messages}  {options.size}  {'idle' if options.idle else 'answering'}  keys {len(times)}"
        f"  "
        f"echo p50 {percentile(times, 0.5) * 1000:.0f} ms  p95 {percentile(times, 0.95) * 1000:.0f} ms  "
        f"max {max(times) * 1000:.0f} ms  app CPU without typing {quiet:.1%} of a core"
        f"{rate}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
