"""With layers on a GPU: the ids are fetched from VRAM, no expert goes there, and the logits are mmap's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.llamacpp import abi
from tests.gguf_factory import make_gguf
from tests.places import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


def measure(path: Path, backend: str, gpu_layers: int) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), str(path), "--one", backend, "--gpu-layers", str(gpu_layers)]
    done = subprocess.run([*command, "--tokens", "6"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.gpu
def test_logits_equal_with_all_layers_on_the_gpu(tmp_path: Path) -> None:
    if not abi.gpu_devices():
        pytest.skip("no GPU that this build of llama.cpp can use")
    path = make_gguf(tmp_path / "tiny.gguf", n_layer=4)
    stream, mmap = measure(path, "stream", 99), measure(path, "mmap", 99)
    assert stream["gpu_layers"] > 0
    assert stream["logits_sha256"] == mmap["logits_sha256"]


def test_the_gpu_check_measures_both_backends_without_a_gpu(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", n_layer=2)
    stream, mmap = measure(path, "stream", 0), measure(path, "mmap", 0)
    assert stream["logits_sha256"] == mmap["logits_sha256"]
    assert stream["backend"] == "stream"


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "qwen3next", "deepseek2"])
@pytest.mark.timeout(300)
def test_no_combination_crashes_or_changes_a_logit(arch: str, tmp_path: Path) -> None:
    """Store, GPU layers, experts in VRAM, prompts of 1 to 2,048 tokens, one and many sequences, caches for each."""
    if not abi.gpu_devices():
        pytest.skip("no GPU that this build of llama.cpp can use")
    path = make_gguf(tmp_path / "tiny.gguf", arch=arch, n_layer=6, n_expert=32, n_expert_used=4)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_matrix.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
