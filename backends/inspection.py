"""``python -m backends.inspection``: what the installed llama.cpp is and can do, as one JSON object.

A process of its own for ``doctor``: a build that crashes on this machine's CPU must not take its caller along.
"""

from __future__ import annotations

import ctypes as C
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from backends import registry
from backends.interface import EngineError
from backends.llamacpp import abi, native

_KINDS = {0: "CPU", 1: "GPU", 2: "integrated GPU", 3: "accelerator"}


def devices() -> list[dict[str, Any]]:
    """The devices that this build of llama.cpp can use; ``used``: layers go there where nothing else is asked for."""
    name = abi.declare(abi.ggml_base(), "ggml_backend_dev_name", C.c_char_p, C.c_void_p)
    description = abi.declare(abi.ggml_base(), "ggml_backend_dev_description", C.c_char_p, C.c_void_p)
    kind = abi.declare(abi.ggml_base(), "ggml_backend_dev_type", C.c_int, C.c_void_p)
    found, used = [], abi.gpu_devices()
    for device in abi.devices():
        free, total = abi.device_memory(device)
        found.append({
            "name": (name(device) or b"").decode("utf-8", "replace"),
            "description": (description(device) or b"").decode("utf-8", "replace"),
            "kind": _KINDS.get(kind(device), "other"),
            "used": device in used,
            "free_bytes": free,
            "total_bytes": total,
        })  # fmt: skip
    return found


def backend_obstacles() -> dict[str, str | None]:
    """Each registered backend, and why it can't be used here; None where it can."""
    found: dict[str, str | None] = {}
    for name in registry.names():
        try:
            registry.get(name)
            found[name] = None
        except EngineError as error:
            found[name] = error.message
    if found.get("stream", "") is None:
        from backends.streaming import abi as streaming_abi

        found["stream"] = streaming_abi.check()
    return found


def inspect() -> dict[str, Any]:
    """Everything that ``doctor`` asks of llama.cpp."""
    import llama_cpp

    library = native.lib()
    return {
        "llama_cpp_python": str(llama_cpp.__version__),
        "features": bytes(library.llama_print_system_info()).decode("utf-8", "replace").strip(" |\n"),
        "gpu_offload": bool(library.llama_supports_gpu_offload()),
        "mmap": bool(library.llama_supports_mmap()),
        "devices": devices(),
        "backends": backend_obstacles(),
    }


def _only_devices() -> dict[str, Any]:
    native.lib()
    return {"devices": devices()}


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the object (with the argument ``devices`` just these) on what was stdout; llama.cpp's own prints go to
    stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        found = _only_devices() if "devices" in arguments else inspect()
    except Exception as error:  # whatever is wrong with the build is the answer
        found = {"error": f"{type(error).__name__}: {error}"}
    out.write(json.dumps(found) + "\n")
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
