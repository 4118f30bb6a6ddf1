"""Which experts the page cache holds, for a model that the kernel maps: a map of shares, no router needed."""

from __future__ import annotations

import os
import time

import numpy as np

from backends.gguf.file import EXPERT_WEIGHT, GgufFile
from backends.interface import ExpertMap
from backends.system import libc


class PageCacheMap:
    """Asks the kernel (cachestat) how much of each expert is in RAM. One thread at a time.

    That takes a system call for each expert matrix, and a walk over its pages: some 50 ms for a large model that is
    warm. So only the first snapshot looks at all of them; the others look at what was looked at longest ago.
    """

    def __init__(self, gguf: GgufFile, *, spend_s: float = 0.004) -> None:
        """`spend_s`: how long a snapshot may look, apart from the first."""
        self._layers = gguf.expert_layers
        rows = {layer.layer: i for i, layer in enumerate(self._layers)}
        self._slices: list[tuple[int, int, int, int]] = []  # row, file, offset, bytes of one expert
        for tensor in gguf.tensors:
            match = EXPERT_WEIGHT.match(tensor.name)
            if match is not None and int(match[1]) in rows:
                row = rows[int(match[1])]
                size = tensor.nbytes // self._layers[row].n_experts
                self._slices.append((row, tensor.file, tensor.offset, size))
        files = sorted({file for _, file, _, _ in self._slices})
        self._fds = {file: os.open(gguf.files[file], os.O_RDONLY | os.O_CLOEXEC) for file in files}
        n = max((layer.n_experts for layer in self._layers), default=0)
        self._held = np.zeros((len(self._slices), n), np.float64)
        """Bytes in the page cache of each slice's experts, as last seen."""
        self._spend_s = spend_s
        self._next = 0
        self._known: bool | None = None
        """Whether the kernel tells; None before the first look."""

    def snapshot(self) -> ExpertMap | None:
        """The map now; residency is None where the kernel can't tell."""
        if not self._layers or not self._fds:
            return None
        self._look()
        n = self._held.shape[1]
        held, whole = np.zeros((len(self._layers), n), np.float64), np.zeros(len(self._layers), np.float64)
        for (row, _, _, size), cached in zip(self._slices, self._held, strict=True):
            whole[row] += size
            held[row] += cached
        share = np.minimum(255, np.round(255 * held / np.maximum(1, whole)[:, None])).astype(np.uint8)
        return ExpertMap(
            n_layers=len(self._layers),
            n_experts=n,
            first_layer=self._layers[0].layer,
            layers=tuple(layer.layer for layer in self._layers),
            expert_bytes=tuple(layer.expert_bytes for layer in self._layers),
            residency=share.tobytes() if self._known else None,
        )

    def _look(self) -> None:
        deadline = time.perf_counter() + self._spend_s
        for _ in range(len(self._slices)):
            row, file, offset, size = self._slices[self._next]
            for expert in range(self._layers[row].n_experts):
                cached = libc.cached_bytes(self._fds[file], offset + expert * size, size)
                if cached is None:
                    self._known = False
                    return
                self._held[self._next, expert] = cached
            self._next = (self._next + 1) % len(self._slices)
            if self._known and time.perf_counter() > deadline:
                return
        self._known = True

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
