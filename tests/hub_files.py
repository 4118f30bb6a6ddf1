"""Sets of GGUF files of any size for the hub's tests."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from tests.gguf_factory import make_gguf

MIB = 1 << 20


def grow(path: Path, size: int, seed: int) -> None:
    """Random bytes behind a GGUF's tensors, up to `size`: the reader allows a tail, and every byte is checked."""
    generator = random.Random(seed)
    with path.open("ab") as file:
        while (left := size - file.tell()) > 0:
            file.write(generator.randbytes(min(left, MIB)))


def make_set(folder: Path, size: int) -> list[Path]:
    folder.mkdir(parents=True)
    make_gguf(folder / "Tiny-A1B-Q8_0.gguf", quant="q8_0", split=3)
    files = sorted(folder.glob("*.gguf"))
    for i, file in enumerate(files):
        grow(file, size // 3 + i * 1000 + 7, i)
    return files


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
