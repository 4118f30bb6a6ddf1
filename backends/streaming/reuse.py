"""How far apart the uses of an expert lie, in bytes: the curve that says what a larger budget would bring.

The reuse distance of a use (Mattson's stack distance) is the bytes of the distinct experts that were touched since
the last use of the same expert, itself included. A least-recently-used budget of B bytes hits exactly the uses whose
distance is at most B, so one histogram of distances gives the hit rate at every budget at once.

The meter is fed by the router hook, so it must cost next to nothing: it follows a fixed random share of each layer's
experts (SHARDS: distances among the sampled experts, scaled up, are an unbiased estimate) and works once per decoded
graph in a few numpy operations. Every graph moves the clock; distances are taken of as many graphs as stay within a
share of the session's time (all of them on a model that takes tens of milliseconds a token, each standing for itself;
one in some tens on a tiny one, standing for those between). Models with up to `max_sampled` experts in all are followed
whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

BIN_BASE_LOG2 = 12
"""The first bin ends at 2**12 bytes."""
BINS_PER_OCTAVE = 4
N_BINS = 120
"""The last bin ends at 2**41.75 bytes, beyond any model."""

_EDGES: npt.NDArray[np.float64] = 2.0 ** (BIN_BASE_LOG2 + np.arange(N_BINS) / BINS_PER_OCTAVE)

SPEND = 0.004
"""The share of the session's time that distances may take."""
_ALWAYS_GRAPHS = 32
"""So many graphs are counted whatever they cost: a session that has just begun has a curve, too."""
_MOST_CREDIT_S = 0.01
_FADE_TOKENS = 64
_HALF_LIFE_TOKENS = 1024


class ReuseMeter:
    """Reuse distances over the stream of (row, experts) that the router chose.

    A row is a layer that has routed experts, counted from 0 in graph order. `observe` is called by one thread; the
    readers may be called by another (they copy).
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
        self._bytes = np.repeat(np.asarray(expert_bytes, dtype=np.float64) / self._rate, per_row)
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
        self._pending: list[npt.NDArray[np.int64]] = []
        self._pending_rows: list[int] = []
        self._spend, self._clock = spend, clock
        self._credit = 0.0
        self._credit_t: float | None = None
        self._counted_graphs = 0
        self._skipped = 0  # graphs since the last one that was counted
        self._skipped_uses = 0
        self._pending_row = -1
        self._pending_decode = True
        self._since_fade = 0

    @property
    def rate(self) -> float:
        """The share of the experts that is followed, 1 where the measurement is exact."""
        return self._rate

    def observe(self, row: int, experts: Sequence[int] | npt.NDArray[np.integer], *, decode: bool = True) -> None:
        """The distinct experts that row `row` uses in this graph; rows come in order, a lower one starts the next.

        Uses with `decode` False (prefill: one graph touches most experts) move the clock but aren't counted.
        """
        if row <= self._pending_row:
            self.flush()
        self._pending.append(experts)  # type: ignore[arg-type]
        self._pending_rows.append(row * self._n_experts)
        self._pending_row = row
        self._pending_decode = decode

    def flush(self) -> None:
        """Accounts for the graph seen so far; called by `observe` when the next one starts."""
        pending, self._pending, self._pending_row = self._pending, [], -1
        starts, self._pending_rows = self._pending_rows, []
        if not pending:
            return
        ids = np.concatenate(pending).astype(np.int64) + np.repeat(starts, [len(each) for each in pending])
        followed = self._flat_index[ids]
        if self._rate < 1.0:
            followed = followed[followed >= 0]
        n = len(followed)
        if self._pending_decode:
            self._skipped += 1
            self._skipped_uses += len(ids)
            if n and self._may_spend():
                started = self._clock()
                self._count(followed, float(self._skipped))
                self._all += self._skipped_uses
                self._skipped = self._skipped_uses = 0
                self._counted_graphs += 1
                self._credit -= self._clock() - started
            self._since_fade += 1
            if self._since_fade >= _FADE_TOKENS:
                self._since_fade = 0
                self._fade()
        self._last[followed] = np.arange(self._position, self._position + n)
        self._last_graph[followed] = self._graph
        self._position += n
        self._graph += 1

    def _may_spend(self) -> bool:
        if self._spend >= 1.0:
            return True
        now = self._clock()
        since = now - self._credit_t if self._credit_t is not None else 0.0
        self._credit_t = now
        self._credit = min(_MOST_CREDIT_S, self._credit + self._spend * since)  # an hour's pause is no licence
        return self._credit > 0 or self._counted_graphs < _ALWAYS_GRAPHS

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
        hist = self._hist.copy()
        # SHARDS-adj: hot experts that happen not to be followed (or to be) would bend the curve; their uses are near.
        hist[0] = max(0.0, hist[0] + self._all * self._rate - self._sampled)
        counts = kaplan_meier(hist, self._unseen)
        return tuple(round(x / self._rate) for x in counts)

    def hit_rate_at(self, budget_bytes: float) -> float | None:
        """The share of recent uses that a least-recently-used budget of this size hits; None before any use."""
        return hit_rate_at(self.histogram(), budget_bytes)

    def next_token_reuse(self) -> float | None:
        """The share of a token's experts that the token before it used too; None before any use."""
        counted = float(self._counted.sum())
        return float(self._repeated.sum()) / counted if counted else None

    def next_token_reuse_by_row(self) -> npt.NDArray[np.float32]:
        """The same per row, float32 of n_rows; NaN where a row has no use yet."""
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
    counts = np.asarray(histogram, dtype=np.float64)
    total = float(counts.sum())
    if total <= 0 or len(counts) != N_BINS + 1:
        return None
    if budget_bytes <= 0:
        return 0.0
    position = (np.log2(budget_bytes) - BIN_BASE_LOG2) * BINS_PER_OCTAVE
    whole = int(np.clip(np.floor(position) + 1, 0, N_BINS))
    part = float(np.clip(position - (whole - 1), 0.0, 1.0)) if whole < N_BINS else 0.0
    hits = float(counts[:whole].sum()) + (part * float(counts[whole]) if whole < N_BINS else 0.0)
    return hits / total
