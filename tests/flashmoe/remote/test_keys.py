"""No key reaches a server that it was not given for: `OPENAI_API_KEY` is OpenAI's, or that of the one it is tied to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from backends.interface import EngineError, LoadRequest
from flashmoe.remote.address import origin_of
from flashmoe.remote.backend import RemoteBackend
from flashmoe.remote.http import make_client

HERE = "http://127.0.0.1:8080/v1"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLASHMOE_REMOTE_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)


def sent_to(base: str) -> str | None:
    with make_client(base) as client:
        return client.headers.get("Authorization")


@pytest.mark.parametrize(
    ("base", "goes"),
    [
        ("https://api.openai.com/v1", True),
        ("https://API.OpenAI.com:443", True),
        ("https://api.openai.com/v1#gpt", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com:8443/v1", False),
        ("https://api.openai.com.example/v1", False),
        ("https://api.openai.com@example.org/v1", False),
        ("https://example.org/api.openai.com/v1", False),
        (HERE, False),
    ],
)
def test_openais_key_is_openais(base: str, goes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    assert sent_to(base) == ("Bearer sk-theirs" if goes else None)


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_openais_key_goes_where_it_was_tied_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenAI's own client has it: the key is that address's, and OpenAI's no more."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-gateway")
    monkeypatch.setenv(name, "http://gateway.example:4000/some/path/v1")
    assert sent_to("http://gateway.example:4000/v1") == "Bearer sk-gateway"
    assert sent_to("http://gateway.example:4001/v1") is None
    assert sent_to("https://api.openai.com/v1") is None
    monkeypatch.setenv(name, "http://[")
    assert sent_to("https://api.openai.com/v1") is None


def test_our_own_key_goes_to_the_server_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMOE_REMOTE_KEY", "ours")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    assert sent_to(HERE) == sent_to("https://api.openai.com/v1") == "Bearer ours"


class Wanting(BaseHTTPRequestHandler):
    """Refuses whoever brings no key, and notes what it is sent."""

    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def wanting() -> Iterator[ThreadingHTTPServer]:
    Wanting.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Wanting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refused(server: ThreadingHTTPServer) -> str:
    with pytest.raises(EngineError) as caught:
        RemoteBackend().load(LoadRequest(path=f"http://127.0.0.1:{server.server_port}"), lambda _: True)
    assert caught.value.code == "unauthorized"
    return caught.value.message.replace(f"127.0.0.1:{server.server_port}", "HOST")


def test_who_is_refused_is_told_where_the_key_went(
    wanting: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(wanting) == "HOST wants a key; set FLASHMOE_REMOTE_KEY."
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    assert refused(wanting) == (
        "HOST wants a key; set FLASHMOE_REMOTE_KEY (OPENAI_API_KEY goes to api.openai.com, or where OPENAI_BASE_URL "
        "says, and nowhere else)."
    )
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{wanting.server_port}/v1")
    assert refused(wanting) == "HOST doesn't accept the key in OPENAI_API_KEY."
    assert Wanting.seen == [("/v1/models", None)] * 2 + [("/v1/models", "Bearer sk-theirs")]


def test_no_proxy_stands_before_this_machine(wanting: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be sent the key and all that is typed, and can't come here anyway."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert refused(wanting) == "HOST wants a key; set FLASHMOE_REMOTE_KEY."


def test_an_address_that_is_none_is_refused() -> None:
    for address in ("http://[::1", "http://[", "http://host:99999", "http://host:x/v1", "http://", "ftp://host/v1"):
        assert origin_of(address) is None, address
        why = RemoteBackend().why_not(LoadRequest(path=address))
        assert why is not None, address
    assert origin_of("http://user:pw@[::1]:8080/v1") == ("http", "::1", 8080)
