"""The verdict on real runs in a cgroup whose memory is too small for what the engine was told to hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backends.gguf.file import read_gguf
from backends.interface import LoadRequest
from tests.gguf_factory import make_gguf
from tests.monitor_runs import Watched, forget, memory_cap, request, watched

__all__ = ["watched"]

CAP = 220 << 20
"""Bytes that the engine may hold, page cache included; the model has 243 MiB of experts."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_gguf(
        tmp_path_factory.mktemp("memory") / "m.gguf", n_layer=6, n_expert=48, n_expert_used=2, n_embd=384, n_ff_exp=384
    )
    forget(path)  # pages that are cached already would be counted to whoever read them first
    return path


@pytest.fixture
def small_memory() -> Iterator[Path]:
    with memory_cap(CAP) as group:
        yield group


async def run(engine: Watched, group: Path, load: LoadRequest) -> None:
    """Loads inside the cgroup and answers shortly, again and again, until 24 samples (6 s) saw it decode, those of the
    time when memory filled left out."""
    assert engine.client.pid is not None
    (group / "cgroup.procs").write_text(str(engine.client.pid))
    await engine.load(load, 1e9)
    await engine.decode_for(24, tokens=12)
    engine.stood.clear()
    await engine.decode_for(24, tokens=12)


async def test_mmap_of_a_model_that_memory_cannot_hold_is_bound_by_page_faults(
    model: Path, small_memory: Path, watched: Watched
) -> None:
    await run(watched, small_memory, msgspec.structs.replace(request(model, None, "mmap"), n_ctx=256))
    assert watched.stood_longest("decode") == "faults"
    assert watched.feed.frame is not None
    assert watched.feed.frame.ram_limited
    assert watched.last["decode"].headline == "bound by page faults"


async def test_a_budget_beyond_the_limit_is_taken_back_and_the_advised_one_is_kept(
    model: Path, small_memory: Path, watched: Watched
) -> None:
    load = msgspec.structs.replace(request(model, 0.9), n_ctx=256, store="pagecache")
    await run(watched, small_memory, load)
    assert watched.stood_longest("decode") == "faults"
    verdict = watched.last["decode"]
    assert "a token: too little memory to keep what was just read" in verdict.detail
    assert verdict.change_bytes is not None
    assert load.ram_bytes is not None
    advised = load.ram_bytes + verdict.change_bytes
    assert 0.4 * read_gguf(model).bytes.experts < advised < CAP
    # The advice is done.
    watched.stood.clear()
    await watched.load(msgspec.structs.replace(load, ram_bytes=advised), 1e9)
    await watched.decode_for(24, tokens=12)
    assert watched.stood_longest("decode") != "faults"
