"""What llama.cpp itself says that it allocates for a context: the measure of the planner's figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as L

_SIZES = re.compile(r"(\w+) buffer size = +([\d.]+) MiB")
_lines: list[str] = []


@L.llama_log_callback
def _log(level: int, text: bytes, user: Any) -> None:
    _lines.append(text.decode("utf-8", "replace"))


def allocations(path: Path | str, **context: Any) -> dict[str, int]:
    """Loads a model (no GPU, no repacking) with a context and returns the bytes of its buffers by kind: ``KV``, ``RS``,
    ``compute``, ``output``, as llama.cpp logs them (to 0.01 MiB)."""
    L.llama_log_set(_log, None)
    _lines.clear()
    params = L.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    model = L.llama_model_load_from_file(str(path).encode(), params)
    assert model, "".join(_lines)[-800:]
    settings = L.llama_context_default_params()
    settings.n_threads = settings.n_threads_batch = 2
    for name, value in context.items():
        setattr(settings, name, value)
    handle = L.llama_init_from_model(model, settings)
    assert handle, "".join(_lines)[-800:]
    L.llama_free(handle)
    L.llama_model_free(model)
    found: dict[str, int] = {}
    for kind, mib in _SIZES.findall("".join(_lines)):
        found[kind] = found.get(kind, 0) + round(float(mib) * 2**20)
    return found
