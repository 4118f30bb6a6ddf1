"""Talks to the hub: search, what a repository holds, where a file's bytes are. All network of `flashmoe.hub`.

Listing, auth, headers and errors are huggingface_hub's own; it is imported on first use (0.3 s). Nothing here logs a
token: it only ever goes into the header that huggingface_hub builds, and never to another host.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct

from flashmoe.hub.errors import HubError
from flashmoe.hub.names import check_repo, group_files, is_chat_model, is_full_precision, quant_of, show

if TYPE_CHECKING:
    import httpx2

API_TIMEOUT_S = 20.0
MAX_FILE_BYTES = 1 << 46
"""64 TiB: a file that claims more is no model."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
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


class HubFile(Struct, frozen=True):
    """One file of a repository. `sha256` is None for files that git holds itself."""

    path: str
    size: int
    sha256: str | None = None
    blob_id: str = ""


class HubQuant(Struct, frozen=True):
    """One model of a repository: a file or a split set."""

    label: str
    """What follows ``REPO:``, e.g. ``UD-Q4_K_XL``."""
    files: tuple[HubFile, ...]
    complete: bool = True
    """False: the repository lacks parts of the set."""

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)


class HubRepo(Struct, frozen=True):
    """What a repository holds at one commit."""

    repo: str
    commit: str
    quants: tuple[HubQuant, ...]
    other: tuple[HubFile, ...] = ()
    """GGUF files that are nothing to chat with (projectors, importance matrices, BF16)."""
    gated: bool = False
    private: bool = False
    licence: str = ""
    modified: float | None = None


class HubHit(Struct, frozen=True):
    """One repository that a search found."""

    repo: str
    downloads: int | None
    likes: int | None
    gated: bool
    modified: float | None
    """Seconds since the epoch."""
    licence: str = ""


class Resolved(Struct, frozen=True):
    """Where a file's bytes are right now; the address may expire."""

    location: str
    etag: str
    size: int
    commit: str
    same_host: bool
    """Served by the hub itself: send the token. Never to the CDN."""
    at: float


class HubClient:
    """The hub at one endpoint. Thread-safe; every method may block for a network's time and raises `HubError`."""

    def __init__(self, endpoint: str | None = None, *, timeout_s: float = API_TIMEOUT_S, read_timeout_s: float = 30.0):
        self._endpoint = endpoint
        self.timeout_s = timeout_s
        self.read_timeout_s = read_timeout_s

    @property
    def endpoint(self) -> str:
        return (self._endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")

    def offline_reason(self) -> str | None:
        """Why nothing may be fetched (``HF_HUB_OFFLINE``), None where it may be tried. Never touches the network."""
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
                return f"{name} is set: the hub is not asked."
        return None

    def _check_online(self) -> None:
        reason = self.offline_reason()
        if reason:
            raise HubError("offline", f"{reason} Unset it to search and download", "models on this machine work.")

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
        params: dict[str, str | int] = {"filter": "gguf", "search": text, "sort": sort, "limit": limit, "full": "true"}
        if author:
            params["author"] = author
        if not text:
            del params["search"]
        url: str | None = f"{self.endpoint}/api/models"
        hits: list[HubHit] = []
        while url and len(hits) < limit:
            rows, url = self._get_page(url, params)
            params = {}
            hits += [hit for row in rows if (hit := _hit(row)) is not None]
        return hits[:limit]

    def _get_page(self, url: str, params: dict[str, str | int]) -> tuple[list[Any], str | None]:
        self._check_online()
        with self._errors("the hub's search"):
            kwargs: dict[str, Any] = {"params": params} if params else {}
            response = hf().utils.get_session().get(url, headers=self.headers(), timeout=self.timeout_s, **kwargs)
            hf().utils.hf_raise_for_status(response)
            rows = response.json()
        if not isinstance(rows, list):
            raise HubError("bad_answer", f"{self._host()} answered the search with something that is no list.")
        link = response.links.get("next", {}).get("url")
        if link and urlsplit(link).netloc != urlsplit(self.endpoint).netloc:
            link = None  # the token goes along: never to another host
        return rows, link

    def repo(self, repo: str, revision: str | None = None) -> HubRepo:
        """What `repo` holds, with sizes and hashes."""
        check_repo(repo)
        self._check_online()
        with self._errors(repo):
            api = hf().HfApi(endpoint=self.endpoint)
            info = api.model_info(repo, revision=revision, files_metadata=True, timeout=self.timeout_s)
            files = [file for sibling in info.siblings or [] if (file := _file(sibling)) is not None]
            card = info.card_data
            licence = str(getattr(card, "license", "") or "") if card else ""
            licence = licence or next((t[8:] for t in info.tags or [] if t.startswith("license:")), "")
            return HubRepo(
                repo=repo,
                commit=str(info.sha or "main"),
                quants=tuple(_quants([f for f in files if is_chat_model(f.path)])),
                other=tuple(f for f in files if not is_chat_model(f.path)),
                gated=bool(info.gated),
                private=bool(info.private),
                licence=show(licence, 40),
                modified=info.last_modified.timestamp() if info.last_modified else None,
            )

    # ---- bytes

    def resolve(self, repo: str, path: str, revision: str) -> Resolved:
        """Asks where `path` is (a HEAD to the hub, which answers with a signed address)."""
        self._check_online()
        with self._errors(f"{repo} ({show(path, 80)})"):
            library = hf()
            url = library.hf_hub_url(repo, path, revision=revision, endpoint=self.endpoint)
            meta = library.get_hf_file_metadata(
                url, headers=self.headers(), token=False, timeout=self.timeout_s, endpoint=self.endpoint
            )
        if meta.etag is None or meta.size is None:
            raise HubError(
                "bad_answer", f"{self._host()} gave no size or ETag for {show(path, 80)}", "try again later."
            )
        if urlsplit(meta.location).scheme not in ("http", "https"):
            raise HubError("bad_answer", f"{self._host()} sent {show(path, 80)} to an address that is no web address.")
        same = urlsplit(meta.location).netloc == urlsplit(self.endpoint).netloc
        return Resolved(meta.location, meta.etag, meta.size, meta.commit_hash or "", same, time.monotonic())

    @contextmanager
    def open_range(self, where: Resolved, start: int, end: int) -> Iterator[httpx2.Response]:
        """A streaming GET of bytes [start, end). The status is the caller's to judge; network errors are `HubError`."""
        self._check_online()
        import httpx2

        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        ours = self.headers()
        if not where.same_host:
            ours.pop("authorization", None)
        timeout = httpx2.Timeout(self.read_timeout_s, connect=min(10.0, self.read_timeout_s), pool=None)
        with (
            self._errors(urlsplit(where.location).hostname or "the download server"),
            hf()
            .utils.get_session()
            .stream("GET", where.location, headers={**ours, **headers}, timeout=timeout) as response,
        ):
            yield response

    # ---- errors

    def _host(self) -> str:
        return urlsplit(self.endpoint).hostname or self.endpoint

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turns whatever huggingface_hub and httpx2 raise into a `HubError`."""
        try:
            yield
        except (HubError, GeneratorExit, KeyboardInterrupt):
            raise
        except Exception as error:
            raise self.explain(error, what) from None

    def explain(self, error: Exception, what: str) -> HubError:
        """`error` as one sentence with what to do. `what` names the repository or the host."""
        import httpx2

        errors = hf().errors
        repo = what.split(" ")[0]
        page = f"{self.endpoint}/{repo}"
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        wait = retry_after(response.headers) if response is not None else None
        if isinstance(error, errors.OfflineModeIsEnabled):
            return HubError("offline", "HF_HUB_OFFLINE is set: the hub is not asked. Unset it to search and download.")
        if isinstance(error, errors.GatedRepoError):
            if self.has_token():
                return HubError(
                    "gated", f"Your account has no access to {repo} yet: ask for it at {page} and try again."
                )
            return HubError(
                "gated", f"{repo} is gated: accept its terms at {page}, then run `hf auth login` or set HF_TOKEN."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError("changed", f"{what}: that version is gone from the hub", "start the download again.")
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return HubError("not_found", f"{what} isn't on the hub (any more)", f"look at {page} for what is.")
        if isinstance(error, errors.RepositoryNotFoundError):
            hint = "check the name" if self.has_token() else "check the name or, if it is private, set HF_TOKEN"
            return HubError("not_found", f"The hub has no {repo} that you may see", f"{hint}.")
        if isinstance(error, errors.DisabledRepoError):
            return HubError("forbidden", f"{repo} was disabled by its owner or by the hub.")
        if status == 401:
            return HubError(
                "unauthorized", "The hub refuses your token: renew it with `hf auth login`, or unset HF_TOKEN."
            )
        if status == 403:
            return HubError("forbidden", f"The hub forbids access to {what}", "does your token have read permission?")
        if status == 429:
            after = f" for {wait:.0f} s" if wait else ""
            return HubError(
                "rate_limited",
                f"{self._host()} asks to slow down{after}",
                "try again later or log in.",
                retry_after=wait,
            )
        if status is not None and status >= 500:
            return HubError(
                "server", f"{self._host()} has trouble (status {status})", "try again later.", retry_after=wait
            )
        if status is not None:
            return HubError("bad_answer", f"{self._host()} answered {status} about {what}.")
        if isinstance(error, httpx2.TimeoutException):
            return HubError("network", f"{what} did not answer in time", "check the network and try again.")
        if isinstance(error, httpx2.ConnectError):
            host = self._host() if "/" in what or " " in what else what
            return HubError("offline", f"Can't reach {host}: no network, or it is down.")
        # RuntimeError: huggingface_hub closed the shared client after some connection error; a new one comes by itself.
        if isinstance(error, (httpx2.TransportError, httpx2.InvalidURL, httpx2.StreamError, RuntimeError)):
            return HubError("network", f"The connection to {what} broke", "trying again usually helps.")
        if isinstance(error, OSError):
            return HubError("io_error", f"{what}: {show(error.strerror or str(error))}.")
        return HubError(
            "bad_answer", f"{self._host()} sent an answer about {what} that makes no sense", "try again later."
        )


def _version() -> str:
    try:
        return metadata.version("flashmoe-tui")
    except metadata.PackageNotFoundError:
        return "0"


def retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header (a number or a date), or of the hub's ``ratelimit`` header."""
    value = str(headers.get("retry-after", "")).strip()
    if value.isdigit():
        return float(min(int(value), 3600))
    if value:
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, min(3600.0, parsedate_to_datetime(value).timestamp() - time.time()))
        except (ValueError, TypeError):
            return None
    info = hf().utils.parse_ratelimit_headers(headers) if "ratelimit" in headers else None
    return float(info.reset_in_seconds) if info is not None and info.remaining == 0 else None


def _hit(row: Any) -> HubHit | None:
    """One row of the search's answer; None for one that makes no sense."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        return None
    try:
        check_repo(row["id"])
    except HubError:
        return None

    def number(key: str) -> int | None:
        value = row.get(key)
        return value if isinstance(value, int) else None

    modified = row.get("lastModified")
    stamp = None
    if isinstance(modified, str):
        try:
            stamp = datetime.fromisoformat(modified.replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError):
            stamp = None
    tags = row.get("tags")
    licence = ""
    if isinstance(tags, list):
        licence = next((t[8:] for t in tags if isinstance(t, str) and t.startswith("license:")), "")
    return HubHit(row["id"], number("downloads"), number("likes"), bool(row.get("gated")), stamp, show(licence, 40))


def _file(sibling: Any) -> HubFile | None:
    """One file of a listing; None for what is no GGUF file or makes no sense."""
    name, size = sibling.rfilename, sibling.size
    if not isinstance(name, str) or not name.lower().endswith(".gguf"):
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < MAX_FILE_BYTES:
        return None
    digest = sibling.lfs.sha256 if sibling.lfs else None
    digest = digest.lower() if isinstance(digest, str) and _SHA256.fullmatch(digest.lower()) else None
    blob = sibling.blob_id if isinstance(sibling.blob_id, str) else ""
    return HubFile(name, size, digest, show(blob, 64)) if digest or blob else None


def _quants(files: list[HubFile]) -> list[HubQuant]:
    """Files as models, smallest first; two of one quant are told apart by their names."""
    by_path = {f.path: f for f in files}
    quants: list[HubQuant] = []
    labels: dict[str, int] = {}
    groups = group_files(by_path)
    for parts in groups.values():
        labels[quant_of(parts[0])] = labels.get(quant_of(parts[0]), 0) + 1
    for key, parts in groups.items():
        label = quant_of(parts[0])
        if not label or labels[label] > 1:
            label = key.split("|")[0].removesuffix(".gguf")
        expected = int(key.rsplit("|", 1)[1]) if "|" in key else 1
        quants.append(HubQuant(label, tuple(by_path[p] for p in parts), complete=len(parts) == expected))
    return sorted((q for q in quants if not is_full_precision(q.label)), key=lambda q: (q.size, q.label))
