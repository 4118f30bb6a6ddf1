"""A batch on a server that falters, stays away, wants a key, or can't stand one prompt."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backends.interface import LoadRequest
from flashmoe.batch import runner
from flashmoe.batch.lines import Item, read_items
from flashmoe.batch.output import Output
from flashmoe.batch.runner import Batch, Summary
from flashmoe.batch.width import WidthSearch
from flashmoe.retry import Backoff


class Server(ThreadingHTTPServer):
    """`verdict(question, n)`: the status of the n-th request."""

    daemon_threads = True
    asked = 0
    pause_s = 0.0

    def verdict(self, question: str, n: int) -> int:
        return 200


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send(b'{"data": [{"id": "m"}]}', 200)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        self.server.asked += 1
        status = self.server.verdict(question, self.server.asked)
        if status != 200:
            self.send(b'{"error": {"message": "not now \xff"}}', status)
            return
        self.send_response(200)
        self.end_headers()
        for text, end in (("re ", None), (question, "stop")):
            chunk = {"choices": [{"delta": {"content": text}, "finish_reason": end}]}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.flush()
            time.sleep(self.server.pause_s)
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, body: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "ASK_AGAIN", Backoff(0.02, 0.2, 4))
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))


async def batch(
    server: Server, tmp_path: Path, n: int, width: int | None = 2
) -> tuple[Summary, dict[str, dict], list[str]]:
    source, out, notes = tmp_path / "in.jsonl", tmp_path / "out.jsonl", []
    source.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"question {i}"}) + "\n" for i in range(n)))
    items = [i for i in read_items(source) if isinstance(i, Item)]
    load = LoadRequest(path=f"http://127.0.0.1:{server.server_port}", n_seq_max=width or 16)
    with Output(out) as output:
        made = Batch(
            load, items, output, log_path=tmp_path / "log", width=width, on_progress=lambda p: None,
            on_note=notes.append, per_sequence_ctx=512,
        )  # fmt: skip
        summary = await made.run()
    return summary, {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}, notes


async def test_a_server_that_falters_is_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "verdict", lambda question, n: 503 if n in (1, 2, 5) else 200)
    summary, rows, notes = await batch(server, tmp_path, 6)
    assert (summary.done, summary.failed, summary.stopped) == (6, 0, None)
    assert rows["p3"]["answer"] == "re question 3"
    assert len([note for note in notes if "trying again" in note]) in (1, 2)


async def test_a_server_that_stays_away_ends_the_batch_and_fails_no_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "verdict", lambda question, n: 200 if n <= 3 else 502)
    summary, rows, _ = await batch(server, tmp_path, 40)
    assert (summary.done, summary.failed, summary.remaining) == (3, 0, 37)
    assert summary.retry
    assert "run the same command again" in (summary.stopped or "")
    assert len(rows) == 3
    monkeypatch.setattr(server, "verdict", lambda question, n: 200)
    summary, rows, _ = await batch(server, tmp_path, 40)
    assert (summary.done, summary.skipped, len(rows)) == (37, 3, 40)


async def test_one_prompt_that_the_server_cannot_stand_fails_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "verdict", lambda question, n: 500 if question == "question 4" else 200)
    summary, rows, _ = await batch(server, tmp_path, 400)
    assert (summary.done, summary.failed, summary.stopped) == (399, 1, None)
    assert rows["p4"]["error"]["code"] == "network"


async def test_a_missing_key_ends_the_batch_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "verdict", lambda question, n: 401)
    summary, rows, _ = await batch(server, tmp_path, 30)
    assert (summary.failed, rows) == (0, {})
    assert "wants a key" in (summary.stopped or "")
    assert server.asked <= 4


async def test_the_width_is_measured_while_answers_end_all_the_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that ends leaves a place for a moment; that must not begin the measurement anew."""
    server.pause_s = 0.02
    monkeypatch.setattr(runner, "WidthSearch", partial(WidthSearch, window_s=0.25))
    summary, rows, _ = await batch(server, tmp_path, 700, None)
    assert len(rows) == 700
    assert len(summary.measured_tok_s) >= 2


def test_the_exit_code_says_that_it_is_worth_trying_again(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "prompt": "x"}\n')
    done = subprocess.run(
        [sys.executable, "-m", "flashmoe.cli.main", "batch", "http://127.0.0.1:9/v1", str(source), "-o",
         str(tmp_path / "out.jsonl")], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 3
    assert "No server answers" in done.stderr
