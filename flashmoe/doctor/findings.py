"""What is wrong with this machine for running large models, and what to do about it: one sentence each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct

from flashmoe import figures, paths
from flashmoe.doctor import gpus

SLOW_DISK = 300e6
"""Bytes a second below which streaming from a disk is no pleasure."""

_SERVES = {
    "cuda": ("NVIDIA",), "hip": ("AMD",), "sycl": ("Intel",), "metal": ("Apple",),
    "vulkan": ("NVIDIA", "AMD", "Intel"),
}  # fmt: skip
"""Whose cards each kind of build is for."""
_DRIVER = {
    "NVIDIA": "install NVIDIA's (nvidia-smi must work).",
    "AMD": "the kernel needs amdgpu.",
    "Intel": "the kernel needs i915 or xe.",
}

_SOFTWARE = {"llvmpipe", "lavapipe", "softpipe", "swiftshader"}

VARIABLES = {
    "config": "XDG_CONFIG_HOME",
    "data": "XDG_DATA_HOME",
    "models": "FLASHMOE_MODELS",
    "cache": "XDG_CACHE_HOME",
    "logs": "XDG_STATE_HOME",
    "runtime": "XDG_RUNTIME_DIR",
}


class Finding(Struct, frozen=True):
    """Something to know. `problem`: something doesn't work; `warning`: it works worse than it could."""

    level: Literal["problem", "warning"]
    message: str


def judge(facts: dict[str, Any]) -> list[Finding]:
    """The findings, the worst first."""
    found = [*_engine(facts), *_folders(facts), *_memory(facts), *_disk(facts), *_models(facts), *_terminal(facts)]
    return sorted(found, key=lambda finding: finding.level != "problem")


def _engine(facts: dict[str, Any]) -> Iterator[Finding]:
    llama = facts["llama_cpp"]
    if "error" in llama:
        yield Finding(
            "problem",
            f"llama.cpp doesn't work here ({llama['error']}): rebuild llama-cpp-python on this machine: "
            f"{gpus.build_command('')}",
        )
        return
    for name, obstacle in llama["backends"].items():
        if obstacle:
            yield Finding("problem", f"The backend {name} can't be used: {obstacle}")
    yield from _cards(facts)
    yield from _software_devices(llama["devices"])
    features = llama["features"]
    if {"avx2", "avx512f"} & set(facts["cpu"]["features"]) and "AVX2 = 1" not in features:
        yield Finding(
            "warning",
            "llama.cpp was built without AVX2, which this CPU has: rebuild llama-cpp-python on this machine.",
        )
    if not facts["guide"]:
        guide = paths.display(paths.guide_model())
        yield Finding("problem", f"The demo model is missing ({guide}): reinstall flashmoe-tui.")


def _cards(facts: dict[str, Any]) -> Iterator[Finding]:
    """The cards that llama.cpp can't use: those that lack a driver, and those that it wasn't built for."""
    unusable = [card for card in facts["gpus"]["cards"] or () if card.usable is False and not card.integrated]
    bare = gpus.without_driver(unusable)
    for card in bare:
        loaded = f"{card.driver} is loaded, which can't compute" if card.driver else "none is loaded"
        yield Finding("warning", f"{card.name} has no driver that llama.cpp can use ({loaded}): {_DRIVER[card.vendor]}")
    rest = [card for card in unusable if card not in bare]
    if not rest:
        return
    names = " and ".join(f"{n} x {name}" if n > 1 else name for name, n in Counter(c.name for c in rest).items())
    arguments, missing = gpus.build_arguments(rest)
    built = [kind for kind in facts["gpus"]["built_for"] if kind in _SERVES]
    if any(card.vendor in _SERVES[kind] for kind in built for card in rest):
        yield Finding(
            "warning",
            f"llama.cpp was built for {names}, but doesn't see it: its driver's libraries must be there "
            "(nvidia-smi, rocminfo or vulkaninfo must work), and a container needs the card passed through.",
        )
        return
    needs = f" It needs {missing}." if missing else ""
    yield Finding(
        "warning",
        f"The installed llama.cpp can't use {names}. This command rebuilds it: {gpus.build_command(arguments)}{needs}",
    )


def _software_devices(devices: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Drivers that only play a GPU: Vulkan offers them to who names them, and llama.cpp can't tell them apart."""
    for device in devices:
        if device["kind"] != "CPU" and _SOFTWARE & set(re.findall(r"[a-z]+", device["description"].lower())):
            yield Finding(
                "warning",
                f"{device['name']} ({device['description']}) is no GPU but a program that plays one on this processor: "
                "llama.cpp is faster without it. Unset GGML_VK_VISIBLE_DEVICES, or leave its number out of it.",
            )


def _models(facts: dict[str, Any]) -> Iterator[Finding]:
    broken = facts["models"]["problems"]
    if broken:
        which = "One model here can't be loaded" if len(broken) == 1 else f"{len(broken)} models here can't be loaded"
        yield Finding("warning", f"{which}: {broken[0]['problem']} flashmoe-tui ls lists all models.")


def _folders(facts: dict[str, Any]) -> Iterator[Finding]:
    for name, folder in facts["folders"].items():
        if not folder["writable"]:
            variable = VARIABLES[name]
            yield Finding(
                "problem",
                f"The folder for {name} ({folder['path']}) is not writable: "
                f"set {variable} or {paths.HOME_VARIABLE} to one that is.",
            )
    for problem in facts["config"]["problems"]:
        yield Finding("warning", problem)
    if facts["history"].get("problem"):
        yield Finding("problem", facts["history"]["problem"])


def _memory(facts: dict[str, Any]) -> Iterator[Finding]:
    memory = facts["memory"]
    limit, total = memory.get("limit_bytes"), memory["total_bytes"]
    if limit is not None and limit < total:
        yield Finding(
            "warning",
            f"A cgroup limits memory to {figures.size(limit)} of {figures.size(total)}: models get that much, "
            "page cache included.",
        )
    if (limit or total) < 4 * figures.GIB:
        yield Finding("warning", "There is less than 4 GiB of memory: only small models will run well.")
    cpu = facts["cpu"]
    if cpu["quota"] and cpu["threads"] and cpu["quota"] < cpu["threads"]:
        yield Finding("warning", f"A cgroup limits this process to {cpu['quota']:g} of {cpu['threads']} CPUs.")
    if cpu["governor"] == "powersave" and "intel" not in cpu["model"].lower():
        yield Finding("warning", "The CPU governor is powersave: set it to performance for faster answers.")


def _disk(facts: dict[str, Any]) -> Iterator[Finding]:
    disk = facts["disk"]
    where = facts["folders"]["models"]["path"]
    if disk["network"]:
        yield Finding("warning", f"Models ({where}) are on a network file system: streaming is as fast as the network.")
    if disk["rotational"]:
        yield Finding("warning", f"Models ({where}) are on a spinning disk: streaming experts needs an SSD.")
    bandwidth = disk["bandwidth_bytes_s"]
    if bandwidth is not None and bandwidth < SLOW_DISK and not disk["rotational"]:
        yield Finding(
            "warning",
            f"The disk below {where} gives {figures.rate(bandwidth)}: a model larger than memory will be slow; "
            "set FLASHMOE_MODELS to a folder on a faster one.",
        )
    if disk["free_bytes"] is not None and disk["free_bytes"] < 20 * figures.GIB:
        yield Finding(
            "warning",
            f"{figures.size(disk['free_bytes'])} are free in {where}; models worth streaming take 10 to 200 GiB.",
        )
    if disk["file_system"] in ("tmpfs", "ramfs"):
        yield Finding("warning", f"Models ({where}) are on a file system in memory: they use RAM and vanish on reboot.")


def _terminal(facts: dict[str, Any]) -> Iterator[Finding]:
    terminal = facts["terminal"]
    if terminal["encoding"].lower().replace("-", "") not in ("utf8",):
        yield Finding("warning", f"The locale's encoding is {terminal['encoding']}: set LANG to one with UTF-8.")
    if terminal["colours"] == "none":
        yield Finding("warning", "TERM names no terminal with colours; set it to one, such as xterm-256color.")
