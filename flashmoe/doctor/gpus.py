"""Graphics cards as the system shows them, which of them the installed llama.cpp can use, and how to build it for the
others. Nothing here loads a driver: PCI devices in sysfs, and what NVIDIA's driver writes into /proc."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, structs

from flashmoe import paths

Vendor = Literal["NVIDIA", "AMD", "Intel", "Apple"]
VENDORS: dict[str, Vendor] = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
"""Whose cards llama.cpp computes on, by PCI vendor; a server's BMC or a virtual machine's screen is none."""
DISPLAY = "0x03"
"""PCI's class of display controllers, those without a connector included."""
DRIVERS = {"NVIDIA": ("nvidia",), "AMD": ("amdgpu",), "Intel": ("i915", "xe")}
"""The kernel's drivers through which llama.cpp can compute."""
PCI_IDS = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))
SYSTEM_HEADERS = (Path("/usr/local/include"), Path("/usr/include"))
LEAST_VULKAN = (1, 3, 272)
"""llama.cpp names ``vk::LayerSettingEXT``, which came with these headers."""
HIDING = {
    "NVIDIA": ("CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"),
    "AMD": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"),
    "Intel": ("GGML_VK_VISIBLE_DEVICES",),
}
"""Variables by which a user takes cards away."""


class Card(Struct, frozen=True, kw_only=True):
    """A graphics card (or a GPU in the processor) that llama.cpp could be built for."""

    vendor: Vendor
    name: str
    driver: str = ""
    """The kernel's driver that has it; empty for none."""
    integrated: bool = False
    """Intel's in the processor: it shares the memory's bandwidth, and computes no faster."""
    usable: bool | None = None
    """Whether the installed llama.cpp can use it; None where that isn't known."""


class Places(Struct, frozen=True):
    """Where the system shows what there is."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    pci_ids: tuple[Path, ...] = PCI_IDS


HERE = Places()


def cards(places: Places = HERE) -> list[Card] | None:
    """The cards of this machine; None where the system doesn't tell (no PCI bus in sysfs)."""
    if platform.system() == "Darwin":
        return [Card(vendor="Apple", name="Apple GPU", driver="metal")]
    devices = places.sys / "bus/pci/devices"
    try:
        addresses = sorted(entry.name for entry in devices.iterdir())
    except OSError:
        return None
    found = []
    for address in addresses:
        device = devices / address
        vendor = VENDORS.get(_line(device / "vendor"))
        if vendor is None or not _line(device / "class").startswith(DISPLAY):
            continue
        found.append(
            Card(
                vendor=vendor,
                name=_name(vendor, address, device, places),
                driver=_driver(device),
                integrated=vendor == "Intel" and address.split(":")[-2:-1] == ["00"],
            )
        )
    return found


def with_seen(found: list[Card] | None, names: Sequence[str]) -> list[Card] | None:
    """The cards, and those that only a driver tells of (`names`, NVIDIA's first): under WSL, or on a board without
    PCI."""
    known = [card for card in found or () if card.vendor != "Intel"]
    more = [Card(vendor="NVIDIA", name=name, driver="nvidia") for name in names[: max(0, len(names) - len(known))]]
    return [*found, *more] if found is not None else more or None


def judged(found: Iterable[Card], devices: Sequence[dict[str, Any]]) -> list[Card]:
    """The cards with `usable` set by the `devices` that the installed llama.cpp sees (``backends.inspection``)."""
    free = _seen(devices)
    out = []
    for card in found:
        usable: bool | None = free[card.vendor] > 0
        free[card.vendor] -= 1
        if not usable and any(os.environ.get(name) is not None for name in HIDING.get(card.vendor, ())):
            usable = None  # taken away on purpose, perhaps
        out.append(structs.replace(card, usable=usable))
    return out


def _seen(devices: Sequence[dict[str, Any]]) -> Counter[str]:
    """How many cards of each vendor llama.cpp sees; one that two of its backends see counts once."""
    by_backend: dict[str, Counter[str]] = {}
    for device in devices:
        if device["kind"] not in ("GPU", "integrated GPU"):
            continue
        backend = device["name"].rstrip("0123456789")
        vendor = {"CUDA": "NVIDIA", "ROCm": "AMD", "SYCL": "Intel", "Metal": "Apple", "MTL": "Apple"}.get(backend)
        vendor = vendor or _vendor_of(device["description"])
        by_backend.setdefault(backend, Counter())[vendor] += 1
    most: Counter[str] = Counter()
    for counted in by_backend.values():
        most |= counted
    return most


def _vendor_of(description: str) -> str:
    """Whose card Vulkan describes: "AMD Radeon RX 7900 XTX (RADV NAVI31)", "NVIDIA GeForce…", "Intel(R) Arc(tm)…"."""
    words = description.upper().replace("(", " ").split()
    for vendor in ("NVIDIA", "AMD", "INTEL", "APPLE"):
        if vendor in words:
            return {"INTEL": "Intel", "APPLE": "Apple"}.get(vendor, vendor)
    return "AMD" if "RADEON" in words else "NVIDIA" if {"GEFORCE", "TESLA", "QUADRO"} & set(words) else ""


def without_driver(found: Iterable[Card]) -> list[Card]:
    """The cards that no build of llama.cpp could use as they are: their kernel driver is missing or another one."""
    return [c for c in found if c.vendor in DRIVERS and c.driver not in DRIVERS[c.vendor]]


def build_arguments(unusable: Sequence[Card], has: Any = None) -> tuple[str, str]:
    """(``CMAKE_ARGS`` that make llama.cpp use these cards, a half sentence about what is missing for that, or "").
    `has` finds a program, as `shutil.which` does (None: that)."""
    has = has or shutil.which
    vendors = {card.vendor for card in unusable}
    if vendors == {"NVIDIA"}:
        nvcc = has("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()
        return "-DGGML_CUDA=ON", "" if nvcc else "the CUDA toolkit, whose nvcc isn't found here"
    if vendors == {"Apple"}:
        return "-DGGML_METAL=ON", ""
    if vendors == {"AMD"} and (has("hipconfig") or Path("/opt/rocm/bin/hipconfig").exists()):
        return "-DGGML_HIP=ON", ""
    missing = _missing_of_vulkan(has("glslc") is not None)
    if vendors == {"AMD"} and missing:
        missing += " (or ROCm, and -DGGML_HIP=ON instead)"
    return "-DGGML_VULKAN=ON", missing


def _missing_of_vulkan(has_glslc: bool) -> str:
    if not has_glslc:
        return "the Vulkan SDK, whose glslc isn't found here"
    version = vulkan_headers()
    if version is None or version >= LEAST_VULKAN:
        return ""
    least, here = (".".join(map(str, v)) for v in (LEAST_VULKAN, version))
    return f"Vulkan's headers from {least} on, as a newer Vulkan SDK has them (here: {here})"


def vulkan_headers(places: Sequence[Path] | None = None) -> tuple[int, int, int] | None:
    """The version of Vulkan's headers that a build would take; None where there are none. `places`: folders with
    headers, the first one that has them counts (None: the Vulkan SDK's, and the system's)."""
    if places is None:
        sdk = os.environ.get("VULKAN_SDK")
        places = [*([Path(sdk) / "include"] if sdk else ()), *SYSTEM_HEADERS]
    for folder in places:
        text = _text(folder / "vulkan/vulkan_core.h")
        last = re.search(r"^#define VK_HEADER_VERSION (\d+)", text, re.MULTILINE)
        first = re.search(r"VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION\(0, (\d+), (\d+),", text)
        if last and first:
            return int(first[1]), int(first[2]), int(last[1])
    return None


def build_command(arguments: str) -> str:
    """The one command that builds the pinned llama-cpp-python again for this environment."""
    try:
        pinned = f"llama-cpp-python=={version('llama-cpp-python')}"
    except PackageNotFoundError:
        pinned = "llama-cpp-python"
    python = _quoted(sys.executable)
    options = "--no-deps --no-binary llama-cpp-python"
    if find_spec("pip") is not None:
        how = f"{python} -m pip install --force-reinstall --no-cache-dir {options} {pinned}"
    else:  # uv makes environments without pip
        how = f"uv pip install --python {python} --reinstall --no-cache {options} {pinned}"
    return f"CMAKE_ARGS={shlex.quote(arguments)} {how}" if arguments else how


def _quoted(path: str) -> str:
    """A path for a shell, the home folder as ~."""
    shown = paths.display(path)
    head, rest = ("~/", shown[2:]) if shown.startswith("~/") else ("", shown)
    return head + shlex.quote(rest)


def _driver(device: Path) -> str:
    try:
        return (device / "driver").readlink().name
    except OSError:
        return ""


def _name(vendor: Vendor, address: str, device: Path, places: Places) -> str:
    if vendor == "NVIDIA":
        for line in _text(places.proc / "driver/nvidia/gpus" / address / "information").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model" and value.strip():
                return value.strip()
    product = _line(device / "product_name")
    if product:
        return product
    number = _line(device / "device")
    known = next((n for n in (_listed(ids, device, number) for ids in places.pci_ids) if n), "")
    name = known or (f"GPU {number.removeprefix('0x')}" if number else "GPU")
    return name if name.startswith(vendor) else f"{vendor} {name}"


def _listed(ids: Path, device: Path, number: str) -> str:
    """A device's name in a list of PCI ids: vendors at the start of a line, their devices after one tab."""
    ours, vendor = False, _line(device / "vendor").removeprefix("0x")
    for line in _text(ids).splitlines():
        if not line.startswith(("\t", "#")) and line:
            if ours:
                return ""
            ours = line.startswith(vendor + " ")
        elif ours and line.startswith(f"\t{number.removeprefix('0x')} "):
            return line.split(None, 1)[1].strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str:
    return _text(path).strip()
