"""Memory that a GPU copies from without waiting for the CPU, and from which on products run there."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable

from backends.llamacpp import abi

_REGISTER_VARIABLE = "GGML_CUDA_REGISTER_HOST"
_LEAST_VARIABLE = "GGML_OP_OFFLOAD_MIN_BATCH"


def offload_from() -> int | None:
    """Tokens of a batch from which on llama.cpp gives products with weights in host memory to a GPU; None without
    one."""
    if not abi.gpu_devices():
        return None
    try:
        return int(os.environ.get(_LEAST_VARIABLE, "32"))
    except ValueError:
        return 0  # as atoi reads it


def pin(address: int, size: int) -> Callable[[], None] | None:
    """Pins memory for the GPUs, where their backend can; returns what undoes it, None where nothing was pinned."""
    os.environ.setdefault(_REGISTER_VARIABLE, "1")  # the backend refuses without it
    backend_of = abi.declare(abi.ggml_base(), "ggml_backend_dev_backend_reg", C.c_void_p, C.c_void_p)
    find = abi.declare(abi.ggml_base(), "ggml_backend_reg_get_proc_address", C.c_void_p, C.c_void_p, C.c_char_p)
    for device in abi.gpu_devices():
        backend = backend_of(device)
        register = find(backend, b"ggml_backend_register_host_buffer")
        unregister = find(backend, b"ggml_backend_unregister_host_buffer")
        if register and unregister and C.CFUNCTYPE(C.c_bool, C.c_void_p, C.c_size_t)(register)(address, size):
            undo = C.CFUNCTYPE(None, C.c_void_p)(unregister)
            return lambda: undo(address)
    return None


def no_pin(_address: int, _size: int) -> None:
    """Where no GPU copies."""
