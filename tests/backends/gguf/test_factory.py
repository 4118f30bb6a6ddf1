"""The tiny models of the tests are real: llama.cpp loads each of them and computes finite logits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from tests.gguf_factory import make_gguf
from tests.gguf_shapes import ARCHITECTURES


def logits(path: Path, tokens: list[int]) -> np.ndarray:
    model = llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, n_gpu_layers=0, verbose=False, logits_all=True)
    try:
        model.eval(tokens)
        return np.array(model.scores[: len(tokens)])
    finally:
        model.close()


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_loads(tmp_path: Path, arch: str) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", arch=arch)
    got = logits(path, [1, 2, 3, 70, 200, 33])
    assert np.isfinite(got).all()
    assert got.std() > 0.5
    assert len({row.tobytes() for row in got}) == len(got)


@pytest.mark.parametrize(
    ("quant", "dims"),
    [("f32", {}), ("bf16", {}), ("q8_0", {}), ("q4_0", {}), ("mxfp4", {}), ("q4_k", {"n_embd": 256, "n_ff_exp": 256})],
)
def test_every_quant_loads(tmp_path: Path, quant: str, dims: dict[str, int]) -> None:
    assert np.isfinite(logits(make_gguf(tmp_path / "tiny.gguf", quant=quant, **dims), [1, 2, 300])).all()


@pytest.mark.parametrize("arch", ["glm4moe", "deepseek2"])
def test_layers_for_multi_token_prediction_load(tmp_path: Path, arch: str) -> None:
    assert np.isfinite(logits(make_gguf(tmp_path / "tiny.gguf", arch=arch, n_nextn=1), [1, 2, 3])).all()


def test_dense_models_load(tmp_path: Path) -> None:
    for arch in ("qwen3moe", "llama"):
        assert np.isfinite(logits(make_gguf(tmp_path / f"{arch}.gguf", arch=arch, dense=True), [1, 2, 3])).all()


def test_a_split_set_computes_what_the_single_file_does(tmp_path: Path) -> None:
    whole = logits(make_gguf(tmp_path / "whole.gguf"), [5, 6, 7])
    first = make_gguf(tmp_path / "parts.gguf", split=3)
    assert first.name == "parts-00001-of-00003.gguf"
    assert np.array_equal(whole, logits(first, [5, 6, 7]))


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    digests = [
        hashlib.sha256(make_gguf(tmp_path / f"{i}.gguf", seed=seed).read_bytes()).hexdigest()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_experts_matter_to_the_logits(tmp_path: Path) -> None:
    """Tests of streaming compare logits: an expert that holds zeros must change them."""
    import gguf

    path = make_gguf(tmp_path / "tiny.gguf", quant="f32")
    before = logits(path, [1, 2, 3])
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_down_exps.weight")
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(bytes(int(tensor.n_bytes)))
    assert np.abs(logits(path, [1, 2, 3]) - before).max() > 0.01


def test_any_text_survives_the_tokenizer(tmp_path: Path) -> None:
    model = llama_cpp.Llama(str(make_gguf(tmp_path / "tiny.gguf")), vocab_only=True, verbose=False)
    for text in ("hello there, the wörld", "日本語 🙂\n\ttabs", "x = {'a': 1}"):
        assert model.detokenize(model.tokenize(text.encode(), add_bos=False)).decode() == text
    ids = model.tokenize(b"<|im_start|>user\nhi<|im_end|>", add_bos=False, special=True)
    assert ids[0] == 508
    assert ids[-1] == 509
    assert model.token_eos() == 509
