"""What another budget brings, from times of layers: against a machine whose cost of reads is known."""

from __future__ import annotations

import numpy as np
import pytest

from backends.streaming.layer_times import MOST, LayerTimes
from flashmoe.monitor.prediction import saved_s


def table(
    misses: float, cost: list[float], *, used: int = 8, layers: int = 4000, seed: int = 1
) -> list[tuple[float, float]]:
    """Layers whose reads are binomial, each taking `cost[reads]` seconds on average."""
    rng = np.random.default_rng(seed)
    reads = rng.binomial(used, misses, layers)
    seconds = np.array(cost)[reads] * rng.uniform(0.7, 1.3, layers)
    return [(float((reads == n).sum()), float(seconds[reads == n].sum())) for n in range(used + 1)]


LINEAR = [0.004 + 0.002 * n for n in range(9)]
HIDDEN = [0.004 + 0.003 * max(0, n - 3) for n in range(9)]
"""The first three reads of a layer vanish behind its computing."""
LATENCY = [0.004] + [0.008 + 0.001 * n for n in range(1, 9)]


@pytest.mark.parametrize("cost", [LINEAR, HIDDEN, LATENCY], ids=["linear", "hidden", "latency"])
@pytest.mark.parametrize(("now", "then"), [(0.5, 0.25), (0.5, 0.1), (0.3, 0.05), (0.8, 0.6)])
def test_fewer_misses_save_what_they_really_cost(cost: list[float], now: float, then: float) -> None:
    before, after = table(now, cost), table(then, cost, seed=2)
    saved = saved_s(before, then / now)
    assert saved is not None
    mean, less = saved
    assert mean == pytest.approx(sum(s for _, s in before) / 4000)
    # Far from what was seen, the line has to be drawn on: layers with next to no reads are rare at many misses.
    assert mean - less == pytest.approx(sum(s for _, s in after) / 4000, rel=0.1 if then > 0.4 * now else 0.2)


def test_more_misses_cost_more() -> None:
    saved = saved_s(table(0.2, LINEAR), 2.0)
    assert saved is not None
    mean, less = saved
    assert mean - less == pytest.approx(sum(s for _, s in table(0.4, LINEAR)) / 4000, rel=0.05)


def test_few_layers_say_nothing() -> None:
    assert saved_s([(10.0, 0.1), (5.0, 0.2)], 0.5) is None
    assert saved_s([], 0.5) is None


def test_pace_counts_layers_by_their_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("backends.streaming.layer_times.time.perf_counter", lambda: now[0])
    pace = LayerTimes()

    def graph(tokens: int, reads: list[int], seconds: float) -> None:
        pace.begin(tokens)
        for row, n in enumerate(reads):
            pace.chosen(row)
            pace.reads += n
            now[0] += seconds

    graph(40, [3, 3, 3], 1.0)  # a prompt
    graph(1, [3, 3, 3], 1.0)  # the first token's graph is of another width than the prompt's
    assert pace.table() is None
    graph(1, [0, 2, 5], 0.25)  # the last layer's time holds the output, too: left out
    graph(1, [2, 2, 2], 0.5)
    assert pace.table() == ((1.0, 0.25), (0.0, 0.0), (3.0, 1.25))
    graph(1, [1, 1, 1], 100.0)  # somebody stopped the process
    pace.begin(0)
    pace.chosen(0)
    assert pace.table() == ((1.0, 0.25), (0.0, 0.0), (3.0, 1.25))
    graph(1, [0], 1.0)
    graph(1, [MOST + 9, 0], 1.0)
    found = pace.table()
    assert found is not None
    assert len(found) == MOST + 1


def test_graphs_that_follow_at_once_are_timed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("backends.streaming.layer_times.time.perf_counter", lambda: now[0])
    pace = LayerTimes()
    for _ in range(101):  # 3 ms each; the first is of another width than the one before it
        pace.begin(1)
        for row in range(4):
            pace.chosen(row)
            now[0] += 0.00075
    table = pace.table()
    assert table is not None
    layers, seconds = table[0]
    assert 3 * 12 <= layers <= 3 * 16  # one in seven
    assert seconds / layers == pytest.approx(0.00075, rel=0.01)
