"""A loopback hub with a model, and a models folder to pull it into."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashmoe.hub.client import HubClient
from flashmoe.hub.downloads.manager import DownloadManager
from flashmoe.hub.downloads.state import Options
from flashmoe.hub.downloads.views import JobView
from flashmoe.retry import Backoff
from tests.hub_files import make_set, sha256
from tests.hub_server import HubServer

MIB = 1 << 20
REPO = "acme/Tiny-A1B-GGUF"
FAST = Options(connections=3, backoff=Backoff(0.02, 0.1, 6), space_margin=0)
PATIENT = Options(connections=3, backoff=Backoff(0.02, 0.1, 20), space_margin=0)
"""With half of all connections dropped one may well be unlucky six times in a row: the threads decide."""


class Place:
    """A loopback hub with one set of three parts, and a models folder."""

    def __init__(self, tmp_path: Path, size: int = 6 * MIB) -> None:
        self.models = tmp_path / "models"
        self.files = make_set(tmp_path / "srv" / REPO / "Q8_0", size)
        self.hub = HubServer(tmp_path / "srv")
        self.total = sum(f.stat().st_size for f in self.files)
        self.events: list[JobView] = []

    @contextmanager
    def manager(self, options: Options = FAST, **more: float) -> Iterator[DownloadManager]:
        client = HubClient(self.hub.endpoint, timeout_s=5.0, read_timeout_s=2.0)
        manager = DownloadManager(self.models, client, options, on_event=self.events.append, **more)
        try:
            yield manager
        finally:
            manager.close()

    def add(self, manager: DownloadManager) -> str:
        """Asks for the set; the job's id."""
        repo = manager.client.repo(REPO)
        return manager.add(repo, repo.quants[0])

    def begin(self, manager: DownloadManager, sent: int) -> str:
        """The same, and returns when the hub has sent more than so many bytes."""
        id = self.add(manager)
        until(lambda: self.hub.stats.body_bytes > sent)
        return id

    def pull(self, manager: DownloadManager, timeout: float = 300.0) -> JobView:
        return manager.wait(self.add(manager), timeout)

    def goes_on(self, id: str) -> None:
        """At the next start, from a fast server, the job goes on by itself and ends well."""
        self.hub.faults.rate = 0
        with self.manager() as manager:
            manager.start()
            assert manager.wait(id, 20).state == "done"
        self.assert_right()

    def part(self, number: int) -> Path:
        return self.models / REPO / "Q8_0" / self.files[number].name

    def assert_right(self) -> None:
        assert [sha256(self.part(i)) for i in range(3)] == [sha256(f) for f in self.files]
        left = [p.name for p in self.models.rglob("*") if ".part" in p.name or p.name.endswith(".new")]
        assert left == []
        assert not list((self.models / ".downloads").glob("*.json"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    place = Place(tmp_path)
    with place.hub:
        yield place


def until(condition: Callable[[], bool], timeout: float = 300.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)
