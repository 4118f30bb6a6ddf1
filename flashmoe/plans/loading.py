"""What earlier runs tell of a model that is about to be loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec

from backends.gguf.file import read_gguf
from backends.interface import EngineError, LoadRequest
from flashmoe.plans import measurements


def with_measurements(request: LoadRequest) -> LoadRequest:
    """The request with what was measured of its disk and its prompts, where the ubatch is to be chosen by that."""
    if request.n_ubatch is not None or request.path.startswith(("http://", "https://")):
        return request
    try:
        gguf = read_gguf(request.path)
    except (EngineError, OSError):
        return request
    here = measurements.machine(Path(request.path).absolute().parent, measure=False)
    pace = measurements.prompt_token_s(measurements.runs_of(gguf))
    return msgspec.structs.replace(request, disk_bytes_s=here.disk_bytes_s, prompt_token_s=pace)
