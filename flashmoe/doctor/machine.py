"""The machine: operating system, processor, memory and its limits, GPUs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.planner.gpus import llama_builds
from backends.system import cgroups
from backends.system.cgroups import CgroupMemory
from flashmoe.doctor.gpus import cards as cards_of_this_machine
from flashmoe.doctor.gpus import judged, with_seen
from flashmoe.monitor import procfs
from flashmoe.monitor.gpu import GpuMeter

CPU_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Of the kernel's names of instruction sets, those that llama.cpp has kernels for."""


def read(path: str) -> str:
    """A small file's text, empty where it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def system() -> dict[str, Any]:
    """The operating system and what of its kernel matters here."""
    release = {}
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        pass
    return {
        "system": release.get("PRETTY_NAME") or platform.system(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "container": container(),
        "pressure_stall": Path("/proc/pressure/memory").exists(),
    }


def container() -> str:
    """What kind of container this is, as far as it shows; empty for none."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    if "microsoft" in platform.release().lower():
        return "WSL"
    return read("/run/systemd/container")


def processor() -> dict[str, Any]:
    """The processor and how much of it this process may use."""
    import psutil

    model, flags = "", ""
    for line in read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        key = key.strip().lower()
        if key == "model name" and not model:
            model = value.strip()
        elif key in ("flags", "features") and not flags:
            flags = value
    have = set(flags.split())
    return {
        "model": model or platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": os.cpu_count(),
        "usable": procfs.usable_cpus(),
        "quota": cgroups.cpu_quota(),
        "features": [flag for flag in CPU_FLAGS if flag in have],
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def memory() -> dict[str, Any]:
    """RAM in bytes, and the limit of the cgroup where there is one below it."""
    counters = procfs.memory(CgroupMemory())
    if counters is None:
        import psutil

        seen = psutil.virtual_memory()
        return {"total_bytes": seen.total, "available_bytes": seen.available, "swap_bytes": psutil.swap_memory().total}
    return {
        "total_bytes": counters.total,
        "available_bytes": counters.available,
        "swap_bytes": counters.swap_total,
        "limit_bytes": counters.limit,
        "limit_used_bytes": counters.limit_used if counters.limit else None,
    }


def gpus(devices: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """GPUs as the drivers tell, and all cards that the system shows (None: it doesn't), with whether llama.cpp, which
    sees `devices`, can use them."""
    found, why_none = GpuMeter().read()
    cards = with_seen(cards_of_this_machine(), [g.name for g in found])
    return {
        "gpus": [{"name": g.name, "total_bytes": g.total, "used_bytes": g.used} for g in found],
        "cards": None if cards is None else judged(cards, devices),
        "built_for": llama_builds(),
        "note": why_none,
    }
