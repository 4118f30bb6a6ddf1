"""Proxies, certificates, clocks and settings: each trouble on the way to the hub has its own sentence."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flashmoe.hub.client import HubClient, hf
from flashmoe.hub.errors import HubError
from flashmoe.hub.explain import proxy_for, retry_after
from tests.hub_place import REPO, Place

TLS = Path(__file__).parents[2] / "tls"
_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir", "hf_endpoint")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither this machine's proxies nor a client that was made under other settings."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    hf().close_session()
    yield
    hf().close_session()


class _Proxy(BaseHTTPRequestHandler):
    answer = 407

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(self.answer)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def trouble(endpoint: str) -> HubError:
    with pytest.raises(HubError) as caught:
        HubClient(endpoint, timeout_s=10.0).search("tiny")
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_down(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", "http://me:secret@127.0.0.1:9")
    said = trouble(f"{scheme}://hub.example")
    assert said.code == "offline"
    assert "The proxy http://127.0.0.1:9 doesn't answer" in said.message
    assert f"{scheme.upper()}_PROXY" in said.message
    assert "secret" not in said.message


@pytest.mark.parametrize(("scheme", "status", "words"), [
    ("http", 407, "wants a password; write it as HTTPS_PROXY=http://NAME:PASSWORD"),
    ("https", 407, "wants a password; write it as HTTPS_PROXY=http://NAME:PASSWORD"),
    ("https", 403, "doesn't let hub.example through (403"),
])  # fmt: skip
def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch, scheme: str, status: int, words: str) -> None:
    handler = type("P", (_Proxy,), {"answer": status})
    with serving(handler) as port:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://127.0.0.1:{port}")
        assert words in trouble(f"{scheme}://hub.example").message


def test_no_proxy_goes_around_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    assert proxy_for(place.hub.endpoint) is None
    with place.manager() as manager:
        assert place.pull(manager).state == "done"


@pytest.mark.parametrize(("value", "words"), [
    ("hf-mirror.example", "set it to https://hf-mirror.example"),
    ("ftp://x/y", "unset it"),
    ("https://", "isn't an address"),
])  # fmt: skip
def test_an_endpoint_without_a_scheme(monkeypatch: pytest.MonkeyPatch, value: str, words: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(HubError, match="HF_ENDPOINT is") as caught:
        HubClient().repo(REPO)
    assert words in caught.value.message
    assert caught.value.code == "bad_setting"


@pytest.mark.parametrize(("name", "trusted", "words"), [
    ("good", False, "isn't signed by anyone that this machine trusts; if your network"),
    ("expired", True, "has expired: this machine's clock says 2"),
    ("future", True, "isn't valid yet: this machine's clock says 2"),
    ("other", True, "belongs to another host"),
])  # fmt: skip
def test_certificates_and_the_clock(monkeypatch: pytest.MonkeyPatch, name: str, trusted: bool, words: str) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{name}.pem")
    with serving(_Proxy, context) as port:
        said = trouble(f"https://127.0.0.1:{port}")
    assert words in said.message
    assert said.exit_code == 3


def test_a_trusted_certificate_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "good.pem")
    handler = type("P", (_Proxy,), {"answer": 500})
    with serving(handler, context) as port:
        assert trouble(f"https://127.0.0.1:{port}").code == "server"


def test_a_date_to_wait_for_is_the_servers() -> None:
    """A clock that is a day off must not turn a pause of seconds into none or an hour."""
    headers = {"retry-after": "Fri, 01 Jan 2100 00:00:09 GMT", "date": "Fri, 01 Jan 2100 00:00:00 GMT"}
    assert retry_after(headers) == 9.0
