"""The expert map as arrays: heat against the average, residency, skew, and downsampling that says its scale."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.interface import ExpertMap

HEAT_EDGES = (0.25, 1.0, 3.0)
"""Heat is shown in four levels: under a quarter of the average, up to it, up to three times it, over that."""
_HEAT_STEPS = 10_000
"""Heat is compared in whole parts of the average: the last bits of a float depend on the processor, and mustn't decide
on which side of an edge a cell lies, nor which of two experts is the hottest."""
_EDGE_STEPS = np.rint(np.asarray(HEAT_EDGES) * _HEAT_STEPS).astype(np.int64)

_MAX_CELLS = 1 << 20


class ExpertArrays:
    """Typed views of an `ExpertMap`. Rows are layers with routed experts, columns experts."""

    def __init__(self, source: ExpertMap) -> None:
        """Raises ValueError where the arrays don't fit the shape (a damaged recording)."""
        rows, columns = source.n_layers, source.n_experts
        if rows < 1 or columns < 1 or rows * columns > _MAX_CELLS:
            raise ValueError(f"an expert map of {rows} x {columns} makes no sense")
        self.rows, self.columns = rows, columns
        self.layers = (
            source.layers if len(source.layers) == rows else tuple(range(source.first_layer, source.first_layer + rows))
        )
        self.expert_bytes = source.expert_bytes if len(source.expert_bytes) == rows else (0,) * rows
        self.uses = _array(source.uses, "<u4", rows, columns)
        self.heat = _array(source.heat, "<f4", rows, columns)
        self.last_used = _array(source.last_used, "<u4", rows, columns)
        self.residency = _array(source.residency, "u1", rows, columns)
        """The share of each expert that is in RAM, in 255ths."""
        self.hits = _vector(source.hits, "<u4", rows)
        self.misses = _vector(source.misses, "<u4", rows)
        self.next_token_reuse = _vector(source.next_token_reuse, "<f4", rows)
        self._skews: dict[float, npt.NDArray[np.float64]] = {}

    @cached_property
    def relative_heat(self) -> npt.NDArray[np.float32] | None:
        """Heat (else uses) over the mean of its row: 1 is what every expert had under even routing."""
        heat = self.heat if self.heat is not None else self.uses
        if heat is None:
            return None
        heat = heat.astype(np.float32)
        heat[~(np.isfinite(heat) & (heat > 0))] = 0  # a recording may hold anything
        mean = heat.mean(axis=1, keepdims=True, dtype=np.float64)
        relative: npt.NDArray[np.float32] = np.divide(heat, mean, out=np.zeros_like(heat), where=mean > 0)
        return relative

    def hottest_miss(self) -> tuple[int, int] | None:
        """(row, expert) of the hottest expert that is mostly on SSD, the first of equals; None where there is none."""
        heat = self.relative_heat
        if heat is None or self.residency is None:
            return None
        missing = _steps(heat) * (self.residency < 128)
        row, expert = divmod(int(missing.argmax()), self.columns)
        return (row, expert) if missing[row, expert] > 0 else None

    @cached_property
    def order(self) -> npt.NDArray[np.intp]:
        """Experts of each row, most used first."""
        weight = self.uses if self.uses is not None else self.heat
        if weight is None:
            return np.tile(np.arange(self.columns), (self.rows, 1))
        return np.argsort(-weight.astype(np.float64), axis=1, kind="stable")

    @property
    def token(self) -> int | None:
        """The number of the newest token."""
        return int(self.last_used.max()) if self.last_used is not None else None

    @cached_property
    def hit_rates(self) -> npt.NDArray[np.float64] | None:
        """Per row the share of its chosen experts that were resident; NaN before any use."""
        if self.hits is None or self.misses is None:
            return None
        hits = self.hits.astype(np.float64)
        total = hits + self.misses
        rates: npt.NDArray[np.float64] = np.divide(hits, total, out=np.full(self.rows, np.nan), where=total > 0)
        return rates

    def hit_rate(self, row: int) -> float | None:
        """Share of a row's chosen experts that were resident."""
        rates = self.hit_rates
        return None if rates is None or np.isnan(rates[row]) else float(rates[row])

    @cached_property
    def resident_shares(self) -> npt.NDArray[np.float64] | None:
        """Per row the resident share of its bytes."""
        if self.residency is None:
            return None
        shares: npt.NDArray[np.float64] = self.residency.sum(axis=1, dtype=np.int64) / (255 * self.columns)
        return shares

    def resident_share(self, row: int | None = None) -> float | None:
        """Resident share of a row's bytes, or of all."""
        if self.residency is None:
            return None
        shares = self.resident_shares
        assert shares is not None
        if row is not None:
            return float(shares[row])
        weights = np.asarray(self.expert_bytes, dtype=np.float64)
        if weights.sum() <= 0:
            return float(shares.mean())
        return float(np.average(shares, weights=weights))

    def resident_bytes(self) -> int | None:
        """Bytes of experts in RAM."""
        if self.residency is None:
            return None
        sums: list[int] = self.residency.sum(axis=1, dtype=np.int64).tolist()
        return sum(have * size for have, size in zip(sums, self.expert_bytes, strict=True)) // 255

    @cached_property
    def _sorted_uses(self) -> npt.NDArray[np.float64] | None:
        """Per row the running share of its uses, the most used expert first; NaN before any use."""
        if self.uses is None:
            return None
        ordered = -np.sort(-self.uses.astype(np.float64), axis=1)
        totals = ordered.sum(axis=1, keepdims=True)
        shares: npt.NDArray[np.float64] = np.divide(
            np.cumsum(ordered, axis=1), totals, out=np.full_like(ordered, np.nan), where=totals > 0
        )
        return shares

    def skew(self, share: float) -> npt.NDArray[np.float64] | None:
        """Per row how many experts make `share` of its uses; NaN before any use."""
        if share not in self._skews:
            running = self._sorted_uses
            if running is None:
                return None
            needed = (running >= share - 1e-9).argmax(axis=1) + 1.0
            needed[np.isnan(running[:, 0])] = np.nan
            self._skews[share] = needed
        return self._skews[share]

    def experts_for(self, share: float, row: int | None = None) -> float | None:
        """How many experts make `share` of a row's uses; over all rows the mean. None before any use."""
        needed = self.skew(share)
        if needed is None:
            return None
        seen = needed[~np.isnan(needed)] if row is None else needed[row : row + 1]
        return float(seen.mean()) if len(seen) and not np.isnan(seen).any() else None

    def uses_share(self, row: int, expert: int) -> float | None:
        """An expert's share of its row's uses."""
        if self.uses is None:
            return None
        total = int(self.uses[row].sum())
        return int(self.uses[row, expert]) / total if total else None


class Cells:
    """The map at the size of a screen: each cell stands for `per_row` layers x `per_column` experts, and shows where
    most of them are and how hot those are."""

    def __init__(self, arrays: ExpertArrays, rows: int, columns: int, *, by_use: bool = False) -> None:
        """At most `rows` x `columns` cells; `by_use` puts each layer's most used experts first."""
        self.per_row = max(1, math.ceil(arrays.rows / max(1, rows)))
        self.per_column = max(1, math.ceil(arrays.columns / max(1, columns)))
        self.rows = math.ceil(arrays.rows / self.per_row)
        self.columns = math.ceil(arrays.columns / self.per_column)
        high = _sizes(arrays.rows, self.per_row)[:, None]
        self._members = high * _sizes(arrays.columns, self.per_column)[None, :]
        heat, residency = arrays.relative_heat, arrays.residency
        if by_use:
            heat = None if heat is None else np.take_along_axis(heat, arrays.order, axis=1)
            residency = None if residency is None else np.take_along_axis(residency, arrays.order, axis=1)
        self.level: npt.NDArray[np.int64] | None = None
        # Sums of whole numbers: exactly half is half, however they are added up.
        self.resident = None if residency is None else 2 * self._sum(residency) >= 255 * self._members
        if heat is not None:
            shown = self._sum(heat) / self._members
            if residency is not None and self.resident is not None:
                # Of those alone that are where the cell says: one hot expert in RAM must not make its cold neighbours
                # on the SSD look hot, which would be what costs.
                ram_part, ssd_part = residency.astype(np.float64), 255.0 - residency
                here, there = self._sum(ram_part), self._sum(ssd_part)
                ram = np.divide(self._sum(heat * ram_part), here, out=np.zeros_like(shown), where=here > 0)
                ssd = np.divide(self._sum(heat * ssd_part), there, out=np.zeros_like(shown), where=there > 0)
                shown = np.where(self.resident, ram, ssd)
            self.level = np.searchsorted(_EDGE_STEPS, _steps(shown), side="left")

    def _sum(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Sums over cells; the last row and column may stand for fewer."""
        sums: npt.NDArray[np.float64] = values.astype(np.float64)
        if self.per_row > 1:
            sums = np.add.reduceat(sums, np.arange(0, values.shape[0], self.per_row), axis=0)
        if self.per_column > 1:
            sums = np.add.reduceat(sums, np.arange(0, values.shape[1], self.per_column), axis=1)
        return sums

    @property
    def scale(self) -> str:
        """What one cell stands for, in words."""
        if self.per_row == self.per_column == 1:
            return "1 cell = 1 expert"
        experts = f"{self.per_column} experts" if self.per_column > 1 else "1 expert"
        layers = f" × {self.per_row} layers" if self.per_row > 1 else ""
        return f"1 cell = {experts}{layers}"


def _steps(heat: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Heat against the average as a whole number of its parts."""
    steps: npt.NDArray[np.int64] = np.rint(heat * np.float64(_HEAT_STEPS)).astype(np.int64)
    return steps


def _sizes(whole: int, part: int) -> npt.NDArray[np.float64]:
    """Sizes of the parts that `whole` is cut into; the last may be smaller."""
    starts = np.arange(0, whole, part)
    return np.minimum(part, whole - starts).astype(np.float64)


def _array(data: bytes | None, kind: str, rows: int, columns: int) -> npt.NDArray[Any] | None:
    if data is None:
        return None
    if len(data) != rows * columns * np.dtype(kind).itemsize:
        raise ValueError(f"an expert map's array has {len(data)} bytes where {rows} x {columns} were said")
    return np.frombuffer(data, dtype=kind).reshape(rows, columns)


def _vector(data: bytes | None, kind: str, rows: int) -> npt.NDArray[Any] | None:
    values = _array(data, kind, rows, 1)
    return None if values is None else values[:, 0]
