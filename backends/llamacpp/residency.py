"""Which experts the page cache holds, for a model that the kernel maps: a map of shares, no router needed."""

from __future__ import annotations

import os

import numpy as np

from backends.gguf_file import EXPERT_WEIGHT, GgufFile
from backends.interface import ExpertMap
from backends.llamacpp import procfs


class PageCacheMap:
    """Asks the kernel (cachestat) how much of each expert is in RAM. Thread-safe; one call takes a system call for each
    expert matrix: some 10 ms for a large model."""

    def __init__(self, gguf: GgufFile) -> None:
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

    def snapshot(self) -> ExpertMap | None:
        """The map now; residency is None where the kernel can't tell."""
        if not self._layers or not self._fds:
            return None
        n = max(layer.n_experts for layer in self._layers)
        held = np.zeros((len(self._layers), n), np.float64)
        whole = np.zeros(len(self._layers), np.float64)
        known = True
        for row, file, offset, size in self._slices:
            whole[row] += size
            for expert in range(self._layers[row].n_experts):
                cached = procfs.cached_bytes(self._fds[file], offset + expert * size, size)
                if cached is None:
                    known = False
                    break
                held[row, expert] += cached
        share = np.minimum(255, np.round(255 * held / np.maximum(1, whole)[:, None])).astype(np.uint8)
        return ExpertMap(
            n_layers=len(self._layers),
            n_experts=n,
            first_layer=self._layers[0].layer,
            layers=tuple(layer.layer for layer in self._layers),
            expert_bytes=tuple(layer.expert_bytes for layer in self._layers),
            residency=share.tobytes() if known else None,
        )

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
