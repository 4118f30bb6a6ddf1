"""A ggml buffer type whose tensors have addresses of ours: scratch while llama.cpp loads, the residency store after.

llama.cpp "reads" every expert tensor during loading (see `virtual_file`); the bytes land on the same 2 MiB mapped again
and again over the whole range, which costs neither page faults nor memory. Afterwards `Tensor.data` is pointed at where
the store keeps that tensor.
"""

from __future__ import annotations

import ctypes as C
import os

from backends.streaming import abi, libc

_CHUNK = 1 << 21


_NAME = C.create_string_buffer(b"Streamed")


class ExpertBufferType:
    """Owns the ``ggml_backend_buffer_type`` and what ggml allocated from it. Keep it alive as long as the model."""

    def __init__(self) -> None:
        self._ggml = abi.ggml()
        self.tensors: dict[str, int] = {}
        """Name to ``ggml_tensor *``, filled while the model loads."""
        self.error: BaseException | None = None
        self._largest = 0
        self._scratch: list[tuple[int, int]] = []
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
        self._struct = abi.BufferType(name, alloc, alignment, None, alloc_size, is_host, device, None)

    @property
    def pointer(self) -> int:
        """``ggml_backend_buffer_type_t``."""
        return C.addressof(self._struct)

    def _alloc_size(self, _: object, tensor: int) -> int:
        try:
            self.tensors[abi.Tensor.from_address(tensor).name.decode()] = tensor
            self._largest = max(self._largest, int(self._ggml.nbytes(tensor)))
        except BaseException as e:
            self.error = e
        return libc.PAGE  # the true size is the store's business

    def _alloc(self, _: object, size: int) -> int | None:
        try:
            # llama.cpp writes a tensor of at most the largest size somewhere in here
            total = -(-(size + self._largest + _CHUNK) // _CHUNK) * _CHUNK
            fd = os.memfd_create("load-scratch", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, _CHUNK)
                at = libc.mmap(None, total, libc.PROT_NONE, libc.PRIVATE | libc.ANON | libc.NORESERVE)
                self._scratch.append((at, total))
                for offset in range(0, total, _CHUNK):
                    libc.mmap(at + offset, _CHUNK, libc.PROT_RW, libc.SHARED | libc.FIXED, fd, 0)
            finally:
                os.close(fd)
            buffer = int(self._ggml.buffer_from_ptr(at, size))
            abi.Buffer.from_address(buffer).buft = self.pointer
            return buffer
        except BaseException as e:
            self.error = e
            return None

    def loaded(self) -> None:
        """Gives the scratch memory back; the address ranges stay reserved, since ggml knows them."""
        for at, total in self._scratch:
            libc.mmap(at, total, libc.PROT_NONE, libc.PRIVATE | libc.ANON | libc.NORESERVE | libc.FIXED)

    def close(self) -> None:
        """Unmaps everything; only after the model was freed."""
        while self._scratch:
            libc.munmap(*self._scratch.pop())
