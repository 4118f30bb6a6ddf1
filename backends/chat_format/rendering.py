"""The process in which chat templates are rendered: `Renderer`.

The template is a program by whoever made the file. It runs in a process of its own (`template_env`), which is killed
when it takes too long; nothing of it reaches this process but the text.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
from typing import Any

from backends.interface import EngineError
from backends.system.python import start_python

TIME_LIMIT_S = 5.0
MAX_TEMPLATE = 1 << 20


class Renderer:
    """Renders templates in a child process, which starts on first use (or by `warm_up`) and again after it was
    killed."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._limit = time_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts the process without waiting for it."""
        with self._lock:
            self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            start = start_python("backends.chat_format.template_env")
            self._process = subprocess.Popen(
                start.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=start.env, cwd=start.folder,
            )  # fmt: skip
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
        return self._process

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """The text; raises `EngineError` ``bad_template`` where the template fails, refuses, or takes too long."""
        if len(template) > MAX_TEMPLATE:
            raise bad_template(f"it has {len(template)} characters")
        with self._lock:
            answer = self._exchange(json.dumps({"template": template, "variables": variables}).encode() + b"\n")
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise EngineError("bad_template", f"The model's chat template refuses these messages: {answer['refused']}")
        raise bad_template(answer.get("error", "no answer"))

    def _exchange(self, job: bytes) -> dict[str, str]:
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + self._limit + 1.0  # a cold start of the process counts, too
        answer, sent, receive, send = bytearray(), 0, process.stdout.fileno(), process.stdin.fileno()
        try:
            while not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                readable, writable, _ = select.select([receive], [send] if sent < len(job) else [], [], max(0.0, left))
                if not readable and not writable:
                    self._kill()
                    return {"error": f"it took longer than {self._limit:g} s"}
                if writable:
                    sent += os.write(send, job[sent : sent + (1 << 16)])
                if readable:
                    data = os.read(receive, 1 << 20)
                    if not data:
                        raise BrokenPipeError
                    answer += data
            decoded: dict[str, str] = json.loads(answer)
            return decoded
        except (OSError, ValueError):
            self._kill()
            return {"error": "it ended the process that rendered it"}

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def close(self) -> None:
        """Ends the process; a later `render` starts another."""
        with self._lock:
            self._kill()


def bad_template(reason: str) -> EngineError:
    """A template that can't be used, and why."""
    return EngineError(
        "bad_template",
        f"The chat template in the model file can't be used ({reason[:300]})",
        "use another file of this model.",
    )
