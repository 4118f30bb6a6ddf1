"""Where the routers stand in llama.cpp's compute graph, and what they compute with.

They are found by walking back from the top-k node to a matrix product with a weight of ``n_experts`` rows: no
architecture is named here.
"""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.streaming import abi

F32 = npt.NDArray[np.float32]
_MAX_DEPTH = 10
_MOST_COPIED = 256
"""Tokens whose hidden states are fetched from a GPU: more are a prompt's, for which nothing is predicted there."""
_SEEN = abi.OP, abi.SRC + 16 - abi.OP
"""Where in a node the part begins that must be as it was, from the op to the second source, and its bytes."""


@dataclass
class Router:
    """One layer's router as the graph has it."""

    weight: F32
    """n_experts x n_embd, a view of llama.cpp's memory."""
    norm: F32 | None
    """The weight that its input was multiplied with after normalisation, n_embd."""
    logit_bias: F32 | None
    choice_bias: F32 | None
    """Added to the probabilities for choosing only (DeepSeek-V3)."""
    sigmoid: bool


@dataclass
class Place:
    """Where a row's router stands in the graph. llama.cpp reuses graphs, so the next token mostly finds it there."""

    node: int
    product: int
    input: int
    router: Router
    in_host: bool
    """Whether its input lies in host memory."""
    seen: bytes


class Routers:
    """Finds the rows' routers; those of the last graph stay known."""

    def __init__(self, n_rows: int) -> None:
        g = self._ggml = abi.ggml()
        self._mul_mat, self._mul, self._add = g.op("MUL_MAT"), g.op("MUL"), g.op("ADD")
        self._soft_max, self._unary = g.op("SOFT_MAX"), g.op("UNARY")
        self.places: list[Place | None] = [None] * n_rows
        self._copies: dict[int, F32] = {}
        """Host copies of weights that are in VRAM, by the tensor's address."""

    def find(self, row: int, node: int) -> Place | None:
        """The router of `row`, whose choice is the top-k `node`; None where the graph has none that is understood."""
        place = self.places[row]
        if place is not None and place.node == node and self._stands(place):
            return place
        at, depth = node, 0
        biases: list[tuple[int, bool]] = []
        probabilities, sigmoid = False, False
        while at and depth < _MAX_DEPTH:
            t = abi.Tensor.from_address(at)
            if t.op == self._mul_mat:
                place = self.places[row] = self._place(node, at, biases, sigmoid)
                return place
            if t.op == self._add and t.src[1]:
                biases.append((int(t.src[1]), probabilities))
            elif t.op == self._soft_max:
                probabilities = True
            elif t.op == self._unary:
                probabilities = sigmoid = True
            at, depth = int(t.src[0] or 0), depth + 1
        return None

    def _stands(self, place: Place) -> bool:
        """Whether the product is still the one that was found: a router's weight never moves, its input may."""
        at, size = _SEEN
        return C.string_at(place.product + at, size) == place.seen

    def _place(self, node: int, at: int, biases: list[tuple[int, bool]], sigmoid: bool) -> Place | None:
        product = abi.Sources.from_address(at + abi.SRC)
        address, source = product[0] or 0, product[1] or 0
        weight = self._matrix(address)
        if weight is None or not source:
            return None
        n_experts, n_embd = weight.shape
        logit_bias = choice_bias = None
        for added, before_probabilities in biases:
            bias = self._vector(added, n_experts)
            if bias is None:
                return None
            # walking back: what is added before the probabilities are met is added to them
            if before_probabilities:
                logit_bias = bias
            else:
                choice_bias = bias
        t = abi.Tensor.from_address(source)
        norm = self._vector(int(t.src[1] or 0), n_embd) if t.op == self._mul and t.src[1] else None
        router = Router(weight, norm, logit_bias, choice_bias, sigmoid)
        in_host, seen = self._in_host_memory(t) and t.ne[0] == n_embd, C.string_at(at + _SEEN[0], _SEEN[1])
        return Place(node, at, source, router, in_host, seen)

    def _in_host_memory(self, t: abi.Tensor) -> bool:
        holder = _holder(t)
        return bool(holder and self._ggml.buffer_is_host(holder))

    def _floats(self, address: int, t: abi.Tensor, *, weight: bool) -> F32 | None:
        """A tensor's values: llama.cpp's own memory, or a copy of what is in a GPU's (kept, of a `weight`)."""
        holder = _holder(t)
        if not holder or not t.data:
            return None
        count = int(t.ne[0] * t.ne[1])
        if self._ggml.buffer_is_host(holder):
            return np.ctypeslib.as_array((C.c_float * count).from_address(t.data))
        if weight and address in self._copies:
            return self._copies[address]
        if not weight and t.ne[1] > _MOST_COPIED:
            return None
        values = np.empty(count, np.float32)
        self._ggml.tensor_get(address, values.ctypes.data, 0, 4 * count)
        if weight:
            self._copies[address] = values
        return values

    def _matrix(self, address: int, *, weight: bool = True) -> F32 | None:
        if not address:
            return None
        t = abi.Tensor.from_address(address)
        if t.type != abi.TYPE_F32 or t.ne[2] != 1 or t.nb[1] != t.ne[0] * 4:
            return None
        values = self._floats(address, t, weight=weight)
        return None if values is None else values.reshape(int(t.ne[1]), int(t.ne[0]))

    def _vector(self, address: int, n: int) -> F32 | None:
        if not address:
            return None
        t = abi.Tensor.from_address(address)
        if t.type != abi.TYPE_F32 or t.ne[0] != n or t.ne[1] != 1:
            return None
        return self._floats(address, t, weight=True)

    def values(self, address: int) -> F32 | None:
        """The hidden states, float32 of tokens x n_embd."""
        return self._matrix(address, weight=False)


def _holder(t: abi.Tensor) -> int | None:
    """The buffer that a tensor lies in."""
    holder: int | None = abi.Tensor.from_address(t.view_src).buffer if t.view_src else t.buffer
    return holder


def scores(x: F32, router: Router) -> npt.NDArray[Any]:
    """What `router` would choose by, tokens x experts, for its input `x`, tokens x n_embd."""
    found: npt.NDArray[Any] = x @ router.weight.T
    if router.logit_bias is not None:
        found += router.logit_bias
    if router.choice_bias is not None:
        if router.sigmoid:
            found = 1.0 / (1.0 + np.exp(-found))
        else:
            found = np.exp(found - found.max(axis=1, keepdims=True))
            found /= found.sum(axis=1, keepdims=True)
        found = found + router.choice_bias
    return found
