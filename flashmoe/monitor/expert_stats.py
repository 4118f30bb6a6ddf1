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
        residency = _array(source.residency, "u1", rows, columns)
        self.residency = None if residency is None else residency.astype(np.float32) / 255
        self.hits = _vector(source.hits, "<u4", rows)
        self.misses = _vector(source.misses, "<u4", rows)
        self.next_token_reuse = _vector(source.next_token_reuse, "<f4", rows)

    @cached_property
    def relative_heat(self) -> npt.NDArray[np.float32] | None:
        """Heat (else uses) over the mean of its row: 1 is what every expert had under even routing."""
        heat = self.heat if self.heat is not None else self.uses
        if heat is None:
            return None
        heat = heat.astype(np.float32)
        heat[~np.isfinite(heat)] = 0
        mean = heat.mean(axis=1, keepdims=True)
        relative: npt.NDArray[np.float32] = np.divide(heat, mean, out=np.zeros_like(heat), where=mean > 0)
        return relative

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

    def hit_rate(self, row: int) -> float | None:
        """Share of a row's chosen experts that were resident."""
        if self.hits is None or self.misses is None:
            return None
        total = int(self.hits[row]) + int(self.misses[row])
        return int(self.hits[row]) / total if total else None

    def resident_share(self, row: int | None = None) -> float | None:
        """Resident share of a row's bytes, or of all."""
        if self.residency is None:
            return None
        if row is not None:
            return float(self.residency[row].mean())
        weights = np.asarray(self.expert_bytes, dtype=np.float64)
        if weights.sum() <= 0:
            return float(self.residency.mean())
        return float(np.average(self.residency.mean(axis=1), weights=weights))

    def resident_bytes(self) -> int | None:
        """Bytes of experts in RAM."""
        if self.residency is None:
            return None
        return int(self.residency.sum(axis=1) @ np.asarray(self.expert_bytes, dtype=np.float64))

    def experts_for(self, share: float, row: int | None = None) -> float | None:
        """How many experts make `share` of a row's uses; over all rows the mean. None before any use."""
        if self.uses is None:
            return None
        rows = self.uses if row is None else self.uses[row : row + 1]
        ordered = -np.sort(-rows.astype(np.float64), axis=1)
        totals = ordered.sum(axis=1)
        seen = totals > 0
        if not seen.any():
            return None
        reached = np.cumsum(ordered[seen], axis=1) >= share * totals[seen, None] - 1e-9
        return float((reached.argmax(axis=1) + 1).mean())

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
        heat, residency = arrays.relative_heat, arrays.residency
        if by_use:
            heat = None if heat is None else np.take_along_axis(heat, arrays.order, axis=1)
            residency = None if residency is None else np.take_along_axis(residency, arrays.order, axis=1)
        self.level: npt.NDArray[np.int64] | None = None
        self.resident = None if residency is None else self._mean(residency) >= 0.5
        if heat is not None:
            shown = self._mean(heat)
            if residency is not None and self.resident is not None:
                # Of those alone that are where the cell says: one hot expert in RAM must not make its cold neighbours
                # on the SSD look hot, which would be what costs.
                here, there = self._mean(residency), self._mean(1 - residency)
                ram = np.divide(self._mean(heat * residency), here, out=np.zeros_like(shown), where=here > 0)
                ssd = np.divide(self._mean(heat * (1 - residency)), there, out=np.zeros_like(shown), where=there > 0)
                shown = np.where(self.resident, ram, ssd)
            self.level = np.searchsorted(np.asarray(HEAT_EDGES), shown, side="left")

    def _mean(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Means over cells; the last row and column may stand for fewer."""
        pad = ((0, self.rows * self.per_row - values.shape[0]), (0, self.columns * self.per_column - values.shape[1]))
        padded = np.pad(values.astype(np.float64), pad, constant_values=np.nan)
        blocks = padded.reshape(self.rows, self.per_row, self.columns, self.per_column)
        means: npt.NDArray[np.float64] = np.nanmean(blocks, axis=(1, 3))
        return means

    @property
    def scale(self) -> str:
        """What one cell stands for, in words."""
        if self.per_row == self.per_column == 1:
            return "1 cell = 1 expert"
        experts = f"{self.per_column} experts" if self.per_column > 1 else "1 expert"
        layers = f" × {self.per_row} layers" if self.per_row > 1 else ""
        return f"1 cell = {experts}{layers}"


def _array(data: bytes | None, kind: str, rows: int, columns: int) -> npt.NDArray[Any] | None:
    if data is None:
        return None
    if len(data) != rows * columns * np.dtype(kind).itemsize:
        raise ValueError(f"an expert map's array has {len(data)} bytes where {rows} x {columns} were said")
    return np.frombuffer(data, dtype=kind).reshape(rows, columns)


def _vector(data: bytes | None, kind: str, rows: int) -> npt.NDArray[Any] | None:
    values = _array(data, kind, rows, 1)
    return None if values is None else values[:, 0]
