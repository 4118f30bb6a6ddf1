"""The product of one guess as ggml computes it: a router on an 8-bit copy, by llama.cpp's own threads.

While the hook decides, llama.cpp's threads have nothing to do. A router of 512 experts and 4,096 numbers is 8 MB of
float32, read once a layer: numpy does that in one thread. Here it is a small graph of ggml's, of a quarter of the
bytes, computed by the team of threads that has just computed the layer. Nothing depends on its rounding: it names
experts to read ahead.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.llamacpp.abi import declare, in_use
from backends.streaming import abi

F32 = npt.NDArray[np.float32]
TYPE_Q8_0 = 8
BLOCK = 32
BLOCK_BYTES = 34
_GRAPH_NODES = 16
"""Of one product, more than it has."""
_SMALL = 1 << 16
"""Bytes that the tensors' own structures and the graph take at most."""
_GRAPH_BYTES = 8192
"""More than the nodes of one product take in a graph."""
_DATA = abi.Tensor.data.offset


def copied_bytes(n_experts: int, n_embd: int) -> int:
    """Bytes of the copy of a router; 0 where its rows don't fit into blocks, and none is made."""
    return n_experts * n_embd // BLOCK * BLOCK_BYTES if n_embd % BLOCK == 0 else 0


class Kernels:
    """ggml's functions for such graphs, and a backend that computes them with `n_threads` threads. Raises
    `AttributeError` or `OSError` where this build doesn't have them."""

    def __init__(self, n_threads: int) -> None:
        """`n_threads`: as llama.cpp computes tokens with: a team of another size would be made anew at each switch."""
        lib, p, i = in_use(), C.c_void_p, C.c_int
        self.init = declare(lib, "ggml_init", p, abi._InitParams)
        self.free = declare(lib, "ggml_free", None, p)
        self.new_tensor = declare(lib, "ggml_new_tensor", p, p, i, i, C.POINTER(C.c_int64))
        self.mul_mat, self.mul, self.add, self.cpy = (
            declare(lib, f"ggml_{name}", p, p, p, p) for name in ("mul_mat", "mul", "add", "cpy")
        )
        self.soft_max = declare(lib, "ggml_soft_max", p, p, p)
        self.sigmoid = declare(lib, "ggml_sigmoid", p, p, p)
        self.top_k = declare(lib, "ggml_top_k", p, p, p, i)
        self.new_graph = declare(lib, "ggml_new_graph_custom", p, p, C.c_size_t, C.c_bool)
        self.expand = declare(lib, "ggml_build_forward_expand", None, p, p)
        self._compute = declare(lib, "ggml_backend_graph_compute", i, p, p)
        self._free_backend = declare(lib, "ggml_backend_free", None, p)
        set_threads = declare(lib, "ggml_backend_cpu_set_n_threads", None, p, i)
        self._backend = int(declare(lib, "ggml_backend_cpu_init", p)() or 0)
        if not self._backend:
            raise OSError("no CPU backend")
        set_threads(self._backend, n_threads)

    def graph(self, context: int, results: Sequence[int]) -> int:
        """A graph of what tensors are made of."""
        graph = int(self.new_graph(context, _GRAPH_NODES * len(results), False))
        for result in results:
            self.expand(graph, result)
        return graph

    def compute(self, graph: int) -> bool:
        """Computes a graph and waits for it; whether that went well."""
        return bool(self._compute(self._backend, graph) == 0)

    def close(self) -> None:
        if self._backend:
            self._free_backend(self._backend)
            self._backend = 0


class RouterProduct:
    """One router, and what it would choose for a hidden state."""

    def __init__(
        self,
        kernels: Kernels,
        weight: F32,
        *,
        scaled: bool,
        logit_bias: F32 | None,
        choice_bias: F32 | None,
        sigmoid: bool,
        most: int,
    ) -> None:
        """`weight`: n_experts x n_embd, copied. `most`: experts that it names at most. `scaled`: whether the input is
        multiplied with a vector. The biases as `backends.streaming.predictor.Router` has them. Raises `MemoryError`
        where ggml has no memory for the copy, and `ValueError` where its rows don't fit into blocks."""
        n_experts, n_embd = weight.shape
        size = copied_bytes(n_experts, n_embd)
        if not size:
            raise ValueError(f"rows of {n_embd}")
        self._kernels, self._context, self.scaled = kernels, 0, scaled
        self._context = int(
            kernels.init(abi._InitParams(size + 16 * (n_embd + 8 * n_experts) + _SMALL, None, False)) or 0
        )
        if not self._context:
            raise MemoryError
        try:
            copy = self._new(TYPE_Q8_0, n_embd, n_experts)
            source = self._new(abi.TYPE_F32, n_embd, n_experts, data=weight.ctypes.data)
            if not kernels.compute(kernels.graph(self._context, [kernels.cpy(self._context, source, copy)])):
                raise MemoryError
            x = self._new(abi.TYPE_F32, n_embd)
            self._input = C.c_void_p.from_address(x + _DATA)
            self.own_input = int(self._input.value or 0)
            """Where a hidden state can be put that isn't in host memory, float32 of n_embd."""
            at, self._scale = x, C.c_void_p()
            if scaled:
                scale = self._new(abi.TYPE_F32, n_embd, data=x)  # `best` says where it is
                self._scale = C.c_void_p.from_address(scale + _DATA)
                at = kernels.mul(self._context, x, scale)
            at = kernels.mul_mat(self._context, copy, at)
            if logit_bias is not None:
                at = kernels.add(self._context, at, self._vector(logit_bias))
            if choice_bias is not None:
                at = (kernels.sigmoid if sigmoid else kernels.soft_max)(self._context, at)
                at = kernels.add(self._context, at, self._vector(choice_bias))
            most = min(most, n_experts)
            at = kernels.top_k(self._context, at, most)  # sooner done than sorting them all
            self.result = at
            """The tensor of the experts, the best first (ggml gives the best two the other way round)."""
            self._order: Any = (C.c_int32 * most).from_address(abi.Tensor.from_address(at).data)
        except BaseException:
            self.close()
            raise

    def _new(self, kind: int, *dims: int, data: int | None = None) -> int:
        """A tensor with memory of its own, or at `data` (none is taken then)."""
        if data is None:
            return int(self._kernels.new_tensor(self._context, kind, len(dims), (C.c_int64 * len(dims))(*dims)))
        tensor = int(self._kernels.new_tensor(self._context, kind, 1, (C.c_int64 * 1)(1)))
        t = abi.Tensor.from_address(tensor)
        step = 4
        for axis in range(4):
            n = dims[axis] if axis < len(dims) else 1
            t.ne[axis], t.nb[axis] = n, step
            step *= n
        t.data = data
        return tensor

    def _vector(self, values: F32) -> int:
        tensor = self._new(abi.TYPE_F32, len(values))
        C.memmove(abi.Tensor.from_address(tensor).data, values.ctypes.data, 4 * len(values))
        return tensor

    def look_at(self, hidden: int, scale: int = 0) -> None:
        """The address of the hidden state, float32 of n_embd; `scale`: of what it is multiplied with, where it is."""
        self._input.value = hidden
        self._scale.value = scale

    def best(self, k: int) -> list[int]:
        """The `k` experts that it chose, the best first."""
        best: list[int] = self._order[:k]
        return best

    def close(self) -> None:
        if self._context:
            self._kernels.free(self._context)
            self._context = 0


class Products:
    """Routers that look at one hidden state, computed together."""

    def __init__(self, kernels: Kernels, products: Sequence[RouterProduct], scales: Sequence[int]) -> None:
        """`scales`: for each the address of what its input is multiplied with, 0 where it isn't. Raises
        `MemoryError`."""
        self._kernels, self._pairs = kernels, list(zip(products, scales, strict=True))
        self.own_input = products[0].own_input
        self._context = int(kernels.init(abi._InitParams(_GRAPH_BYTES * (1 + len(products)), None, False)) or 0)
        if not self._context:
            raise MemoryError
        self._graph = kernels.graph(self._context, [product.result for product in products])

    def best(self, hidden: int, k: int) -> list[list[int]]:
        """For each router the `k` experts that it would choose for the hidden state at an address, float32 of n_embd,
        the best first; none where ggml couldn't compute it."""
        for product, scale in self._pairs:
            product.look_at(hidden, scale)
        if not self._kernels.compute(self._graph):
            return []
        return [product.best(k) for product, _ in self._pairs]

    def close(self) -> None:
        if self._context:
            self._kernels.free(self._context)
            self._context = 0
