"""Compute buffers: the planner is close to what llama.cpp allocates, over architectures, batches and contexts."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.gguf.file import read_gguf
from backends.planner.compute import compute_bytes
from tests.gguf_factory import make_gguf
from tests.llama_memory import allocations

WIDE = {"n_embd": 1024, "n_head": 8, "n_head_kv": 2, "head_dim": 128, "n_ff": 512, "n_ff_exp": 256, "n_vocab": 300}
EXPERTS = {"n_expert": 5, "n_expert_used": 4}
CASES: list[tuple[str, dict[str, int]]] = [
    ("qwen3moe", EXPERTS),
    ("qwen3moe", {"n_expert": 9, "n_expert_used": 8}),
    ("qwen3moe", {**EXPERTS, "n_head": 32, "n_head_kv": 4}),
    ("qwen3moe", {**EXPERTS, "n_ff_exp": 768}),
    ("qwen3moe", {**EXPERTS, "n_vocab": 40_000}),
    ("qwen3", {"n_ff": 4096}),
    ("llama", EXPERTS),
    ("olmoe", EXPERTS),
    ("glm4moe", EXPERTS),
    ("gpt-oss", EXPERTS),
    ("deepseek2", EXPERTS),
    ("gemma4", EXPERTS),
    ("llama4", EXPERTS),
    ("lfm2moe", EXPERTS),
    ("granitehybrid", EXPERTS),
    ("qwen35moe", {**EXPERTS, "n_layer": 4, "ssm_state": 128, "ssm_k_heads": 8, "ssm_v_heads": 16}),
    ("qwen3next", {**EXPERTS, "n_layer": 4, "ssm_state": 128, "ssm_k_heads": 8, "ssm_v_heads": 16}),
    ("qwen4exp", {**EXPERTS, "n_layer": 4}),
    ("qwen4exp", {**EXPERTS, "n_layer": 4, "n_head": 16, "ssm_state": 128, "ssm_k_heads": 8, "ssm_v_heads": 16}),
]


@pytest.mark.parametrize(("arch", "dims"), CASES)
def test_bytes_are_close_to_llama_cpps(tmp_path: Path, arch: str, dims: dict[str, int]) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch, **{**WIDE, **dims})
    gguf = read_gguf(path)
    for n_ctx, ubatch in ((2048, 128), (8192, 512), (32768, 512)):
        real = allocations(path, n_ctx=n_ctx, n_batch=ubatch, n_ubatch=ubatch, kv_unified=True, swa_full=True)
        ours = compute_bytes(gguf, n_ctx, ubatch)
        assert 0.9 * real["compute"] < ours.allocated < 1.6 * real["compute"]
        assert ours.touched <= ours.allocated
