"""Where every expert's bytes lie, as numpy arrays: rows are the layers that have experts, in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.interface import EngineError
from backends.streaming.virtual_file import EXPERT_NAME, TensorEntry, VirtualGguf

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ExpertTensor:
    """One stacked tensor (all experts of one layer's gate, up, gate_up or down)."""

    entry: TensorEntry
    pointer: int
    """``ggml_tensor *``."""
    n_experts: int
    slice_bytes: int
    is_down: bool


@dataclass(frozen=True)
class LayerRow:
    """The expert tensors of one layer; gate and up come before down."""

    layer: int
    tensors: tuple[ExpertTensor, ...]
    n_experts: int
    expert_bytes: int


class ExpertLayout:
    """All rows of a model."""

    def __init__(self, virtual: VirtualGguf, pointers: dict[str, int]) -> None:
        """`pointers`: the tensors that llama.cpp put into our buffer type. Raises `EngineError` where a tensor isn't as
        streaming needs it."""
        self.virtual = virtual
        found: dict[int, list[ExpertTensor]] = {}
        entries = {t.name: t for t in virtual.tensors}
        for name, pointer in pointers.items():
            entry, match = entries.get(name), EXPERT_NAME.match(name)
            if entry is None or match is None or len(entry.dims) != 3 or entry.bytes % entry.dims[2]:
                raise EngineError("unsupported", f"The tensor {name[:64]!r} can't be streamed", "use --backend mmap.")
            tensor = ExpertTensor(entry, pointer, entry.dims[2], entry.bytes // entry.dims[2], match[2] == "down")
            found.setdefault(int(match[1]), []).append(tensor)
        self.rows: list[LayerRow] = []
        for layer in sorted(found):
            tensors = tuple(sorted(found[layer], key=lambda t: (t.is_down, t.entry.part, t.entry.offset)))
            counts = {t.n_experts for t in tensors}
            if len(counts) != 1:
                raise EngineError("unsupported", f"Layer {layer}'s expert tensors disagree", "use --backend mmap.")
            self.rows.append(LayerRow(layer, tensors, counts.pop(), sum(t.slice_bytes for t in tensors)))
        if not self.rows:
            raise EngineError("unsupported", "This model has no routed experts to stream", "use --backend mmap.")
        self.row_of = {r.layer: i for i, r in enumerate(self.rows)}
        self.n_experts = max(r.n_experts for r in self.rows)
        self.expert_bytes: I64 = np.array([r.expert_bytes for r in self.rows], np.int64)
        self.total_bytes = int(sum(r.expert_bytes * r.n_experts for r in self.rows))

    def working_set(self, n_used: int) -> int:
        """Bytes of the experts that one token chooses."""
        return int(sum(r.expert_bytes * min(n_used, r.n_experts) for r in self.rows))

    def largest_layer(self) -> int:
        """Bytes of the largest layer's experts."""
        return int(max(r.expert_bytes * r.n_experts for r in self.rows))
