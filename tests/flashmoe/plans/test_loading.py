"""What a load is given of earlier measurements: the disk, the prompts' pace, and whether the GPU pays."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.gguf.file import read_gguf
from backends.interface import LoadRequest, ModelInfo, Usage
from backends.llamacpp.backend import MmapBackend
from backends.planner.machine import Gpu, Machine
from backends.planner.speed import MeasuredRun
from flashmoe.plans import loading
from flashmoe.plans.loading import with_measurements
from tests.gguf_factory import make_gguf

GIB = 1 << 30


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    return make_gguf(tmp_path / "m.gguf", n_layer=4)


def pretend(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    """A machine with `gpus`."""
    here = Machine(ram_total=8 * GIB, ram_available=6 * GIB, cores=4, gpus=gpus, disk_bytes_s=2e9)
    monkeypatch.setattr(loading.measurements, "machine", lambda *_, **__: here)


def ran(path: Path, layers: int, tok_s: float) -> None:
    """A run of the model is remembered."""
    gguf = read_gguf(path)
    made = ModelInfo(
        name="m", path=str(path), architecture="qwen3moe", quant="F16", backend="stream", backend_reason="", n_layers=4,
        n_vocab=512, n_ctx=512, n_ctx_train=2048, file_bytes=gguf.file_bytes, expert_bytes=gguf.bytes.experts,
        dense_bytes=gguf.bytes.dense, n_gpu_layers=layers,
    )  # fmt: skip
    usage = Usage(prompt_tokens=10, reused_tokens=0, completion_tokens=50, prefill_s=1.0, decode_s=50 / tok_s)
    loading.measurements.record_answer(made, usage)


def test_auto_stays_off_a_gpu_that_was_slower_here(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Gpu("card", 8 * GIB, 8 * GIB))
    asked = LoadRequest(path=str(model), n_ctx=512)
    ran(model, 5, 20.0)
    assert with_measurements(asked).n_gpu_layers is None  # the other way isn't known
    ran(model, 0, 30.0)
    made = with_measurements(asked)
    assert made.n_gpu_layers == 0
    assert "ran here at 30 tokens/s without it, and at 20" in made.gpu_reason
    assert made.disk_bytes_s == 2e9
    loaded = MmapBackend().load(made, lambda _: True)
    assert loaded.info.backend_reason.endswith(made.gpu_reason)
    assert loaded.info.gpu_reason == made.gpu_reason
    loaded.close()
    for _ in range(5):  # the last five runs count
        ran(model, 5, 40.0)
    assert with_measurements(asked).n_gpu_layers is None


def test_what_was_asked_for_stays(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Gpu("card", 8 * GIB, 8 * GIB))
    ran(model, 5, 20.0)
    ran(model, 0, 30.0)
    for more in ({"n_gpu_layers": 3}, {"vram_expert_bytes": None}):
        made = with_measurements(LoadRequest(path=str(model), **more))  # type: ignore[arg-type]
        assert made.n_gpu_layers == more.get("n_gpu_layers")
        assert made.gpu_reason == ""


def test_without_a_gpu_nothing_is_decided(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    made = with_measurements(LoadRequest(path=str(model)))
    assert made.n_gpu_layers is None
    assert made.gpu_reason == ""
    assert with_measurements(LoadRequest(path="http://localhost:1/v1")).disk_bytes_s is None


def test_a_prompts_pace_is_that_of_as_many_experts_in_vram(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All experts in VRAM: a token takes a tenth. A load with none there would take a far too large ubatch by that."""
    pretend(monkeypatch, Gpu("card", 8 * GIB, 8 * GIB))
    gguf = read_gguf(model)
    runs = [
        MeasuredRun(backend="stream", decode_tok_s=5.0, n_tokens=9, prompt_token_s=0.5),
        MeasuredRun(
            backend="stream", decode_tok_s=50.0, n_tokens=9, prompt_token_s=0.05, n_gpu_layers=5,
            vram_expert_bytes=gguf.bytes.experts,
        ),
    ]  # fmt: skip
    monkeypatch.setattr(loading.measurements, "runs_of", lambda _: tuple(runs))
    assert with_measurements(LoadRequest(path=str(model))).prompt_token_s == 0.5
    assert with_measurements(LoadRequest(path=str(model), vram_expert_bytes=None)).prompt_token_s == 0.05
