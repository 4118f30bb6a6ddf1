"""llama.cpp's compute buffers: what a pass of many tokens touched of them is given back once small ones follow.

They are reserved for the largest pass, and only touched as far as a pass needs. Between two graphs nothing in them
counts: inputs are set again for each one, and logits lie in a buffer of their own.
"""

from __future__ import annotations

from backends.llamacpp.abi import Buffer
from backends.streaming import abi
from backends.system import libc
from backends.system.libc import PAGE

LARGE_TOKENS = 1024
"""What smaller passes touched is kept: a usual pass of a prompt is one of them, and the next one comes soon."""
SMALL_TOKENS = 64
SMALL_PASSES = 3
"""After so many passes of at most `SMALL_TOKENS` tokens a prompt is over."""


class Scratch:
    """The compute buffers of one context, as far as large passes were seen to use them. One thread calls everything."""

    def __init__(self) -> None:
        self._buffers: dict[int, tuple[int, int]] = {}
        """Address and bytes of what a large pass uses, by ``ggml_backend_buffer_t``."""
        self._small = 0
        self.given_back = 0
        """How often memory was given back."""

    def seen(self, buffer: int, tokens: int) -> None:
        """A node of a pass of `tokens` tokens lies in this buffer."""
        if tokens < LARGE_TOKENS or buffer in self._buffers:
            return
        b = Buffer.from_address(buffer)
        if abi.ggml().buft_name(b.buft) == b"CPU":  # not one that is pinned for a GPU
            self._buffers[buffer] = (int(b.context or 0), int(b.size))

    def begin(self, tokens: int) -> None:
        """A pass begins."""
        self._small = self._small + 1 if tokens <= SMALL_TOKENS else 0
        if self._small < SMALL_PASSES or not self._buffers:
            return
        for address, size in self._buffers.values():
            start, end = -(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE
            if end > start:
                libc.madvise(start, end - start, libc.MADV_DONTNEED)
        self._buffers.clear()
        self.given_back += 1
