"""How far apart the uses of an expert lie, in bytes: the curve that says what a larger budget would bring.

The reuse distance of a use (Mattson's stack distance) is the bytes of the distinct experts that were touched since
the last use of the same expert, itself included. A least-recently-used budget of B bytes hits exactly the uses whose
distance is at most B, so one histogram of distances gives the hit rate at every budget at once.

The router hook only hands over which experts a graph used (`note`: one list grows); the work is done when somebody
asks for figures, on the asker's thread, for all graphs since the last time together. A fixed random share of each
layer's experts is followed (SHARDS: distances among the sampled experts, scaled up, are an unbiased estimate). Every
graph moves the clock; distances are taken of as many graphs as stay within a share of the session's time (all of them
on a model that takes tens of milliseconds a token, each standing for itself; one in some tens on a tiny one, standing
for those between). Models with up to `max_sampled` experts in all are followed whole.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

BIN_BASE_LOG2 = 12
"""The first bin ends at 2**12 bytes."""
BINS_PER_OCTAVE = 4
N_BINS = 120
"""The last bin ends at 2**41.75 bytes, beyond any model."""

_EDGES: npt.NDArray[np.float64] = np.array(
    [round(2.0 ** (BIN_BASE_LOG2 + i / BINS_PER_OCTAVE)) for i in range(N_BINS)], np.float64
)
"""Whole bytes, as distances are: sums of whole numbers are exact on every processor, in whatever order it adds them."""

SPEND = 0.001
"""The share of the session's time that distances may take."""
MOST_NOTED = 1 << 15
"""Uses that wait for somebody to ask; then whoever notes one more does the work, so that the list stays short."""
_ALWAYS_GRAPHS = 32
"""So many graphs are counted whatever they cost: a session that has just begun has a curve, too."""
_MOST_CREDIT_S = 0.01
_FADE_TOKENS = 64
_HALF_LIFE_TOKENS = 1024


class ReuseMeter:
    """Reuse distances over the stream of experts that the router chose.

    A row is a layer that has routed experts, counted from 0 in graph order. `note` is called by one thread; the readers
    may be called by others.
    """

    def __init__(
        self,
        n_rows: int,
        n_experts: int,
        expert_bytes: Sequence[int],
        *,
        max_sampled: int = 1024,
        seed: int = 0,
        spend: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`expert_bytes`: the bytes of one expert, per row. `spend`: the share of time that distances may take
        (`SPEND` beside an engine; 1 counts every graph)."""
        if n_rows < 1 or n_experts < 1 or len(expert_bytes) != n_rows:
            raise ValueError(f"need rows, experts and one size per row, got {n_rows}, {n_experts}, {len(expert_bytes)}")
        per_row = n_experts if n_rows * n_experts <= max_sampled else max(2, max_sampled // n_rows)
        per_row = min(per_row, n_experts)
        rng = np.random.default_rng(seed)
        self._n_experts = n_experts
        self._rate = per_row / n_experts
        # (row, expert) -> index among the sampled, -1 where it isn't followed
        self._index = np.full((n_rows, n_experts), -1, dtype=np.int32)
        for row in range(n_rows):
            chosen = np.sort(rng.permutation(n_experts)[:per_row])
            self._index[row, chosen] = np.arange(per_row, dtype=np.int32) + row * per_row
        self._flat_index = self._index.reshape(-1)
        self._bytes = np.repeat(np.rint(np.asarray(expert_bytes, dtype=np.float64) / self._rate), per_row)
        self._own = np.repeat(np.asarray(expert_bytes, dtype=np.float64), per_row)
        self._row_of = np.repeat(np.arange(n_rows), per_row)
        self._last = np.zeros(n_rows * per_row, dtype=np.int64)  # position of the last use, 0: never
        self._last_graph = np.zeros(n_rows * per_row, dtype=np.int64)
        self._position = 1
        self._graph = 1
        self._hist = np.zeros(N_BINS, dtype=np.float64)
        self._unseen = np.zeros(N_BINS, dtype=np.float64)  # first uses, by the bytes touched before them
        self._sampled = 0.0
        self._all = 0.0
        self._repeated = np.zeros(n_rows, dtype=np.float64)
        self._counted = np.zeros(n_rows, dtype=np.float64)
        self._noted: deque[tuple[list[npt.NDArray[np.int64]], bool]] = deque()
        self._n_noted = 0
        self._lock = threading.Lock()
        self._spend, self._clock = spend, clock
        self._credit = 0.0
        self._credit_t: float | None = None
        self._counted_graphs = 0
        self._skipped = 0  # graphs since the last one that was counted
        self._skipped_uses = 0
        self._cost_s = 0.0  # of one graph's distances, as they took lately
        self._since_fade = 0

    @property
    def rate(self) -> float:
        """The share of the experts that is followed, 1 where the measurement is exact."""
        return self._rate

    def note(self, uses: list[npt.NDArray[np.int64]], *, decode: bool = True) -> None:
        """A graph used these experts: row * n_experts + expert, in the order of its rows, each at most once.

        Uses with `decode` False (prefill: one graph touches most experts) move the clock but aren't counted. The arrays
        are kept until the next `digest`.
        """
        self._noted.append((uses, decode))
        self._n_noted += sum(map(len, uses))
        if self._n_noted >= MOST_NOTED and self._lock.acquire(blocking=False):
            try:
                self._digest()
            finally:
                self._lock.release()

    def digest(self) -> None:
        """Accounts for the graphs noted so far; every reader does it first."""
        with self._lock:
            self._digest()

    def _digest(self) -> None:
        noted = [self._noted.popleft() for _ in range(len(self._noted))]  # more may be appended meanwhile
        self._n_noted = 0
        decodes = sum(decode for _, decode in noted)
        step = self._step(decodes)
        after = step - 1  # graphs of decode before the first that is counted
        clock: list[npt.NDArray[np.int64]] = []  # uses of graphs that only move the clock
        graphs: list[int] = []
        for uses, decode in noted:
            graph = np.concatenate(uses) if len(uses) > 1 else uses[0]
            if decode:
                self._skipped += 1
                self._skipped_uses += len(graph)
                self._since_fade += 1
                if after <= 0:
                    self._move(clock, graphs)
                    clock, graphs, after = [], [], step
                    self._take(graph)
                after -= 1
                if self._since_fade >= _FADE_TOKENS:
                    self._since_fade = 0
                    self._fade()
            clock.append(graph)
            graphs.append(len(graph))
        self._move(clock, graphs)

    def _step(self, decodes: int) -> int:
        """One in how many of so many graphs is to be counted, to stay within the share of time."""
        if self._spend >= 1.0 or not decodes:
            return 1
        now = self._clock()
        since = now - self._credit_t if self._credit_t is not None else 0.0
        self._credit_t = now
        self._credit = min(_MOST_CREDIT_S, self._credit + self._spend * since)  # an hour's pause is no licence
        wanted = max(0, _ALWAYS_GRAPHS - self._counted_graphs)
        if self._cost_s > 0 and self._credit > 0:
            wanted = max(wanted, int(self._credit / self._cost_s))
        elif self._credit > 0:
            wanted = decodes
        return math.ceil(decodes / wanted) if wanted else decodes + 1

    def _take(self, graph: npt.NDArray[np.int64]) -> None:
        """Counts the distances of one graph's uses, and books what that cost."""
        followed = self._followed(graph)
        if not len(followed):
            return
        started = self._clock()
        self._count(followed, float(self._skipped))
        self._all += self._skipped_uses
        self._skipped = self._skipped_uses = 0
        self._counted_graphs += 1
        took = self._clock() - started
        self._credit -= took
        self._cost_s = took if self._cost_s <= 0 else 0.9 * self._cost_s + 0.1 * took

    def _followed(self, graph: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        followed: npt.NDArray[np.int32] = self._flat_index[graph]
        return followed[followed >= 0] if self._rate < 1.0 else followed

    def _move(self, uses: list[npt.NDArray[np.int64]], lengths: list[int]) -> None:
        """Moves the clock over some graphs. Where an expert comes more than once its last use stands: numpy assigns in
        order."""
        if not uses:
            return
        of = np.repeat(np.arange(self._graph, self._graph + len(uses)), lengths)
        followed = self._flat_index[np.concatenate(uses)]
        if self._rate < 1.0:
            there = followed >= 0
            followed, of = followed[there], of[there]
        self._last[followed] = np.arange(self._position, self._position + len(followed))
        self._last_graph[followed] = of
        self._position += len(followed)
        self._graph += len(uses)

    def _count(self, followed: npt.NDArray[np.int32], weight: float) -> None:
        """Takes the distances of a graph's uses; each counts `weight` times, for the graphs that weren't counted."""
        last = self._last[followed]
        # Experts touched since my last use, as the state was before this graph...
        since = (self._last[None, :] > last[:, None]) @ self._bytes
        # ...and those of earlier layers of this graph that had not been touched since.
        weights = self._bytes[followed]
        earlier = np.tril(last[None, :] < last[:, None], -1)
        distance = since + earlier @ weights + self._own[followed]
        bins = np.searchsorted(_EDGES, distance)
        np.minimum(bins, N_BINS - 1, out=bins)
        first = last == 0
        self._hist += weight * np.bincount(bins[~first], minlength=N_BINS)
        self._unseen += weight * np.bincount(bins[first], minlength=N_BINS)
        self._sampled += weight * len(followed)
        rows, n_rows = self._row_of[followed], len(self._counted)
        again = (self._last_graph[followed] == self._graph - 1) & (last > 0)
        self._counted += weight * np.bincount(rows, minlength=n_rows)
        self._repeated += weight * np.bincount(rows, weights=again, minlength=n_rows)

    def _fade(self) -> None:
        keep = 0.5 ** (_FADE_TOKENS / _HALF_LIFE_TOKENS)
        self._hist *= keep
        self._unseen *= keep
        self._repeated *= keep
        self._counted *= keep
        self._sampled *= keep
        self._all *= keep

    # ---- readers -------------------------------------------------------------------------------------------------

    def histogram(self) -> tuple[int, ...]:
        """Uses per bin of distance, `N_BINS` + 1 counts, as `Telemetry.reuse_bytes_hist` carries them.

        Bin i holds distances up to ``2**(12 + i/4)`` bytes that were over the bin before; the last entry counts uses
        that nothing is known of. Counts are estimates for all experts and fade by half every 1024 tokens.

        The first use of an expert is no distance, but it says that the distance is longer than the session so far:
        a censored observation. Kaplan and Meier's estimator counts it as such (1958); taken for misses at any budget,
        first uses made large budgets look a fifth worse than they turned out, early in a session.
        """
        with self._lock:
            self._digest()
            hist, unseen = self._hist.copy(), self._unseen.copy()
            missed = self._all * self._rate - self._sampled
        # SHARDS-adj: hot experts that happen not to be followed (or to be) would bend the curve; their uses are near.
        hist[0] = max(0.0, hist[0] + missed)
        counts = kaplan_meier(hist, unseen)
        return tuple(round(x / self._rate) for x in counts)

    def hit_rate_at(self, budget_bytes: float) -> float | None:
        """The share of recent uses that a least-recently-used budget of this size hits; None before any use."""
        return hit_rate_at(self.histogram(), budget_bytes)

    def next_token_reuse(self) -> float | None:
        """The share of a token's experts that the token before it used too; None before any use."""
        self.digest()
        counted = float(self._counted.sum())
        return float(self._repeated.sum()) / counted if counted else None

    def next_token_reuse_by_row(self) -> npt.NDArray[np.float32]:
        """The same per row, float32 of n_rows; NaN where a row has no use yet."""
        self.digest()
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self._repeated / self._counted).astype(np.float32)


def kaplan_meier(seen: npt.NDArray[np.float64], censored: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Counts per bin with the censored ones shared out over the bins beyond theirs, as those were seen to fill.

    Both are counts per bin; the result has one entry more, what is left beyond the last distance that was seen.
    """
    both = seen + censored
    total = both.sum()
    at_risk = total - np.concatenate(([0.0], np.cumsum(both)[:-1]))
    stay = 1.0 - np.divide(seen, at_risk, out=np.zeros_like(seen), where=at_risk > 1e-9)
    left = np.concatenate(([1.0], np.cumprod(stay.clip(0.0, 1.0))))
    counts: npt.NDArray[np.float64] = np.append(left[:-1] - left[1:], left[-1]) * total
    return counts


def hit_rate_at(histogram: Sequence[float], budget_bytes: float) -> float | None:
    """`ReuseMeter.hit_rate_at` from a histogram; linear within a bin. What nothing is known of counts as missed."""
    rates = hit_rates_at(histogram, np.array([budget_bytes], np.float64))
    return None if rates is None else float(rates[0])


def hit_rates_at(histogram: Sequence[float], budgets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """`hit_rate_at` for many budgets at once."""
    counts = np.asarray(histogram, dtype=np.float64)
    total = float(counts.sum())
    if total <= 0 or len(counts) != N_BINS + 1:
        return None
    # hits of a budget that ends with each bin, and before the first
    cumulated = np.concatenate(([0.0], np.cumsum(counts[:N_BINS])))
    position = (np.log2(np.maximum(budgets, 1.0)) - BIN_BASE_LOG2) * BINS_PER_OCTAVE
    whole = np.clip(np.floor(position) + 1, 0, N_BINS).astype(np.int64)
    part = np.clip(position - (whole - 1), 0.0, 1.0)
    following = np.where(whole < N_BINS, counts[np.minimum(whole, N_BINS - 1)], 0.0)
    rates: npt.NDArray[np.float64] = np.where(budgets > 0, (cumulated[whole] + part * following) / total, 0.0)
    return rates
