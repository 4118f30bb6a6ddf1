"""Random requests, sessions, shared prefixes and cancels on a context too small for them: every answer is the one
that the request gets alone.

Up to llama.cpp's own rounding: where the greedy choice is a tie, either side of it is right (a batch of another width
and KV cells in another order are summed in another order).
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backends.interface import LoadRequest
from backends.llamacpp.backend import MmapBackend
from tests.gguf_factory import make_gguf
from tests.storms import check, make_requests, storm


@pytest.mark.parametrize("seed", [0, 1, 20])
@pytest.mark.parametrize("arch", ["qwen3moe", "qwen35moe", "gemma4"])
def test_a_storm_of_requests_changes_no_answer(arch: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = make_gguf(tmp_path / "m.gguf", arch=arch)
    request = LoadRequest(path=str(path), n_threads=1, n_seq_max=4, n_ctx=512, n_ubatch=64)
    model = MmapBackend().load(request, lambda _: True)
    requests = make_requests(rng, 40)
    answers, cancelled = storm(model, requests, rng)
    assert len(cancelled) < len(requests)
    book = model._scheduler.book
    assert book.used == len({c for s in book.sequences for c in s.cells})
    for sequence in book.sequences:
        assert model.context.length(sequence.seq_id) == len(sequence.tokens)
    for wanted in requests:
        check(model, wanted, answers[wanted.id])
    model.close()
