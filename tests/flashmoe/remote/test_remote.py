"""The backend `remote` through a real engine child, against our own server and against servers that misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from backends.engine.client import EngineClient
from backends.interface import ChatMessage, Delta, EngineError, Finished, GenerateRequest, LoadRequest, Sampling
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
        with pytest.raises(EngineError, match="no server answers") as caught:
            await client.load(LoadRequest(path="http://127.0.0.1:9/v1", backend="remote"))
        assert caught.value.code == "network"
    finally:
        await client.stop()


async def test_remote_answers_that_go_wrong(wrong: str, tmp_path: Path) -> None:
    client = EngineClient(log_path=tmp_path / "a")
    try:
        for path in ("cut", "garbage", "huge", "error"):
            await client.load(LoadRequest(path=f"{wrong}/{path}/v1", backend="remote"))
            with pytest.raises(EngineError) as caught:
                await answer(client, ask("x"))
            assert caught.value.code == "network", path
        await client.load(LoadRequest(path=f"{wrong}/nousage/v1", backend="remote"))
        text, end = await answer(client, ask("x"))
        assert text == "ok"
        assert end.usage.completion_tokens is None
        await client.load(LoadRequest(path=f"{wrong}/weird/v1", backend="remote"))
        assert (await answer(client, ask("x")))[0] == ""
    finally:
        await client.stop()
