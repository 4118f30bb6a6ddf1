"""Guesses the next layers' experts while this one computes: their routers applied to this router's input.

The residual stream changes little from layer to layer, so a router mostly agrees with itself one layer early, and often
two. Nothing depends on the guess being right: a wrong one costs a read. What each rank of the guess (its best expert,
its second…) was worth lately is measured all the time, and only ranks that are right often enough are read ahead.

A graph of many tokens uses most experts of a layer, also those that no token's guess named. There the rate at which a
token uses an expert says as much: N tokens use it with a probability of 1 - (1 - rate)^N.
"""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.streaming import abi
from backends.streaming.guess_record import FLOORS, Distances, Rates, Record
from backends.streaming.router_product import Kernels, Products, RouterProduct
from backends.streaming.routers import Place, Router, Routers, scores

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
_MAX_TOKENS = 64
"""Of a wider graph this many tokens are asked: their union is nearly that of all, and the product stays small."""
_WIDEST_STEP = 256
"""Tokens of a graph that another of the same kind may follow; prompts come in larger pieces."""
_NE, _DATA = abi.Tensor.ne.offset, abi.Tensor.data.offset


class Predictor:
    """Scores and guesses for the rows of a graph, of one token or of many. `begin` once a graph, `seen` for each row in
    order."""

    def __init__(self, n_rows: int, n_used: int, *, n_threads: int | None = None) -> None:
        """`n_threads`: those that llama.cpp computes a token with, which compute one token's guesses as well; None:
        numpy does that."""
        self._routers = Routers(n_rows)
        self._scales: dict[tuple[int, int], F32] = {}
        """What turns a row's router input into another row's: the ratio of their norms' weights."""
        self._blind: set[int] = set()
        self._kernels = _kernels(n_threads)
        self._products: list[RouterProduct | None] = [None] * n_rows
        """What guesses each row for one token."""
        self._together: dict[tuple[int, tuple[int, ...]], tuple[Place, list[int], Products]] = {}
        """What guesses several rows from one, by that row and the distances: where it looks, the distances that there
        are, and the products."""
        self._met = False
        """Whether a graph went by, so that all routers are known."""
        self._guesses: dict[int, list[tuple[Record, I64 | list[int]]]] = {}
        """What was guessed for the rows that come, tokens x ranks or the ranks of one token, and where it is scored."""
        self._rates = Rates(n_rows)
        self._before = self._tokens = 0
        """Tokens of the last two graphs of many."""
        self._distances, self._many = Distances(n_used, n_rows), Record(n_used)
        """Apart: what one token of many guesses wrongly another may well use."""

    @property
    def accuracy(self) -> float | None:
        """The share of guesses that were right lately, None before any."""
        records = [*self._distances.records, self._many]
        tried = sum(sum(r.tried) for r in records)
        return sum(sum(r.right) for r in records) / tried if tried else None

    def begin(self, tokens: int, reads: float = 1.0) -> None:
        """A new graph: guesses of the last one are for nothing. `reads`: experts that a layer reads, on average."""
        self._guesses.clear()
        if tokens == 1:
            self._distances.begin(reads)

    def seen(
        self, row: int, ids: I64 | list[int], node: int, tokens: int = 1, counts: I64 | None = None
    ) -> list[tuple[int, list[int]]]:
        """The router of `row` chose the distinct experts `ids` (`counts` times each, of many tokens) for `tokens`
        tokens at the top-k `node`: scores the guesses for this row, and returns which experts of which rows after it
        are worth reading ahead, the nearest row and the likeliest first."""
        if counts is not None and tokens > 1 and not isinstance(ids, list):
            self.learn(row, ids, counts, tokens)
        guesses = self._guesses.pop(row, None)
        if guesses is not None and (tokens > 1 or self._distances.scored(row)):
            for record, guess in guesses:
                record.score(_right(guess, ids))
        if row in self._blind:
            return []
        distances = self._distances.of(row) if self._met else ()
        self._met |= row + 1 == len(self._routers.places)
        if tokens == 1 and not distances and self._routers.places[row] is not None:
            return []
        here = self._routers.find(row, node)
        if here is None:
            self._blind.add(row)
            return []
        if tokens == 1:
            if not distances:
                return []
            return self._guess_one(row, here, distances, len(ids))
        found = self._guess_many(row, here, len(ids))
        return [(row + 1, found)] if found else []

    def _guess_many(self, row: int, here: Place, used: int) -> list[int]:
        """Guesses row + 1 for many tokens."""
        there = self._routers.places[row + 1] if row + 1 < len(self._routers.places) else None
        if there is None:
            return []
        router, following = here.router, there.router
        x = self._routers.values(here.input)
        if x is None or not x.shape[1] == router.weight.shape[1] == following.weight.shape[1]:
            return []
        if len(x) > _MAX_TOKENS:
            x = x[:: -(-len(x) // _MAX_TOKENS)]
        scale = self._scale(row, row + 1, router.norm, following.norm)
        if scale is not None:
            x = x * scale
        k = min(used, len(self._many.right), len(following.weight))
        guess = _best(scores(x, following), k)
        self._guesses[row + 1] = [(self._many, guess)]
        ranks = self._many.worth(FLOORS[0], k)
        votes = np.bincount(guess[:, ranks].ravel(), minlength=len(following.weight))
        order = np.argsort(-votes, kind="stable")
        return list(order[: int(np.count_nonzero(votes))].tolist())

    def _guess_one(self, row: int, here: Place, distances: tuple[int, ...], used: int) -> list[tuple[int, list[int]]]:
        """Guesses rows at `distances` after `row` for one token."""
        k = min(used, len(self._many.right), len(here.router.weight))
        known = self._together.get((row, distances))
        if known is None or known[0] is not here:
            known = self._aim(row, here, distances)
        there: list[int] = []
        best: list[list[int]] = []
        if known is not None:
            _, there, products = known
            hidden = self._hidden(here, products)
            best = products.best(hidden, k) if hidden else []
        elif self._kernels is None:
            there, best = self._by_numpy(row, here, distances, k)
        found = []
        for distance, guess in zip(there, best, strict=False):
            self._guesses.setdefault(row + distance, []).append((self._distances.records[distance - 1], guess))
            ranks = self._distances.worth(distance)
            worth = guess if len(ranks) >= k else [guess[rank] for rank in ranks if rank < k]
            if worth:
                found.append((row + distance, worth))
        return found

    def _aim(self, row: int, here: Place, distances: tuple[int, ...]) -> tuple[Place, list[int], Products] | None:
        """What guesses the rows at those of the `distances` at which there are routers that suit."""
        old = self._together.pop((row, distances), None)
        if old is not None:
            old[2].close()
        there, products, scales = [], [], []
        for distance, router in self._following(row, here, distances):
            product = self._products[row + distance] or self._product(row + distance, router)
            scale = self._scale(row, row + distance, here.router.norm, router.norm)
            if product is not None and product.scaled == (scale is not None):
                there.append(distance)
                products.append(product)
                scales.append(0 if scale is None else scale.ctypes.data)
        if not products or self._kernels is None:
            return None
        try:
            known = here, there, Products(self._kernels, products, scales)
        except MemoryError:
            return None
        self._together[row, distances] = known
        return known

    def _following(self, row: int, here: Place, distances: tuple[int, ...]) -> list[tuple[int, Router]]:
        """The routers at `distances` that are known and as wide."""
        found = []
        for distance in distances:
            place = self._routers.places[row + distance] if row + distance < len(self._routers.places) else None
            if place is not None and place.router.weight.shape[1] == here.router.weight.shape[1]:
                found.append((distance, place.router))
        return found

    def _by_numpy(self, row: int, here: Place, distances: tuple[int, ...], k: int) -> tuple[list[int], list[list[int]]]:
        x = self._routers.values(here.input)
        if x is None or x.shape != (1, here.router.weight.shape[1]):
            return [], []
        there, best = [], []
        for distance, router in self._following(row, here, distances):
            scale = self._scale(row, row + distance, here.router.norm, router.norm)
            there.append(distance)
            best.append(_best(scores(x if scale is None else x * scale, router), k)[0].tolist())
        return there, best

    def _product(self, row: int, router: Router) -> RouterProduct | None:
        if self._kernels is None:
            return None
        try:
            product = RouterProduct(
                self._kernels, router.weight, scaled=router.norm is not None, logit_bias=router.logit_bias,
                choice_bias=router.choice_bias, sigmoid=router.sigmoid, most=len(self._many.right),
            )  # fmt: skip
        except (MemoryError, ValueError):
            self._kernels = None  # the products that there are stay until the end
            return None
        self._products[row] = product
        return product

    def _hidden(self, here: Place, products: Products) -> int:
        """The address of one token's hidden state in host memory, 0 where it isn't as expected."""
        at = here.input
        if C.c_int64.from_address(at + _NE + 8).value != 1:
            return 0
        if here.in_host:
            return C.c_void_p.from_address(at + _DATA).value or 0
        x = self._routers.values(at)
        if x is None or x.shape != (1, here.router.weight.shape[1]):
            return 0
        C.memmove(products.own_input, x.ctypes.data, x.nbytes)
        return products.own_input

    def close(self) -> None:
        """Frees the copies of routers."""
        for _, _, products in self._together.values():
            products.close()
        self._together.clear()
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
        if row + 1 == len(self._routers.places):
            self._before, self._tokens = self._tokens, tokens

    def likely(self, row: int, tokens: int) -> list[int]:
        """After `seen` for a graph of many tokens: what the next row will most likely use, named by the guess or not,
        the likeliest first. After the last row that is row 0, of the next graph."""
        if row + 1 < len(self._routers.places):
            return self._rates.likely(row + 1, tokens)
        if self._before / 2 <= tokens <= min(_WIDEST_STEP, 2 * self._before):
            return self._rates.likely(0, tokens)
        return []  # a piece of a prompt, or the first step of its width: what comes next isn't known

    def _scale(self, row: int, other: int, norm: F32 | None, following: F32 | None) -> F32 | None:
        if norm is None or following is None:
            return None
        scale = self._scales.get((row, other))
        if scale is None:
            scale = (following / np.where(norm == 0, np.float32(1), norm)).astype(np.float32)
            self._scales[row, other] = scale
        return scale


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


def _best(scores: npt.NDArray[Any], k: int) -> I64:
    """The `k` experts with the highest scores of each token, the best first."""
    if len(scores) == 1:  # one sort of so few is sooner done than a partition and a sort of what it leaves
        return scores.argsort(axis=1)[:, : -k - 1 : -1]
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1), axis=1)
