"""A model hub on loopback, with every fault that a real one shows: the routes that huggingface_hub 2.4 uses.

Repositories are folders ``ROOT/org/name``. Files ending in ``.gguf`` (and anything over 10 MB) are "LFS" files: the
hub answers with a redirect to a signed URL on another address (127.0.0.2), which plays the CDN and expires.

By hand: ``python tests/hub_server.py DIR --port 8765`` and ``HF_ENDPOINT=http://127.0.0.1:8765 flashmoe-tui pull …``.
``GET /_stats`` tells what was sent; ``POST /_faults`` with a JSON object changes the faults while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import hmac
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from urllib.parse import parse_qs, quote, unquote, urlsplit

CHUNK = 64 * 1024
LFS_THRESHOLD = 10 * 1000 * 1000
HASH_LIMIT = 8 << 30
"""Files larger than this (sparse ones, for planning) get a made-up sha256: reading them would take minutes."""


@dataclass
class Faults:
    """What goes wrong. Probabilities are per request for a file's bytes."""

    drop: float = 0.0
    """Probability that the connection is cut somewhere in the body."""
    stall: float = 0.0
    stall_s: float = 60.0
    garbage: float = 0.0
    """Probability that the body has the right length and wrong bytes."""
    status: dict[str, list[int]] = field(default_factory=dict)
    """Statuses to answer with before behaving, per kind of request: api, resolve, cdn."""
    retry_after: str = ""
    expire_s: float = 3600.0
    """Life of a signed URL."""
    expire_after: int = 0
    """A signed URL dies after this many requests; 0: never."""
    rate: float = 0.0
    """Bytes a second in all; 0: unlimited."""
    drop_n: int = 0
    """So many of the next bodies are cut; likewise the three below."""
    stall_n: int = 0
    garbage_n: int = 0
    ignore_range_n: int = 0
    etag_salt: str = ""
    """Changes every ETag (and the commit), as a new upload would."""
    ignore_range: bool = False
    html: list[str] = field(default_factory=list)
    """Kinds of request (api, resolve, cdn), each answered once for each time it is named, by a login page."""
    gzip: int = 0
    """So many bodies are sent compressed, though nobody asked for it."""
    wrong_length: int = 0
    """So many bytes more than the hub says the CDN claims for each file."""
    trickle: float = 0.0
    """Bytes a second of each connection for a file's bytes; 0: as fast as the line."""
    trickle_n: int = -1
    """Only so many connections are that slow; -1: all."""
    no_hash: bool = False
    """Neither listings nor ETags tell a hash."""
    git: bool = False
    """Files aren't kept by LFS: only git's hash of them is known."""
    endless: bool = False
    """Listings never end."""
    xet: bool = False
    xet_only: bool = False
    """The plain address refuses."""
    xet_cas: str = ""
    """The storage's address, told with the token."""
    seed: int = 1


@dataclass
class Stats:
    body_bytes: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    tokens_at_cdn: int = 0
    """Requests to the CDN that carried an Authorization header: must stay 0."""


class HubServer:
    """Runs in threads of this process; `with HubServer(root) as hub:` then ``hub.endpoint``."""

    def __init__(
        self,
        root: Path,
        *,
        faults: Faults | None = None,
        gated: set[str] | None = None,
        private: set[str] | None = None,
        tokens: set[str] | None = None,
        page_size: int = 50,
        port: int = 0,
    ) -> None:
        self.root = root
        self.faults = faults or Faults()
        self.gated = gated or set()
        self.private = private or set()
        self.tokens = tokens or set()
        self.page_size = page_size
        self.branches: dict[str, Path] = {}
        """By name: another root with the same repositories as they are on that branch."""
        self.xet_hashes: dict[str, str] = {}
        """By sha256: what the storage calls the file."""
        self.raw_api: bytes | None = None
        """Answers every listing with these bytes."""
        self.stats = Stats()
        self.random = random.Random(self.faults.seed)
        self.secret = b"loopback"
        self.uses: Counter[str] = Counter()
        self.lock = threading.Lock()
        self._sha: dict[tuple[str, int, int], str] = {}
        self._next_send = 0.0
        self.hub = _Server(("127.0.0.1", port), _HubHandler, self)
        self.cdn = _Server(("127.0.0.2", 0), _CdnHandler, self)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.hub.server_address[1]}"

    def __enter__(self) -> HubServer:
        for server in (self.hub, self.cdn):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for server in (self.hub, self.cdn):
            server.shutdown()
            server.server_close()

    # ---- what the repositories hold

    def repos(self) -> list[str]:
        return sorted(f"{p.parent.name}/{p.name}" for p in self.root.glob("*/*") if p.is_dir())

    def files(self, repo: str, root: Path | None = None) -> list[Path]:
        base = (root or self.root) / repo
        return sorted(p for p in base.rglob("*") if p.is_file())

    def root_of(self, repo: str, revision: str | None) -> Path | None:
        """Where a branch or a commit has its files; None where there is none."""
        if revision in (None, "main"):
            return self.root
        if revision in self.branches:
            return self.branches[str(revision)]
        return next((r for r in (self.root, *self.branches.values()) if self.commit(repo, r) == revision), None)

    def commit(self, repo: str, root: Path | None = None) -> str:
        names = [f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in self.files(repo, root)]
        return hashlib.sha1((repo + self.faults.etag_salt + "".join(names)).encode()).hexdigest()

    def sha256(self, path: Path) -> str:
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        with self.lock:
            known = self._sha.get(key)
        if known is None:
            if stat.st_size > HASH_LIMIT:
                known = hashlib.sha256(str(path).encode()).hexdigest()
            else:
                with path.open("rb") as file:
                    known = hashlib.file_digest(file, "sha256").hexdigest()
            with self.lock:
                self._sha[key] = known
        return known

    def is_lfs(self, path: Path) -> bool:
        if self.faults.git:
            return False
        return path.suffix.lower() == ".gguf" or path.stat().st_size > LFS_THRESHOLD

    def etag(self, path: Path) -> str:
        if self.is_lfs(path):
            digest = self.sha256(path)
            return (
                hashlib.sha256((digest + self.faults.etag_salt).encode()).hexdigest()
                if self.faults.etag_salt
                else digest
            )
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data + self.faults.etag_salt.encode()).hexdigest()

    def sign(self, repo: str, name: str) -> str:
        expires = f"{time.time() + self.faults.expire_s:.3f}"
        with self.lock:
            nonce = f"{self.random.getrandbits(48):x}"
        sig = self.signature(repo, name, expires, nonce)
        host, port = self.cdn.server_address[:2]
        return f"http://{host!s}:{port}/{repo}/{quote(name)}?Expires={expires}&nonce={nonce}&Signature={sig}"

    def signature(self, repo: str, name: str, expires: str, nonce: str) -> str:
        return hmac.new(self.secret, f"{repo}\n{name}\n{expires}\n{nonce}".encode(), "sha256").hexdigest()

    def throttle(self, n: int) -> None:
        if self.faults.rate <= 0:
            return
        with self.lock:
            now = time.monotonic()
            self._next_send = max(self._next_send, now - 0.01) + n / self.faults.rate
            wait = self._next_send - now
        if wait > 0:
            time.sleep(wait)

    def place_of(self, repo: str, name: str) -> Path:
        """A file of the main branch, else of whichever branch has it."""
        found = [root / repo / name for root in (self.root, *self.branches.values())]
        return next((path for path in found if path.is_file()), found[0])

    def login_page(self, kind: str) -> bool:
        with self.lock:
            if kind not in self.faults.html:
                return False
            self.faults.html.remove(kind)
            return True

    def expire_all(self) -> None:
        """Every signed address is refused from now on; new ones are good."""
        self.secret = hashlib.sha256(self.secret).digest()

    def takes(self, name: str) -> bool:
        """Uses up one of a counted fault."""
        with self.lock:
            left = getattr(self.faults, name)
            if left > 0:
                setattr(self.faults, name, left - 1)
            return bool(left)

    def planned_status(self, kind: str) -> int | None:
        with self.lock:
            queue = self.faults.status.get(kind)
            return queue.pop(0) if queue else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], state: HubServer) -> None:
        self.state = state
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        # What waits in the kernel when a client dies would count as sent.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError, ValueError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kind = ""

    @property
    def state(self) -> HubServer:
        return cast(_Server, self.server).state

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def note(self, kind: str) -> None:
        with self.state.lock:
            self.state.stats.requests[kind] += 1
            self.state.stats.log.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        if message:
            headers["X-Error-Message"] = message
        if status in (429, 503) and self.state.faults.retry_after:
            headers["Retry-After"] = self.state.faults.retry_after
        self.answer(status, json.dumps({"error": message or f"status {status}"}).encode(), headers)

    def json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send_file(self, path: Path, headers: dict[str, str], *, status: int = 200) -> None:
        """Body of a file with Range, and with the faults."""
        size = path.stat().st_size
        start, end = 0, size
        asked = self.headers.get("Range")
        claimed = size + self.state.faults.wrong_length
        if self.command == "GET" and self.state.takes("gzip"):
            self.send_gzip(path, headers)
            return
        slow = self.state.faults.trickle if self.command == "GET" and self.state.takes("trickle_n") else 0.0
        if asked and not self.state.faults.ignore_range and not self.state.takes("ignore_range_n"):
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.strip())
            if not match or int(match[1]) >= size or (match[2] and int(match[2]) < int(match[1])):
                self.answer(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
                return
            start = int(match[1])
            end = min(int(match[2]) + 1, size) if match[2] else size
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{claimed}"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(end - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        faults, state = self.state.faults, self.state
        drop, stall, garbage = (state.takes(f"{name}_n") for name in ("drop", "stall", "garbage"))
        with state.lock:
            drop = drop or state.random.random() < faults.drop
            drop_at = start + state.random.randrange(max(1, end - start)) if drop else None
            stall = stall or state.random.random() < faults.stall
            stall_at = start + state.random.randrange(max(1, end - start)) if stall else None
            garbage = garbage or state.random.random() < faults.garbage
        with path.open("rb") as file:
            file.seek(start)
            at = start
            while at < end:
                data = file.read(min(CHUNK if not slow else max(1, int(slow / 20)), end - at))
                if not data:
                    break
                if slow:
                    time.sleep(len(data) / slow)
                if garbage:
                    data = random.randbytes(len(data))
                if drop_at is not None and at + len(data) > drop_at:
                    data = data[: drop_at - at]
                state.throttle(len(data))
                self.wfile.write(data)
                at += len(data)
                with state.lock:
                    state.stats.body_bytes += len(data)
                if drop_at is not None and at >= drop_at:
                    self.drop_connection()
                    return
                if stall_at is not None and at >= stall_at:
                    stall_at = None
                    time.sleep(faults.stall_s)

    def send_gzip(self, path: Path, headers: dict[str, str]) -> None:
        body = gzip.compress(path.read_bytes()[:1000])
        self.answer(200, body, {**headers, "Content-Encoding": "gzip"})

    def send_login_page(self) -> None:
        page = b"<!DOCTYPE html><html><title>Welcome to our network</title><form>Room number</form></html>"
        self.answer(200, page, {"Content-Type": "text/html; charset=utf-8"})

    def drop_connection(self) -> None:
        self.close_connection = True
        with self.state.lock:
            self.state.stats.requests["dropped"] += 1
            hard = self.state.random.random() < 0.5
        with contextlib.suppress(OSError):
            if hard:  # a reset, as from a router that forgot the connection
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)


class _HubHandler(_Handler):
    def token_problem(self, repo: str, *, files: bool) -> bool:
        """Answers 401/403 as the hub does; True where it did."""
        state = self.state
        header = self.headers.get("Authorization", "")
        token = header.removeprefix("Bearer ") if header else None
        if token is not None and token not in state.tokens:
            self.fail(401, message="Invalid credentials in Authorization header")
            return True
        if repo in state.private and token is None:
            self.fail(401, "RepoNotFound", "Invalid username or password.")
            return True
        if files and repo in state.gated and (token is None or not token.startswith("granted")):
            text = f"Access to model {repo} is restricted."
            self.fail(401 if token is None else 403, "GatedRepo", text)
            return True
        return False

    def do_GET(self) -> None:
        self.route()

    def do_HEAD(self) -> None:
        self.route()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if urlsplit(self.path).path == "/_faults":
            known = {f.name for f in fields(Faults)}
            for name, value in json.loads(body).items():
                if name in known:
                    setattr(self.state.faults, name, value)
            self.json(asdict(self.state.faults))
            return
        self.fail(404)

    def route(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        path = unquote(url.path)
        if path == "/_stats":
            with self.state.lock:
                stats = self.state.stats
                self.json({"body_bytes": stats.body_bytes, "requests": dict(stats.requests)})
            return
        kind = "api" if path.startswith("/api/") else "resolve" if "/resolve/" in path else "page"
        self.note(kind)
        planned = self.state.planned_status(kind)
        if planned:
            self.fail(planned, message=f"planned {planned}")
        elif self.state.login_page(kind):
            self.send_login_page()
        elif kind == "api" and self.state.faults.endless:
            self.send_endless()
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/xet-read-token/.+", path):
            self.xet_token(match[1])
        elif kind == "api" and self.state.raw_api is not None:
            self.answer(200, self.state.raw_api, {"Content-Type": "application/json"})
        elif path == "/api/models":
            self.search(query)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.info(match[1], match[2])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            self.tree(match[1], match[3] or "", query)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(match[1], match[2], match[3])
        elif path == "/":
            self.answer(200, b"hub")
        else:
            self.fail(404)

    def send_endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(1 << 14):
                self.wfile.write(b"[" + b'"x",' * 16384)

    def xet_token(self, repo: str) -> None:
        if not self.known(repo) or self.token_problem(repo, files=True):
            return
        expires = str(int(time.time()) + 3600)
        headers = {
            "X-Xet-Cas-Url": self.state.faults.xet_cas,
            "X-Xet-Access-Token": "storage-only",
            "X-Xet-Token-Expiration": expires,
        }
        self.json({"casUrl": self.state.faults.xet_cas, "accessToken": "storage-only", "exp": int(expires)}, headers)

    def card(self, repo: str, *, blobs: bool, root: Path | None = None) -> dict[str, object]:
        state = self.state
        siblings: list[dict[str, object]] = []
        for path in state.files(repo, root):
            name = path.relative_to((root or state.root) / repo).as_posix()
            entry: dict[str, object] = {"rfilename": name}
            if blobs:
                size = path.stat().st_size
                entry |= {"size": size}
                if not state.faults.no_hash:
                    git = not state.is_lfs(path)
                    entry["blobId"] = state.etag(path) if git else hashlib.sha1(name.encode()).hexdigest()
                if state.is_lfs(path) and not state.faults.no_hash:
                    entry["lfs"] = {"size": size, "sha256": state.etag(path), "pointerSize": 134}
            siblings.append(entry)
        newest = max((p.stat().st_mtime for p in state.files(repo)), default=0.0)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(newest))
        return {
            "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": state.commit(repo, root),
            "private": repo in state.private, "gated": "manual" if repo in state.gated else False, "disabled": False,
            "downloads": len(repo) * 1000, "likes": len(repo), "trendingScore": len(repo), "tags": ["gguf"],
            "lastModified": stamp, "createdAt": stamp, "siblings": siblings,
        }  # fmt: skip

    def search(self, query: dict[str, list[str]]) -> None:
        words = " ".join(query.get("search", [])).lower().split()
        author = query.get("author", [""])[0].lower()
        found = [
            repo
            for repo in self.state.repos()
            if all(w in repo.lower() for w in words)
            and (not author or repo.lower().startswith(author + "/"))
            and repo not in self.state.private
        ]
        offset = int(query.get("cursor", ["0"])[0])
        limit = min(int(query.get("limit", ["1000"])[0]), self.state.page_size)
        page = found[offset : offset + limit]
        headers = {}
        if offset + limit < len(found):
            rest = "&".join(f"{k}={quote(v)}" for k, vs in query.items() for v in vs if k != "cursor")
            headers["Link"] = f'<{self.state.endpoint}/api/models?{rest}&cursor={offset + limit}>; rel="next"'
        self.json([self.card(repo, blobs=False) for repo in page], headers)

    def known(self, repo: str) -> bool:
        if ".." in repo or not (self.state.root / repo).is_dir():
            self.fail(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
            return False
        return True

    def revision_ok(self, repo: str, revision: str | None) -> bool:
        if self.state.root_of(repo, revision) is not None:
            return True
        self.fail(404, "RevisionNotFound", "Invalid rev id")
        return False

    def info(self, repo: str, revision: str | None) -> None:
        if not self.known(repo) or self.token_problem(repo, files=False) or not self.revision_ok(repo, revision):
            return
        self.json(self.card(repo, blobs="blobs=" in self.path, root=self.state.root_of(repo, revision)))

    def tree(self, repo: str, under: str, query: dict[str, list[str]]) -> None:
        if not self.known(repo) or self.token_problem(repo, files=False):
            return
        rows: list[dict[str, object]] = []
        for path in self.state.files(repo):
            name = path.relative_to(self.state.root / repo).as_posix()
            if under and not name.startswith(under + "/"):
                continue
            size = path.stat().st_size
            row: dict[str, object] = {
                "type": "file",
                "path": name,
                "size": size,
                "oid": hashlib.sha1(name.encode()).hexdigest(),
            }
            if self.state.is_lfs(path):
                row["lfs"] = {"oid": self.state.etag(path), "size": size, "pointerSize": 134}
            rows.append(row)
        self.json(rows)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        state = self.state
        if not self.known(repo) or self.token_problem(repo, files=True) or not self.revision_ok(repo, revision):
            return
        root = state.root_of(repo, revision) or state.root
        path = root / repo / name
        if ".." in name or not path.is_file():
            self.fail(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": state.commit(repo, root)}
        if state.faults.no_hash:
            self.send_file(path, headers)
            return
        if not state.is_lfs(path):
            self.send_file(path, {**headers, "ETag": f'"{state.etag(path)}"'})
            return
        headers |= {
            "X-Linked-Size": str(path.stat().st_size),
            "X-Linked-Etag": f'"{state.etag(path)}"',
            "ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"',
            "Location": state.sign(repo, name),
        }
        if state.faults.xet:
            headers["X-Xet-Hash"] = state.xet_hashes.get(state.sha256(path), state.sha256(path))
            headers["Link"] = f'<{state.endpoint}/api/models/{repo}/xet-read-token/x>; rel="xet-auth"'
        self.answer(302, b"Found. Redirecting", headers)


class _CdnHandler(_Handler):
    def do_GET(self) -> None:
        state = self.state
        self.note("cdn")
        if self.headers.get("Authorization"):
            with state.lock:
                state.stats.tokens_at_cdn += 1
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        match = re.fullmatch(r"/([^/]+/[^/]+)/(.+)", unquote(url.path))
        if not match or ".." in match[2]:
            self.fail(404)
            return
        repo, name = match[1], match[2]
        expected = state.signature(repo, name, query.get("Expires", ""), query.get("nonce", ""))
        with state.lock:
            state.uses[expected] += 1
            worn_out = state.faults.expire_after and state.uses[expected] > state.faults.expire_after
        planned = state.planned_status("cdn")
        if planned:
            self.fail(planned, message=f"planned {planned}")
        elif state.login_page("cdn"):
            self.send_login_page()
        elif state.faults.xet_only:
            self.answer(403, b"<Error><Code>StoredByXet</Code></Error>", {"Content-Type": "application/xml"})
        elif query.get("Signature") != expected or float(query["Expires"]) < time.time() or worn_out:
            with state.lock:
                state.stats.requests["expired"] += 1
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
        else:
            self.send_file(state.place_of(repo, name), {"ETag": f'"{hashlib.md5(name.encode()).hexdigest()}"'})

    do_HEAD = do_GET


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="folder of org/name folders")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--gated", action="append", default=[], help="repository that asks for access")
    parser.add_argument("--private", action="append", default=[])
    parser.add_argument(
        "--token", action="append", default=[], help="accepted token (one named granted… opens gated repositories)"
    )
    for item in fields(Faults):
        if item.type in ("float", "int", "str"):
            kind = {"float": float, "int": int, "str": str}[item.type]
            parser.add_argument(f"--{item.name.replace('_', '-')}", type=kind, default=item.default)
        elif item.type == "bool":
            parser.add_argument(f"--{item.name.replace('_', '-')}", action="store_true")
    args = parser.parse_args(argv)
    values = {f.name: getattr(args, f.name) for f in fields(Faults) if hasattr(args, f.name)}
    server = HubServer(
        args.root, faults=Faults(**values), gated=set(args.gated), private=set(args.private), tokens=set(args.token),
        port=args.port,
    )  # fmt: skip
    with server as hub:
        print(f"HF_ENDPOINT={hub.endpoint}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
