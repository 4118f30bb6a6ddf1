"""A ggml buffer type whose tensors have no bytes: llama.cpp allocates them, and a residency store places them later.

llama.cpp fills every tensor while it loads, through a buffer of glibc's, byte for byte. An expert tensor counts as
empty from its allocation to the end of the load (no expert along its third axis), so there is nothing to fill.
Afterwards `Tensor.data` is pointed at where the store keeps that tensor.
"""

from __future__ import annotations

import ctypes as C

from backends.llamacpp.abi import Buffer, BufferType
from backends.streaming import abi
from backends.system import libc

_NAME = C.create_string_buffer(b"Streamed")


class ExpertBufferType:
    """Owns the ``ggml_backend_buffer_type`` and what ggml allocated from it. Keep it alive as long as the model."""

    def __init__(self) -> None:
        self._ggml = abi.ggml()
        self.tensors: dict[str, int] = {}
        """Name to ``ggml_tensor *``, filled while the model loads."""
        self.error: BaseException | None = None
        self._experts: dict[int, int] = {}
        """``ggml_tensor *`` to the number of experts that it really has."""
        self._reserved: list[tuple[int, int]] = []
        functions = (
            C.CFUNCTYPE(C.c_void_p, C.c_void_p)(lambda _: C.addressof(_NAME)),  # a char * that stays
            C.CFUNCTYPE(C.c_void_p, C.c_void_p, C.c_size_t)(self._alloc),
            C.CFUNCTYPE(C.c_size_t, C.c_void_p)(lambda _: libc.PAGE),
            C.CFUNCTYPE(C.c_size_t, C.c_void_p, C.c_void_p)(self._alloc_size),
            C.CFUNCTYPE(C.c_bool, C.c_void_p)(lambda _: True),
        )
        self._keep = functions
        name, alloc, alignment, alloc_size, is_host = (C.cast(f, C.c_void_p) for f in functions)
        device = self._ggml.dev_by_type(abi.CPU_DEVICE)
        self._struct = BufferType(name, alloc, alignment, None, alloc_size, is_host, device, None)

    @property
    def pointer(self) -> int:
        """``ggml_backend_buffer_type_t``."""
        return C.addressof(self._struct)

    def _alloc_size(self, _: object, tensor: int) -> int:
        try:
            self.tensors[abi.Tensor.from_address(tensor).name.decode()] = tensor
        except BaseException as e:
            self.error = e
        return libc.PAGE  # the true size is the store's business

    def _alloc(self, _: object, size: int) -> int | None:
        try:
            at = libc.mmap(None, size, libc.PROT_NONE, libc.PRIVATE | libc.ANON | libc.NORESERVE)
            self._reserved.append((at, size))
            buffer = int(self._ggml.buffer_from_ptr(at, size))
            Buffer.from_address(buffer).buft = self.pointer
            for pointer in self.tensors.values():
                ne = abi.Tensor.from_address(pointer).ne
                self._experts.setdefault(pointer, int(ne[2]))
                ne[2] = 0
            return buffer
        except BaseException as e:
            self.error = e
            return None

    def loaded(self) -> None:
        """Gives the tensors their experts back: llama.cpp has filled all others."""
        for pointer, n in self._experts.items():
            abi.Tensor.from_address(pointer).ne[2] = n

    def close(self) -> None:
        """Unmaps everything; only after the model was freed."""
        while self._reserved:
            libc.munmap(*self._reserved.pop())
