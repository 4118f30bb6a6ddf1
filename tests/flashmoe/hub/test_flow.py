"""Downloads that are paused, resumed and cancelled, and two processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from flashmoe.hub.downloads.partfile import BLOCK
from flashmoe.hub.downloads.state import Options
from tests.hub_place import MIB, REPO, Place, until
from tests.hub_server import Faults


def test_pause_keeps_resume_continues_over_a_restart(place: Place) -> None:
    place.hub.faults.rate = 4e6
    with place.manager() as manager:
        id = place.begin(manager, place.total // 3)
        manager.pause(id)
        view = manager.wait(id, 5)
        assert view.state == "paused"
        assert view.done > place.total // 5
    place.hub.faults.rate = 0
    with place.manager() as manager:
        manager.start()
        idle = manager.jobs()[0]
        assert idle.state == "paused", "what was paused stays paused"
        assert idle.done == view.done
        manager.resume(id)
        assert manager.wait(id, 20).state == "done"
    place.assert_right()
    assert place.hub.stats.body_bytes <= place.total + 8 * BLOCK * 3


def test_what_ran_goes_on_at_the_next_start(place: Place) -> None:
    place.hub.faults.rate = 4e6
    with place.manager() as manager:
        id = place.begin(manager, MIB)
    place.goes_on(id)


def test_a_stalled_server_does_not_hold_up_pause(place: Place) -> None:
    place.hub.faults = Faults(stall=1.0, stall_s=20.0)
    with place.manager(Options(connections=3, space_margin=0)) as manager:
        manager.client.read_timeout_s = 60.0
        id = place.add(manager)
        until(lambda: place.hub.stats.requests["cdn"] >= 3)
        time.sleep(0.3)
        before = time.monotonic()
        manager.pause(id)
        assert manager.wait(id, 10).state == "paused"
        assert time.monotonic() - before < 3.0


def test_cancel_leaves_nothing(place: Place) -> None:
    place.hub.faults.rate = 4e6
    with place.manager() as manager:
        id = place.begin(manager, MIB)
        manager.cancel(id)
        assert manager.wait(id, 5).state == "cancelled"
        until(lambda: not (place.models / "acme").exists())
    assert not list((place.models / ".downloads").glob("*.json"))


def test_two_processes_never_write_one_file(place: Place) -> None:
    place.hub.faults.rate = 1e6
    env = {**os.environ, "HF_ENDPOINT": place.hub.endpoint, "FLASHMOE_MODELS": str(place.models)}
    command = [sys.executable, "-m", "flashmoe.cli.main", "pull", f"{REPO}:Q8_0"]
    with place.manager() as manager:
        id = place.begin(manager, MIB)
        other = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert other.returncode == 3, other.stderr
        assert f"being downloaded by process {os.getpid()}" in other.stderr
        place.hub.faults.rate = 0
        assert manager.wait(id, 20).state == "done"
    place.assert_right()


def test_bandwidth_limit(place: Place) -> None:
    with place.manager(limit_bytes_s=4e6) as manager:
        before = time.monotonic()
        assert place.pull(manager).state == "done"
    assert time.monotonic() - before > (place.total - 2e6) / 4e6 * 0.8
