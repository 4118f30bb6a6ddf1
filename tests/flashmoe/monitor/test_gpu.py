"""VRAM against nvidia-smi, where there is an NVIDIA GPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

import pytest

from flashmoe.monitor.gpu import GpuMeter

GIB = 1 << 30

pytestmark = pytest.mark.gpu


def nvidia_smi() -> list[tuple[int, int]]:
    """(total, used) bytes per GPU as nvidia-smi says."""
    out = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [(int(a) << 20, int(b) << 20) for a, b in (line.split(",") for line in out.splitlines())]


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no nvidia-smi here")
def test_vram_is_what_nvidia_smi_says() -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    if cuda.cuInit(0) != 0:
        pytest.skip("CUDA shows no card here")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    meter = GpuMeter()
    before, note = meter.read(os.getpid())
    assert note is None
    assert cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(2 * GIB)) == 0
    after, _ = meter.read(os.getpid())
    says = nvidia_smi()
    print([(gpu.total, gpu.used, gpu.engine_used, gpu.busy) for gpu in after], says)
    for gpu, (total, used) in zip(after, says, strict=True):
        assert gpu.total == pytest.approx(total, rel=0.02)
        assert gpu.used == pytest.approx(used, rel=0.02, abs=8 << 20)
    assert after[0].used - before[0].used == pytest.approx(2 * GIB, rel=0.02)
    if after[0].engine_used is not None:  # containers hide who holds what
        assert after[0].engine_used >= 2 * GIB
    cuda.cuMemFree_v2(memory)
    meter.close()
