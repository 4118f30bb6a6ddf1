"""Fuzzed models by the thousand: each is refused with a sentence, or loads and answers; nothing else is foreseen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
KEPT = (176, 200, 420, 424, 466)
"""Seeds that ended a process: a matrix of float64 (now refused), llama.cpp's own assertions."""


def fuzz(kind: str, n: int, first: int, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf_fuzz", kind, str(n), str(first), str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["failures"] == []
    assert sum(told["outcomes"].values()) == n
    return told


def test_four_thousand_headers(tmp_path: Path) -> None:
    told = fuzz("headers", 4000, 0, tmp_path)
    assert set(told["outcomes"]) <= {"ok", "bad_model", "truncated", "not_gguf"}
    assert told["outcomes"]["ok"] > 1000  # most of the damage is not in the form
    assert told["slowest_cpu_s"] < 30.0


def check_loads(told: dict[str, Any], n: int) -> None:
    """llama.cpp may assert, which is why it has a process of its own; it may not hang or run over memory."""
    assert told["outcomes"]["ok"] > n / 10
    assert set(told["deaths"]) <= {"SIGABRT", "SIGFPE"}, told["deaths"]
    assert sum(map(len, told["deaths"].values())) < n / 20


@pytest.mark.timeout(1200)
def test_loads(tmp_path: Path) -> None:
    check_loads(fuzz("loads", 120, 0, tmp_path), 120)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", KEPT)
def test_loads_that_ended_a_process(tmp_path: Path, seed: int) -> None:
    assert set(fuzz("loads", 1, seed, tmp_path)["deaths"]) <= {"SIGABRT"}


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_two_thousand_loads(tmp_path: Path) -> None:
    check_loads(fuzz("loads", 2000, 0, tmp_path), 2000)
