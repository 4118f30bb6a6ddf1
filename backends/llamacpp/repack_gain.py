"""What repacking gains here: products of one token and of many, with plain and with repacked weights, measured once.

The weights are zeros: what a product takes doesn't depend on them. They are more than the processor's caches hold, as a
model's are, and less than a second's work.
"""

from __future__ import annotations

import contextlib
import ctypes as C
import statistics
import time
from collections.abc import Iterator
from typing import Any

from backends.llamacpp import abi, native
from backends.planner.repack import Gain

_EMBD, _WIDTH = 2048, 2048
_DENSE = 16
"""Matrices of 4 million numbers: 36 MiB with four and a half bits each."""
_EXPERTS, _USED, _FF = 64, 8, 768
_MANY = 32
_SECONDS, _LEAST = 0.25, 9
"""How long a pair is timed, and how often at least."""
_STEADY = 1.25
"""How far the middle half of a pair's ratios may spread: beyond, the machine is too busy to tell."""


class BusyError(Exception):
    """What else runs here disturbs the measurement."""


_F32, _I32 = 0, 26


def extra_buffer_types() -> list[int]:
    """The CPU's buffer types that repack (``ggml_backend_buffer_type_t``)."""
    ggml, p = abi.in_use(), C.c_void_p
    cpu = abi.declare(ggml, "ggml_backend_dev_by_type", p, C.c_int)(abi.DEVICE_TYPE_CPU)
    registry = abi.declare(ggml, "ggml_backend_dev_backend_reg", p, p)(cpu)
    find = abi.declare(ggml, "ggml_backend_reg_get_proc_address", p, p, C.c_char_p)
    function = find(registry, b"ggml_backend_dev_get_extra_bufts")
    if not function:
        return []
    array: Any = C.CFUNCTYPE(p, p)(function)(cpu)
    found: list[int] = []
    while array and (entry := C.c_void_p.from_address(array + 8 * len(found)).value):
        found.append(entry)
    return found


class _Params(C.Structure):
    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", C.c_void_p), ("no_alloc", C.c_bool)]


class _Ggml:
    """ggml's functions for the products that are timed, and a backend for `n_threads` threads."""

    def __init__(self, n_threads: int) -> None:
        lib, p, i, size = abi.in_use(), C.c_void_p, C.c_int, C.c_size_t
        native.lib()
        self.init, self.free = abi.declare(lib, "ggml_init", p, _Params), abi.declare(lib, "ggml_free", None, p)
        self.new_tensor = abi.declare(lib, "ggml_new_tensor", p, p, i, i, C.POINTER(C.c_int64))
        self.data = abi.declare(lib, "ggml_get_data", p, p)
        self.nbytes = abi.declare(lib, "ggml_nbytes", size, p)
        self.mul_mat = abi.declare(lib, "ggml_mul_mat", p, p, p, p)
        self.mul_mat_id = abi.declare(lib, "ggml_mul_mat_id", p, p, p, p, p)
        self.new_graph = abi.declare(lib, "ggml_new_graph", p, p)
        self.expand = abi.declare(lib, "ggml_build_forward_expand", None, p, p)
        self.allocate = abi.declare(lib, "ggml_backend_alloc_ctx_tensors_from_buft", p, p, p)
        self.free_buffer = abi.declare(lib, "ggml_backend_buffer_free", None, p)
        self.set = abi.declare(lib, "ggml_backend_tensor_set", None, p, p, size, size)
        self.supports = abi.declare(lib, "ggml_backend_dev_supports_op", C.c_bool, p, p)
        self.compute = abi.declare(lib, "ggml_backend_graph_compute", i, p, p)
        self.free_backend = abi.declare(lib, "ggml_backend_free", None, p)
        self.plain = int(abi.declare(lib, "ggml_backend_cpu_buffer_type", p)())
        self.device = int(abi.declare(lib, "ggml_backend_dev_by_type", p, i)(abi.DEVICE_TYPE_CPU))
        self.backend = int(abi.declare(lib, "ggml_backend_cpu_init", p)())
        abi.declare(lib, "ggml_backend_cpu_set_n_threads", None, p, i)(self.backend, n_threads)

    def tensor(self, ctx: int, kind: int, *dims: int) -> int:
        return int(self.new_tensor(ctx, kind, len(dims), (C.c_int64 * len(dims))(*dims)))

    @contextlib.contextmanager
    def context(self, size: int, *, no_alloc: bool) -> Iterator[int]:
        ctx = int(self.init(_Params(size, None, no_alloc)) or 0)
        if not ctx:
            raise MemoryError
        try:
            yield ctx
        finally:
            self.free(ctx)

    @contextlib.contextmanager
    def products(self, kind: int, buffer_type: int, *, experts: bool, tokens: int) -> Iterator[int | None]:
        """A graph of products of `tokens` tokens with such weights; None where the buffer type can't hold them."""
        with self.context(1 << 20, no_alloc=True) as held, self.context(64 << 20, no_alloc=False) as ctx:
            if experts:
                weights = [self.tensor(held, kind, _EMBD, _FF, _EXPERTS)]
            else:
                number = _DENSE if tokens == 1 else _DENSE // 8
                weights = [self.tensor(held, kind, _EMBD, _WIDTH) for _ in range(number)]
            buffer = self.allocate(held, buffer_type)
            if not buffer:
                raise MemoryError
            try:
                x = self.tensor(ctx, _F32, _EMBD, 1, tokens) if experts else self.tensor(ctx, _F32, _EMBD, tokens)
                C.memset(self.data(x), 0, self.nbytes(x))
                ids = self._ids(ctx, tokens) if experts else 0
                graph = int(self.new_graph(ctx))
                for weight in weights:
                    product = self.mul_mat_id(ctx, weight, x, ids) if experts else self.mul_mat(ctx, weight, x)
                    if not self.supports(self.device, product):
                        yield None
                        return
                    size = self.nbytes(weight)
                    self.set(weight, bytes(size), 0, size)
                    self.expand(graph, product)
                yield graph
            finally:
                self.free_buffer(buffer)

    def ratio(self, kind: int, repacking: int, *, experts: bool, tokens: int) -> float | None:
        """How many times as fast such products are with weights of the buffer type `repacking`; None where it can't
        hold them. Both are timed in turn, so that what else runs here slows both. Raises `BusyError`."""
        with self.products(kind, repacking, experts=experts, tokens=tokens) as fast:
            if fast is None:
                return None
            with self.products(kind, self.plain, experts=experts, tokens=tokens) as slow:
                if slow is None:
                    return None
                took: dict[int, list[float]] = {fast: [], slow: []}
                until = time.perf_counter() + _SECONDS
                while len(took[slow]) < _LEAST or time.perf_counter() < until:
                    for graph, times in took.items():
                        began = time.perf_counter()
                        if self.compute(self.backend, graph):
                            return None
                        times.append(time.perf_counter() - began)
                ratios = sorted(s / f for s, f in zip(took[slow][1:], took[fast][1:], strict=True))
                if ratios[-1 - len(ratios) // 4] > _STEADY * ratios[len(ratios) // 4]:
                    raise BusyError
                return statistics.median(ratios)

    def _ids(self, ctx: int, tokens: int) -> int:
        ids = self.tensor(ctx, _I32, _USED, tokens)
        count = _USED * tokens
        values: Any = (C.c_int32 * count).from_address(self.data(ids))
        for i in range(count):
            values[i] = (i * 5 + i // _USED) % _EXPERTS
        return ids

    def close(self) -> None:
        self.free_backend(self.backend)


def measure(kind: int, n_threads: int) -> Gain | None:
    """What repacking weights of the type `kind` (``enum ggml_type``) gains; 1.0 where nothing repacks them here. None
    where the machine is too busy to tell, or short of memory. Takes about a second."""
    types = extra_buffer_types()
    nothing = Gain(1.0, 1.0, 1.0, 1.0)
    if not types:
        return nothing
    try:
        ggml = _Ggml(n_threads)
    except AttributeError:  # a build that doesn't export all of it
        return nothing
    try:
        ratios = []
        for experts in (False, True):
            for tokens in (1, _MANY):
                known = (ggml.ratio(kind, t, experts=experts, tokens=tokens) for t in types)
                ratios.append(next((ratio for ratio in known if ratio is not None), 1.0))
        return Gain(*ratios)
    except (BusyError, MemoryError):
        return None
    finally:
        ggml.close()
