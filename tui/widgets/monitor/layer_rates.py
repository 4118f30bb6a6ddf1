"""What stands beside each row of the expert map: hit rate, how much is in RAM, skew, reuse, as far as there is room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from textual.content import Content

from flashmoe import figures
from flashmoe.monitor.expert_stats import ExpertArrays
from tui.widgets.monitor.lines import COMPUTE, MUTED, READ, RULE, line, meter

LEAST = 17
"""Columns of the hit rate and a bar of what is in RAM: kept free on a screen of 100 columns or more."""
ALL = 42
"""Columns of all of it."""
_BAR, _LONGEST_BAR = 8, 24

Values = npt.NDArray[np.float64]


class LayerRates:
    """The columns that fit into `width` cells right of the map. Rows that stand for several layers show their mean."""

    def __init__(self, arrays: ExpertArrays, width: int) -> None:
        hit, held, reuse = arrays.hit_rates, arrays.resident_shares, arrays.next_token_reuse
        half, most = arrays.skew(0.5), arrays.skew(0.9)
        # (title, columns with the blank before them, values, how a value is drawn; None: a bar)
        wanted: list[tuple[str, int, Any, Callable[[float | None], str] | None]] = []
        if hit is not None:
            wanted.append(("hit", 6, hit, figures.percent))
        if held is not None:
            wanted.append(("in RAM", _BAR + 1, held, None))
        if hit is not None:
            wanted.append(("hit rate", _BAR + 1, hit, None))
        if half is not None and most is not None:
            wanted.append(("50%", 5, half, _count))
            wanted.append(("90%", 5, most, _count))
        if reuse is not None:
            wanted.append(("reuse", 6, reuse, figures.percent))
        left, self._columns = width - 2, []
        for title, room, values, text in wanted:  # in the order of their worth
            if room > left:
                break
            left -= room
            self._columns.append((title, room, values, text))
        bars = [i for i, column in enumerate(self._columns) if column[3] is None]
        for i in bars:  # what is left makes the bars longer
            title, room, values, text = self._columns[i]
            self._columns[i] = (title, room + min(_LONGEST_BAR - _BAR, left // len(bars)), values, text)
        self.width = sum(room for _, room, _, _ in self._columns) + 2 if self._columns else 0

    def title(self) -> Content:
        """What the columns are."""
        text = "".join(
            f" {title:<{room - 1}}" if draw is None else f"{title:>{room}}" for title, room, _, draw in self._columns
        )
        return line((f"  {text}" if text else "", MUTED))

    def row(self, first: int, count: int) -> Content:
        """The columns of the layers from `first` on."""
        if not self._columns:
            return Content("")
        parts: list[Content | tuple[str, str] | str] = [(" │", RULE)]
        for title, room, values, draw in self._columns:
            value = _mean(values[first : first + count])
            if draw is not None:
                parts.append(f"{draw(value):>{room}}")
            else:
                parts += [" ", meter(value, room - 1, COMPUTE if title == "in RAM" else READ)]
        return line(*parts)


def _mean(values: Values) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _count(value: float | None) -> str:
    return figures.UNKNOWN if value is None else f"{value:.0f}"
