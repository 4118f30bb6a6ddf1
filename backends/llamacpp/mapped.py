"""A buffer type for weights that stay in the mapped file while others are repacked (see `backends.llamacpp.repack`)."""

from __future__ import annotations

import ctypes as C

from backends.llamacpp import abi

_NAME = C.create_string_buffer(b"Mapped")
_GET_NAME, _GET_BUFFER_TYPE, _REG, _FIELDS = 0, 6, 15, 17
"""Of ``struct ggml_backend_device`` (ggml-backend-impl.h): fifteen callbacks, then its registry and its context."""


class MappedBufferType:
    """A buffer type for weights that stay in the mapped file while others are repacked.

    For its own CPU buffer type llama.cpp would consider repacking. This one says of itself that it is the usual type of
    a device which is the CPU in all other respects, so what it holds is mapped. Keep it alive as long as the model.
    """

    def __init__(self) -> None:
        """Raises `OSError` where the loaded library's device isn't as expected."""
        ggml, p = abi.in_use(), C.c_void_p
        usual = int(abi.declare(ggml, "ggml_backend_cpu_buffer_type", p)())
        cpu = int(abi.declare(ggml, "ggml_backend_dev_by_type", p, C.c_int)(abi.DEVICE_TYPE_CPU) or 0)
        registry = abi.declare(ggml, "ggml_backend_dev_backend_reg", p, p)
        fields = p * _FIELDS
        if not cpu:
            raise OSError("no CPU device")
        self._device = fields.from_buffer_copy(fields.from_address(cpu))
        getter = C.CFUNCTYPE(p, p)
        if self._device[_REG] != registry(cpu) or getter(self._device[_GET_BUFFER_TYPE] or 0)(cpu) != usual:
            raise OSError("another layout of ggml_backend_device")
        self._struct = abi.BufferType.from_buffer_copy(abi.BufferType.from_address(usual))
        own = C.addressof(self._struct)
        self._callbacks = getter(lambda _: own), getter(lambda _: C.addressof(_NAME))
        self._device[_GET_BUFFER_TYPE] = C.cast(self._callbacks[0], p)
        self._struct.get_name = C.cast(self._callbacks[1], p)
        self._struct.device = C.addressof(self._device)

    @property
    def pointer(self) -> int:
        """``ggml_backend_buffer_type_t``."""
        return C.addressof(self._struct)
