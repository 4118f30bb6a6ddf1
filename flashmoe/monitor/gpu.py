"""VRAM and load of the GPUs: NVIDIA through NVML, AMD through sysfs. No GPU is said plainly, not shown as zeros."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from flashmoe.monitor.sample import Gpu

_DRM = Path("/sys/class/drm")


class GpuMeter:
    """Reads every GPU; NVML is opened on the first `read` (it takes some milliseconds) and kept open."""

    def __init__(self, drm: Path = _DRM) -> None:
        self._drm = drm
        self._nvml: Any = None
        self._handles: list[tuple[str, Any]] = []
        self._note = ""
        self._opened = False

    def _open(self) -> None:
        self._opened = True
        try:
            import pynvml
        except ImportError:
            self._note = "NVML missing: install nvidia-ml-py"
            return
        try:
            pynvml.nvmlInit()
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                name = pynvml.nvmlDeviceGetName(handle)
                self._handles.append((name if isinstance(name, str) else name.decode("ascii", "replace"), handle))
            self._nvml = pynvml
        except pynvml.NVMLError as error:
            driver = Path("/proc/driver/nvidia/version").exists()
            self._note = f"NVIDIA driver doesn't answer: {error}" if driver else ""

    def read(self, pid: int | None = None) -> tuple[tuple[Gpu, ...], str | None]:
        """(GPUs, a few words where there is no figure). `pid`: whose share to tell apart."""
        if not self._opened:
            self._open()
        found = [*self._nvidia(pid), *self._amd()]
        if found:
            return tuple(found), None
        return (), self._note or "no GPU here"

    def _nvidia(self, pid: int | None) -> list[Gpu]:
        if self._nvml is None:
            return []
        nvml, found = self._nvml, []
        for index, (name, handle) in enumerate(self._handles):
            try:
                try:
                    # Version 2 counts as nvidia-smi does: the driver's own reserve is not "used".
                    info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
                except (nvml.NVMLError, AttributeError, TypeError):
                    info = nvml.nvmlDeviceGetMemoryInfo(handle)
            except nvml.NVMLError:
                continue
            busy = engine = None
            with contextlib.suppress(nvml.NVMLError):
                busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            if pid is not None:
                with contextlib.suppress(nvml.NVMLError):
                    for entry in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                        if entry.pid == pid and entry.usedGpuMemory is not None:
                            engine = int(entry.usedGpuMemory)
            found.append(
                Gpu(index=index, name=name, total=int(info.total), used=int(info.used), engine_used=engine, busy=busy)
            )
        if any(gpu.engine_used is not None for gpu in found):
            # It is seen on one GPU, so where it isn't it holds nothing. Seen on none, it may be hidden by a container.
            found = [g if g.engine_used is not None else msgspec.structs.replace(g, engine_used=0) for g in found]
        return found

    def _amd(self) -> list[Gpu]:
        found: list[Gpu] = []
        with contextlib.suppress(OSError):
            for total_file in sorted(self._drm.glob("card[0-9]*/device/mem_info_vram_total")):
                device = total_file.parent
                total, used = _number(total_file), _number(device / "mem_info_vram_used")
                if not total or used is None:
                    continue
                busy = _number(device / "gpu_busy_percent")
                found.append(
                    Gpu(
                        index=len(found),
                        name=_line(device / "product_name") or "AMD GPU",
                        total=total,
                        used=used,
                        busy=None if busy is None else busy / 100,
                    )
                )
        return found

    def close(self) -> None:
        """Shuts NVML down."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml, self._handles = None, []


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _line(path)
    return int(text) if text.isdigit() else None
