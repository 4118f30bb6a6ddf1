"""The connections of one download: they claim runs of missing blocks and fetch them.

Each works in a thread of its own. What a failure means is `setbacks`' to say, where the bytes are `addresses`'.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from flashmoe.hub.answers import judge
from flashmoe.hub.client import Resolved
from flashmoe.hub.downloads.addresses import Addresses
from flashmoe.hub.downloads.limiter import RateLimiter
from flashmoe.hub.downloads.meter import Meter
from flashmoe.hub.downloads.partfile import BLOCK, PartFile, disk_error
from flashmoe.hub.downloads.setbacks import SLOW_CONNECTIONS, Setbacks
from flashmoe.hub.downloads.state import Owner, TransferFile
from flashmoe.hub.errors import HubError
from flashmoe.hub.floor import Floor
from flashmoe.hub.names import show
from flashmoe.hub.xet import XetStorage

if TYPE_CHECKING:
    import httpx2

SEGMENT = (64 << 20) // BLOCK
"""Most blocks of one request: what a slow server can hold up, and how long one signed address is used."""
FLUSH_BYTES = 64 << 20


class Claim(NamedTuple):
    """Blocks [first, end) of a file that one connection fetches; of the file as it was at `generation`."""

    f: TransferFile
    part: PartFile
    first: int
    end: int
    generation: int


class Connections:
    """Fetches the blocks of one job, in as many threads as run `work`."""

    def __init__(
        self,
        owner: Owner,
        addresses: Addresses,
        setbacks: Setbacks,
        meter: Meter,
        limiter: RateLimiter,
        permits: threading.Semaphore,
        xet: XetStorage | None,
    ) -> None:
        self._owner = owner
        self._addresses = addresses
        self._setbacks = setbacks
        self._meter = meter
        self._limiter = limiter
        self._permits = permits
        self._xet = xet
        self._hang_ups: set[Callable[[], None]] = set()
        """What makes each connection that waits for its server return at once."""

    def hang_up(self) -> None:
        """Ends whatever waits for a server. Call with the owner's `cond` held."""
        for end in self._hang_ups:
            with suppress(Exception):
                end()

    def work(self) -> None:
        """One connection: fetches until nothing is left or the transfer ends."""
        owner = self._owner
        while (claim := self._claim()) is not None:
            permit = False
            try:
                while not owner.stopping and not permit:
                    permit = self._permits.acquire(timeout=0.2)
                if not owner.stopping:
                    self._fetch(claim)
                if claim.f.state != "done":
                    claim.part.flush(at_least=FLUSH_BYTES)
            except HubError as error:
                self._setbacks.after(claim.f, error)
            finally:
                if permit:
                    self._permits.release()
                self._release(claim)

    # ---- runs of blocks

    def _claim(self) -> Claim | None:
        """A run of blocks that nobody fetches yet; None: nothing is left to do."""
        owner = self._owner
        with owner.cond:
            while not owner.stopping and owner.error is None:
                if all(f.state == "done" for f in owner.files):
                    return None
                now = time.monotonic()
                open_files = [f for f in owner.files if f.part and f.state != "done" and f.taken.find(0) >= 0]
                ready = [f for f in open_files if f.not_before <= now and not (f.whole and f.workers)]
                if ready:
                    # The file with the fewest connections: at most as many files at once as connections.
                    return self._run_of(min(ready, key=lambda f: (f.workers, owner.files.index(f))))
                owner.cond.wait(max(0.02, min([*(f.not_before - now for f in open_files), 1.0])))
            return None

    def _run_of(self, f: TransferFile) -> Claim:
        assert f.part is not None
        first, end = 0, len(f.taken)
        if not f.whole:
            first = f.taken.find(0)
            after = f.taken.find(1, first)
            limit = max(8, min(SEGMENT, f.taken.count(0) // (2 * self._owner.options.connections)))
            end = min(first + limit, after if after >= 0 else len(f.taken))
        f.taken[first:end] = b"\1" * (end - first)
        f.workers += 1
        f.state = "running"
        return Claim(f, f.part, first, end, f.part.generation)

    def _release(self, claim: Claim) -> None:
        f, part, first, end, generation = claim
        with self._owner.cond:
            f.workers -= 1
            if generation == part.generation:
                f.taken[first:end] = part.have[first:end]
            self._owner.cond.notify_all()

    # ---- bytes

    def _fetch(self, claim: Claim) -> None:
        where = self._addresses.of(claim.f)
        if claim.generation != claim.part.generation or self._owner.stopping:
            return
        if self._xet is not None and where.xet is not None and not claim.f.plain:
            self._by_xet(claim, where)
        else:
            self._by_http(claim, where)

    def _by_http(self, claim: Claim, where: Resolved) -> None:
        f, part, first, end, _ = claim
        start = first * BLOCK
        stop = None if f.whole else part.block_end(end - 1)
        with self._owner.client.open_range(where, start, stop) as response, self._interruptible(response):
            try:
                kind = judge(response, name=f.file.path, size=f.file.size, start=start)
            except HubError as error:
                if error.code == "expired":
                    self._addresses.refused(f, where)
                if where.xet is not None and self._xet is None and (f.refused > 1 or error.code == "bad_answer"):
                    hint = "it is stored by xet: install hf_xet to fetch it that way"
                    raise HubError("bad_answer", error.gist, hint) from None
                raise
            if kind == "whole" and not f.whole and (first > 0 or end < part.n_blocks):
                with self._owner.cond:  # from its start, in one connection, as soon as the others have noticed
                    f.whole = True
                return
            ended = self._write(claim, response.iter_raw())
        if not ended and not self._owner.stopping and claim.generation == part.generation:
            raise HubError("network", f"The server cut {show(part.target.name)} short")

    def _by_xet(self, claim: Claim, where: Resolved) -> None:
        f, part, first, end, generation = claim
        storage, place = self._xet, where.xet
        assert storage is not None
        assert place is not None
        try:
            with (
                storage.open_range(place, f.file.size, first * BLOCK, part.block_end(end - 1)) as stream,
                self._while_open(stream.cancel),
            ):
                ended = self._write(claim, stream)
            if not ended and not self._owner.stopping and generation == part.generation:
                raise HubError("network", f"The storage cut {show(part.target.name)} short")
        except HubError as error:
            if error.code in ("slow", "no_space", "io_error") or self._owner.stopping:
                raise
            with self._owner.cond:
                f.plain = True
                self._owner.notice = f"{error.gist}; continuing by plain HTTP."
            self._owner.changed()

    def _write(self, claim: Claim, chunks: Iterable[bytes]) -> bool:
        """Stores what comes, block by block; whether all of the claim came."""
        f, part, first, end, generation = claim
        owner, options = self._owner, self._owner.options
        floor = Floor(options.floor_bytes_s if f.slow < SLOW_CONNECTIONS else 0.0, options.floor_window_s)
        index, buffer = first, bytearray()
        for chunk in chunks:
            if owner.stopping or generation != part.generation:
                return False
            if floor.arrived(len(chunk)):
                f.slow = 0
            self._limiter.take(len(chunk), lambda: owner.stopping)
            self._meter.count(len(chunk))
            buffer += chunk
            while index < end and len(buffer) >= part.block_size(index):
                size = part.block_size(index)
                if not part.have[index]:  # a server without ranges sends again what is already there
                    if not self._store(part, index, bytes(memoryview(buffer)[:size]), generation):
                        return False
                    self._setbacks.recovered(f)
                del buffer[:size]
                index += 1
            # A whole 206 is read to its end, so that its connection can be used again; a 200 goes on and on.
            if index == end and end == part.n_blocks and first == 0:
                return True
            floor.resume()
        return index == end

    def _store(self, part: PartFile, index: int, data: bytes, generation: int) -> bool:
        try:
            return part.write_block(index, data, generation)
        except OSError as error:  # here, where it can't be taken for the network's
            raise disk_error(error, part.part_path) from None

    @contextmanager
    def _interruptible(self, response: httpx2.Response) -> Iterator[None]:
        stream: Any = response.extensions.get("network_stream")
        sock = stream.get_extra_info("socket") if stream is not None else None
        if not isinstance(sock, socket.socket):
            yield
            return
        with suppress(OSError, ValueError):
            # What waits in the kernel is lost with the process. Near servers fill any buffer and need none.
            if ipaddress.ip_address(sock.getpeername()[0]).is_private:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)
        with self._while_open(lambda: sock.shutdown(socket.SHUT_RDWR)):
            yield

    @contextmanager
    def _while_open(self, end: Callable[[], None]) -> Iterator[None]:
        with self._owner.cond:
            self._hang_ups.add(end)
        try:
            yield
        finally:
            with self._owner.cond:
                self._hang_ups.discard(end)
