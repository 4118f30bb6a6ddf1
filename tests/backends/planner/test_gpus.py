"""Which GPUs a plan counts on, whatever llama.cpp was built for: NVML's, or what llama.cpp says itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import GgufFile, read_gguf
from backends.planner import gpus
from backends.planner.gpus import Gpu, Gpus, devices_as_gpus, usable_gpus
from backends.planner.machine import Machine
from backends.planner.plan import PlanRequest, plan
from backends.planner.speed import MeasuredRun
from backends.system.python import Start
from tests.gguf_factory import make_gguf

GIB = 1 << 30
CARD = {
    "name": "Vulkan0", "description": "AMD Radeon RX 7900 XTX (RADV NAVI31)", "kind": "GPU", "used": True,
    "free_bytes": 20 * GIB, "total_bytes": 24 * GIB,
}  # fmt: skip
IGPU = {**CARD, "name": "Vulkan1", "description": "Intel(R) UHD Graphics", "kind": "integrated GPU", "used": False}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is kept from another test."""
    monkeypatch.setattr(gpus._Asked, "when", -1e9)
    monkeypatch.setattr(gpus._Asked, "found", gpus.NONE)


def test_cards_that_are_used_and_tell_their_memory() -> None:
    assert devices_as_gpus([CARD, IGPU]) == Gpus((Gpu(CARD["description"], 24 * GIB, 20 * GIB),))
    assert devices_as_gpus([{**IGPU, "used": True}]) == Gpus(integrated=True)
    assert devices_as_gpus([{**CARD, "total_bytes": 0}, {**CARD, "used": False}]) == gpus.NONE
    assert devices_as_gpus([]) == gpus.NONE


def test_llama_cpp_is_asked_by_builds_that_nvml_does_not_speak_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask() -> list[dict[str, Any]]:
        asked.append(1)
        return [CARD]

    monkeypatch.setattr(gpus, "_ask_llama", ask)
    monkeypatch.setattr(gpus, "_nvidia", lambda: [Gpu("NVIDIA L4", 24 * GIB, 23 * GIB)])
    monkeypatch.setattr(gpus, "llama_builds", lambda: ())
    assert usable_gpus() == gpus.NONE
    monkeypatch.setattr(gpus, "llama_builds", lambda: ("cuda",))
    assert [g.name for g in usable_gpus().cards] == ["NVIDIA L4"]
    assert not asked
    for builds in (("vulkan",), ("hip",), ("cuda", "vulkan")):
        monkeypatch.setattr(gpus, "llama_builds", lambda builds=builds: builds)
        assert [g.name for g in usable_gpus().cards] == [CARD["description"]]
    assert len(asked) == 1  # an answer holds for a while
    monkeypatch.setattr(gpus._Asked, "when", -1e9)
    monkeypatch.setattr(gpus, "llama_builds", lambda: ("cuda",))
    monkeypatch.setattr(gpus, "_nvidia", lambda: None)  # a GPU in the processor: NVML knows no memory of its own
    assert usable_gpus().cards[0].name == CARD["description"]
    assert len(asked) == 2


def test_llama_cpp_tells_its_devices_in_a_process_of_its_own() -> None:
    """The real one, with whatever it was built for: a build for the processor alone has no GPU."""
    found = gpus._ask_llama()
    assert "CPU" in {device["kind"] for device in found}
    assert not any(device["used"] for device in found if device["kind"] == "CPU")


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "print('no JSON')", "print('[1]')"])
def test_a_build_that_can_not_answer_is_planned_without_a_gpu(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "start_python", lambda _: Start([sys.executable, "-c", code], {}, "/"))
    assert gpus._ask_llama() == []
    monkeypatch.setattr(gpus, "llama_builds", lambda: ("vulkan",))
    assert usable_gpus() == gpus.NONE


def test_a_build_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **kwargs: Any) -> Any:
        raise subprocess.TimeoutExpired("python", kwargs["timeout"])

    monkeypatch.setattr(gpus.subprocess, "run", run)
    assert gpus._ask_llama() == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return read_gguf(make_gguf(Path(tmp_path_factory.mktemp("gpus")) / "m.gguf", n_layer=4))


def test_a_gpu_in_the_processor_takes_layers_but_no_vram(model: GgufFile) -> None:
    """Its runs are told by the number of layers there: without it they were never taken for this machine's."""
    with_it = Machine(ram_total=8 * GIB, ram_available=8 * GIB, cores=8, integrated_gpu=True)
    without = Machine(ram_total=8 * GIB, ram_available=8 * GIB, cores=8)
    runs = [
        MeasuredRun(backend="stream", decode_tok_s=7.0, n_tokens=64, expert_ram_bytes=None, n_gpu_layers=5, when=1.0)
    ]
    made, plain = plan(model, with_it, PlanRequest(), runs), plan(model, without, PlanRequest(), runs)
    assert (made.place.n_gpu_layers, made.place.vram) == (5, 0)
    assert (plain.place.n_gpu_layers, plain.place.vram) == (0, 0)
    assert made.place.rss == plain.place.rss  # its layers lie in the machine's memory
    assert made.speed is not None
    assert (made.speed.source, made.speed.expected) == ("measured", 7.0)
    assert plain.speed is not None
    assert plain.speed.source == "formula"
    assert plan(model, with_it, PlanRequest(n_gpu_layers=0)).place.n_gpu_layers == 0
    assert plan(model, with_it, PlanRequest(n_gpu_layers=2)).place.n_gpu_layers == 2
