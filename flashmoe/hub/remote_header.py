"""Reads the header of a model on the hub, before any download: just as many bytes of each part as the header has.

The first part carries the tokenizer (5 to 15 MB), the others only their tensor lists. Parts are read in parallel, each
in growing steps from its start, and go through the same careful parser as local files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from backends.gguf.file import GgufFile, from_headers
from backends.gguf.header import MAX_HEADER_BYTES, Header, IncompleteHeader, read_header
from flashmoe.hub.client import HubClient, HubFile, HubQuant
from flashmoe.hub.errors import TRY_AGAIN, HubError
from flashmoe.hub.names import MAX_PARTS, show

FIRST_STEP = 1 << 20
OTHER_STEP = 128 << 10
MAX_STEP = 4 << 20
PARALLEL = 6
ATTEMPTS = 4


class RangeSource:
    """The start of a remote file, fetched as far as it was asked for. A `gguf_header.Source`."""

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


def read_remote(
    client: HubClient, repo: str, commit: str, quant: HubQuant, on_bytes: Callable[[int], None] | None = None
) -> GgufFile:
    """The model as its headers on the hub describe it; `on_bytes` counts what moves.

    Raises `HubError` for the network's troubles and `EngineError` for a header that is none.
    """
    if not quant.files or len(quant.files) > MAX_PARTS:
        raise HubError("not_found", f"{repo} has no complete set of {show(quant.label)}.")
    stop = threading.Event()

    def header(index: int) -> Header:
        file = quant.files[index]
        source = RangeSource(
            show(file.path.rsplit("/", 1)[-1], 120), file.size, OTHER_STEP if index else FIRST_STEP,
            _fetcher(client, repo, commit, file, stop, on_bytes),
        )  # fmt: skip
        while True:
            try:
                return read_header(source)
            except IncompleteHeader as error:
                if source.fetched >= min(file.size, error.needed):
                    raise
                source.extend(error.needed)

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="header") as pool:
        try:
            headers = list(pool.map(header, range(len(quant.files))))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return from_headers([f.path for f in quant.files], headers, quant.size)


def _fetcher(
    client: HubClient,
    repo: str,
    commit: str,
    file: HubFile,
    stop: threading.Event,
    on_bytes: Callable[[int], None] | None,
) -> Callable[[int, int], bytes]:
    where = None

    def fetch(start: int, end: int) -> bytes:
        nonlocal where
        for attempt in range(ATTEMPTS):
            if stop.is_set():
                raise HubError("cancelled", "The header is not needed any more.")
            try:
                where = where or client.resolve(repo, file.path, commit)
                with client.open_range(where, start, end) as response:
                    status = response.status_code
                    if status != 206 and not (status == 200 and start == 0):
                        where = None
                        code = "rate_limited" if status == 429 else "server"
                        raise HubError(code, f"The download server answered {status} about {show(file.path, 80)}.")
                    data = bytearray()
                    for chunk in response.iter_raw():
                        data += chunk
                        if len(data) >= end - start:
                            break
                    if len(data) < end - start:
                        raise HubError("network", f"The server cut {show(file.path, 80)} short", "try again.")
                    if on_bytes is not None:
                        on_bytes(len(data))
                    return bytes(data[: end - start])
            except HubError as error:
                if error.code not in TRY_AGAIN or attempt == ATTEMPTS - 1 or (error.retry_after or 0) > 20:
                    raise
                stop.wait(max(error.retry_after or 0, 0.3 * 2**attempt))
        raise HubError("network", f"{show(file.path, 80)} can't be fetched", "try again later.")

    return fetch
