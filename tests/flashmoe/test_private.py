"""Chats, logs, caches and sockets are their owner's alone, from the moment they are made and whatever the umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backends.engine.client import EngineClient
from backends.interface import ChatMessage, GenerateRequest, LoadRequest, Sampling
from flashmoe import failures, paths
from flashmoe.config.loading import kept_prompts
from flashmoe.config.schema import KvCacheConfig
from flashmoe.history import History
from flashmoe.hub.library import Library
from flashmoe.plans import measurements
from tests.gguf_factory import make_gguf


@pytest.fixture(params=[0o000, 0o022], ids=oct)
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    before = os.umask(request.param)
    yield tmp_path / "home"
    os.umask(before)


def readable_by_others(home: Path, *, but: Path | None = None) -> list[str]:
    found = []
    for path in [home, *home.rglob("*")]:
        if but is not None and (path == but or but in path.parents or path in but.parents):
            continue
        if stat.S_IMODE(path.lstat().st_mode) & 0o077:
            found.append(f"{stat.filemode(path.lstat().st_mode)} {path.relative_to(home)}")
    return found


def test_the_history_is_private_in_a_folder_that_others_may_read(home: Path) -> None:
    """As where the models folder was made first."""
    models = paths.models_dir()
    models.mkdir(parents=True)
    paths.data_dir().chmod(0o755)
    with History() as history:
        chat = history.create_chat(title="secret")
        history.add_message(chat.id, "user", "secret")
        files = sorted(path.name for path in paths.data_dir().glob("chats.db*"))
        assert files == ["chats.db", "chats.db-shm", "chats.db-wal"]
        assert readable_by_others(home, but=models) == []


def test_an_older_history_that_others_may_read_becomes_private(home: Path) -> None:
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        history.create_chat(title="secret")
        for file in paths.data_dir().glob("chats.db*"):
            file.chmod(0o644)
        with History():
            assert readable_by_others(home) == []


async def test_all_that_the_program_keeps_is_private(home: Path) -> None:
    paths.ensure_dir(paths.data_dir())
    models = paths.models_dir()
    model = make_gguf(paths.ensure_dir(models) / "m.gguf")
    Library().scan()
    failures.keep(ValueError("x"))
    measurements.machine()
    client = EngineClient(log_path=paths.log_dir() / "engine.log")
    try:
        request = LoadRequest(path=str(model), backend="mmap", n_ctx=256, n_threads=1)
        await client.load(msgspec.structs.replace(request, **kept_prompts(KvCacheConfig(min_tokens=1))))
        messages = (ChatMessage("user", "hello " * 20),)
        ask = GenerateRequest(id="1", messages=messages, session="s", sampling=Sampling(max_tokens=4))
        async for _ in client.generate(ask):
            pass
    finally:
        await client.stop()
    kept = [path.relative_to(paths.prompts_dir()).parts[0] for path in paths.prompts_dir().rglob("*")]
    assert "chats" in kept
    assert len(set(kept)) >= 3  # the model's folder, its answers, and which chats have what
    assert (paths.log_dir() / "engine.log").exists()
    assert (paths.cache_dir() / "library.json").exists()
    assert readable_by_others(home, but=models) == []
