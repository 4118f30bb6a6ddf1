"""The backend `remote` through a real engine child, against our own server and against servers that misbehave."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from backends.engine.client import EngineClient
from backends.interface import (
    ChatMessage,
    Delta,
    EngineError,
    Finished,
    GenerateRequest,
    LoadRequest,
    PrefillProgress,
    Sampling,
    Telemetry,
)
from flashmoe.remote.backend import RemoteBackend
from tests.gguf_factory import make_gguf
from tests.serving import Running, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("remote")
    with serving(make_gguf(folder / "tiny.gguf", n_ctx_train=4096), folder / "log") as running:
        yield running


def ask(text: str, n: int = 12) -> GenerateRequest:
    sampling = Sampling(temperature=0, max_tokens=n, top_k=0, min_p=0.0, top_p=1.0)
    return GenerateRequest(id="r1", messages=(ChatMessage("user", text),), sampling=sampling)


async def answer(client: EngineClient, request: GenerateRequest) -> tuple[str, Finished]:
    text, end = [], None
    async for event in client.generate(request):
        if isinstance(event, Delta):
            text.append(event.text)
        elif isinstance(event, Finished):
            end = event
    assert end is not None
    return "".join(text), end


async def test_remote_answers_like_the_local_model(server: Running, tmp_path: Path) -> None:
    remote, local = EngineClient(log_path=tmp_path / "a"), EngineClient(log_path=tmp_path / "b")
    try:
        info = await remote.load(LoadRequest(path=server.url + "/v1"))
        assert info.backend == "remote"
        assert info.name == server.engine.model_id
        assert info.n_ctx == server.engine.info.n_ctx
        assert "127.0.0.1" in info.backend_reason
        await local.load(LoadRequest(path=server.engine.request.path, backend="mmap", n_ctx=2048))
        there, end = await answer(remote, ask("hello"))
        here, _ = await answer(local, ask("hello"))
        assert there == here
        assert end.usage.completion_tokens == 12
        assert end.usage.hit_rate is None
    finally:
        await remote.stop()
        await local.stop()


async def test_remote_cancel_frees_the_server(server: Running, tmp_path: Path) -> None:
    client = EngineClient(log_path=tmp_path / "a")
    try:
        await client.load(LoadRequest(path=server.url))
        end = None
        async for event in client.generate(ask("long", 1900)):
            if isinstance(event, Delta):
                await client.cancel("r1")
            elif isinstance(event, Finished):
                end = event
        assert end is not None
        assert end.reason == "cancelled"
        text, _ = await answer(client, ask("next"))
        assert text
    finally:
        await client.stop()


class Misbehaving(BaseHTTPRequestHandler):
    """Each path prefix is a way of being wrong."""

    sse: ClassVar[dict[str, bytes]] = {
        "cut": b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n',
        "garbage": b"data: <html>\n\n",
        "huge": b"data: " + b"x" * 5_000_000,
        "error": b'data: {"error": {"message": "out of memory"}}\n\n',
        "nousage": b'data: {"choices": [{"delta": {"content": "ok"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
        "text": b'data: {"error": "out of memory"}\n\n',
        "vllm": b'data: {"object": "error", "message": "out of memory"}\n\n',
        "page": b"\n<!doctype html><html><body>Log in</body></html>",
        "lines": b'data: {"choices": [{"delta":\ndata: {"content": "ok"}}]}\n\n'
        b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n',
        "whole": b'{"choices": [{"message": {"content": "ok"},\n\n"finish_reason": "stop"}],\n"usage": {}}',
        "refusal": b'{"error": {"message": "the model is busy."}}',
        "weird": b'data: 7\n\ndata: {"choices": [null, {"delta": 3, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
    }

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "html":
            self._send(b"<html>hello</html>", "text/html")
        elif kind == "locked":
            self._send(b'{"error": {"message": "no"}}', "application/json", 401)
        elif kind == "empty":
            self._send(b'{"data": []}', "application/json")
        else:
            self._send(json.dumps({"data": [{"id": "m\x1b[31m"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(self.sse[self.path.split("/")[1]], "text/event-stream")

    def _send(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def wrong() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("path", "code"), [("html", "network"), ("locked", "unauthorized"), ("empty", "not_found")])
async def test_remote_load_errors(wrong: str, tmp_path: Path, path: str, code: str) -> None:
    client = EngineClient(log_path=tmp_path / "a")
    try:
        with pytest.raises(EngineError) as caught:
            await client.load(LoadRequest(path=f"{wrong}/{path}/v1", backend="remote"))
        assert caught.value.code == code
    finally:
        await client.stop()


async def test_remote_nobody_there(tmp_path: Path) -> None:
    client = EngineClient(log_path=tmp_path / "a")
    try:
        with pytest.raises(EngineError, match="No server answers") as caught:
            await client.load(LoadRequest(path="http://127.0.0.1:9/v1", backend="remote"))
        assert caught.value.code == "network"
    finally:
        await client.stop()


GOES_WRONG = {
    "cut": "HOST ended the answer in the middle; what came so far is kept.",
    "garbage": "HOST sent something that isn't an answer.",
    "huge": "HOST sent something too large to be an answer.",
    "error": "The server failed: out of memory.",
    "text": "The server failed: out of memory.",
    "vllm": "The server failed: out of memory.",
    "page": "HOST sent a web page instead of an answer; check the address; it usually ends in /v1.",
    "refusal": "The server failed: the model is busy.",
}


async def test_remote_answers_that_go_wrong(wrong: str, tmp_path: Path) -> None:
    client = EngineClient(log_path=tmp_path / "a")
    try:
        for path, said in GOES_WRONG.items():
            await client.load(LoadRequest(path=f"{wrong}/{path}/v1", backend="remote"))
            with pytest.raises(EngineError) as caught:
                await answer(client, ask("x"))
            assert caught.value.code == "network", path
            assert caught.value.message.replace(wrong.partition("//")[2], "HOST") == said
        for path in ("lines", "whole"):
            await client.load(LoadRequest(path=f"{wrong}/{path}/v1", backend="remote"))
            text, end = await answer(client, ask("x"))
            assert text == "ok"
            assert path != "whole" or not end.usage.decode_s  # nothing is known of its speed
        await client.load(LoadRequest(path=f"{wrong}/nousage/v1", backend="remote"))
        text, end = await answer(client, ask("x"))
        assert text == "ok"
        assert end.usage.completion_tokens is None
        await client.load(LoadRequest(path=f"{wrong}/weird/v1", backend="remote"))
        assert (await answer(client, ask("x")))[0] == ""
    finally:
        await client.stop()


class Silent(BaseHTTPRequestHandler):
    """Lists a model, then says nothing any more: not even a status (``/v1``), or nothing behind the first word."""

    asked: ClassVar[threading.Event]
    left: ClassVar[threading.Event]

    def do_GET(self) -> None:
        body = b'{"data": [{"id": "m"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.set()
        if self.path.startswith("/word"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n')
        if not self.connection.recv(1):  # the other side hung up
            self.left.set()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("path", ["v1", "word/v1"])
async def test_a_silent_server_is_left_at_once(tmp_path: Path, path: str) -> None:
    Silent.asked, Silent.left = threading.Event(), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = EngineClient(log_path=tmp_path / "a")
    try:
        await client.load(LoadRequest(path=f"http://127.0.0.1:{server.server_port}/{path}"))
        end = None
        async for event in client.generate(ask("hello")):
            if isinstance(event, Delta if "word" in path else PrefillProgress):
                assert await asyncio.to_thread(Silent.asked.wait, 60)
                await client.cancel("r1")
            elif isinstance(event, Finished):
                end = event
        assert end is not None
        assert end.reason == "cancelled"
        assert await asyncio.to_thread(Silent.left.wait, 60)  # it isn't left computing for nobody
    finally:
        await client.stop()
        server.shutdown()
        server.server_close()


class Refusing(BaseHTTPRequestHandler):
    """Answers each status with a web page; ``/307`` sends on to another server, which notes what it is sent."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        self.asked.append(f"{self.path} {self.headers.get('Authorization')}")
        body = b"<html><body><h1>nginx</h1></body></html>"
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Retry-After", "7")
        self.send_header(
            "Location", f"http://user:secret@localhost:{self.server.server_address[1]}/200/v1/models?key=x"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


REFUSED = {
    307: "HOST sends on to http://localhost:PORT/200/v1; use that address instead.",
    401: "HOST doesn't accept the key in FLASHMOE_REMOTE_KEY.",
    404: "HOST has no such route or model; the address usually ends in /v1.",
    429: "HOST has too many requests (status 429); try again in 7 s.",
    500: "HOST can't answer now (status 500); try again in 7 s.",
    418: "HOST refused the request (status 418).",
}


async def test_a_refusal_is_one_sentence_and_no_key_follows_a_redirect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHMOE_REMOTE_KEY", "sk-secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = EngineClient(log_path=tmp_path / "a")
    try:
        for status, said in REFUSED.items():
            with pytest.raises(EngineError) as caught:
                await client.load(LoadRequest(path=f"http://me:pw@127.0.0.1:{server.server_port}/{status}/v1"))
            message = caught.value.message.replace(f"127.0.0.1:{server.server_port}", "HOST")
            assert message.replace(str(server.server_port), "PORT") == said
        assert [line.split()[0] for line in Refusing.asked] == [f"/{status}/v1/models" for status in REFUSED]
    finally:
        await client.stop()
        server.shutdown()
        server.server_close()


def test_what_arrives_is_counted_while_it_arrives() -> None:
    """Else the monitor waits for the server until the answer's end; and no counter ever goes back."""
    Silent.asked, Silent.left = threading.Event(), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    request = LoadRequest(path=f"http://127.0.0.1:{server.server_port}/word/v1")
    model = RemoteBackend().load(request, lambda _: True)
    try:
        model.submit(ask("hello"))
        seen: list[Telemetry] = []
        while not any(isinstance(event, Delta) for event in model.step()):
            seen.append(model.telemetry())
        seen.append(model.telemetry())
        assert seen[-1].decode_tokens == 1
        time.sleep(0.05)
        seen.append(model.telemetry())
        assert seen[-1].decode_s >= seen[-2].decode_s + 0.05
        model.cancel("r1")
        seen.append(model.telemetry())
        for before, after in itertools.pairwise(seen):
            assert after.decode_tokens >= before.decode_tokens
            assert after.decode_s >= before.decode_s
            assert after.prefill_s >= before.prefill_s
    finally:
        model.close()
        server.shutdown()
        server.server_close()
