"""ctypes layouts of ggml's structs, and the proof that they are the loaded library's.

The layouts belong to one release of llama-cpp-python. `check` creates a tensor, a buffer and a buffer type through
ggml's own API and reads the fields back; where anything differs streaming refuses, and mmap loading takes over.
"""

from __future__ import annotations

import ctypes as C
import functools
import platform
import sys
from pathlib import Path
from typing import Any

from backends.llamacpp.abi import Buffer, BufferType

PINNED = "0.3.36"


class Tensor(C.Structure):
    """struct ggml_tensor (ggml.h)."""

    _fields_ = [
        ("type", C.c_int),
        ("buffer", C.c_void_p),
        ("ne", C.c_int64 * 4),
        ("nb", C.c_size_t * 4),
        ("op", C.c_int),
        ("op_params", C.c_int32 * 16),
        ("flags", C.c_int32),
        ("src", C.c_void_p * 10),
        ("view_src", C.c_void_p),
        ("view_offs", C.c_size_t),
        ("data", C.c_void_p),
        ("name", C.c_char * 64),
        ("extra", C.c_void_p),
        ("padding", C.c_char * 8),
    ]


NAME, OP, SRC = Tensor.name.offset, Tensor.op.offset, Tensor.src.offset
"""Where these fields lie in a tensor: reading one alone is sooner done than by way of the structure."""
Sources = C.c_void_p * 3
"""The first sources of a node: those that a product has, and the ids of an expert product."""


class _InitParams(C.Structure):
    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", C.c_void_p), ("no_alloc", C.c_bool)]


OBJECT_BYTES = 32
CPU_DEVICE = 0
TYPE_F32, TYPE_I32 = 0, 26


class Ggml:
    """ggml's C functions that streaming calls, typed. Pointers are ints."""

    def __init__(self, folder: Path) -> None:
        base, ggml = C.CDLL(str(folder / "libggml-base.so")), C.CDLL(str(folder / "libggml.so"))

        def function(lib: C.CDLL, name: str, result: Any, *arguments: Any) -> Any:
            f = getattr(lib, name)
            f.restype, f.argtypes = result, list(arguments)
            return f

        p, size = C.c_void_p, C.c_size_t
        self.buffer_from_ptr = function(base, "ggml_backend_cpu_buffer_from_ptr", p, p, size)
        self.buffer_free = function(base, "ggml_backend_buffer_free", None, p)
        self.buffer_type_of = function(base, "ggml_backend_buffer_get_type", p, p)
        self.buffer_is_host = function(base, "ggml_backend_buffer_is_host", C.c_bool, p)
        self.cpu_buffer_type = function(base, "ggml_backend_cpu_buffer_type", p)
        self.buft_name = function(base, "ggml_backend_buft_name", C.c_char_p, p)
        self.buft_alignment = function(base, "ggml_backend_buft_get_alignment", size, p)
        self.buft_device = function(base, "ggml_backend_buft_get_device", p, p)
        self.nbytes = function(base, "ggml_nbytes", size, p)
        self.tensor_get = function(base, "ggml_backend_tensor_get", None, p, p, size, size)
        self.type_size = function(base, "ggml_type_size", size, C.c_int)
        self.block_size = function(base, "ggml_blck_size", C.c_int64, C.c_int)
        self.op_name = function(base, "ggml_op_name", C.c_char_p, C.c_int)
        self.tensor_overhead = function(base, "ggml_tensor_overhead", size)
        self.init = function(base, "ggml_init", p, _InitParams)
        self.free = function(base, "ggml_free", None, p)
        self.new_tensor = function(base, "ggml_new_tensor", p, p, C.c_int, C.c_int, C.POINTER(C.c_int64))
        self.set_name = function(base, "ggml_set_name", p, p, C.c_char_p)
        self.mul_mat_id = function(base, "ggml_mul_mat_id", p, p, p, p, p)
        self.view_1d = function(base, "ggml_view_1d", p, p, p, C.c_int64, size)
        self.dev_by_type = function(ggml, "ggml_backend_dev_by_type", p, C.c_int)

    def op(self, name: str) -> int:
        """The number of an op, e.g. ``MUL_MAT_ID``; raises `LookupError`."""
        for i in range(200):
            got = self.op_name(i)
            if got == name.encode():
                return i
        raise LookupError(name)


@functools.cache
def ggml() -> Ggml:
    """The library that llama-cpp-python loaded; raises `OSError` or `AttributeError` where it isn't as expected."""
    import llama_cpp

    return Ggml(Path(llama_cpp.__file__).parent / "lib")


def _verify(g: Ggml) -> str | None:
    """What differs between the layouts above and the library's structs, None where nothing does."""
    if g.tensor_overhead() != OBJECT_BYTES + C.sizeof(Tensor):
        return "the size of a tensor"
    ctx = g.init(_InitParams(64 * g.tensor_overhead(), None, True))
    if not ctx:
        return "ggml_init"
    try:

        def new(kind: int, *dims: int) -> int:
            return int(g.new_tensor(ctx, kind, len(dims), (C.c_int64 * len(dims))(*dims)))

        weight, x, ids = new(TYPE_F32, 64, 5, 7), new(TYPE_F32, 64, 1, 3), new(TYPE_I32, 2, 3)
        g.set_name(weight, b"a name of a weight")
        t = Tensor.from_address(weight)
        fields = (t.type, tuple(t.ne), tuple(t.nb), t.op, t.flags, t.name, t.view_src, t.data, t.buffer, t.extra)
        expected = (0, (64, 5, 7, 1), (4, 256, 1280, 8960), 0, 0, b"a name of a weight", None, None, None, None)
        if fields != expected or Tensor.from_address(ids).type != TYPE_I32:
            return "the fields of a tensor"
        product = Tensor.from_address(g.mul_mat_id(ctx, weight, x, ids))
        if product.op != g.op("MUL_MAT_ID") or tuple(product.src[:3]) != (weight, x, ids) or product.src[3]:
            return "the sources of a product"
        view = Tensor.from_address(g.view_1d(ctx, weight, 8, 256))
        if view.view_src != weight or view.view_offs != 256:
            return "the fields of a view"
    finally:
        g.free(ctx)
    memory = C.create_string_buffer(8192)
    at = -(-C.addressof(memory) // 64) * 64
    buffer = g.buffer_from_ptr(at, 4096)
    try:
        b = Buffer.from_address(buffer)
        if b.buft != g.buffer_type_of(buffer) or b.size != 4096 or b.context != at:
            return "the fields of a buffer"
    finally:
        g.buffer_free(buffer)
    buft = g.cpu_buffer_type()
    kind = BufferType.from_address(buft)
    name = C.CFUNCTYPE(C.c_char_p, C.c_void_p)(kind.get_name)(buft)
    alignment = C.CFUNCTYPE(C.c_size_t, C.c_void_p)(kind.get_alignment)(buft)
    host = C.CFUNCTYPE(C.c_bool, C.c_void_p)(kind.is_host)(buft)
    if name != g.buft_name(buft) or alignment != g.buft_alignment(buft) or not host:
        return "the callbacks of a buffer type"
    if (kind.device or 0) != (g.buft_device(buft) or 0):
        return "the device of a buffer type"
    return None


@functools.cache
def check() -> str | None:
    """One sentence that says why streaming can't run with this system and llama-cpp-python; None where it can."""
    if sys.platform != "linux":
        return f"Streaming experts needs Linux; this is {platform.system()}."
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        return "Streaming experts needs a 64-bit little-endian machine."
    from backends.system import libc

    if not libc.has_fopencookie():
        return "Streaming experts needs glibc (fopencookie); this system's C library doesn't have it."
    try:
        import llama_cpp
    except Exception as e:
        return f"llama-cpp-python could not be loaded ({e}); install llama-cpp-python=={PINNED}."
    if llama_cpp.__version__ != PINNED:
        return f"Streaming experts needs llama-cpp-python {PINNED}; {llama_cpp.__version__} is installed."
    try:
        wrong = _verify(ggml())
    except (OSError, AttributeError, LookupError, ValueError) as e:
        return f"This build of llama-cpp-python {PINNED} lacks something that streaming needs: {e}."
    if wrong:
        return f"This build of llama-cpp-python {PINNED} has another memory layout ({wrong} differ); reinstall it."
    return None
