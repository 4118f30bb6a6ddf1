"""How far ahead one token's guesses look: as far as they are right and as the disk has use for. The logits are mmap's
whatever they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.streaming import guess_record
from backends.streaming.guess_record import Distances
from backends.streaming.pool import PoolStore
from backends.streaming.prefetch import Prefetcher
from tests.backends.streaming.test_decode_path import decode, load
from tests.gguf_factory import make_gguf

USED = 10
TOKENS = [3, 9, 4, 9, 7, 1, 30, 9, 3, 5, 12, 8]


def known(shares: Sequence[float], reads: float, rows: int = 60) -> Distances:
    """After guesses that were right so often at each distance, where layers read so many experts."""
    distances = Distances(USED, rows)
    for _ in range(100):
        for record, share in zip(distances.records, shares, strict=True):
            record.score([share] * USED)
    distances.begin(reads)
    return distances


def test_at_first_every_distance_is_tried() -> None:
    distances = Distances(USED, 60)
    distances.begin(2.5)
    assert distances.of(7) == distances.of(8) == (1, 2, 3, 4, 5, 6)


def test_guesses_look_as_far_as_the_disk_has_use_for() -> None:
    right = [0.98] * 6
    assert known(right, reads=2.6).of(8) == (3, 4, 5, 6)  # every fourth row guesses for four
    assert known(right, reads=2.6).of(9) == known(right, reads=2.6).of(10) == ()
    assert known(right, reads=2.6).of(0) == (1, 2, 3, 4, 5, 6)
    assert known([*right[:5], 0.5], reads=2.6).of(8) == (4, 5)  # or every second for two
    assert known([*right[:5], 0.5], reads=2.6).of(0) == (1, 2, 3, 4, 5)
    assert known(right, reads=0.1).of(8) == (3, 4, 5, 6)
    assert known(right, reads=3.4).of(8) == (2, 3, 4, 5)
    assert known(right, reads=5.0).of(8) == (2, 3)  # four would leave the nearest no more than one layer
    assert known(right, reads=9.5).of(8) == known(right, reads=9.5).of(9) == (1,)  # one layer keeps it busy


def test_guesses_look_no_farther_than_they_are_right() -> None:
    assert known([0.9, 0.7, 0.6, 0.5, 0.4, 0.3], reads=2.6).of(8) == (1,)
    assert known([0.98, 0.97, 0.96, 0.5, 0.4, 0.3], reads=2.6).of(8) == (2, 3)
    corrected = known([0.95, 0.9, 0.88, 0.5, 0.4, 0.3], reads=2.6)
    assert corrected.of(8) == (1, 2, 3)
    assert corrected.of(9) == (1,)


@pytest.mark.parametrize("reads", [0.1, 2.6, 3.4, 5.0, 9.5])
def test_every_row_is_guessed_by_one_before_it(reads: float) -> None:
    distances = known([0.98] * 6, reads)
    guessed = {row + distance for row in range(60) for distance in distances.of(row)}
    assert guessed >= set(range(1, 60))


def test_one_row_of_each_token_tries_every_distance() -> None:
    distances = known([0.98] * 6, reads=2.6)
    tried = set()
    for _ in range(60):
        distances.begin(2.6)
        tried |= {row for row in range(1, 60) if distances.of(row) == (1, 2, 3, 4, 5, 6)}
    assert tried == set(range(1, 60))


def test_a_model_of_two_layers_guesses_the_next() -> None:
    assert known([0.98], reads=1, rows=2).of(0) == (1,)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("far") / "m.gguf", n_layer=8, n_expert=32, n_expert_used=3)


@pytest.mark.parametrize("store", ["pool", "pagecache"])
@pytest.mark.parametrize("numpy_guesses", [False, True])
def test_far_guesses_are_read_ahead_and_the_logits_are_mmaps(
    path: Path, store: str, numpy_guesses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guess_record, "FLOORS", (0.0, 0.0))  # right or wrong
    monkeypatch.setattr(guess_record, "_USEFUL", 0.0)
    monkeypatch.setattr(Distances, "begin", _busy_disk(Distances.begin))
    ahead: list[int] = []
    read = Prefetcher.read

    def noting(self: Prefetcher, row: int, experts: list[int], in_use: Any, *, now: int, spare: bool = False) -> None:
        ahead.append(row - now)
        read(self, row, experts, in_use, now=now, spare=spare)

    monkeypatch.setattr(Prefetcher, "read", noting)
    model, plain = load(path, store=store), load(path, "mmap")
    try:
        if numpy_guesses:
            model._parts.hook._predictor._kernels.close()
            model._parts.hook._predictor._kernels = None
        assert decode(model, TOKENS) == decode(plain, TOKENS)
    finally:
        model.close()
        plain.close()
    assert set(ahead) == {1, 2, 3, 4, 5, 6}


def _busy_disk(begin: Any) -> Any:
    return lambda self, reads: begin(self, 0.5)


def test_a_layer_whose_experts_have_come_is_not_stopped_at_before_down(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = PoolStore.wait
    monkeypatch.setattr(
        PoolStore, "wait", lambda self, row, experts, down: [wait(self, row, experts, d) for d in (False, True)]
    )
    model, plain = load(path), load(path, "mmap")
    hook, stops = model._parts.hook, []
    monkeypatch.setattr(hook._pager, "finish", lambda row: stops.append(row) if hook._pager.unfinished(row) else None)
    try:
        assert decode(model, TOKENS) == decode(plain, TOKENS)
        assert model.pager.ledger.misses
        assert not stops
    finally:
        model.close()
        plain.close()
