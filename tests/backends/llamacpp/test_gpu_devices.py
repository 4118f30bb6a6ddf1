"""Which devices count as GPUs: llama.cpp's own rules, for builds that see several of them or the same one twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from backends.gguf.file import GgufFile, read_gguf
from backends.interface import EngineError, LoadRequest
from backends.llamacpp import abi, native, sizing
from backends.llamacpp.loading import fit_gpu, vram_free_bytes
from backends.llamacpp.sizing import describe
from backends.llamacpp.vram_experts import choose_vram_layers, vram_room
from tests.gguf_factory import make_gguf

GIB = 1 << 30


class Device(NamedTuple):
    """A device as ggml tells of it."""

    name: str
    kind: int
    id: bytes | None = None
    free: int = 8 * GIB
    total: int = 8 * GIB

    @property
    def backend(self) -> str:
        return self.name.rstrip("0123456789")


CPU = Device("CPU", abi.DEVICE_TYPE_CPU)
CUDA0 = Device("CUDA0", abi.DEVICE_TYPE_GPU, b"0000:01:00.0")
VULKAN0 = Device("Vulkan0", abi.DEVICE_TYPE_GPU, b"0000:01:00.0")
VULKAN1 = Device("Vulkan1", abi.DEVICE_TYPE_GPU, b"0000:03:00.0")
IGPU = Device("Vulkan0", abi.DEVICE_TYPE_IGPU)
SOFTWARE = Device("Vulkan0", abi.DEVICE_TYPE_GPU)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Device]], None]:
    """Says which devices this llama.cpp has; a handle is a device's place in the list, from 1 on."""

    def install(devices: Sequence[Device]) -> None:
        known: dict[str, Any] = {
            "ggml_backend_dev_type": lambda d: devices[d - 1].kind,
            "ggml_backend_dev_backend_reg": lambda d: devices[d - 1].backend,
        }
        monkeypatch.setattr(abi, "declare", lambda _lib, name, *_: known[name])
        monkeypatch.setattr(abi, "devices", lambda: list(range(1, len(devices) + 1)))
        monkeypatch.setattr(abi, "device_id", lambda d: devices[d - 1].id)
        monkeypatch.setattr(abi, "device_memory", lambda d: (devices[d - 1].free, devices[d - 1].total))

    return install


@pytest.mark.parametrize(
    ("devices", "gpus", "cards"),
    [
        ([CPU], [], []),
        ([CUDA0, CPU], [CUDA0], [CUDA0]),
        ([CUDA0, VULKAN0, VULKAN1, CPU], [CUDA0, VULKAN1], [CUDA0, VULKAN1]),  # one card, two backends
        ([IGPU, CPU], [IGPU], []),
        ([IGPU, VULKAN1, CPU], [VULKAN1], [VULKAN1]),  # a laptop: the card alone
        ([IGPU, Device("SYCL0", abi.DEVICE_TYPE_IGPU), CPU], [IGPU], []),
        ([SOFTWARE, SOFTWARE._replace(name="Vulkan1"), CPU], None, None),  # nobody knows where they are: two
    ],
)
def test_those_that_llama_cpp_takes_by_itself(
    here: Callable[[Sequence[Device]], None],
    devices: list[Device],
    gpus: list[Device] | None,
    cards: list[Device] | None,
) -> None:
    here(devices)
    wanted = [devices.index(d) + 1 for d in gpus] if gpus is not None else [1, 2]
    assert abi.gpu_devices() == wanted
    assert abi.cards() == ([devices.index(d) + 1 for d in cards] if cards is not None else wanted)


def test_the_layout_of_a_devices_properties_is_the_librarys() -> None:
    native.lib()
    props = abi.DeviceProps()
    kind = abi.declare(abi.ggml_base(), "ggml_backend_dev_type", abi.C.c_int, abi.C.c_void_p)
    query = abi.declare(
        abi.ggml_base(), "ggml_backend_dev_get_props", None, abi.C.c_void_p, abi.C.POINTER(abi.DeviceProps)
    )
    (cpu,) = [d for d in abi.devices() if kind(d) == abi.DEVICE_TYPE_CPU]
    query(cpu, abi.C.byref(props))
    assert props.name == b"CPU"
    assert props.type == abi.DEVICE_TYPE_CPU
    assert (props.memory_free, props.memory_total) == pytest.approx(abi.device_memory(cpu), rel=0.2)
    assert abi.device_id(cpu) is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return read_gguf(make_gguf(tmp_path_factory.mktemp("gpu") / "m.gguf", n_layer=4))


def test_a_gpu_in_the_processor_has_no_vram(
    here: Callable[[Sequence[Device]], None], model: GgufFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    here([IGPU, CPU])
    assert vram_free_bytes() is None
    assert vram_room(model, 0) is None
    request = fit_gpu(LoadRequest(path=model.path, n_ctx=256), model, 0)
    assert request.n_gpu_layers == model.n_layers + 1  # layers go there all the same
    info = describe(request, model, resident_bytes=0)
    asked = LoadRequest(path=model.path, n_gpu_layers=9, vram_expert_bytes=GIB)
    assert choose_vram_layers(replace(asked, vram_expert_bytes=None), model, info, 0) == ()
    with pytest.raises(EngineError, match="the GPU has no memory of its own"):
        choose_vram_layers(asked, model, info, 0)
    # its KV cache lies in the machine's memory, so a context that doesn't fit there is refused
    monkeypatch.setattr(sizing.procfs, "available_memory", lambda: GIB)
    with pytest.raises(EngineError, match="tokens fit now"):
        describe(LoadRequest(path=model.path, n_ctx=1 << 24, n_seq_max=250), model, resident_bytes=0)


def test_a_card_that_does_not_tell_its_memory_gets_what_is_asked_for(
    here: Callable[[Sequence[Device]], None], model: GgufFile
) -> None:
    here([CUDA0._replace(free=0, total=0), CPU])
    request = LoadRequest(path=model.path)
    assert fit_gpu(request, model, 0) == request  # all layers, as llama.cpp takes them
    assert vram_free_bytes() is None
    info = describe(request, model, resident_bytes=0)
    asked = LoadRequest(path=model.path, n_gpu_layers=9, vram_expert_bytes=GIB)
    with pytest.raises(EngineError, match="doesn't tell how much memory it has"):
        choose_vram_layers(asked, model, info, 0)


def test_the_libraries_are_named_as_the_system_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(abi.C, "CDLL", lambda path: opened.append(Path(path).name))
    monkeypatch.setattr(sys, "platform", "darwin")
    for function in (abi.ggml_base, abi.in_use, abi.ggml):
        function.__wrapped__()
    assert opened == ["libggml-base.dylib", "libllama.dylib", "libggml.dylib"]
