"""A download that is killed again and again over a bad line costs little more than its size, and is right."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.engine.client import EngineClient
from backends.gguf.file import read_gguf
from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling
from tests.hub_files import MIB, make_set, sha256
from tests.hub_server import Faults, HubServer


def run_with_kills(tmp_path: Path, size: int, kills: int, rate: float, seed: int, allowed: float) -> None:
    files = make_set(tmp_path / "srv/acme/Tiny-A1B-GGUF/Q8_0", size)
    total = sum(f.stat().st_size for f in files)
    moments = sorted(random.Random(seed).uniform(0.01, 0.97) * total for _ in range(kills))
    with HubServer(tmp_path / "srv", faults=Faults(drop=0.1, rate=rate, seed=seed)) as hub:
        env = {
            **os.environ, "HF_ENDPOINT": hub.endpoint, "FLASHMOE_HOME": str(tmp_path / "home"),
            "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "FLASHMOE_MODELS": "", "HF_HUB_OFFLINE": "",
        }  # fmt: skip
        command = [sys.executable, "-m", "flashmoe.cli.main", "pull", "acme/Tiny-A1B-GGUF:Q8_0", "--parallel", "3"]
        killed = 0
        for moment in [*moments, None]:
            child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            while moment is not None and child.poll() is None and hub.stats.body_bytes < moment:
                time.sleep(0.002)
            if moment is not None and child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGKILL)
                killed += 1
            out, err = child.communicate(timeout=300)
            if moment is not None:
                assert child.returncode in (-signal.SIGKILL, 0), err
        assert child.returncode == 0, err
        sent = hub.stats.body_bytes
        print(f"{killed} kills, {hub.stats.requests['dropped']} drops, sent {sent / total:.4f} x of {total} bytes")
    assert killed >= kills - 1
    assert hub.stats.requests["dropped"] > 0
    assert sent <= allowed * total, f"sent {sent / total:.3f} times the size"
    there = Path(out.strip()).parent
    assert [sha256(there / f.name) for f in files] == [sha256(f) for f in files]
    assert sorted(p.name for p in there.iterdir()) == [f.name for f in files]
    assert read_gguf(there / files[0].name).missing == ()
    asyncio.run(answers(there / files[0].name, tmp_path / "engine.log"))


async def answers(model: Path, log: Path) -> None:
    """The downloaded model loads and says something."""
    client = EngineClient(log_path=log)
    try:
        await client.load(LoadRequest(path=str(model), backend="mmap", n_ctx=256))
        request = GenerateRequest(id="1", prompt="hello", sampling=Sampling(max_tokens=4, temperature=0))
        events = [event async for event in client.generate(request)]
        assert isinstance(events[-1], Finished)
    finally:
        await client.stop()


def test_eight_kills_and_dropped_connections(tmp_path: Path) -> None:
    # Each kill may cost a block and what waits in the sockets, of each connection: 24 MiB leave room for 8 of those.
    run_with_kills(tmp_path, 24 * MIB, kills=8, rate=25e6, seed=3, allowed=1.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
def test_two_gib_thirty_kills(tmp_path: Path, seed: int) -> None:
    run_with_kills(tmp_path, 2048 * MIB, kills=30, rate=120e6, seed=seed, allowed=1.05)
