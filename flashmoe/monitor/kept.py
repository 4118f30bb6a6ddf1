"""A recording's messages in little memory: packed as they were read, and unpacked one at a time.

A message takes some twenty times its packed size as objects; a file of a few megabytes, made to that end, would fill
the memory.
"""

from __future__ import annotations

import math
import zlib
from abc import abstractmethod
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

import msgspec

T = TypeVar("T")

_EACH = 100
"""Bytes that a message takes besides its own."""
_COMPRESSED_FROM = 4096
"""Bytes from which a message (an expert map, mostly zeros) is kept compressed."""
_MOST = 1e18
"""A larger number is no counter of bytes and no time."""
_MOST_ITEMS = 1024
"""A longer list is none that an engine sends: the longest has a figure for each number of experts."""


class _Sliced(Sequence[T], Generic[T]):
    """A sequence that only has to know its single items."""

    @abstractmethod
    def _at(self, index: int) -> T:
        """The item at a place. Raises `IndexError` where there is none."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        return self._at(index)


class Kept(_Sliced[T]):
    """Messages by their place; each is decoded when it is asked for."""

    def __init__(self, decode: Callable[[str, bytes], T]) -> None:
        self._decode = decode
        self._packed: list[bytes] = []
        self.kinds = ""
        """The kind of each message, one letter."""
        self._new_kinds: list[str] = []
        self.size = 0
        """Bytes of memory that all of them take, about."""

    def add(self, kind: str, packed: bytes) -> None:
        """The next message, which was decoded once and is sound."""
        packed = b"z" + zlib.compress(packed, 1) if len(packed) >= _COMPRESSED_FROM else b"p" + packed
        self._packed.append(packed)
        self._new_kinds.append(kind)
        self.size += len(packed) + _EACH

    def end(self) -> None:
        """All were added."""
        self.kinds += "".join(self._new_kinds)
        self._new_kinds = []

    def __len__(self) -> int:
        return len(self._packed)

    def _at(self, index: int) -> T:
        packed = self._packed[index]
        body = packed[1:] if packed[:1] == b"p" else zlib.decompress(packed[1:])
        return self._decode(self.kinds[index], body)


class Part(_Sliced[T]):
    """The messages of one kind among all of them."""

    def __init__(self, every: Kept[Any], kind: str) -> None:
        self._every = every
        self._places = array("L", (i for i, each in enumerate(every.kinds) if each == kind))

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, index: int) -> T:
        found: T = self._every[self._places[index]]
        return found


def sound(value: object) -> bool:
    """Whether every number of a message can be one: NaN, infinity and what no counter reaches end every drawing."""
    if isinstance(value, float | int):
        return -_MOST < value < _MOST and math.isfinite(value)
    if isinstance(value, msgspec.Struct):
        return all(sound(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, tuple | list):
        return len(value) <= _MOST_ITEMS and all(map(sound, value))
    return True
