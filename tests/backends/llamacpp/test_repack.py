"""Weights repacked for this processor: both backends give the same logits under each setting, memory is as planned, and
`auto` does what the processor was measured to gain, once."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.gguf.file import read_gguf
from backends.interface import BenchRequest, LoadRequest
from backends.llamacpp import repack
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.mapped import MappedBufferType
from backends.llamacpp.model import LlamaModel
from backends.llamacpp.repack_gain import extra_buffer_types, measure
from backends.planner.machine import Machine
from backends.planner.plan import PlanRequest, plan, working_set
from backends.planner.repack import Gain, GainFile, both, choose, main_types, processor
from backends.streaming.backend import StreamBackend
from tests.gguf_factory import make_gguf
from tests.no_disk_probe import no_disk_probe

__all__ = ["no_disk_probe"]

Q4_0 = 2
SHAPE: dict[str, Any] = {"n_embd": 256, "n_ff_exp": 256, "n_expert": 8}
FAST, SLOW = Gain(1.5, 1.2, 1.5, 1.2), Gain(1.5, 1.2, 1.3, 0.5)


def load(path: Path, backend: str, **options: Any) -> LlamaModel:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    return maker.load(LoadRequest(path=str(path), **{"n_ctx": 256, "n_threads": 1, **options}), lambda _: True)


def run(path: Path, backend: str, **options: Any) -> tuple[str, str]:
    """(what was repacked, the logits' hash)."""
    model = load(path, backend, **options)
    try:
        return model.info.repacked, model.bench(
            BenchRequest(prompt_tokens=24, tokens=8), lambda _a, _b: True
        ).logits_sha256
    finally:
        model.close()


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "deepseek2", "qwen35moe", "gemma4", "llama4", "lfm2moe"])
def test_both_backends_give_the_same_logits(tmp_path: Path, arch: str) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch, quant="q4_0", **SHAPE)
    limit = 2 * working_set(read_gguf(path))
    for options in ({}, {"ram_bytes": limit}, {"store": "pool", "ram_bytes": limit}, {"store": "pagecache"}):
        expected = run(path, "mmap", repack="on", **options)
        assert expected[0] == ("dense" if options else "all")
        assert run(path, "stream", repack="on", **options) == expected


def test_a_split_set_and_a_dense_model(tmp_path: Path) -> None:
    whole = make_gguf(tmp_path / "whole.gguf", quant="q4_0", n_layer=3, **SHAPE)
    parts = make_gguf(tmp_path / "m.gguf", quant="q4_0", n_layer=3, split=3, **SHAPE)
    limit = 2 * working_set(read_gguf(whole))
    for options in ({}, {"ram_bytes": limit}):
        expected = run(whole, "mmap", repack="on", **options)
        assert run(parts, "mmap", repack="on", **options) == expected
        assert run(parts, "stream", repack="on", **options) == expected
    dense = make_gguf(tmp_path / "dense.gguf", quant="q4_0", dense=True, n_embd=256)
    assert run(dense, "mmap", repack="on")[0] == "dense"


def test_experts_stay_mapped_while_the_rest_is_repacked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_gguf(tmp_path / "m.gguf", quant="q4_0", n_embd=256, n_ff_exp=256, n_expert=16)
    experts = read_gguf(path).bytes.experts
    model = load(path, "mmap", repack="on", ram_bytes=experts // 2)
    model.close()
    sizes: dict[str, float] = {}
    for line in capfd.readouterr().err.splitlines():
        if " model buffer size = " in line:
            sizes[line.split(":")[1].split()[0]] = float(line.split("=")[1].split()[0])
    assert sizes["CPU_Mapped"] * 2**20 >= experts
    if extra_buffer_types() and platform.machine() == "x86_64" and " avx2 " in Path("/proc/cpuinfo").read_text():
        assert sizes["CPU_REPACK"] > 0


def test_a_measurement_is_a_gain_or_none() -> None:
    """None where the machine is busy; a type that nothing repacks gains nothing."""
    gain = measure(Q4_0, 1)
    assert gain is None or min(msgspec.structs.astuple(gain)) > 0
    assert measure(0, 1) == Gain(1.0, 1.0, 1.0, 1.0)


def test_a_model_says_what_is_repacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "m.gguf", quant="q4_0", **SHAPE)
    limit = 2 * working_set(read_gguf(path))

    def told(backend: str, **options: Any) -> str:
        model = load(path, backend, **options)
        model.close()
        return model.info.backend_reason

    for backend in ("mmap", "stream"):
        assert "epack" not in told(backend)
        assert "repacked for this processor" in told(backend, repack="on")
        assert "Dense weights are repacked" in told(backend, repack="on", ram_bytes=limit)
    monkeypatch.setattr(repack, "memory_for_experts", lambda *_: 1000)
    for backend in ("mmap", "stream"):
        assert told(backend, repack="on").endswith("Nothing is repacked: there is no memory for it.")
    monkeypatch.setattr(repack, "_possible", lambda: False)
    assert "isn't laid out as expected" in told("mmap", repack="on")


def test_the_mapped_type_is_the_cpus_own_device() -> None:
    kinds = [MappedBufferType() for _ in range(2)]
    assert kinds[0].pointer != kinds[1].pointer


def test_auto_measures_once_and_does_what_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "m.gguf", quant="q4_0", **SHAPE)
    file = tmp_path / "cache" / "repack.json"
    measured: list[int] = []

    def measuring(gain: Gain) -> None:
        def one(kind: int, _threads: int) -> Gain:
            measured.append(kind)
            return gain

        monkeypatch.setattr(repack, "measure", one)

    measuring(SLOW)
    options: dict[str, Any] = {"repack": "auto", "repack_file": str(file)}
    assert run(path, "stream", **options)[0] == "dense"
    assert run(path, "mmap", **options)[0] == "dense"
    assert measured == [Q4_0]
    GainFile(file).put(Q4_0, 1, FAST)
    assert run(path, "stream", **options)[0] == "all"
    assert run(path, "stream", store="pool", **options)[0] == "dense"
    GainFile(file).put(Q4_0, 1, Gain(1.3, 0.8, 1.3, 0.8))
    assert run(path, "stream", **options)[0] == "off"
    file.write_bytes(b"\xff{ not json")  # whatever is wrong with it, it is measured again
    assert run(path, "stream", **options)[0] == "dense"
    assert len(measured) == 2


def test_what_a_choice_says(tmp_path: Path) -> None:
    gguf = read_gguf(make_gguf(tmp_path / "m.gguf", quant="q4_0", **SHAPE))
    assert main_types(gguf) == (Q4_0, Q4_0)
    assert choose("off", gguf, True, lambda _: FAST) == ("off", "")
    assert choose("on", gguf, False, lambda _: None) == ("dense", "")
    level, why = choose("auto", gguf, True, lambda _: SLOW)
    assert level == "dense"
    assert "1.50x" in why
    assert choose("auto", gguf, True, lambda _: None)[0] == "off"
    assert both(2.0, 2.0) == pytest.approx(2.0)
    assert both(1.3, 0.6) < 1
    assert processor(1) != processor(2)


def test_repacked_weights_are_planned_as_anonymous(tmp_path: Path) -> None:
    gguf = read_gguf(make_gguf(tmp_path / "m.gguf", quant="q4_0", **SHAPE))
    machine = Machine(ram_total=16 << 30, ram_available=12 << 30, cores=4, repack_gains={Q4_0: FAST})
    for backend in ("auto", "mmap"):
        off, on, auto = (
            plan(gguf, machine, PlanRequest(backend=backend, repack=repack_))  # type: ignore[arg-type]
            for repack_ in ("off", "on", "auto")
        )
        assert on.repacked == auto.repacked == "all"
        more = gguf.bytes.experts + (gguf.bytes.dense if backend == "mmap" else 0)
        assert on.place.anonymous == auto.place.anonymous == off.place.anonymous + more
        assert any("repacked" in note for note in auto.notes)
    limited = plan(gguf, machine, PlanRequest(repack="on", ram_bytes=working_set(gguf)))
    assert limited.repacked == "dense"
    unknown = msgspec.structs.replace(machine, repack_gains={})
    assert plan(gguf, unknown, PlanRequest(repack="auto")).repacked == "off"
