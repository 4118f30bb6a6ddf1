"""Reuse distances against an LRU cache that is really run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pytest

from backends.streaming.reuse_distance import MOST_NOTED, N_BINS, ReuseMeter, hit_rate_at


def trace(n_rows: int, n_experts: int, used: int, tokens: int, skew: float, seed: int = 3) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, n_experts + 1) ** skew
    orders = [rng.permutation(n_experts) for _ in range(n_rows)]
    out = []
    for _ in range(tokens):
        graph = []
        for row in range(n_rows):
            keys = rng.exponential(size=n_experts) / weights
            graph.append(orders[row][np.argsort(keys)[:used]])
        out.append(graph)
    return out


def lru_hit_rate(graphs: list[list[np.ndarray]], sizes: list[int], budget: int, *, warm_up: int = 0) -> float:
    cache: OrderedDict[tuple[int, int], int] = OrderedDict()
    held = hits = uses = 0
    for token, graph in enumerate(graphs):
        for row, experts in enumerate(graph):
            for expert in experts:
                key = (row, int(expert))
                uses += token >= warm_up
                if key in cache:
                    hits += token >= warm_up
                    cache.move_to_end(key)
                    continue
                cache[key] = sizes[row]
                held += sizes[row]
                while held > budget:
                    held -= cache.popitem(last=False)[1]
    return hits / uses


def note(
    meter: ReuseMeter, graph: Sequence[Sequence[int] | np.ndarray], n_experts: int, *, decode: bool = True
) -> None:
    meter.note([np.asarray(ids, np.int64) + row * n_experts for row, ids in enumerate(graph)], decode=decode)


def feed(meter: ReuseMeter, graphs: list[list[np.ndarray]], n_experts: int, *, warm_up: int = 0) -> ReuseMeter:
    for token, graph in enumerate(graphs):
        note(meter, graph, n_experts, decode=token >= warm_up)
    return meter


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_exact_where_every_expert_is_followed(skew: float) -> None:
    sizes = [40_000, 56_000, 40_000, 90_000]
    everything = [np.arange(16)] * 4  # so that no first use is counted
    graphs = [everything, *trace(4, 16, 3, 60, skew)]  # fewer tokens than the fade, so that counts are whole
    warm_up = 1
    meter = feed(ReuseMeter(4, 16, sizes), graphs, 16, warm_up=warm_up)
    assert meter.rate == 1.0
    assert sum(meter.histogram()) == pytest.approx(60 * 4 * 3, abs=5)  # each bin is rounded; a graph has 12
    for budget in (2**19, 2**20, 2**21):  # bin edges: no interpolation
        expected = lru_hit_rate(graphs, sizes, budget, warm_up=warm_up)
        assert meter.hit_rate_at(budget) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("skew", [0.3, 0.8, 1.2])
def test_sampled_curve_stays_near_the_real_cache(skew: float) -> None:
    sizes = [1_500_000] * 24
    graphs = trace(24, 128, 8, 300, skew)
    meter = feed(ReuseMeter(24, 128, sizes, max_sampled=768), graphs, 128)
    assert meter.rate < 0.3
    for budget in (2**29, 2**30, 3 * 2**30):
        assert meter.hit_rate_at(budget) == pytest.approx(lru_hit_rate(graphs, sizes, budget, warm_up=150), abs=0.05)


@pytest.mark.parametrize("skew", [0.0, 0.8])
def test_a_short_session_foretells_a_long_one(skew: float) -> None:
    """After 80 tokens a third of the uses are first ones, which say little: the curve must be that of 600 tokens."""
    sizes = [1_500_000] * 24
    graphs = trace(24, 128, 8, 600, skew)
    meter = feed(ReuseMeter(24, 128, sizes), graphs[:80], 128)
    for share in (0.25, 0.5, 0.75):
        budget = int(share * 128 * sum(sizes))
        missed = 1 - lru_hit_rate(graphs, sizes, budget, warm_up=300)
        assert 1 - (meter.hit_rate_at(budget) or 0.0) == pytest.approx(missed, rel=0.15)


def test_first_uses_alone_say_nothing_of_any_budget() -> None:
    meter = ReuseMeter(1, 8, [100])
    for expert in range(8):
        note(meter, [[expert]], 8)
    assert meter.histogram()[N_BINS] == 8
    assert meter.hit_rate_at(1e12) == 0.0


def test_prefill_moves_the_clock_but_is_not_counted() -> None:
    meter = ReuseMeter(2, 8, [100, 100])
    note(meter, [range(8), range(8)], 8, decode=False)
    assert meter.hit_rate_at(1e9) is None
    note(meter, [[1], [1]], 8)
    assert sum(meter.histogram()) == 2
    assert meter.hit_rate_at(1e9) == 1.0


def test_next_token_reuse() -> None:
    meter = ReuseMeter(2, 8, [100, 100])
    assert meter.next_token_reuse() is None
    for experts in ([0, 1], [0, 2], [0, 3]):
        note(meter, [experts, [7]], 8)
    # row 0: the first token repeats nothing, the next two repeat one of two; row 1: two of three
    assert meter.next_token_reuse() == pytest.approx((2 + 2) / (6 + 3))
    assert meter.next_token_reuse_by_row() == pytest.approx([2 / 6, 2 / 3])


def test_a_histogram_of_the_wrong_length_is_not_believed() -> None:
    assert hit_rate_at([1, 2, 3], 1e9) is None
    assert hit_rate_at([0] * (N_BINS + 1), 1e9) is None


def test_distances_keep_to_their_share_of_the_time() -> None:
    """A clock that runs while graphs are counted: a share of the time, and a curve that stays that of the cache."""
    sizes = [1_500_000] * 12
    graphs = trace(12, 64, 6, 4000, 0.8)
    now = [0.0]

    def clock() -> float:
        now[0] += 0.0005  # each look at the clock: half a millisecond of counting
        return now[0]

    meter = ReuseMeter(12, 64, sizes, spend=0.02, clock=clock)
    counted = 0
    count = meter._count

    def noted(followed: np.ndarray, weight: float) -> None:
        nonlocal counted
        counted += 1
        count(followed, weight)

    meter._count = noted  # type: ignore[method-assign]
    for number, graph in enumerate(graphs):
        now[0] += 0.003
        note(meter, graph, 64)
        if number % 167 == 0:  # half a second
            meter.digest()
    meter.digest()
    # 12 s at 2 %, half a millisecond each: 480, and those of the beginning
    assert 200 < counted < 800
    for share in (0.25, 0.5):
        budget = int(share * 64 * sum(sizes))
        real = lru_hit_rate(graphs, sizes, budget, warm_up=2000)
        assert meter.hit_rate_at(budget) == pytest.approx(real, abs=0.04)


def test_nobody_asks_and_the_list_stays_short() -> None:
    """Without a monitor that asks twice a second, whoever notes accounts for it now and then."""
    meter, exact = ReuseMeter(4, 64, [100] * 4, spend=0.002), ReuseMeter(4, 64, [100] * 4)
    for graph in trace(4, 64, 8, 4 * MOST_NOTED // 32, 0.8):
        note(meter, graph, 64)
        note(exact, graph, 64)
        assert sum(len(each) for uses, _ in meter._noted for each in uses) <= MOST_NOTED
    for budget in (4_000, 8_000):
        assert meter.hit_rate_at(budget) == pytest.approx(exact.hit_rate_at(budget), abs=0.05)


def test_asking_while_another_thread_notes_loses_nothing() -> None:
    meter, graphs = ReuseMeter(4, 16, [100] * 4), trace(4, 16, 3, 60, 0.5)
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            meter.histogram()

    asker = threading.Thread(target=ask)
    asker.start()
    feed(meter, graphs, 16)
    done.set()
    asker.join()
    assert sum(meter.histogram()) == pytest.approx(60 * 4 * 3, abs=5)  # each bin is rounded; a graph has 12


def test_graphs_together_are_counted_as_one_by_one() -> None:
    graphs = trace(4, 16, 3, 200, 0.8)
    together, single = feed(ReuseMeter(4, 16, [100] * 4), graphs, 16), ReuseMeter(4, 16, [100] * 4)
    for graph in graphs:
        note(single, graph, 16)
        single.digest()
    assert together.histogram() == single.histogram()
    assert together.next_token_reuse() == single.next_token_reuse()
