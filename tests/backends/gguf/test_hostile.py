"""Hostile headers: no crash, no traceback, no seconds, no memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from backends.gguf.cursor import BytesSource
from backends.gguf.file import read_gguf
from backends.gguf.header import read_header
from backends.interface import EngineError
from tests.gguf_factory import make_gguf
from tests.places import ROOT


@pytest.mark.parametrize(
    ("arch", "n_vocab", "n"), [("qwen3moe", 280, 5000), ("granitehybrid", 280, 2500), ("gemma4", 3000, 2500)]
)
def test_ten_thousand_mutated_headers(tmp_path: Path, arch: str, n_vocab: int, n: int) -> None:
    """In a process that may grow by 200 MB; CPU time, not wall time, so that a busy machine doesn't matter."""
    seed = make_gguf(tmp_path / "seed.gguf", arch=arch, n_vocab=n_vocab)
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf_mutations", str(seed), str(n)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["failures"] == []
    assert sum(result["outcomes"].values()) == n
    assert result["outcomes"]["bad_model"] > n / 20
    assert result["outcomes"]["truncated"] > n / 20
    assert result["slowest_cpu_s"] < 5.0
    assert result["rss_growth_bytes"] < 200 << 20


def header(*parts: bytes, n_tensors: int = 0, n_kv: int = 0) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_kv) + b"".join(parts)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = (1 << 64) - 1
CASES = {
    "tensors without end": header(n_tensors=HUGE),
    "keys without end": header(n_kv=HUGE),
    "plausible count, no bytes": header(n_tensors=30_000),
    "string without end": header(struct.pack("<Q", HUGE), n_kv=1),
    "value string of 1 GB": header(key(b"a", 8, struct.pack("<Q", 1 << 30)), n_kv=1),
    "array of 2^60 numbers": header(key(b"a", 9, struct.pack("<IQ", 4, 1 << 60)), n_kv=1),
    "array of 2^61 strings": header(key(b"a", 9, struct.pack("<IQ", 8, 1 << 61)), n_kv=1),
    "array of empty strings": header(key(b"a", 9, struct.pack("<IQ", 8, 3 << 20) + bytes(24 << 20)), n_kv=1),
    "text of 90 MB": header(*(key(b"%05d" % i, 8, string(b"\xff" * (1 << 20))) for i in range(90)), n_kv=90),
    "array of arrays": header(key(b"a", 9, struct.pack("<IQ", 9, 2) * 1000), n_kv=1),
    "unknown value type": header(key(b"a", 77, b"12345678"), n_kv=1),
    "key twice": header(key(b"a", 4, b"1234"), key(b"a", 4, b"1234"), n_kv=2),
    "empty key": header(key(b"", 4, b"1234"), n_kv=1),
    "alignment 0": header(key(b"general.alignment", 4, struct.pack("<I", 0)), n_kv=1),
    "alignment 3": header(key(b"general.alignment", 4, struct.pack("<I", 3)), n_kv=1),
    "alignment as text": header(key(b"general.alignment", 8, string(b"32")), n_kv=1),
    "five dimensions": header(tensor(b"t", (1, 1, 1, 1, 1), 0, 0), n_tensors=1),
    "2^32 dimensions": header(string(b"t") + struct.pack("<I", 0xFFFFFFFF) + bytes(64), n_tensors=1),
    "overflowing shape": header(tensor(b"t", (1 << 40, 1 << 40, 1 << 40), 0, 0), n_tensors=1),
    "negative dimension": header(tensor(b"t", (HUGE, 1), 0, 0), n_tensors=1),
    "no elements": header(tensor(b"t", (0, 4), 0, 0), n_tensors=1),
    "removed type": header(tensor(b"t", (32,), 4, 0), n_tensors=1),
    "unknown type": header(tensor(b"t", (32,), 9999, 0), n_tensors=1),
    "row no multiple of the block": header(tensor(b"t", (33,), 8, 0), n_tensors=1),
    "offset beyond the file": header(tensor(b"t", (32,), 0, 1 << 50), n_tensors=1),
    "offset wraps around": header(tensor(b"t", (32,), 0, HUGE - 31), n_tensors=1),
    "data beyond the file": header(tensor(b"t", (1 << 40,), 0, 0), n_tensors=1),
    "tensor twice": header(tensor(b"t", (8,), 0, 0), tensor(b"t", (8,), 0, 32), bytes(128), n_tensors=2),
    "overlapping tensors": header(tensor(b"t", (64,), 0, 0), tensor(b"u", (64,), 0, 32), bytes(999), n_tensors=2),
    "long tensor name": header(tensor(b"t" * 64, (8,), 0, 0), n_tensors=1),
    "version 1": struct.pack("<4sIQQ", b"GGUF", 1, 0, 0),
    "version 99": struct.pack("<4sIQQ", b"GGUF", 99, 0, 0),
    "big-endian": struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),
    "no architecture": header(),
    "architecture as number": header(key(b"general.architecture", 4, b"1234"), n_kv=1),
    "part 1 of 4 billion": header(
        key(b"general.architecture", 8, string(b"llama")), key(b"split.count", 4, b"\xff" * 4), n_kv=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_absurd_headers_are_refused_cheaply(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(CASES[name])
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(EngineError) as caught:
        read_gguf(path)
    took, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.code in {"bad_model", "truncated"}
    assert caught.value.message.startswith("hostile.gguf")
    assert caught.value.message.isprintable()
    assert took < 5.0  # milliseconds where nothing else runs; what the header claims would take minutes
    assert peak < 64 << 20


def test_a_real_vocabulary_is_stepped_over_quickly() -> None:
    """A header of 6 MB: 152,000 tokens, as many merges (CPU time; building objects takes 10 s)."""
    tokens = b"".join(string(b"token%06d" % i) for i in range(152_000))
    merges = b"".join(string(b"to ken%06d" % i) for i in range(151_000))
    data = header(
        key(b"general.architecture", 8, string(b"llama")),
        key(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 152_000) + tokens),
        key(b"tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, 152_000) + bytes(4 * 152_000)),
        key(b"tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, 151_000) + merges),
        n_kv=4,
    )
    assert len(data) > 6 << 20
    started = time.process_time()
    parsed = read_header(BytesSource("real.gguf", data))
    assert time.process_time() - started < 5.0
    assert parsed.data_offset >= len(data)
