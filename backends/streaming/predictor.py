"""Guesses the next layer's experts while this one computes: the next router applied to this router's input.

The residual stream changes little from layer to layer, so a router mostly agrees with itself one layer early. Nothing
depends on the guess being right: a wrong one costs a read. What each rank of the guess (its best expert, its second…)
was worth lately is measured all the time, and only ranks that are right often enough are read ahead.

A graph of many tokens uses most experts of a layer, also those that no token's guess named. There the rate at which a
token uses an expert says as much: N tokens use it with a probability of 1 - (1 - rate)^N.

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
from backends.streaming.guess_record import Rates, Record
from backends.streaming.router_product import Kernels, RouterProduct

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
_MAX_DEPTH = 10
_MAX_TOKENS = 64
"""Of a wider graph this many tokens are asked: their union is nearly that of all, and the product stays small."""
_MOST_COPIED = 256
"""Tokens whose hidden states are fetched from a GPU: more are a prompt's, for which nothing is predicted there."""
_WIDEST_STEP = 256
"""Tokens of a graph that another of the same kind may follow; prompts come in larger pieces."""
_NE, _DATA = abi.Tensor.ne.offset, abi.Tensor.data.offset


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
class _Place:
    """Where a row's router stands in the graph. llama.cpp reuses graphs, so the next token mostly finds it there."""

    node: int
    product: int
    weight: int
    input: int
    router: Router
    in_host: bool
    """Whether its input lies in host memory."""


class Predictor:
    """Scores and guesses for the rows of a graph, of one token or of many. `begin` once a graph, `seen` for each row in
    order."""

    def __init__(self, n_rows: int, n_used: int, *, floor: float = 0.6, n_threads: int | None = None) -> None:
        """`floor`: the share of right guesses from which a rank is worth reading ahead. `n_threads`: those that
        llama.cpp computes a token with, which compute one token's guesses as well; None: numpy does that."""
        g = self._ggml = abi.ggml()
        self._mul_mat, self._mul, self._add = g.op("MUL_MAT"), g.op("MUL"), g.op("ADD")
        self._soft_max, self._unary = g.op("SOFT_MAX"), g.op("UNARY")
        self._places: list[_Place | None] = [None] * n_rows
        self._scales: list[F32 | None] = [None] * n_rows
        """What turns a row's router input into the next row's: the ratio of their norms' weights."""
        self._blind: set[int] = set()
        self._copies: dict[int, F32] = {}
        """Host copies of weights that are in VRAM, by the tensor's address."""
        self._kernels = _kernels(n_threads)
        self._products: list[RouterProduct | None] = [None] * n_rows
        """What guesses each row for one token."""
        self._guess: I64 | list[int] | None = None
        """The guess for `_guess_row`: tokens x ranks, or the ranks of one token."""
        self._guess_row = -1
        self.floor = floor
        self._rates = Rates(n_rows)
        self._before = self._tokens = 0
        """Tokens of the last two graphs of many."""
        self._one, self._many = Record(n_used), Record(n_used)
        """Apart: what one token of many guesses wrongly another may well use."""

    @property
    def accuracy(self) -> float | None:
        """The share of guesses that were right lately, None before any."""
        tried = sum(self._one.tried) + sum(self._many.tried)
        return (sum(self._one.right) + sum(self._many.right)) / tried if tried else None

    def begin(self) -> None:
        """A new graph: the last row's guess is for nothing."""
        self._guess_row = -1

    def seen(self, row: int, ids: I64 | list[int], node: int, tokens: int = 1, counts: I64 | None = None) -> list[int]:
        """The router of `row` chose the distinct experts `ids` (`counts` times each, of many tokens) for `tokens`
        tokens at the top-k `node`: scores the guess for this row, and returns the experts of row + 1 that are worth
        reading ahead, the likeliest first."""
        if counts is not None and tokens > 1 and not isinstance(ids, list):
            self.learn(row, ids, counts, tokens)
        record = self._one if tokens == 1 else self._many
        guess, self._guess = self._guess, None
        if self._guess_row == row and guess is not None:
            record.score(_right(guess, ids), fade=row == 0)
        self._guess_row = -1
        if row in self._blind:
            return []
        here = self._find(row, node)
        if here is None:
            self._blind.add(row)
            return []
        there = self._places[row + 1] if row + 1 < len(self._places) else None
        if there is None:
            return []
        router, following = here.router, there.router
        if tokens == 1 and self._kernels is not None:
            return self._guess_one(row, here, following, len(ids))
        x = self._values(here.input)
        if x is None or not x.shape[1] == router.weight.shape[1] == following.weight.shape[1]:
            return []
        if len(x) > _MAX_TOKENS:
            x = x[:: -(-len(x) // _MAX_TOKENS)]
        if router.norm is not None and following.norm is not None:
            x = x * self._scale(row, router.norm, following.norm)
        k = min(len(ids), len(record.right), len(following.weight))
        self._guess, self._guess_row = _best(_scores(x, following), k), row + 1
        ranks = record.worth(self.floor, k)
        if len(self._guess) == 1:
            only: list[int] = self._guess[0].tolist()
            return only if len(ranks) == k else [only[rank] for rank in ranks]
        votes = np.bincount(self._guess[:, ranks].ravel(), minlength=len(following.weight))
        order = np.argsort(-votes, kind="stable")
        return list(order[: int(np.count_nonzero(votes))].tolist())

    def _guess_one(self, row: int, here: _Place, following: Router, used: int) -> list[int]:
        """Guesses row + 1 for one token."""
        product = self._products[row + 1]
        if product is None:
            product = self._product(row, here.router, following)
            if product is None:
                return []
        hidden = self._hidden(here, product)
        k = min(used, len(self._one.right), len(following.weight))
        best = product.best(hidden, k) if hidden else []
        if not best:
            return []
        self._guess, self._guess_row = best, row + 1
        ranks = self._one.worth(self.floor, k)
        return best if len(ranks) == k else [best[rank] for rank in ranks]

    def _product(self, row: int, router: Router, following: Router) -> RouterProduct | None:
        if self._kernels is None or router.weight.shape[1] != following.weight.shape[1]:
            return None
        scale = None
        if router.norm is not None and following.norm is not None:
            scale = self._scale(row, router.norm, following.norm)
        try:
            product = RouterProduct(
                self._kernels, following.weight, scale=scale, logit_bias=following.logit_bias,
                choice_bias=following.choice_bias, sigmoid=following.sigmoid,
            )  # fmt: skip
        except (MemoryError, ValueError):
            self._kernels = None  # the products that there are stay until the end
            return None
        self._products[row + 1] = product
        return product

    def _hidden(self, here: _Place, product: RouterProduct) -> int:
        """The address of one token's hidden state in host memory, 0 where it isn't as expected."""
        at = here.input
        if C.c_int64.from_address(at + _NE + 8).value != 1:
            return 0
        if here.in_host:
            return C.c_void_p.from_address(at + _DATA).value or 0
        x = self._values(at)
        if x is None or x.shape != (1, here.router.weight.shape[1]):
            return 0
        C.memmove(product.own_input, x.ctypes.data, x.nbytes)
        return product.own_input

    def close(self) -> None:
        """Frees the copies of routers."""
        for product in self._products:
            if product is not None:
                product.close()
        self._products = [None] * len(self._products)
        if self._kernels is not None:
            self._kernels.close()
            self._kernels = None

    def learn(self, row: int, ids: I64, counts: I64, tokens: int) -> None:
        """What `tokens` tokens used of `row`, where nothing is to be guessed: a pass that reads whole layers."""
        self._rates.note(row, ids, counts, tokens)
        if row + 1 == len(self._places):
            self._before, self._tokens = self._tokens, tokens

    def likely(self, row: int, tokens: int) -> list[int]:
        """After `seen` for a graph of many tokens: what the next row will most likely use, named by the guess or not,
        the likeliest first. After the last row that is row 0, of the next graph."""
        if row + 1 < len(self._places):
            return self._rates.likely(row + 1, tokens)
        if self._before / 2 <= tokens <= min(_WIDEST_STEP, 2 * self._before):
            return self._rates.likely(0, tokens)
        return []  # a piece of a prompt, or the first step of its width: what comes next isn't known

    def _scale(self, row: int, norm: F32, following: F32) -> F32:
        scale = self._scales[row]
        if scale is None:
            scale = self._scales[row] = (following / np.where(norm == 0, np.float32(1), norm)).astype(np.float32)
        return scale

    # ---- the graph -------------------------------------------------------------------------------------------------

    def _find(self, row: int, node: int) -> _Place | None:
        place = self._places[row]
        if place is not None and place.node == node and self._stands(place):
            return place
        at, depth = node, 0
        biases: list[tuple[int, bool]] = []
        probabilities, sigmoid = False, False
        while at and depth < _MAX_DEPTH:
            t = abi.Tensor.from_address(at)
            if t.op == self._mul_mat:
                place = self._places[row] = self._place(node, at, biases, sigmoid)
                return place
            if t.op == self._add and t.src[1]:
                biases.append((int(t.src[1]), probabilities))
            elif t.op == self._soft_max:
                probabilities = True
            elif t.op == self._unary:
                probabilities = sigmoid = True
            at, depth = int(t.src[0] or 0), depth + 1
        return None

    def _stands(self, place: _Place) -> bool:
        """Whether the product is still the one that was found: a router's weight never moves, its input may."""
        if C.c_int.from_address(place.product + abi.OP).value != self._mul_mat:
            return False
        src = abi.Sources.from_address(place.product + abi.SRC)
        return (src[0], src[1]) == (place.weight, place.input)

    def _place(self, node: int, at: int, biases: list[tuple[int, bool]], sigmoid: bool) -> _Place | None:
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
        return _Place(node, at, address, source, router, self._in_host_memory(t) and t.ne[0] == n_embd)

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

    def _values(self, address: int) -> F32 | None:
        """The hidden states, float32 of tokens x n_embd."""
        return self._matrix(address, weight=False)


def _holder(t: abi.Tensor) -> int | None:
    """The buffer that a tensor lies in."""
    holder: int | None = abi.Tensor.from_address(t.view_src).buffer if t.view_src else t.buffer
    return holder


def _kernels(n_threads: int | None) -> Kernels | None:
    """ggml's own products, where this build exports them."""
    if n_threads is None:
        return None
    try:
        return Kernels(n_threads)
    except (AttributeError, OSError):
        return None


def _right(guess: I64 | list[int], ids: I64 | list[int]) -> list[float]:
    """Per rank of a guess (tokens x ranks, or those of one token) the share of its experts that are among `ids`."""
    if isinstance(guess, list) or len(guess) == 1:
        chosen = set(ids if isinstance(ids, list) else ids.tolist())
        return [float(e in chosen) for e in (guess if isinstance(guess, list) else guess[0].tolist())]
    used = np.zeros(max(int(np.max(ids)), int(guess.max())) + 1, np.float64)
    used[ids] = 1
    shares: list[float] = used[guess].mean(axis=0).tolist()
    return shares


def _scores(x: F32, router: Router) -> npt.NDArray[Any]:
    """What `router` would choose by, tokens x experts, for its input `x`, tokens x n_embd."""
    scores: npt.NDArray[Any] = x @ router.weight.T
    if router.logit_bias is not None:
        scores += router.logit_bias
    if router.choice_bias is not None:
        if router.sigmoid:
            scores = 1.0 / (1.0 + np.exp(-scores))
        else:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        scores = scores + router.choice_bias
    return scores


def _best(scores: npt.NDArray[Any], k: int) -> I64:
    """The `k` experts with the highest scores of each token, the best first."""
    if len(scores) == 1:  # one sort of so few is sooner done than a partition and a sort of what it leaves
        return scores.argsort(axis=1)[:, : -k - 1 : -1]
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1), axis=1)
