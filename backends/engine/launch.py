"""What the engine's child is started and asked with: an environment for llama.cpp's threads, paths that it
understands."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

import msgspec

from backends.interface import LoadRequest

SPIN_COUNT = "1000"
"""Turns that a thread of llama.cpp's waits for the others before it sleeps. GNU's OpenMP spins for milliseconds, and
that hundreds of times a token: a thread that lost its core to another program then keeps all others spinning, and one
busy program costs a model of 3 GB 98 % of its speed on 16 cores (benchmarks/results/busy.md). Users' own settings of
OMP_WAIT_POLICY or GOMP_SPINCOUNT stand."""


def let_threads_sleep(env: MutableMapping[str, str]) -> None:
    """Sets how the engine's threads wait, where `env` doesn't say; before llama.cpp is loaded."""
    # numpy's products are small there, and threads that spin until the next one take the cores from llama.cpp
    env.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "OMP_WAIT_POLICY" not in env:
        env.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def absolute(request: LoadRequest) -> LoadRequest:
    """The request with paths that mean the same in the child's folder."""
    kv_dir = None if request.kv_dir is None else str(Path(request.kv_dir).absolute())
    path = str(Path(request.path).absolute()) if Path(request.path).exists() else request.path
    return msgspec.structs.replace(request, path=path, kv_dir=kv_dir)
