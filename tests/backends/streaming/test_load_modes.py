"""How llama.cpp is told to load and to compute where experts stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import read_gguf
from backends.interface import BenchRequest, LoadRequest, Model
from backends.llamacpp import native
from backends.llamacpp.backend import MmapBackend
from backends.streaming.backend import StreamBackend
from tests.gguf_factory import make_gguf
from tests.no_disk_probe import no_disk_probe

__all__ = ["no_disk_probe"]

LAZY_ON = 2


def load(path: Path, backend: str, **options: Any) -> Model:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    return maker.load(LoadRequest(path=str(path), n_ctx=256, n_threads=1, **options), lambda _: True)


def logits(path: Path, backend: str, **options: Any) -> str:
    model = load(path, backend, **options)
    try:
        return model.bench(BenchRequest(prompt_tokens=24, tokens=8), lambda done, total: True).logits_sha256
    finally:
        model.close()


@pytest.mark.parametrize(
    ("store", "staged", "offload"), [("pool", True, True), ("pool", False, False), ("pagecache", True, True)]
)
def test_no_gpu_takes_products_of_experts_in_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, staged: bool, offload: bool
) -> None:
    """A GPU that takes a long prompt's products reads experts by the tensors' layout: staged layers have it, slots
    don't."""
    path = make_gguf(tmp_path / "m.gguf")
    if not staged:
        monkeypatch.setattr("backends.streaming.store_choice.memory_for_experts", lambda *_: 0)
    L, told = native.lib(), []
    real = L.llama_init_from_model

    def init(model: Any, params: Any) -> Any:
        told.append(bool(params.op_offload))
        return real(model, params)

    monkeypatch.setattr(L, "llama_init_from_model", init)
    load(path, "stream", store=store, ram_bytes=read_gguf(path).bytes.experts).close()
    assert told == [offload]


def test_a_table_that_llama_cpp_reads_lazily_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read lazily above 4 GiB, here always: then llama.cpp maps the file, and behind our stream there is none."""
    path = make_gguf(tmp_path / "m.gguf", arch="qwen4exp", n_layer=4)
    L = native.lib()
    real = L.llama_model_default_params

    def params() -> Any:
        made = real()
        made.lazy_mode = LAZY_ON
        return made

    monkeypatch.setattr(L, "llama_model_default_params", params)
    expected = logits(path, "mmap")
    for store in ("pool", "pagecache"):
        assert logits(path, "stream", store=store) == expected


def test_what_is_not_known_to_be_damaged_is_not_to_be_downloaded_again(tmp_path: Path) -> None:
    from backends.llamacpp.loading import load_error

    tail = native.LogTail()
    tail.feed("llama_model_load: error loading model: posix_fadvise(.., 2) failed: Bad file descriptor\n")
    told = load_error(str(tmp_path / "m.gguf"), tail).message
    assert "posix_fadvise(.., 2) failed: Bad file descriptor" in told
    assert "download" not in told
