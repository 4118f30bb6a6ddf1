"""KV cache and recurrent state: the planner's bytes are the ones that llama.cpp allocates."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.gguf.file import read_gguf
from backends.planner.kv import kv_bytes
from tests.gguf_factory import make_gguf
from tests.gguf_shapes import ARCHITECTURES
from tests.llama_memory import allocations

LAYERS = {"gpt-oss": 4, "gemma4": 5, "llama4": 8, "qwen35moe": 8, "qwen3next": 8, "granitehybrid": 8, "lfm2moe": 8}


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_bytes_are_llama_cpps(tmp_path: Path, arch: str, swa_full: bool) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", arch=arch, n_layer=LAYERS.get(arch, 3), n_ctx_train=1 << 17)
    gguf = read_gguf(path)
    for n_ctx, n_seqs in ((1000, 1), (20_000, 3)):
        real = allocations(
            path, n_ctx=n_ctx, n_seq_max=n_seqs, n_batch=64, n_ubatch=64, kv_unified=True, swa_full=swa_full
        )
        ours = kv_bytes(gguf, n_ctx, n_seqs=n_seqs, n_ubatch=64, swa_full=swa_full)
        assert ours.attention == pytest.approx(real.get("KV", 0), rel=0.001, abs=2 * 5300)
        assert ours.recurrent == pytest.approx(real.get("RS", 0), rel=0.001, abs=5300)
        bigger = kv_bytes(gguf, n_ctx + 256, n_seqs=n_seqs, n_ubatch=64, swa_full=swa_full)
        assert bigger.attention - ours.attention == 256 * ours.per_token


def test_a_known_models_figure() -> None:
    """Qwen3.5-35B-A3B: 20,480 bytes a token in f16 (10 attention layers of 2 x 256), the published figure."""
    import msgspec

    from backends.gguf.file import ByteKinds, GgufFile

    kv: dict[str, object] = {
        "qwen35moe.attention.head_count": 16, "qwen35moe.attention.head_count_kv": 2,
        "qwen35moe.attention.key_length": 256, "qwen35moe.attention.value_length": 256,
        "qwen35moe.full_attention_interval": 4,
    }  # fmt: skip
    model = GgufFile(
        path="x.gguf", files=("x.gguf",), file_bytes=0, version=3, architecture="qwen35moe", name="x", quant="Q4_K_M",
        n_layers=40, n_embd=2048, n_vocab=1, n_ctx_train=262144, bytes=ByteKinds(*[0] * 7), tensors=(), kv=kv,
    )  # fmt: skip
    assert kv_bytes(model, 4096).per_token == 20_480
    mla = msgspec.structs.replace(
        model,
        architecture="deepseek2",
        n_layers=47,
        kv={"deepseek2.attention.head_count": 20, "deepseek2.attention.head_count_kv": 1,
            "deepseek2.attention.key_length": 576, "deepseek2.attention.value_length": 512,
            "deepseek2.attention.key_length_mla": 256, "deepseek2.attention.value_length_mla": 256},
    )  # fmt: skip
    assert kv_bytes(mla, 4096).per_token == 47 * 576 * 2
