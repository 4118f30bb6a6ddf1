"""What earlier runs tell of a model that is about to be loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec

from backends.gguf.file import read_gguf
from backends.interface import EngineError, LoadRequest
from backends.planner.prompts import prompt_pace
from backends.planner.speed import measured_prompt_token
from flashmoe.plans import measurements
from flashmoe.plans.planning import plan_header, request_of


def with_measurements(request: LoadRequest) -> LoadRequest:
    """The request with what was measured of its disk and its prompts, where the ubatch is to be chosen by that, and
    without layers on a GPU where answers come faster so and nobody asked for any."""
    if request.path.startswith(("http://", "https://")):
        return request
    try:
        gguf = read_gguf(request.path)
    except (EngineError, OSError):
        return request
    here = measurements.machine(Path(request.path).absolute().parent, measure=False)
    in_vram = 0
    if (here.gpus or here.integrated_gpu) and (request.n_gpu_layers is None or request.vram_expert_bytes != 0):
        made = plan_header(gguf, request_of(request), here)
        in_vram = made.place.vram_experts
        if made.gpu_reason:
            request = msgspec.structs.replace(request, n_gpu_layers=0, gpu_reason=made.gpu_reason)
    if request.n_ubatch is not None:
        return request
    token_s, at = measured_prompt_token(measurements.runs_of(gguf), in_vram)
    if token_s is not None:  # as the plan takes it: without what attention to a long prompt took
        used = request.n_expert_used
        gpu = bool(here.gpus)
        token_s = prompt_pace(gguf, here, 0, on_gpu=gpu, n_used=used, token_s=token_s, measured_at=at).token_s
    return msgspec.structs.replace(request, disk_bytes_s=here.disk_bytes_s, prompt_token_s=token_s)
