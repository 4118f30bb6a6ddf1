"""Reads of whole layers fail or come short in random places: each answer is right or refused, and the next is right."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.gguf.file import read_gguf
from backends.interface import EngineError, LoadRequest
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch
from backends.llamacpp.model import LlamaModel
from backends.planner.plan import working_set
from backends.streaming import staging
from backends.streaming.backend import StreamBackend
from tests.gguf_factory import make_gguf

N = 160


def logits(model: LlamaModel, seed: int) -> bytes:
    """Of the last token of a long prompt and of two more."""
    model.forget()
    ids = [int(t) for t in np.random.default_rng(seed).integers(0, 500, N + 2)]
    out = b""
    for start, end in ((0, N), (N, N + 1), (N + 1, N + 2)):
        batch = Batch()
        for i in range(start, end):
            batch.add(ids[i], i, 0, i == end - 1)
        assert model.context.decode(batch).status == "ok"
        out += np.ctypeslib.as_array(model.context.logits(end - start - 1), (model.context.n_vocab,)).tobytes()
    return out


class _Os:
    """`os` whose preadv fails at the n-th read from now."""

    def __init__(self) -> None:
        self.left, self.fault, self.met = -1, "error", 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def preadv(self, fd: int, views: Any, offset: int) -> int:
        self.left -= 1
        if self.left == 0:
            self.met += 1
            if self.fault == "error":
                raise OSError(errno.EIO, "Input/output error")
            return 0
        return os.preadv(fd, views, offset)


def test_staged_layers_whose_reads_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_layer=4, n_expert=32, n_expert_used=4, n_embd=128, n_ff_exp=128)
    gguf = read_gguf(path)
    common: dict[str, Any] = {"path": str(path), "n_ctx": 512, "n_threads": 1, "n_gpu_layers": 0, "n_ubatch": 256}
    reference = MmapBackend().load(LoadRequest(**common), lambda _: True)
    expected = [logits(reference, seed) for seed in range(4)]
    reference.close()
    disk = _Os()
    monkeypatch.setattr(staging, "os", disk)
    ram = max(working_set(gguf, None), gguf.bytes.experts * 3 // 10)
    model = StreamBackend().load(LoadRequest(**common, store="pool", ram_bytes=ram), lambda _: True)
    rng, refused = random.Random(1), 0
    assert logits(model, 0) == expected[0]
    for _ in range(40):
        disk.left, disk.fault = rng.randrange(1, 40), rng.choice(("error", "short"))
        seed = rng.randrange(4)
        try:
            assert logits(model, seed) == expected[seed], "silently wrong"
        except EngineError as e:
            if e.code != "io_error":
                raise
            refused += 1
        disk.left = -1
        assert logits(model, seed) == expected[seed]
    model.close()
    assert disk.met > 10
    assert refused > 5
