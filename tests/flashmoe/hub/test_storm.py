"""Random faults over many downloads: all right in the end, or one true sentence; and little is sent twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from flashmoe.hub.downloads.state import Options
from flashmoe.hub.downloads.views import JobView
from flashmoe.retry import Backoff
from tests.hub_place import MIB, Place
from tests.hub_server import HubServer

OPTIONS = Options(
    connections=3, backoff=Backoff(0.02, 0.2, 20), space_margin=0, floor_bytes_s=50_000.0, floor_window_s=0.5
)
LOST_PER_FAULT = MIB
"""A block, and what waits in the two sockets' buffers of a connection that is cut."""

Fault = Callable[[HubServer], None]


def _add(name: str) -> Fault:
    def fault(hub: HubServer) -> None:
        setattr(hub.faults, name, getattr(hub.faults, name) + 1)

    return fault


def _status(kind: str, *statuses: int) -> Fault:
    def fault(hub: HubServer) -> None:
        hub.faults.status.setdefault(kind, []).extend(statuses)

    return fault


def _slow(hub: HubServer) -> None:
    hub.faults.trickle, hub.faults.trickle_n = 10_000.0, hub.faults.trickle_n + 1


RESUMABLE: dict[str, Fault] = {
    "cut": _add("drop_n"),
    "stall": _add("stall_n"),
    "slow": _slow,
    "busy": _status("cdn", 503, 429),
    "broken": _status("cdn", 500, 502),
    "refused": _status("cdn", 403),
    "expired": lambda hub: hub.expire_all(),
    "hub down": _status("resolve", 500, 503),
    "login page": lambda hub: hub.faults.html.append("cdn"),
    "hub's login page": lambda hub: hub.faults.html.append("resolve"),
    "compressed": _add("gzip"),
}
COSTLY: dict[str, Fault] = {**RESUMABLE, "garbage": _add("garbage_n"), "no ranges": _add("ignore_range_n")}


@contextmanager
def throwing(hub: HubServer, faults: list[tuple[int, Fault]]) -> Iterator[Event]:
    """Each fault happens when so many bytes were sent; the event tells that all have."""
    stop, thrown = Event(), Event()

    def work() -> None:
        for moment, fault in sorted(faults, key=lambda f: f[0]):
            while hub.stats.body_bytes < moment and not stop.is_set():
                time.sleep(0.002)
            fault(hub)
        thrown.set()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thrown
    finally:
        stop.set()
        thread.join()


def one_download(folder: Path, size: int, chosen: list[str], seed: int) -> tuple[JobView, Place]:
    """A set of three parts under faults at random moments."""
    dice = random.Random(seed)
    place = Place(folder, size)
    place.hub.faults.rate, place.hub.faults.stall_s = 60e6, 20.0
    place.hub.faults.trickle_n = 0
    moments = [(dice.randrange(int(place.total * 0.9)), COSTLY[name]) for name in chosen]
    with place.hub, place.manager(OPTIONS) as manager, throwing(place.hub, moments):
        manager.client.read_timeout_s = 1.0
        view = manager.wait(place.add(manager), 100)
    return view, place


def storm(tmp_path: Path, downloads: int, each: int, size: int, seed: int) -> None:
    dice = random.Random(seed)
    sent = total = n_faults = 0
    outcomes: dict[str, int] = {}
    for number in range(downloads):
        costly = number % 5 == 4
        chosen = [dice.choice(list(COSTLY if costly else RESUMABLE)) for _ in range(each)]
        view, place = one_download(tmp_path / f"d{number}", size, chosen, seed * 1000 + number)
        said = f"download {number} under {chosen}: {view.state}, {view.message}"
        outcomes[view.state] = outcomes.get(view.state, 0) + 1
        assert view.state in ("done", "failed"), said
        if view.state == "done":
            place.assert_right()
        else:  # two wrong copies in a row are said, and nothing wrong is kept
            assert "garbage" in chosen, said
            assert view.code == "checksum", said
            assert "\n" not in view.message
        if not costly:
            sent, total, n_faults = sent + place.hub.stats.body_bytes, total + place.total, n_faults + each
        for file in (p for p in place.models.rglob("*") if p.is_file()):
            file.unlink(missing_ok=True)  # room for the next; a stalled handler may still look at the hub's own
    ratio = f"sent {sent / total:.4f} x of {total >> 20} MiB"
    print(f"{downloads} downloads, {downloads * each} faults: {outcomes}; {ratio}")
    assert sent <= 1.05 * total + (n_faults * LOST_PER_FAULT if size < 40 * MIB else 0), ratio


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))


def test_thirty_faults_over_six_downloads(tmp_path: Path) -> None:
    storm(tmp_path, 6, 5, 6 * MIB, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_three_hundred_faults_over_sixty_downloads(tmp_path: Path) -> None:
    storm(tmp_path, 60, 5, 64 * MIB, seed=2)
