"""An engine that is stuck is told from one that is slow, ended, and started again."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx2
import pytest

from backends.interface import Telemetry
from flashmoe.serve.watchdog import STUCK_BLIND_S, STUCK_S, Watchdog
from tests.gguf_factory import make_gguf
from tests.serving import serving


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_idle_is_not_stuck_and_work_that_moves_is_not_either() -> None:
    clock = Clock()
    dog = Watchdog(60.0, clock=clock)
    for _ in range(100):
        clock.now += 30
        dog.work(0)
        dog.observe(Telemetry(t=0.0), None)
    assert not dog.stuck
    for i in range(100):  # one layer in 50 s is slow
        clock.now += 50
        dog.work(3)
        dog.observe(Telemetry(t=0.0, expert_hits=i, expert_misses=0), None)
        assert not dog.stuck
    clock.now += 40
    assert dog.unwell
    assert not dog.stuck
    clock.now += 30
    dog.work(3)
    dog.observe(Telemetry(t=0.0, expert_hits=99, expert_misses=0), None)
    assert dog.stuck
    dog.started()
    assert not dog.stuck


def test_silence_counts_from_when_work_came() -> None:
    clock = Clock()
    dog = Watchdog(60.0, clock=clock)
    clock.now += 1000
    dog.work(1)
    assert dog.still_s == 0
    clock.now += 61
    dog.work(1)
    dog.observe(None, None)  # an engine that can't even send its counters
    assert dog.stuck


def test_the_limit_grows_with_what_was_seen_and_can_be_turned_off() -> None:
    clock = Clock()
    dog = Watchdog(clock=clock)
    assert dog.limit_s == STUCK_BLIND_S
    dog.work(1)
    dog.observe(Telemetry(t=0.0, expert_hits=1), None)
    assert dog.limit_s == STUCK_S
    clock.now += 100
    dog.observe(Telemetry(t=0.0, expert_hits=2), None)
    assert dog.limit_s == 400
    assert Watchdog(0, clock=clock).limit_s == float("inf")


def test_a_stuck_engine_is_ended_and_everybody_told(tmp_path: Path) -> None:
    model = make_gguf(tmp_path / "tiny.gguf", endless=True)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1500, "temperature": 0}
    with serving(model, tmp_path / "log", parallel=2, stuck_s=4.0) as server:
        url = server.url + "/v1/chat/completions"
        assert httpx2.post(url, json={**body, "max_tokens": 4}, timeout=300).status_code == 200
        answers: list[httpx2.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx2.post(url, json=body, timeout=300))) for _ in range(3)
        ]
        pid = server.engine.client.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        for thread in threads:
            thread.start()
        states = set()
        while any(thread.is_alive() for thread in threads):
            states.add(httpx2.get(server.url + "/health", timeout=300).json()["status"])
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        assert [a.status_code for a in answers] == [503] * 3
        assert all("stuck" in a.json()["error"]["message"] for a in answers)
        assert "stuck" in states
        end = time.monotonic() + 300
        while httpx2.get(server.url + "/health", timeout=300).status_code != 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert httpx2.post(url, json={**body, "max_tokens": 4}, timeout=300).status_code == 200
        assert server.engine.restarts == 1


@pytest.mark.parametrize("key", ["schlüssel", "键", "naïve key"])
def test_a_key_of_any_letters_works(key: str, tmp_path: Path) -> None:
    model = make_gguf(tmp_path / "tiny.gguf")
    with serving(model, tmp_path / "log", key=key, parallel=1) as server:
        url = server.url + "/v1/models"
        assert httpx2.get(url, headers={"Authorization": b"Bearer " + key.encode()}).status_code == 200
        if key.isascii() or key.encode("latin-1", "ignore").decode("latin-1") == key:
            assert httpx2.get(url, headers={"Authorization": b"Bearer " + key.encode("latin-1")}).status_code == 200
        assert httpx2.get(url, headers={"Authorization": b"Bearer " + key.encode()[:-1]}).status_code == 401
        assert httpx2.get(url).status_code == 401


@pytest.mark.parametrize("key", [" ", "\t", "two\nlines", " padded "])
def test_a_key_that_nobody_could_send_is_refused(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flashmoe.cli.main import main

    monkeypatch.setenv("FLASHMOE_API_KEY", key)
    assert main(["serve", "demo", "--port", "0"]) == 2
    assert "FLASHMOE_API_KEY" in capsys.readouterr().err
