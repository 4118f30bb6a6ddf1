"""Which cards the installed llama.cpp can't use, and the command that builds it for them: on made-up sysfs trees."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flashmoe.doctor import findings, gpus
from flashmoe.doctor.gpus import Card, Places

NVIDIA, AMD, INTEL, VIRTIO = "0x10de", "0x1002", "0x8086", "0x1af4"
CUDA0 = {"name": "CUDA0", "description": "NVIDIA GeForce RTX 4090", "kind": "GPU"}
VULKAN0 = {"name": "Vulkan0", "description": "AMD Radeon RX 7900 XTX (RADV NAVI31)", "kind": "GPU"}


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have taken cards away."""
    for name in (name for names in gpus.HIDING.values() for name in names):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("VULKAN_SDK", raising=False)
    monkeypatch.setattr(gpus, "SYSTEM_HEADERS", ())


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "sys", tmp_path / "proc", (tmp_path / "pci.ids",))


def add(places: Places, address: str, vendor: str, driver: str = "", *, kind: str = "0x030000", **files: str) -> None:
    """A PCI device as sysfs shows it."""
    device = places.sys / "bus/pci/devices" / address
    device.mkdir(parents=True)
    for name, text in {"vendor": vendor, "class": kind, "device": "0x2684", **files}.items():
        (device / name).write_text(text + "\n")
    if driver:
        home = places.sys / "bus/pci/drivers" / driver
        home.mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(home)


def told(cards: Sequence[Card], devices: Sequence[dict[str, Any]] = (), built_for: Sequence[str] = ()) -> list[str]:
    """The findings about cards."""
    facts = {"gpus": {"gpus": [], "cards": gpus.judged(cards, devices), "built_for": built_for}}
    return [finding.message for finding in findings._cards(facts)]


def test_the_cards_that_can_compute_are_found_with_their_names(places: Places) -> None:
    add(places, "0000:01:00.0", NVIDIA, "nvidia", kind="0x030200")
    add(places, "0000:03:00.0", AMD, "amdgpu", product_name="AMD Radeon RX 7900 XTX")
    add(places, "0000:00:02.0", INTEL, "i915", device="0xa780")
    add(places, "0000:04:00.0", INTEL, "xe", device="0x56a0")
    add(places, "0000:00:01.0", VIRTIO, "virtio-pci")  # a virtual machine's screen
    add(places, "0000:01:00.1", NVIDIA, "snd_hda_intel", kind="0x040300")  # the card's sound
    information = places.proc / "driver/nvidia/gpus/0000:01:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 99\n")
    places.pci_ids[0].write_text(
        "# a list\n1002  AMD\n\ta780  wrong\n8086  Intel\n\t56a0  DG2 [Arc A770]\n\t\t1 2  sub\n"
    )
    found = gpus.cards(places)
    assert found is not None
    assert [(c.vendor, c.name, c.driver, c.integrated) for c in found] == [
        ("Intel", "Intel GPU a780", "i915", True),
        ("NVIDIA", "NVIDIA GeForce RTX 4090", "nvidia", False),
        ("AMD", "AMD Radeon RX 7900 XTX", "amdgpu", False),
        ("Intel", "Intel DG2 [Arc A770]", "xe", False),
    ]


def test_what_the_system_does_not_tell_is_unknown(places: Places) -> None:
    assert gpus.cards(places) is None
    assert gpus.with_seen(None, []) is None
    (card,) = gpus.with_seen(None, ["NVIDIA GeForce RTX 3060"]) or ()  # WSL: the driver alone knows it
    assert (card.vendor, card.name) == ("NVIDIA", "NVIDIA GeForce RTX 3060")
    both = [Card(vendor="NVIDIA", name="a", driver="nvidia"), Card(vendor="Intel", name="b", driver="i915")]
    assert gpus.with_seen(both, ["a"]) == both


def test_a_build_without_a_gpu_names_the_card_and_the_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.shutil, "which", lambda program: f"/usr/bin/{program}")
    (message,) = told([Card(vendor="NVIDIA", name="NVIDIA GeForce RTX 4090", driver="nvidia")])
    assert "can't use NVIDIA GeForce RTX 4090" in message
    command = gpus.build_command("-DGGML_CUDA=ON")
    assert message.endswith(command)
    words = shlex.split(command)
    assert words[0] == "CMAKE_ARGS=-DGGML_CUDA=ON"
    assert any(word.startswith("llama-cpp-python==") for word in words)
    assert {"--no-binary", "--no-deps"} <= set(words)


@pytest.mark.parametrize(
    ("vendors", "programs", "arguments", "missing"),
    [
        (["NVIDIA"], ["nvcc"], "-DGGML_CUDA=ON", ""),
        (["NVIDIA", "NVIDIA"], ["nvcc"], "-DGGML_CUDA=ON", ""),
        (["AMD"], ["hipconfig"], "-DGGML_HIP=ON", ""),
        (["AMD"], ["glslc"], "-DGGML_VULKAN=ON", ""),
        (["AMD"], [], "-DGGML_VULKAN=ON", "the Vulkan SDK, whose glslc isn't found here (or ROCm,"),
        (["NVIDIA", "AMD"], ["nvcc", "glslc"], "-DGGML_VULKAN=ON", ""),  # one build for both
        (["Intel"], [], "-DGGML_VULKAN=ON", "the Vulkan SDK"),
        (["Apple"], [], "-DGGML_METAL=ON", ""),
    ],
)
def test_the_build_suits_the_cards(vendors: list[Any], programs: list[str], arguments: str, missing: str) -> None:
    cards = [Card(vendor=vendor, name=vendor) for vendor in vendors]
    made, lacking = gpus.build_arguments(cards, lambda program: program if program in programs else None)
    assert made == arguments
    assert lacking.startswith(missing)
    assert bool(lacking) == bool(missing)


def test_vulkans_headers_may_be_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 12 has 1.3.239: the build ends at `vk::LayerSettingEXT` after ten minutes."""

    def headers(folder: str, version: int) -> Path:
        (tmp_path / folder / "vulkan").mkdir(parents=True)
        (tmp_path / folder / "vulkan/vulkan_core.h").write_text(
            "// Version of this file\n"
            f"#define VK_HEADER_VERSION {version}\n"
            "#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, 3, VK_HEADER_VERSION)\n"
        )
        return tmp_path / folder

    amd = [Card(vendor="AMD", name="AMD", driver="amdgpu")]
    old = headers("usr", 239)
    monkeypatch.setattr(gpus, "SYSTEM_HEADERS", (old,))
    programs = {"glslc": "/usr/bin/glslc"}
    arguments, missing = gpus.build_arguments(amd, programs.get)
    assert arguments == "-DGGML_VULKAN=ON"
    assert "from 1.3.272 on" in missing
    assert "(here: 1.3.239)" in missing
    headers("sdk/include", 357)
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path / "sdk"))
    assert gpus.build_arguments(amd, programs.get) == ("-DGGML_VULKAN=ON", "")
    assert gpus.vulkan_headers([tmp_path / "nowhere", old]) == (1, 3, 239)
    assert gpus.vulkan_headers([tmp_path / "nowhere"]) is None


def test_what_llama_cpp_sees_is_no_finding() -> None:
    nvidia = Card(vendor="NVIDIA", name="NVIDIA GeForce RTX 4090", driver="nvidia")
    amd = Card(vendor="AMD", name="AMD Radeon RX 7900 XTX", driver="amdgpu")
    assert told([nvidia], [CUDA0], ["cuda"]) == []
    assert told([amd], [VULKAN0], ["vulkan"]) == []
    (message,) = told([nvidia, amd], [CUDA0], ["cuda"])  # the other card isn't used
    assert "can't use AMD Radeon" in message
    assert "RTX 4090" not in message
    seen_twice = [CUDA0, {**CUDA0, "name": "Vulkan0"}]
    (message,) = told([nvidia, nvidia], seen_twice, ["cuda", "vulkan"])
    assert "doesn't see it" in message


def test_the_processors_own_gpu_is_not_advertised() -> None:
    assert told([Card(vendor="Intel", name="Intel UHD", driver="i915", integrated=True)]) == []


def test_a_card_without_a_driver_is_told_apart_from_a_build_without_it() -> None:
    (message,) = told([Card(vendor="NVIDIA", name="NVIDIA GPU 2684", driver="nouveau")])
    assert "nouveau is loaded" in message
    assert "CMAKE_ARGS" not in message
    (message,) = told([Card(vendor="AMD", name="AMD GPU 744c")])
    assert "amdgpu" in message
    (message,) = told([Card(vendor="NVIDIA", name="NVIDIA L4", driver="nvidia")], [], ["cuda"])
    assert "was built for NVIDIA L4" in message


def test_cards_that_were_taken_away_on_purpose_are_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    card = Card(vendor="NVIDIA", name="NVIDIA L4", driver="nvidia")
    assert gpus.judged([card], [])[0].usable is None
    assert told([card], [], ["cuda"]) == []


def test_the_command_suits_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(sys, "executable", "/home/somebody/my venv/bin/python")
    monkeypatch.setattr(gpus, "find_spec", lambda name: object())
    assert "~/'my venv/bin/python' -m pip install" in gpus.build_command("-DGGML_HIP=ON")
    monkeypatch.setattr(gpus, "find_spec", lambda name: None)
    assert "uv pip install --python ~/'my venv/bin/python' --reinstall" in gpus.build_command("-DGGML_HIP=ON")


def test_a_driver_that_only_plays_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named in GGML_VK_VISIBLE_DEVICES, Vulkan's software driver passes for a card with the machine's memory."""
    software = {"name": "Vulkan0", "description": "llvmpipe (LLVM 15.0.6, 256 bits)", "kind": "GPU"}
    (message,) = (f.message for f in findings._software_devices([CUDA0, software, {**software, "kind": "CPU"}]))
    assert "Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)) is no GPU" in message
    assert "GGML_VK_VISIBLE_DEVICES" in message
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    amd = Card(vendor="AMD", name="AMD Radeon RX 7900 XTX", driver="amdgpu")
    assert told([amd], [software], ["vulkan"]) == []  # hidden on purpose, perhaps: not said to lack its driver
