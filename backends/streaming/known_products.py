"""The expert products of each layer as the last graph had them: what need not be asked about again.

llama.cpp reuses its graphs and their memory, so the products behind a router's choice are mostly where they were for
the token before. Where all of them still are (the same op on the same weight, by the ids of this very choice), they are
pointed at the slots at once, and the callback isn't called for them.
"""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass, field
from typing import Any

from backends.streaming import abi


@dataclass
class Product:
    """One expert product's node."""

    node: int
    index: int
    """Which of its row's tensors it multiplies with."""
    is_down: bool
    weight: int
    op: C.c_int = field(repr=False)
    sources: Any = field(repr=False)
    """`abi.Sources` of the node: its memory."""


@dataclass
class LayerProducts:
    """All products of one choice, in the order in which they are computed: those before down, and down's."""

    topk: int
    up: list[Product] = field(default_factory=list)
    down: list[Product] = field(default_factory=list)

    def add(self, node: int, index: int, is_down: bool) -> bool:
        """Notes a product; False where its ids are not the choice itself, or its order isn't the usual one."""
        sources = abi.Sources.from_address(node + abi.SRC)
        if sources[2] != self.topk or not sources[0] or (self.down and not is_down):
            return False
        product = Product(node, index, is_down, sources[0], C.c_int.from_address(node + abi.OP), sources)
        (self.down if is_down else self.up).append(product)
        return True


class KnownProducts:
    """`LayerProducts` by the node of their choice, for one context."""

    def __init__(self, op: int, n_rows: int) -> None:
        """`op`: the number of MUL_MAT_ID."""
        self._op, self._most = op, 8 * n_rows
        self._known: dict[int, LayerProducts] = {}
        self._learning: LayerProducts | None = None

    def standing(self, topk: int) -> LayerProducts | None:
        """The products of a choice, where all that were seen last time are there as they were."""
        layer = self._known.get(topk)
        if layer is None:
            return None
        op = self._op
        for products in (layer.up, layer.down):
            for p in products:
                sources = p.sources
                if sources[0] != p.weight or sources[2] != topk or p.op.value != op:
                    del self._known[topk]
                    return None
        return layer

    def learn(self, topk: int) -> None:
        """The products of this choice will be asked about: they are noted for the next time."""
        self._learning = LayerProducts(topk)

    def asked(self, node: int, index: int, is_down: bool, last: bool) -> None:
        """A product was asked about, before it was changed; `last`: all tensors of the row had one now."""
        layer = self._learning
        if layer is None:
            return
        if not layer.add(node, index, is_down):
            self._learning = None
        elif last:
            if len(self._known) >= self._most:
                self._known.clear()  # graphs of many shapes came and went
            if layer.up and layer.down:
                self._known[layer.topk] = layer
            self._learning = None

    def forget(self) -> None:
        """What is being learnt isn't the usual way."""
        self._learning = None
