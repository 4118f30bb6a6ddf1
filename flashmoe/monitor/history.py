"""Histories of a session at bounded cost: minutes at full resolution, hours coarser, the day coarser still."""

from __future__ import annotations

import math
from collections import deque

SPANS: tuple[tuple[str, float | None], ...] = (
    ("30 s", 30.0),
    ("2 min", 120.0),
    ("10 min", 600.0),
    ("1 h", 3600.0),
    ("session", None),
)
"""What a key cycles through; None: everything since the start."""

_TIERS = ((0.5, 400), (4.0, 1000), (60.0, 2880))
"""(bucket seconds, buckets kept): 200 s, 66 minutes, 2 days."""
_BRIDGE_S = 2.0


class History:
    """One curve. Values land in buckets of fixed absolute time, so that a drawn curve shifts but never wobbles."""

    def __init__(self) -> None:
        # Each tier: [bucket index, sum, count]
        self._tiers: tuple[deque[list[float]], ...] = tuple(deque(maxlen=keep) for _, keep in _TIERS)
        self.first_t: float | None = None
        self.last_t = 0.0
        self.last: float | None = None
        self.peak = 0.0

    def push(self, t: float, value: float | None) -> None:
        """Adds a value at time t; None leaves a gap."""
        self.last = value
        if self.first_t is None:
            self.first_t = t
        self.last_t = t
        if value is None or not math.isfinite(value):
            return
        self.peak = max(self.peak, value)
        for (width, _), tier in zip(_TIERS, self._tiers, strict=True):
            bucket = math.floor(t / width)
            if tier and tier[-1][0] == bucket:
                tier[-1][1] += value
                tier[-1][2] += 1
            else:
                tier.append([bucket, value, 1])

    def view(self, span: float | None, columns: int) -> list[float | None]:
        """The mean of each of `columns` equal stretches of the last `span` seconds; None where nothing was seen.

        `span` None covers the session, in steps of doubling so that the picture holds still in between.
        """
        if columns <= 0 or self.first_t is None:
            return [None] * max(0, columns)
        if span is None:
            age = max(30.0, self.last_t - self.first_t)
            span = 30.0 * 2 ** math.ceil(math.log2(age / 30.0))
        width = span / columns
        tier_width, tier = _TIERS[-1][0], self._tiers[-1]
        for (candidate, keep), buckets in zip(_TIERS, self._tiers, strict=True):
            if candidate * keep >= span or self.last_t - self.first_t < candidate * (keep - 1):
                tier_width, tier = candidate, buckets
                break
        first_column = math.floor(self.last_t / width) - columns + 1
        oldest = math.floor((self.last_t - span) / tier_width)
        sums, counts = [0.0] * columns, [0.0] * columns
        for bucket, total, count in reversed(tier):
            if bucket < oldest:
                break
            place = int(bucket * tier_width // width) - first_column
            if tier_width > width:  # a bucket wider than a column fills every column that it covers
                end = math.ceil((bucket + 1) * tier_width / width) - first_column
                for column in range(max(0, place), min(columns, max(end, place + 1))):
                    sums[column] += total
                    counts[column] += count
            elif 0 <= place < columns:
                sums[place] += total
                counts[place] += count
        means = [s / c if c else None for s, c in zip(sums, counts, strict=True)]
        return _bridged(means, int(_BRIDGE_S / width))


def _bridged(values: list[float | None], most: int) -> list[float | None]:
    """Up to `most` empty columns after a known one take its value: columns narrower than the samples lie apart."""
    result, missing = list(values), 0
    for index in range(1, len(values)):
        missing = missing + 1 if values[index] is None else 0
        if 0 < missing <= most:
            result[index] = result[index - 1]
    return result
