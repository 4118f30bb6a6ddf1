"""What another budget would bring: hits from this session's reuse distances, seconds from what its reads cost here."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import numpy.typing as npt

from backends.interface import ModelInfo
from flashmoe.monitor.frame import Frame, Work

Pace = Sequence[tuple[float, float]]
"""(layers, seconds they took together) by experts read meanwhile: `Telemetry.layer_pace`."""

_PRIOR_LAYERS = 20.0
"""A number of reads that was seen in fewer layers than this is timed mostly by the line through the others."""
_LEAST_LAYERS = 50.0
_MOST_READS = 128
"""Above, the sum over a binomial's terms costs more than it tells."""
_EXPLAINED = 0.8
_ALL = 0.9995
"""A hit rate from which nothing is left to predict."""

Rates = npt.NDArray[np.float64]


def curve_at(hist: tuple[int, ...], budget: float) -> float | None:
    """The share of uses that a least-recently-used budget of so many bytes hits, by the reuse distances."""
    from backends.streaming.reuse_distance import hit_rate_at

    return hit_rate_at(hist, budget)


def hit_curve(measured: float, hist: tuple[int, ...], held: float, budgets: npt.NDArray[np.float64]) -> Rates | None:
    """What each budget would hit where `held` bytes hit the share `measured`; None: no curve.

    Above `held` as `predict_hit_rate` says; below it the curve itself, bent to meet what is measured.
    """
    from backends.streaming.reuse_distance import hit_rates_at

    rates = hit_rates_at(hist, np.append(budgets, held))
    if rates is None:
        return None
    curve, here = rates[:-1], float(rates[-1])
    below = curve * (measured / here if here > 0 else 1.0)
    more = 1 - (1 - measured) * (1 - curve) / (1 - here) if here < _ALL else below
    # Rounded: how high a bar is must not hang on a float's last bits, which depend on the processor.
    bent: Rates = np.round(np.clip(np.where(budgets > held, more, below), 0.0, 1.0), 6)
    return bent


def predict_hit_rate(measured: float, hist: tuple[int, ...], held: float, change: float) -> float | None:
    """The hit rate with `change` more bytes than the `held` that gave `measured`; None: no curve.

    The curve is that of an LRU cache. The pager's order is a better one, so only the ratio of misses is taken from it.
    """
    now, then = curve_at(hist, held), curve_at(hist, held + change)
    if now is None or then is None or now >= _ALL:
        return None
    return 1 - (1 - measured) * (1 - then) / (1 - now)


def predict_total_s(frame: Frame, work: Work, info: ModelInfo | None, change: float) -> float | None:
    """Seconds that `work` would have taken with `change` more bytes for experts; None: no curve, or nothing missed."""
    held = frame.resident or frame.budget
    if frame.reuse_hist is None or not held or work.stall_s is None:
        return None
    hit = predict_hit_rate(0.0, frame.reuse_hist, held, change)  # of what is missed now, the share that would hit
    if hit is None:
        return None
    if frame.layer_pace and info is not None and info.n_layers:
        saved, whole = saved_s(frame.layer_pace, 1 - hit), saved_s(frame.layer_pace, 0.0)
        if saved is not None and whole is not None:
            mean, less = saved
            layers = work.tokens / max(1, frame.n_active) * info.n_layers
            # The layers can't have taken more than all: the output and the sampling are not theirs.
            layers = min(layers, 0.98 * work.total_s / mean)
            # Where reads explain less than was waited for them, their times don't belong to their layers (a disk that
            # is throttled, or stalls in bursts): then the waiting itself is the better measure.
            if layers * whole[1] >= _EXPLAINED * work.stall_s:
                return work.total_s - layers * less
    return work.total_s - work.stall_s * hit


def saved_s(pace: Pace, misses: float) -> tuple[float, float] | None:
    """(mean seconds of a layer, seconds less) where only the share `misses` of the reads is left (above 1: more);
    None before enough layers were timed."""
    total = sum(layers for layers, _ in pace)
    if total < _LEAST_LAYERS:
        return None
    times = _Times(pace)
    now = then = 0.0
    for reads, (layers, seconds) in enumerate(pace):
        now += seconds
        if misses >= 1:
            then += layers * max(0.0, seconds / layers + times.slope * (misses - 1) * reads) if layers else 0.0
            continue
        # Each read goes away on its own: what is left of so many is binomial. What is peculiar to these layers stays.
        own = seconds - layers * times.at(reads)
        then += own * misses**reads if reads else own
        if reads > _MOST_READS:  # so many that what is left lies close to its mean
            then += layers * times.at(round(reads * misses))
            continue
        for left in range(reads + 1):
            chance = comb(reads, left) * misses**left * (1 - misses) ** (reads - left)
            then += layers * chance * times.at(left)
    return now / total, (now - then) / total


class _Times:
    """Seconds of a layer by its reads: means where many were timed, a line through the neighbours where few were."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._numbered = [(reads, entry) for reads, entry in enumerate(pace) if entry[0] > 0]
        self.slope = self._line(None)[1]
        self._known: dict[int, float] = {}

    def _line(self, near: int | None) -> tuple[float, float]:
        """(seconds at `near`, slope) of the line through all numbers of reads, each next one from `near` weighing half
        as much as the one before (None: all alike, and the mean instead)."""
        weights = [
            layers * (1.0 if near is None else 0.5 ** abs(reads - near)) for reads, (layers, _) in self._numbered
        ]
        n = sum(weights)
        x = sum(w * reads for w, (reads, _) in zip(weights, self._numbered, strict=True)) / n
        means = [seconds / layers for _, (layers, seconds) in self._numbered]
        y = sum(w * mean for w, mean in zip(weights, means, strict=True)) / n
        pairs = [(w, reads - x, mean - y) for w, (reads, _), mean in zip(weights, self._numbered, means, strict=True)]
        xx = sum(w * dx * dx for w, dx, _ in pairs)
        slope = max(0.0, sum(w * dx * dy for w, dx, dy in pairs) / xx) if xx > 1e-9 else 0.0
        return y + slope * ((x if near is None else near) - x), slope

    def at(self, reads: int) -> float:
        """Seconds with so many reads."""
        if reads not in self._known:
            layers, seconds = self._pace[reads] if reads < len(self._pace) else (0.0, 0.0)
            line = max(0.0, self._line(reads)[0])
            self._known[reads] = (seconds + _PRIOR_LAYERS * line) / (layers + _PRIOR_LAYERS)
        return self._known[reads]
