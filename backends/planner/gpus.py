"""The GPUs that a plan counts on: NVIDIA's as their driver tells, those of other builds as llama.cpp itself sees them.

Vulkan, ROCm and Metal choose their devices by rules of their own (which cards, which driver of a card, a GPU in the
processor only where there is no card), so llama.cpp is asked, in a process of its own; a build for CUDA alone isn't:
NVIDIA's driver answers at once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from backends.system.python import start_python

KINDS = ("cuda", "hip", "vulkan", "metal", "sycl", "musa")
ASK_TIMEOUT_S = 30.0
KEPT_S = 20.0
"""How long an answer of llama.cpp's is taken for true: a list of models is planned at once."""


class Gpu(Struct, frozen=True):
    """A GPU with memory of its own that llama.cpp would put layers on."""

    name: str
    total_bytes: int
    free_bytes: int


class Gpus(Struct, frozen=True):
    """What layers can go to."""

    cards: tuple[Gpu, ...] = ()
    """Only those that tell how much memory they have."""
    integrated: bool = False
    """A GPU in the processor is used: what is on it lies in the machine's memory."""


NONE = Gpus()


def llama_builds() -> tuple[str, ...]:
    """The kinds of GPU that the installed llama.cpp was built for; looks at its files, loads nothing."""
    spec = importlib.util.find_spec("llama_cpp")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return tuple(k for k in KINDS if any(any((Path(place) / "lib").glob(f"*ggml-{k}*")) for place in places))


def usable_gpus() -> Gpus:
    """The GPUs of the installed llama.cpp, with what of their memory is free now; none where it was built for the
    processor alone."""
    builds = llama_builds()
    if not builds:
        return NONE
    found = _nvidia() if builds == ("cuda",) else None
    return _Asked.now() if found is None else Gpus(tuple(found))


def devices_as_gpus(devices: Sequence[dict[str, Any]]) -> Gpus:
    """The GPUs among what ``backends.inspection`` lists. A card that doesn't tell its memory is no part of a plan."""
    used = [device for device in devices if device["used"]]
    cards = [
        Gpu(device["description"], device["total_bytes"], device["free_bytes"])
        for device in used
        if device["kind"] == "GPU" and device["total_bytes"]
    ]
    return Gpus(tuple(cards), integrated=any(device["kind"] == "integrated GPU" for device in used))


class _Asked:
    """What llama.cpp said last, and when (monotonic seconds)."""

    when = -KEPT_S
    found = NONE

    @classmethod
    def now(cls) -> Gpus:
        if time.monotonic() - cls.when >= KEPT_S:
            cls.found = devices_as_gpus(_ask_llama())
            cls.when = time.monotonic()
        return cls.found


def _ask_llama() -> list[dict[str, Any]]:
    """``backends.inspection devices``; [] where it can't tell."""
    start = start_python("backends.inspection")
    try:
        done = subprocess.run(
            [*start.command, "devices"], capture_output=True, timeout=ASK_TIMEOUT_S, env=start.env, cwd=start.folder,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return []
    return list(found.get("devices", ())) if isinstance(found, dict) else []


def _nvidia() -> list[Gpu] | None:
    """The cards that CUDA shows; None where the driver doesn't know a card's memory (it is the machine's)."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no library, no permission: all mean no GPU to plan with
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = []
        for i in visible_cards([_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]):
            name = _text(pynvml.nvmlDeviceGetName(handles[i]))
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handles[i])
            except pynvml.NVMLError:
                return None
            found.append(Gpu(name, int(memory.total), int(memory.free)))
        return found
    except Exception:
        return []
    finally:
        pynvml.nvmlShutdown()


def _text(given: str | bytes) -> str:
    return given if isinstance(given, str) else given.decode("utf-8", "replace")


def visible_cards(uuids: Sequence[str]) -> list[int]:
    """Of NVIDIA's cards those that CUDA shows, in its order: ``CUDA_VISIBLE_DEVICES`` names them by number or UUID (or
    the start of one), and whatever stands behind a name that fits no card doesn't count."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return list(range(len(uuids)))
    shown: list[int] = []
    for word in (part.strip() for part in asked.split(",")):
        fitting = [i for i, uuid in enumerate(uuids) if word.startswith("GPU-") and uuid.startswith(word)]
        if word.isdecimal() and int(word) < len(uuids):
            fitting = [int(word)]
        if len(fitting) != 1:
            break
        shown += fitting
    return shown
