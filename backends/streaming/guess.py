"""Guesses the next layer's experts while this one computes: the next router applied to this router's input.

The residual stream changes little from layer to layer, so a router mostly agrees with itself one layer early. Nothing
depends on the guess being right: a wrong one costs a read. What each rank of the guess (its best expert, its second…)
was worth lately is measured all the time, and only ranks that are right often enough are read ahead.

The routers are found in the compute graph, by walking back from the top-k node to a matrix product with a weight of
``n_experts`` rows: no architecture is named here.
"""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.streaming import abi

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
_MAX_DEPTH = 10
_TRIAL_TOKENS = 6
"""Guesses of a rank that are only scored before its record counts."""
_FADE = 0.97
_MAX_TOKENS = 64
"""Of a wider graph this many tokens are asked: their union is nearly that of all, and the product stays small."""


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


class _Record:
    """What each rank of the guess was worth lately."""

    def __init__(self, n_used: int) -> None:
        self.right = np.zeros(max(1, n_used), np.float64)
        self.tried = np.zeros(max(1, n_used), np.float64)

    def score(self, right: F64, fade: bool) -> None:
        """`right`: per rank the share of its guesses that were among the chosen."""
        n = min(len(right), len(self.right))
        self.right[:n] += right[:n]
        self.tried[:n] += 1
        if fade or self.tried[0] > 2000:
            self.right *= _FADE
            self.tried *= _FADE

    def worth(self, floor: float) -> npt.NDArray[np.bool_]:
        """Which ranks are right often enough."""
        return (self.tried >= _TRIAL_TOKENS) & (self.right >= floor * self.tried)


class Guesser:
    """Scores and guesses for the rows of a graph, of one token or of many. `begin` once a graph, `seen` for each row in
    order."""

    def __init__(self, n_rows: int, n_used: int, *, floor: float = 0.6) -> None:
        """`floor`: the share of right guesses from which a rank is worth reading ahead."""
        g = self._ggml = abi.ggml()
        self._mul_mat, self._mul, self._add = g.op("MUL_MAT"), g.op("MUL"), g.op("ADD")
        self._soft_max, self._unary = g.op("SOFT_MAX"), g.op("UNARY")
        self._routers: list[Router | None] = [None] * n_rows
        self._blind: set[int] = set()
        self._guess: I64 | None = None
        self._guess_row = -1
        self.floor = floor
        self._one, self._many = _Record(n_used), _Record(n_used)
        """Apart: what one token of many guesses wrongly another may well use."""

    @property
    def accuracy(self) -> float | None:
        """The share of guesses that were right lately, None before any."""
        tried = float(self._one.tried.sum() + self._many.tried.sum())
        return float(self._one.right.sum() + self._many.right.sum()) / tried if tried else None

    def begin(self) -> None:
        """A new graph: the last row's guess is for nothing."""
        self._guess_row = -1

    def seen(self, row: int, ids: I64, node: int, tokens: int = 1) -> list[int]:
        """The router of `row` chose the distinct experts `ids` for `tokens` tokens at the top-k `node`: scores the
        guess for this row, and returns the experts of row + 1 that are worth reading ahead, the likeliest first."""
        record = self._one if tokens == 1 else self._many
        guess, self._guess = self._guess, None
        if self._guess_row == row and guess is not None:
            used = np.zeros(max(int(ids.max()), int(guess.max())) + 1, np.float64)
            used[ids] = 1
            record.score(used[guess].mean(axis=0), fade=row == 0)
        self._guess_row = -1
        if row in self._blind:
            return []
        found = self._find(node)
        if found is None:
            self._blind.add(row)
            return []
        router, input_node = found
        self._routers[row] = router
        following = self._routers[row + 1] if row + 1 < len(self._routers) else None
        if following is None or following.weight.shape[1] != router.weight.shape[1]:
            return []
        x = self._values(input_node)
        if x is None or x.shape[1] != router.weight.shape[1]:
            return []
        if len(x) > _MAX_TOKENS:
            x = x[:: -(-len(x) // _MAX_TOKENS)]
        if router.norm is not None and following.norm is not None:
            x = x * (following.norm / np.where(router.norm == 0, np.float32(1), router.norm)).astype(np.float32)
        scores: npt.NDArray[Any] = x @ following.weight.T
        if following.logit_bias is not None:
            scores += following.logit_bias
        if following.choice_bias is not None:
            if following.sigmoid:
                scores = 1.0 / (1.0 + np.exp(-scores))
            else:
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                scores /= scores.sum(axis=1, keepdims=True)
            scores = scores + following.choice_bias
        k = min(len(ids), len(record.right), scores.shape[1])
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1), axis=1)
        self._guess, self._guess_row = top, row + 1
        worth = top[:, record.worth(self.floor)[:k]]
        if len(worth) == 1:
            return list(worth[0].tolist())
        votes = np.bincount(worth.ravel(), minlength=scores.shape[1])
        order = np.argsort(-votes, kind="stable")
        return list(order[: int(np.count_nonzero(votes))].tolist())

    # ---- the graph -------------------------------------------------------------------------------------------------

    def _find(self, node: int) -> tuple[Router, int] | None:
        at, depth = node, 0
        biases: list[tuple[int, bool]] = []
        probabilities, sigmoid = False, False
        while at and depth < _MAX_DEPTH:
            t = abi.Tensor.from_address(at)
            if t.op == self._mul_mat:
                return self._router(t, biases, sigmoid)
            if t.op == self._add and t.src[1]:
                biases.append((int(t.src[1]), probabilities))
            elif t.op == self._soft_max:
                probabilities = True
            elif t.op == self._unary:
                probabilities = sigmoid = True
            at, depth = int(t.src[0] or 0), depth + 1
        return None

    def _router(self, product: abi.Tensor, biases: list[tuple[int, bool]], sigmoid: bool) -> tuple[Router, int] | None:
        weight = self._matrix(int(product.src[0] or 0))
        source = int(product.src[1] or 0)
        if weight is None or not source:
            return None
        n_experts, n_embd = weight.shape
        logit_bias = choice_bias = None
        for address, before_probabilities in biases:
            bias = self._vector(address, n_experts)
            if bias is None:
                return None
            # walking back: what is added before the probabilities are met is added to them
            if before_probabilities:
                logit_bias = bias
            else:
                choice_bias = bias
        t = abi.Tensor.from_address(source)
        norm = self._vector(int(t.src[1] or 0), n_embd) if t.op == self._mul and t.src[1] else None
        return Router(weight, norm, logit_bias, choice_bias, sigmoid), source

    def _on_host(self, t: abi.Tensor) -> bool:
        holder = abi.Tensor.from_address(t.view_src).buffer if t.view_src else t.buffer
        return bool(holder) and bool(self._ggml.buffer_is_host(holder)) and bool(t.data)

    def _matrix(self, address: int) -> F32 | None:
        if not address:
            return None
        t = abi.Tensor.from_address(address)
        if t.type != abi.TYPE_F32 or t.ne[2] != 1 or t.nb[1] != t.ne[0] * 4 or not self._on_host(t):
            return None
        n, m = int(t.ne[1]), int(t.ne[0])
        return np.ctypeslib.as_array((C.c_float * (n * m)).from_address(t.data)).reshape(n, m)

    def _vector(self, address: int, n: int) -> F32 | None:
        if not address:
            return None
        t = abi.Tensor.from_address(address)
        if t.type != abi.TYPE_F32 or t.ne[0] != n or t.ne[1] != 1 or not self._on_host(t):
            return None
        return np.ctypeslib.as_array((C.c_float * n).from_address(t.data))

    def _values(self, address: int) -> F32 | None:
        """The hidden states, float32 of tokens x n_embd."""
        if not address:
            return None
        t = abi.Tensor.from_address(address)
        if t.type != abi.TYPE_F32 or t.ne[2] != 1 or t.nb[1] != t.ne[0] * 4 or not self._on_host(t):
            return None
        n, m = int(t.ne[1]), int(t.ne[0])
        return np.ctypeslib.as_array((C.c_float * (n * m)).from_address(t.data)).reshape(n, m)
