"""The expert products of each layer as the last graph had them: what need not be asked about again.

llama.cpp reuses its graphs and their memory, so the products behind a router's choice are mostly where they were for
the token before. Where all of them still are (the same op on the same weight, by the ids of this very choice), they are
pointed at the slots at once, and the callback isn't called for them.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backends.streaming import abi

SOURCES_BYTES = 24
_SEEN = abi.OP, abi.SRC + SOURCES_BYTES - abi.OP
"""Where in a node the part begins that must be as it was, from the op to the third source, and its bytes."""
_NE, _DATA = abi.Tensor.ne.offset, abi.Tensor.data.offset


@dataclass(slots=True)
class Product:
    """One expert product's node."""

    node: int
    sources: int
    """The address of its sources."""
    seen: bytes
    own: bytes
    """Its own sources."""
    slotted: bytes
    """Those that point it at the slots."""


@dataclass(slots=True)
class LayerProducts:
    """All products of one choice, in the order in which they are computed: those before down, and down's."""

    topk: int
    row: int
    n_used: int
    shape: Any
    """The choice's number of ids and of tokens, in its own memory."""
    ids: Any
    """The type of its ids, `n_used` of them."""
    data: C.c_void_p
    """Where its ids are, in its own memory."""
    up: list[Product] = field(default_factory=list)
    down: list[Product] = field(default_factory=list)
    all: tuple[Product, ...] = ()


class KnownProducts:
    """`LayerProducts` by the node of their choice, for one context."""

    def __init__(self, n_rows: int, slotted: Callable[[int, int], tuple[int, int]]) -> None:
        """`slotted`: the weight and the ids that the product of (row, its tensor's number) is pointed at."""
        self._most, self._slotted = 8 * n_rows, slotted
        self._known: dict[int, LayerProducts] = {}
        self._learning: LayerProducts | None = None

    def standing(self, topk: int) -> LayerProducts | None:
        """The products of a choice, where all that were seen last time are there as they were."""
        layer = self._known.get(topk)
        if layer is None:
            return None
        at, size = _SEEN
        for p in layer.all:
            if C.string_at(p.node + at, size) != p.seen:
                del self._known[topk]
                return None
        return layer

    def learn(self, topk: int, row: int) -> None:
        """The products of this choice will be asked about: they are noted for the next time."""
        shape = (C.c_int64 * 2).from_address(topk + _NE)
        used = int(shape[0])
        data = C.c_void_p.from_address(topk + _DATA)
        self._learning = LayerProducts(topk, row, used, shape, C.c_int32 * used, data)

    def asked(self, node: int, index: int, is_down: bool, last: bool) -> None:
        """A product was asked about, before it was changed; `last`: all tensors of the row had one now."""
        layer = self._learning
        if layer is None:
            return
        own = C.string_at(node + abi.SRC, SOURCES_BYTES)
        weight, hidden, ids = (int.from_bytes(own[i : i + 8], "little") for i in (0, 8, 16))
        if ids != layer.topk or not weight or (layer.down and not is_down):
            self._learning = None  # its ids are not the choice itself, or its order isn't the usual one
            return
        slotted = self._slotted(layer.row, index)
        pointed = b"".join(x.to_bytes(8, "little") for x in (slotted[0], hidden, slotted[1]))
        seen = C.string_at(node + _SEEN[0], _SEEN[1])
        (layer.down if is_down else layer.up).append(Product(node, node + abi.SRC, seen, own, pointed))
        if last:
            if len(self._known) >= self._most:
                self._known.clear()  # graphs of many shapes came and went
            if layer.up and layer.down:
                layer.all = (*layer.up, *layer.down)
                self._known[layer.topk] = layer
            self._learning = None

    def forget(self) -> None:
        """What is being learnt isn't the usual way."""
        self._learning = None
