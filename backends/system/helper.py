"""A process of our own for work on hostile input: one JSON object a line each way, killed where it takes too long.

What it runs (`run_jobs`) bounds itself by the kernel's limits on processor time and memory; the parent adds the clock.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from backends.system.python import start_python

_START_S = 10.0
"""Beside the limit of the first job: Python starts slowly on a busy machine."""


class Helper:
    """Owns one process, which starts on first use (or by `warm_up`) and again after it was killed. Thread-safe."""

    def __init__(self, module: str, limit_s: float, *, argument: str | None = None) -> None:
        """`module` calls `run_jobs`; `argument`: what it finds as ``sys.argv[1]``. `limit_s`: seconds for a job by the
        clock."""
        self._module = module
        self._argument = argument
        self._limit = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts the process without waiting for it."""
        with self._lock:
            self._start()

    def _start(self) -> bool:
        """Whether it had to be started."""
        if self._process is not None and self._process.poll() is None:
            return False
        start = start_python(self._module)
        command = [*start.command, *([self._argument] if self._argument is not None else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=start.env,
            cwd=start.folder,
        )  # fmt: skip
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return True

    def ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """What the process answers; None where it took too long, or died over the job."""
        line = json.dumps(job).encode() + b"\n"
        with self._lock:
            try:
                return self._exchange(line)
            except (OSError, ValueError):
                self._kill()
                return None

    def _exchange(self, job: bytes) -> dict[str, Any] | None:
        fresh = self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + self._limit + (_START_S if fresh else 1.0)
        answer, sent, receive, send = bytearray(), 0, process.stdout.fileno(), process.stdin.fileno()
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            readable, writable, _ = select.select([receive], [send] if sent < len(job) else [], [], max(0.0, left))
            if not readable and not writable:
                self._kill()
                return None
            if writable:
                sent += os.write(send, job[sent : sent + (1 << 16)])
            if readable:
                data = os.read(receive, 1 << 20)
                if not data:
                    raise BrokenPipeError
                answer += data
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def close(self) -> None:
        """Ends the process; a later `ask` starts another."""
        with self._lock:
            self._kill()


def run_jobs(work: Callable[[dict[str, Any]], dict[str, Any]], *, cpu_s: int, memory_bytes: int) -> None:
    """The helper's side: answers jobs until stdin ends. Each may take `cpu_s` seconds of processor time; the process
    may take `memory_bytes` of address space beyond what it has now."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        spent = resource.getrusage(resource.RUSAGE_SELF)  # what never ends must not outlive its parent
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime) + cpu_s + 1, hard))
        try:
            answer = json.dumps(work(json.loads(line)))
        except MemoryError:
            answer = '{"error": "it takes too much memory"}'
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()
