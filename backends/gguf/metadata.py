"""Values of a header's metadata, each checked against what makes sense for its key."""

from __future__ import annotations

from backends.gguf.header import Header
from backends.interface import EngineError


class Metadata:
    """Metadata with its types and ranges checked."""

    def __init__(self, header: Header) -> None:
        self.header = header

    def _bad(self, key: str, value: object, wanted: str) -> EngineError:
        shown = ascii(value) if isinstance(value, int | float | bool) else "something else"
        return EngineError("bad_model", f"{self.header.name}: {key!a} must be {wanted}, but it is {shown}.")

    def text(self, key: str) -> str:
        value = self.header.kv.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int, low: int, high: int) -> int:
        """An integer within bounds; of one value for each layer the largest."""
        value = self.header.kv.get(key, default)
        if isinstance(value, tuple):
            return max(self.numbers(key, len(value), low, high), default=default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._bad(key, value, f"a whole number from {low:,} to {high:,}")
        return value

    def numbers(self, key: str, n: int, low: int, high: int) -> tuple[int, ...]:
        """One integer within bounds for each of `n` layers, given as one number or an array."""
        value = self.header.kv.get(key, 0)
        values = value if isinstance(value, tuple) else (value,) * n
        for v in values:
            if isinstance(v, bool) or not isinstance(v, int) or not low <= v <= high:
                raise self._bad(key, v, f"whole numbers from {low:,} to {high:,}")
        out = tuple(v for v in values if isinstance(v, int))
        return (out + (0,) * n)[:n]
