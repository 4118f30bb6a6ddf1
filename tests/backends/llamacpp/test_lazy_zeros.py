"""Buffers that take memory only where something was written: KV caches of which most cells are never used."""

from __future__ import annotations

import ctypes as C
import random
from pathlib import Path

import numpy as np
import pytest

from backends.interface import EngineError, LoadRequest
from backends.llamacpp import lazy_zeros, sizing
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.model import LlamaModel
from backends.system import libc
from tests.gguf_factory import make_gguf
from tests.storms import check, make_requests, storm

PAGE = libc.PAGE


def resident(at: int, size: int) -> int:
    """Bytes of whole pages in a range that have memory behind them."""
    start, end = -(-at // PAGE) * PAGE, (at + size) // PAGE * PAGE
    return int((np.frombuffer(libc.mincore(start, end - start), np.uint8) & 1).sum()) * PAGE


def load(path: Path) -> LlamaModel:
    request = LoadRequest(path=str(path), n_threads=1, n_seq_max=200, n_ctx=200 * 28, n_ubatch=64, own_caches=True)
    return MmapBackend().load(request, lambda _: True)


def test_cells_that_no_token_needs_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[tuple[int, int]] = []
    fill = lazy_zeros.fill

    def noting(at: int, size: int, value: int) -> None:
        filled.append((at, size))
        fill(at, size, value)

    monkeypatch.setattr(lazy_zeros, "fill", noting)
    model = load(make_gguf(tmp_path / "m.gguf", n_layer=6))
    at, size = max(filled, key=lambda piece: piece[1])
    assert size == pytest.approx(model.context.kv_bytes, rel=0.001)
    assert resident(at, size) < 0.02 * size
    requests = make_requests(random.Random(7), 12)
    answers, _ = storm(model, requests, random.Random(7), cancels=0.0)
    for wanted in requests:
        check(model, wanted, answers[wanted.id])
    assert 0 < resident(at, size) < 0.2 * size
    model.close()


def test_a_cache_that_others_share_is_allocated_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    load(path).close()
    filled: list[int] = []
    monkeypatch.setattr(lazy_zeros, "fill", lambda at, size, value: filled.append(size))
    MmapBackend().load(LoadRequest(path=str(path), n_ctx=512, n_seq_max=2), lambda _: True).close()
    assert not filled


def test_without_it_all_cells_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_layer=6)
    assert lazy_zeros.available()
    load(path).close()
    monkeypatch.setattr(lazy_zeros, "_patch", lambda: None)  # another system, or another layout of ggml's structs
    model = load(path)
    requests = make_requests(random.Random(7), 4)
    answers, _ = storm(model, requests, random.Random(7), cancels=0.0)
    for wanted in requests:
        check(model, wanted, answers[wanted.id])
    cells, kv_bytes = model.info.n_ctx, model.context.kv_bytes
    model.close()
    # room for the tokens, not for the cells
    reserve = sizing.CONTEXT_RESERVE_BYTES + path.stat().st_size
    monkeypatch.setattr(sizing.procfs, "available_memory", lambda: reserve + kv_bytes // 4)
    assert cells == 200 * 256
    with pytest.raises(EngineError, match="KV cache, more than there is"):
        load(path)
    monkeypatch.undo()
    monkeypatch.setattr(sizing.procfs, "available_memory", lambda: reserve + kv_bytes // 4)
    load(path).close()


@pytest.mark.parametrize("locked", [False, True])
def test_filling(locked: bool) -> None:
    size = 8 * PAGE
    at = libc.mmap(None, size, libc.PROT_RW, libc.PRIVATE | libc.ANON)
    try:
        C.memset(at, 7, size)
        if locked:  # then the kernel refuses to take pages back
            assert C.CDLL(None).mlock(C.c_void_p(at), C.c_size_t(size)) == 0
        lazy_zeros.fill(at + 100, size - 300, 0)
        assert resident(at, size) == (size if locked else 2 * PAGE)
        assert C.string_at(at, size) == b"\x07" * 100 + b"\x00" * (size - 300) + b"\x07" * 200
        lazy_zeros.fill(at + 10, 20, 0)  # less than a page
        assert C.string_at(at, 40) == b"\x07" * 10 + b"\x00" * 20 + b"\x07" * 10
        lazy_zeros.fill(at, size, 3)
        assert C.string_at(at, size) == b"\x03" * size
    finally:
        libc.munmap(at, size)
