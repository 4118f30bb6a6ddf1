"""Reads the header of a model on the hub, before any download: just as many bytes of each part as the header has.

The first part carries the tokenizer (5 to 15 MB), the others only their tensor lists. Parts are read in parallel, each
in growing steps from its start, and go through the same careful parser as local files. What a hostile repository can
make us fetch is bounded for one header and for all of them together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from backends.gguf.cursor import MAX_HEADER_BYTES, BytesSource, IncompleteHeader
from backends.gguf.file import GgufFile, from_headers
from backends.gguf.header import MAX_TENSORS, Header, Start
from backends.gguf.header import read_header as parse_header
from backends.gguf.header import read_start as parse_start
from flashmoe.hub.answers import judge
from flashmoe.hub.client import HubClient, Resolved
from flashmoe.hub.errors import HubError
from flashmoe.hub.floor import Floor
from flashmoe.hub.listing import HubFile, HubQuant
from flashmoe.hub.names import MAX_PARTS, show
from flashmoe.retry import Backoff, patiently

FIRST_STEP = 1 << 20
OTHER_STEP = 128 << 10
START_BYTES = 64 << 10
"""Of a header's start, to see what kind of file it is: types and architecture stand in the first kilobyte."""
MAX_STEP = 4 << 20
MAX_ALL_BYTES = 2 * MAX_HEADER_BYTES
"""Headers of all parts together; a set of a hundred parts has about 30 MB."""
PARALLEL = 6
BACKOFF = Backoff(first_s=0.3, most_s=5.0, attempts=6)


class RangeSource:
    """The start of a remote file, fetched as far as it was asked for. A `gguf.header.Source`."""

    def __init__(self, name: str, size: int, step: int, fetch: Callable[[int, int], bytes]) -> None:
        self.name = name
        self.size: int | None = size
        self._total = size
        self._step = step
        self._fetch = fetch
        self._data = bytearray()

    @property
    def fetched(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        if offset >= len(self._data):
            self.extend(offset + 1)
        return bytes(self._data[offset : offset + length])

    def extend(self, needed: int) -> None:
        """Makes the first `needed` bytes be there, and a step more: fewer round trips, at most doubled bytes."""
        needed = min(needed, self._total, MAX_HEADER_BYTES)
        while len(self._data) < needed:
            at = len(self._data)
            end = min(self._total, max(needed, at + self._step))
            self._data += self._fetch(at, end)
            self._step = min(MAX_STEP, self._step * 2)


class _Fetcher:
    """Fetches the starts of one repository's files; counts what moves, and ends soon after `stop`."""

    def __init__(self, client: HubClient, repo: str, commit: str, on_bytes: Callable[[int], None] | None) -> None:
        self.stop = threading.Event()
        self._client = client
        self._repo, self._commit = repo, commit
        self._on_bytes = on_bytes
        self._where: dict[str, Resolved] = {}
        self._lock = threading.Lock()
        self._moved = 0

    def fetch(self, file: HubFile, start: int, end: int) -> bytes:
        """Bytes [start, end) of `file`. Raises `HubError`."""
        return patiently(lambda: self._once(file, start, end), backoff=BACKOFF, sleep=self.stop.wait)

    def _once(self, file: HubFile, start: int, end: int) -> bytes:
        if self.stop.is_set():
            raise HubError("cancelled", "The header isn't needed any more")
        where = self._where.get(file.path)
        if where is None:
            where = self._where[file.path] = self._client.resolve(self._repo, file.path, self._commit)
        try:
            with self._client.open_range(where, start, end) as response:
                kind = judge(response, name=file.path, size=file.size, start=start)
                skip = start if kind == "whole" else 0  # a server without ranges sends all of it, from its start
                data = self._read(response.iter_raw(), skip + end - start)
        except HubError as error:
            self._where.pop(file.path, None)
            if error.code == "expired":
                raise HubError("server", error.what, "try again later") from None
            raise
        if len(data) < skip + end - start:
            raise HubError("network", f"The server cut {show(file.path, 80)} short", "try again")
        return bytes(data[skip : skip + end - start])

    def _read(self, chunks: Iterable[bytes], needed: int) -> bytearray:
        data, floor = bytearray(), Floor()
        for chunk in chunks:
            data += chunk
            floor.arrived(len(chunk))
            floor.resume()
            with self._lock:
                self._moved += len(chunk)
                if self._moved > MAX_ALL_BYTES:
                    raise HubError(
                        "bad_answer", f"The headers of {self._repo} have more than {MAX_ALL_BYTES >> 20} MiB",
                        "no real model's have; it can't be planned",
                    )  # fmt: skip
            if self._on_bytes is not None:
                self._on_bytes(len(chunk))
            if self.stop.is_set() or len(data) >= needed:
                break
        return data


def read_remote(
    client: HubClient, repo: str, commit: str, quant: HubQuant, on_bytes: Callable[[int], None] | None = None
) -> GgufFile:
    """The model as its headers on the hub describe it; `on_bytes` counts what moves.

    Raises `HubError` for the network's troubles and `EngineError` for a header that isn't one.
    """
    if not quant.files or not quant.complete or len(quant.files) > MAX_PARTS:
        raise HubError("incomplete", f"{repo} has no complete set of {show(quant.label)}")
    fetcher = _Fetcher(client, repo, commit, on_bytes)
    n_tensors = 0

    def header(index: int) -> Header:
        nonlocal n_tensors
        file = quant.files[index]
        source = RangeSource(
            show(file.path.rsplit("/", 1)[-1], 120), file.size, OTHER_STEP if index else FIRST_STEP,
            lambda start, end: fetcher.fetch(file, start, end),
        )  # fmt: skip
        while True:
            try:
                found = parse_header(source)
                break
            except IncompleteHeader as error:
                if source.fetched >= min(file.size, error.needed):
                    raise
                source.extend(error.needed)
        n_tensors += len(found.tensors)
        if n_tensors > MAX_TENSORS:
            raise HubError("bad_answer", f"{repo}:{show(quant.label)} has more tensors than any real model")
        return found

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="header") as pool:
        try:
            headers = list(pool.map(header, range(len(quant.files))))
        except BaseException:
            fetcher.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return from_headers([f.path for f in quant.files], headers, quant.size)


def read_remote_start(client: HubClient, repo: str, commit: str, file: HubFile) -> Start:
    """The first keys of a file's header. Raises `HubError` and `EngineError`."""
    end = min(file.size, START_BYTES)
    data = _Fetcher(client, repo, commit, None).fetch(file, 0, end)
    return parse_start(BytesSource(show(file.path.rsplit("/", 1)[-1], 120), data, file.size))
