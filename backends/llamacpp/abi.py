"""The ctypes layouts and the few functions of its C API that llama-cpp-python doesn't bind.

They belong to one release of llama-cpp-python (pinned in pyproject.toml); more layouts, and the proof that they
fit, are in `backends.streaming.abi`. Nothing is loaded on import.
"""

from __future__ import annotations

import ctypes as C
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEVICE_TYPE_CPU = 0
DEVICE_TYPE_GPU = 1
DEVICE_TYPE_IGPU = 2

EXPERT_PATTERN = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Names of the tensors that hold routed experts, as llama.cpp's own ``--cpu-moe`` has it (their biases included)."""


def expert_pattern(vram_layers: Sequence[int] = (), names: str = EXPERT_PATTERN) -> bytes:
    """`names` without those of some layers, whose experts llama.cpp may put where it puts the rest of the layer."""
    if not vram_layers:
        return names.encode()
    others = rf"^blk\.(?!(?:{'|'.join(map(str, vram_layers))})\.)\d+"
    return (others + names.removeprefix(r"^blk\.\d+")).encode()


class TensorOverride(C.Structure):
    """``struct llama_model_tensor_buft_override`` (llama.h)."""

    _fields_ = [("pattern", C.c_char_p), ("buft", C.c_void_p)]


class BufferType(C.Structure):
    """struct ggml_backend_buffer_type (ggml-backend-impl.h)."""

    _fields_ = [
        (n, C.c_void_p)
        for n in (
            "get_name",
            "alloc_buffer",
            "get_alignment",
            "get_max_size",
            "get_alloc_size",
            "is_host",
            "device",
            "context",
        )
    ]


class Buffer(C.Structure):
    """struct ggml_backend_buffer (ggml-backend-impl.h): eleven callbacks, then the buffer's type."""

    _fields_ = [
        ("callbacks", C.c_void_p * 11),
        ("buft", C.c_void_p),
        ("context", C.c_void_p),
        ("size", C.c_size_t),
        ("usage", C.c_int),
    ]


def library_folder() -> Path:
    """Where llama-cpp-python keeps its shared libraries (imports it)."""
    import llama_cpp

    return Path(str(llama_cpp.__file__)).parent / "lib"


def _library(name: str) -> Any:
    return C.CDLL(str(library_folder() / f"{name}{'.dylib' if sys.platform == 'darwin' else '.so'}"))


@functools.cache
def ggml_base() -> Any:
    """``libggml-base``: tensors and buffers."""
    return _library("libggml-base")


@functools.cache
def in_use() -> Any:
    """``libllama``, and through it the ggml that it computes with. `ggml_base` can be a second copy of that, with
    static variables of its own: a wheel holds files where a build has links to one."""
    return _library("libllama")


@functools.cache
def ggml() -> Any:
    """``libggml``: the registry of devices."""
    return _library("libggml")


def declare(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    """The function `name` of `library` with its C signature set."""
    function = getattr(library, name)
    function.restype = result
    function.argtypes = list(arguments)
    return function


@functools.cache
def cpu_buffer_type() -> int:
    """``ggml_backend_cpu_buffer_type()``: plain host memory, without repacking."""
    return int(declare(ggml_base(), "ggml_backend_cpu_buffer_type", C.c_void_p)())


class DeviceProps(C.Structure):
    """struct ggml_backend_dev_props (ggml-backend.h), with room for more capabilities than this release has."""

    _fields_ = [
        ("name", C.c_char_p),
        ("description", C.c_char_p),
        ("memory_free", C.c_size_t),
        ("memory_total", C.c_size_t),
        ("type", C.c_int),
        ("device_id", C.c_char_p),
        ("caps", C.c_bool * 32),
    ]


def devices() -> list[int]:
    """Handles (``ggml_backend_dev_t``) of all devices of this build of llama.cpp, the processor included."""
    count = declare(ggml(), "ggml_backend_dev_count", C.c_size_t)
    get = declare(ggml(), "ggml_backend_dev_get", C.c_void_p, C.c_size_t)
    return [int(get(i)) for i in range(count())]


def gpu_devices() -> list[int]:
    """Handles of the GPUs that llama.cpp puts layers on by itself: a card that two of its backends see (CUDA and
    Vulkan) counts once, and a GPU in the processor only where there is no card."""
    kind = declare(ggml_base(), "ggml_backend_dev_type", C.c_int, C.c_void_p)
    backend = declare(ggml_base(), "ggml_backend_dev_backend_reg", C.c_void_p, C.c_void_p)
    found: dict[object, int] = {}
    integrated: list[int] = []
    for device in devices():
        if kind(device) == DEVICE_TYPE_GPU:
            found.setdefault(device_id(device) or device, device)
        elif kind(device) == DEVICE_TYPE_IGPU and (not integrated or backend(device) == backend(integrated[-1])):
            integrated.append(device)
    return list(found.values()) or integrated


def device_id(device: int) -> bytes | None:
    """Where on the PCI bus a device is, None where its backend doesn't know."""
    query = declare(ggml_base(), "ggml_backend_dev_get_props", None, C.c_void_p, C.POINTER(DeviceProps))
    props = DeviceProps()
    query(device, C.byref(props))
    return bytes(props.device_id) if props.device_id else None


def cards() -> list[int]:
    """Of `gpu_devices` those with memory of their own; a GPU in the processor uses the machine's."""
    kind = declare(ggml_base(), "ggml_backend_dev_type", C.c_int, C.c_void_p)
    return [device for device in gpu_devices() if kind(device) == DEVICE_TYPE_GPU]


def device_memory(device: int) -> tuple[int, int]:
    """Free and total bytes of a device."""
    query = declare(
        ggml_base(), "ggml_backend_dev_memory", None, C.c_void_p, C.POINTER(C.c_size_t), C.POINTER(C.c_size_t)
    )
    free, total = C.c_size_t(), C.c_size_t()
    query(device, C.byref(free), C.byref(total))
    return free.value, total.value


def free_bytes(devices: Sequence[int]) -> list[int] | None:
    """Free bytes of each of these devices; None without any, and where one doesn't tell its memory."""
    memory = [device_memory(device) for device in devices]
    return [free for free, _ in memory] if memory and all(total for _, total in memory) else None
