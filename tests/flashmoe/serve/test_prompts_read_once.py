"""Over HTTP: from the second turn on only what is new is computed, whoever asks and whatever died in between."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gguf_factory import make_gguf
from tests.serving import Running, serving

SLACK = 64
PREAMBLE = "You are an agent with many tools. " * 60
ARCHITECTURES = ["qwen3moe", pytest.param("qwen35moe"), pytest.param("gpt-oss", marks=pytest.mark.slow)]


class Agent:
    def __init__(self, server: Running, name: str) -> None:
        self.server = server
        self.name = name
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": PREAMBLE}]
        self.before = 0

    def turn(self, text: str) -> dict[str, Any]:
        """One turn; what was computed is at most what is new."""
        self.messages.append({"role": "user", "content": f"{self.name}: {text}"})
        body = {"messages": self.messages, "max_tokens": 8, "temperature": 0}
        end = time.monotonic() + 300
        while True:
            response = httpx2.post(self.server.url + "/v1/chat/completions", json=body, timeout=300)
            if response.status_code != 503 or time.monotonic() > end:
                break
            time.sleep(0.2)
        assert response.status_code == 200, response.text
        told: dict[str, Any] = response.json()
        self.messages.append({"role": "assistant", "content": told["choices"][0]["message"]["content"]})
        prompt = told["usage"]["prompt_tokens"]
        computed = prompt - told["usage"]["prompt_tokens_details"]["cached_tokens"]
        if self.before:
            assert computed <= prompt - self.before + SLACK, (self.name, text, prompt, computed)
        self.before = prompt
        return told


def settled(folder: Path) -> None:
    """Until the files of the store grow no more."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < 3.0:
        now = sum(1 for _ in folder.rglob("*.kv"))
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.05)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_turns_in_every_circumstance(arch: str, tmp_path: Path) -> None:
    model = make_gguf(tmp_path / "m.gguf", arch=arch, n_ctx_train=8192)
    folder = tmp_path / "kv"
    with serving(model, tmp_path / "log", n_ctx=6144, parallel=3, kv_dir=str(folder)) as server:
        one, two = Agent(server, "one"), Agent(server, "two")
        for turn in range(3):  # in turn
            one.turn(f"step {turn} " + "data " * 20)
            two.turn(f"step {turn} " + "data " * 20)
        three = [Agent(server, name) for name in ("a", "b", "c")]

        def work(agent: Agent) -> None:
            for turn in range(3):
                agent.turn(f"step {turn}")

        threads = [threading.Thread(target=work, args=(agent,)) for agent in three]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(len(agent.messages) == 7 for agent in three)
        settled(folder)
        pid = server.engine.client.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)  # the engine dies, the server starts it again
        one.turn("after the engine's death")
        settled(folder)
    with serving(model, tmp_path / "log", n_ctx=6144, parallel=3, kv_dir=str(folder)) as server:
        for agent in (one, two, *three):
            agent.server = server
            told = agent.turn("after a restart")
            assert told["usage"]["flashmoe"]["restored_tokens"] > 200 or agent is not one
        two.messages = two.messages[:4]  # an edit, two turns back
        two.before = 0
        told = two.turn("something else")
        cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > len(PREAMBLE) // 8
