#!/usr/bin/env python3
"""From the start of the process to a usable screen: a key that is typed at once shows on it.

The first run, which isn't counted, compiles the packages to bytecode, as pip and make leave them: a checkout whose
Python is told to keep none (PYTHONDONTWRITEBYTECODE) compiles at every start, which no installed program does.

python benchmarks/tui_startup.py [--runs 7] [--chats 10000] [--count]

With --count: the instructions until the first paint, as valgrind counts them. They are the same within 1 % however busy
the machine is, so that two versions can be compared anywhere; it takes a minute.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tui_bench import FORK_PAUSE_S, App, make_home, scratch

_UNTIL_PAINTED = """
import os
from tui.app import FlashmoeApp
async def painted(app):
    os._exit(0)
FlashmoeApp._start_late = painted
from flashmoe.cli.main import main
main([])
"""


def count(home: Path) -> int:
    """Prints the instructions until the first paint."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("valgrind is not installed.")
        return 1
    log = home / "instructions"
    counting = [valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", f"--log-file={log}"]
    for before in ([], counting):  # the first run compiles to bytecode
        app = App(home, 120, 36, runs=[*before, sys.executable, "-c", _UNTIL_PAINTED])
        app.read(600, b"\0")  # until it has ended
        app.close()
    found = re.search(r"I +refs: +([\d,]+)", log.read_text())
    if found is None:
        print("valgrind did not count.")
        return 1
    print(f"{int(found[1].replace(',', '')) / 1e6:,.0f} million instructions until the first paint")
    return 0


def main() -> int:
    """Measures and prints one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--model", help="a model to load at once, as the demo does")
    parser.add_argument("--count", action="store_true", help="count instructions instead of seconds")
    options = parser.parse_args()
    painted: list[float] = []
    typed: list[float] = []
    with scratch() as folder:
        make_home(Path(folder), chats=options.chats)
        if options.count:
            return count(Path(folder))
        for run in range(options.runs + 1):
            app = App(Path(folder), 120, 36, model=options.model)
            app.write("\u10d0")  # typed before there is anything to type into
            seen = app.read(20, b"help")
            first = time.monotonic() - app.started - FORK_PAUSE_S
            echoed = app.read(20, "\u10d0".encode())
            second = time.monotonic() - app.started - FORK_PAUSE_S
            app.read(1.0)
            app.close()
            if not (seen and echoed):
                print("The screen did not come within 20 s.")
                return 1
            if run:  # the first run warms the files
                painted.append(first)
                typed.append(second)
    print(
        f"chats {options.chats}  runs {options.runs}  first paint median {statistics.median(painted):.2f} s "
        f"(min {min(painted):.2f}, max {max(painted):.2f})  typed key shown median {statistics.median(typed):.2f} s "
        f"(min {min(typed):.2f}, max {max(typed):.2f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
