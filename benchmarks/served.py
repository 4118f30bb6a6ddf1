"""`flashmoe-tui serve` as a process, for benchmarks that ask it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def served(model: str, extra: list[str], environment: Mapping[str, str] | None = None) -> Iterator[tuple[int, str]]:
    """A server of `model` that is ready: its process id and its address. `environment`: variables besides this
    process's. Ends with what it said where it doesn't start."""
    command = [sys.executable, "-m", "flashmoe.cli.main", "serve", model, "--port", "0", *extra]
    env = {**os.environ, **(environment or {})}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=Path.cwd())
    assert server.stderr is not None
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"(http://\S+)/v1", line):
                threading.Thread(target=server.stderr.read, daemon=True).start()
                yield server.pid, found[1]
                return
        raise SystemExit("the server did not start:\n" + "".join(said))
    finally:
        server.terminate()
        server.wait(60)
