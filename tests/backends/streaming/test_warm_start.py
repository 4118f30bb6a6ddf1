"""What was hot is read again after a restart, while nobody asks: the first tokens hit as later ones do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.engine.client import EngineClient
from backends.gguf.file import read_gguf
from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling, Telemetry
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch
from backends.llamacpp.model import LlamaModel
from backends.planner.plan import working_set
from backends.streaming.backend import StreamBackend
from backends.streaming.pager import Pager
from backends.streaming.warmth import MOST_FILES, HeatFile
from tests.gguf_factory import make_gguf

STORES = ("pool", "pagecache")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm")
    return make_gguf(folder / "m.gguf", n_layer=4, n_expert=64, n_expert_used=2, n_embd=128, n_ff_exp=128)


def load(path: Path, store: str, heat: Path | str = "") -> LlamaModel:
    gguf = read_gguf(path)
    request = LoadRequest(
        path=str(path), n_ctx=1024, n_threads=1, store=store,  # type: ignore[arg-type]
        ram_bytes=max(working_set(gguf, None), gguf.bytes.experts * 4 // 10), heat_folder=str(heat),
    )  # fmt: skip
    return StreamBackend().load(request, lambda _: True)


def pager_of(model: LlamaModel) -> Pager:
    pager: Pager = model.pager  # type: ignore[attr-defined]
    return pager


def tokens(n: int, seed: int) -> list[int]:
    """Some tokens often, most rarely, as in a language."""
    ranks = np.random.default_rng(seed).zipf(1.5, n) % 500
    return [int(t) for t in np.random.default_rng(9).permutation(500)[ranks]]


def decode(model: LlamaModel, ids: list[int]) -> tuple[float, bytes]:
    """Decodes one by one in an empty context; the hit rate and the last logits."""
    model.forget()
    ledger = pager_of(model).ledger if hasattr(model, "pager") else None
    before = (ledger.hits, ledger.misses) if ledger else (0, 0)
    for i, token in enumerate(ids):
        batch = Batch()
        batch.add(token, i, 0, True)
        assert model.context.decode(batch).status == "ok"
    logits = np.ctypeslib.as_array(model.context.logits(0), (model.context.n_vocab,)).tobytes()
    if ledger is None:
        return 0.0, logits
    hits, misses = ledger.hits - before[0], ledger.misses - before[1]
    return hits / (hits + misses), logits


def rest(model: LlamaModel) -> None:
    deadline = time.monotonic() + 300
    while model.idle():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("store", STORES)
def test_the_first_tokens_after_a_restart_hit_as_later_ones_did(path: Path, tmp_path: Path, store: str) -> None:
    model = load(path, store, tmp_path)
    rest(model)
    decode(model, tokens(400, 1))
    steady, _ = decode(model, tokens(200, 2))
    model.close()
    cold = load(path, store)
    assert not cold.idle()
    without, expected = decode(cold, tokens(16, 3))
    cold.close()
    model = load(path, store, tmp_path)
    assert not pager_of(model).ledger.resident_bytes  # loading waits for none of it
    rest(model)
    held, budget = pager_of(model).ledger.resident_bytes, sum(b or 0 for b in pager_of(model).ledger.budget)
    assert 0 < held <= budget
    evictions = pager_of(model).ledger.evictions
    warm, logits = decode(model, tokens(16, 3))
    assert evictions == 0
    assert logits == expected
    assert warm >= 0.9 * steady
    assert without < 0.7 * steady
    model.close()


@pytest.mark.parametrize("store", STORES)
def test_a_request_in_the_middle_of_it_gets_the_right_answer(path: Path, tmp_path: Path, store: str) -> None:
    reference = MmapBackend().load(LoadRequest(path=str(path), n_ctx=1024, n_threads=1), lambda _: True)
    model = load(path, store, tmp_path)
    decode(model, tokens(300, 1))
    model.close()
    model = load(path, store, tmp_path)
    for i in range(8):
        model.idle()
        assert decode(model, tokens(6, i))[1] == decode(reference, tokens(6, i))[1]
    reference.close()
    model.close()


def test_what_belongs_to_another_model_or_is_damaged_is_dropped(tmp_path: Path) -> None:
    heat = np.random.default_rng(0).random((3, 5), np.float32)
    file = HeatFile(tmp_path, "a", (3, 5))
    assert file.read() is None
    file.write(heat)
    kept = file.read()
    assert kept is not None
    assert (kept == heat).all()
    assert HeatFile(tmp_path, "b", (3, 5)).read() is None
    assert HeatFile(tmp_path, "a", (5, 3)).read() is None
    (stored,) = tmp_path.glob("*.heat")
    assert stored.stat().st_mode & 0o777 == 0o600
    whole = stored.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b"", whole[:-9] + b"\xff" + whole[-8:], b"x" + whole[1:]):
        stored.write_bytes(damaged)
        assert file.read() is None
    file.write(np.full((3, 5), np.nan, np.float32))
    assert file.read() is None
    for i in range(MOST_FILES + 9):
        HeatFile(tmp_path, str(i), (3, 5)).write(heat)
    assert len(list(tmp_path.iterdir())) == MOST_FILES
    HeatFile(tmp_path / "x" / "y", "a", (3, 5)).write(heat)
    HeatFile(stored, "a", (3, 5)).write(heat)  # a folder that can't be one: nothing is kept, and nobody is told


def test_the_engine_warms_up_by_itself_and_answers_meanwhile(path: Path, tmp_path: Path) -> None:
    gguf = read_gguf(path)

    async def run() -> None:
        held: list[int] = []

        def told(event: object) -> None:
            if isinstance(event, Telemetry):
                held.append(event.resident_bytes or 0)

        client = EngineClient(log_path=tmp_path / "engine.log", on_event=told)
        await client.start()
        await client.watch(0.05)
        try:
            request = LoadRequest(
                path=str(path), backend="stream", store="pool", n_ctx=512, n_threads=1,
                ram_bytes=gguf.bytes.experts // 2, heat_folder=str(tmp_path / "heat"),
            )  # fmt: skip
            for start in range(2):
                await client.load(request, lambda _: None)
                deadline = time.monotonic() + 300
                while start and (not held or held[-1] < gguf.bytes.experts // 4):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
                asked = GenerateRequest(id=f"q{start}", prompt="hello", sampling=Sampling(temperature=0, max_tokens=60))
                last: Any = None
                async for event in client.generate(asked):
                    last = event
                assert isinstance(last, Finished)
                await client.unload()
                held.clear()
        finally:
            await client.stop()

    asyncio.run(run())
    assert len(list((tmp_path / "heat").glob("*.heat"))) == 1
