"""An OpenAI-compatible server on loopback that answers with prose and lists, a piece of text at a time.

For measurements of the app that depend on what is written and how fast, not on a model: the text is this project's own
documentation, without its tables and code, so every line differs from the one above and the chat scrolls all the time.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("README.md", "CONTRIBUTING.md", "docs/monitor.md", "guide/README.md")


def prose_and_lists() -> str:
    """The documentation's paragraphs and lists, in turns."""
    prose: list[str] = []
    lists: list[str] = []
    for name in SOURCES:
        text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
        for block in re.split(r"\n\s*\n", text):
            block = block.strip("\n")
            if block.startswith(("- ", "1. ")):
                lists.append(block)
            elif len(block) > 80 and not re.match(r"[|#!<\s]", block) and "\n|" not in block:
                prose.append(block)
    blocks = [block for pair in zip(prose, lists * (len(prose) // len(lists) + 1), strict=False) for block in pair]
    return "\n\n".join(blocks)


def pieces(text: str) -> list[str]:
    """The text in pieces of a token's size: about four characters."""
    return re.findall(r"\s*\w{1,6}|\s*[^\w\s]{1,3}|\s+", text)


@contextlib.contextmanager
def serving_prose(rate: float) -> Iterator[str]:
    """Runs the server, `rate` pieces a second; gives its address."""
    told = pieces(prose_and_lists())

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Silent."""

        def do_GET(self) -> None:
            """One model."""
            self._answer(json.dumps({"data": [{"id": "prose", "n_ctx": 1 << 20}]}).encode())

        def do_POST(self) -> None:
            """The text, over and over, until the other side hangs up."""
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            began = time.monotonic()
            with contextlib.suppress(OSError):
                for number in range(1 << 20):
                    time.sleep(max(0.0, began + number / rate - time.monotonic()))
                    delta = {"choices": [{"delta": {"content": told[number % len(told)]}}]}
                    self.wfile.write(b"data: " + json.dumps(delta).encode() + b"\n\n")
                    self.wfile.flush()

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
