"""Talks to the hub: search, what a repository holds, where a file's bytes are. All plain HTTP of `flashmoe.hub`.

Headers, auth and the meaning of errors are huggingface_hub's own; it is imported on first use (0.3 s). Nothing here
logs a token: it only ever goes into the header that huggingface_hub builds, and never to another host.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from msgspec import Struct

from flashmoe.hub.errors import HubError
from flashmoe.hub.explain import bad_endpoint, explain, host_of, offline, read_json, web_page
from flashmoe.hub.listing import HubHit, HubRepo, read_hit, read_listing
from flashmoe.hub.names import check_repo, show

if TYPE_CHECKING:
    import httpx2

API_TIMEOUT_S = 20.0
DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_ANSWER_BYTES = 32 << 20
"""A listing of the largest repositories has 1 MB."""
_import_lock = threading.Lock()


def hf() -> ModuleType:
    """huggingface_hub, quiet and without its telemetry."""
    with _import_lock:
        # It would fetch a registry of coding agents to name one in its user agent; nobody asked for that.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import huggingface_hub
        import huggingface_hub.utils

        huggingface_hub.utils.logging.set_verbosity(50)  # its warnings would land on the screen
        return huggingface_hub


def configured_endpoint() -> str:
    """HF_ENDPOINT or the hub itself, not checked: to tell which host a pasted address may have."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


class XetPlace(Struct, frozen=True):
    """What xet needs to fetch a file: its content's hash and where a token for the storage comes from."""

    hash: str
    token_url: str


class Resolved(Struct, frozen=True):
    """Where a file's bytes are right now; the address may expire."""

    location: str
    etag: str
    """Empty where the server tells none."""
    size: int
    commit: str
    same_host: bool
    """Served by the hub itself: send the token. Never to the CDN."""
    at: float
    xet: XetPlace | None = None


class HubPage(Struct, frozen=True):
    """Some of the repositories that a search found."""

    hits: list[HubHit]
    more: str = ""
    """The address of the next page; empty at the end."""


class HubClient:
    """The hub at one endpoint. Thread-safe; every method may block for a network's time and raises `HubError`."""

    def __init__(self, endpoint: str | None = None, *, timeout_s: float = API_TIMEOUT_S, read_timeout_s: float = 30.0):
        self._endpoint = endpoint
        self.timeout_s = timeout_s
        self.read_timeout_s = read_timeout_s

    @property
    def endpoint(self) -> str:
        """The hub's address. Raises `HubError` where HF_ENDPOINT is none."""
        value = (self._endpoint or configured_endpoint()).rstrip("/")
        if urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname:
            raise bad_endpoint(value)
        return value

    def offline_reason(self) -> str | None:
        """Why nothing may be fetched (``HF_HUB_OFFLINE``), None where it may be tried. Never touches the network."""
        name = _forbidden_by()
        return f"{name} is set: the hub is not asked." if name else None

    def _check_online(self) -> None:
        name = _forbidden_by()
        if name:
            raise offline(name)

    def headers(self) -> dict[str, str]:
        """huggingface_hub's headers with the token from its usual places (``HF_TOKEN``, ``hf auth login``)."""
        built: dict[str, str] = hf().utils.build_hf_headers(library_name="flashmoe-tui", library_version=_version())
        return built

    def has_token(self) -> bool:
        return "authorization" in self.headers()

    # ---- listing

    def search(
        self, text: str, *, limit: int = 30, author: str | None = None, sort: str = "trendingScore"
    ) -> list[HubHit]:
        """Repositories with GGUF files whose name holds `text`, the most wanted first."""
        return self.search_page(text, limit=limit, author=author, sort=sort).hits

    def search_page(
        self, text: str, *, limit: int = 30, author: str | None = None, sort: str = "trendingScore", after: str = ""
    ) -> HubPage:
        """The same with the address of what follows; `after` is such an address."""
        params: dict[str, str | int] = {"filter": "gguf", "search": text, "sort": sort, "limit": limit, "full": "true"}
        if author:
            params["author"] = author
        if not text:
            del params["search"]
        url = after if after and self._is_ours(after) else f"{self.endpoint}/api/models"
        hits: list[HubHit] = []
        while url and len(hits) < limit:
            rows, following = self._get_json(url, "a list of models", {} if url == after else params)
            params = {}
            if not isinstance(rows, list):
                raise HubError("bad_answer", f"{host_of(self.endpoint)} answered the search with something else")
            hits += [hit for row in rows if (hit := read_hit(row)) is not None]
            url = following if following != url else ""
        return HubPage(hits[:limit], url)

    def repo(self, repo: str, revision: str | None = None) -> HubRepo:
        """What `repo` holds, with sizes and hashes."""
        check_repo(repo)
        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        url = f"{self.endpoint}/api/models/{repo}{at}"
        try:
            answer, _ = self._get_json(url, "a listing", {"blobs": "true"}, about=repo)
        except HubError as error:
            if error.code == "changed" and revision:
                where = f"https://huggingface.co/{repo}/tree/main"
                raise HubError(
                    "not_found", f"{repo} has no branch, tag or commit “{show(revision, 60)}”", f"see {where}"
                ) from None
            raise
        return read_listing(answer, repo, revision or "")

    def _get_json(self, url: str, what: str, params: dict[str, Any], about: str = "") -> tuple[Any, str]:
        """(the answer, the address of the next page)."""
        self._check_online()
        with self._errors(about or "the hub's search", url):
            stream = (
                hf()
                .utils.get_session()
                .stream("GET", url, params=params or None, headers=self.headers(), timeout=self.timeout_s)
            )
            with stream as response:
                self._check_status(response, what)
                link = response.links.get("next", {}).get("url") or ""
                return read_json(response, what, limit=MAX_ANSWER_BYTES), link if self._is_ours(link) else ""

    def _check_status(self, response: httpx2.Response, what: str) -> None:
        if response.status_code >= 400:
            import httpx2

            # The library reads an error's body for its message: it gets the beginning only, however much comes.
            body = next(response.iter_bytes(1 << 16), b"")
            head = [
                (k, v) for k, v in response.headers.items() if k.lower() not in ("content-encoding", "content-length")
            ]
            short = httpx2.Response(response.status_code, headers=head, content=body, request=response.request)
            hf().utils.hf_raise_for_status(short)
        if response.status_code != 200:
            raise HubError("bad_answer", f"{host_of(str(response.url))} answered {response.status_code}, not {what}")

    def _is_ours(self, url: str) -> bool:
        """Whether an address is on the hub's own host: the token goes along, so never to another."""
        return urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]

    # ---- bytes

    def resolve(self, repo: str, path: str, revision: str) -> Resolved:
        """Asks where `path` is (a HEAD to the hub, which answers with a signed address)."""
        self._check_online()
        name = show(path, 80)
        with self._errors(f"{repo} ({name})"):
            library = hf()
            url = library.hf_hub_url(repo, path, revision=revision, endpoint=self.endpoint)
            meta = library.get_hf_file_metadata(
                url, headers=self.headers(), token=False, timeout=self.timeout_s, endpoint=self.endpoint
            )
        if urlsplit(meta.location).scheme not in ("http", "https"):
            raise HubError("bad_answer", f"{host_of(self.endpoint)} sent {name} to an address that isn't a web address")
        if not meta.etag and not meta.commit_hash:  # the hub always tells one of them
            raise web_page(host_of(meta.location), name.rpartition("/")[2])
        if meta.size is None:
            raise HubError("bad_answer", f"{host_of(meta.location)} didn't say how large {name} is", "try again later")
        data, xet = meta.xet_file_data, None
        if data is not None and self._is_ours(data.refresh_route):
            xet = XetPlace(data.file_hash, data.refresh_route)
        return Resolved(
            meta.location, meta.etag or "", meta.size, meta.commit_hash or "", self._is_ours(meta.location),
            time.monotonic(), xet,
        )  # fmt: skip

    @contextmanager
    def open_range(self, where: Resolved, start: int, end: int | None) -> Iterator[httpx2.Response]:
        """A streaming GET of bytes [start, end), or of everything where `end` is None.

        The status is the caller's to judge (`answers.judge`); network errors are `HubError`.
        """
        self._check_online()
        import httpx2

        headers = {"Accept-Encoding": "identity"}
        if end is not None:
            headers["Range"] = f"bytes={start}-{end - 1}"
        ours = self.headers()
        if not where.same_host:
            ours.pop("authorization", None)
        timeout = httpx2.Timeout(self.read_timeout_s, connect=min(10.0, self.read_timeout_s), pool=None)
        with (
            self._errors("the file", where.location),
            hf()
            .utils.get_session()
            .stream("GET", where.location, headers={**ours, **headers}, timeout=timeout) as response,
        ):
            yield response

    # ---- errors

    @contextmanager
    def _errors(self, what: str, url: str = "") -> Iterator[None]:
        """Turns whatever huggingface_hub and httpx2 raise into a `HubError`."""
        try:
            yield
        except (HubError, GeneratorExit, KeyboardInterrupt):
            raise
        except Exception as error:
            raise self.explain(error, what, url) from None

    def explain(self, error: Exception, what: str, url: str = "") -> HubError:
        """`error` as what happened and what to do. `what` names the repository or the file."""
        return explain(error, what, self.endpoint, has_token=self.has_token(), url=url)


def _forbidden_by() -> str | None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return name
    return None


def _version() -> str:
    try:
        return metadata.version("flashmoe-tui")
    except metadata.PackageNotFoundError:
        return "0"
