"""A split set of any size as sparse files: a realistic header (a quarter of a million tokens) and holes for weights."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import gguf

from tests.gguf_factory import split_paths, tensor_type
from tests.gguf_shapes import Dims, TensorSpec, describe


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _kv(key: str, value: object) -> bytes:
    head = _string(key)
    if isinstance(value, bool):
        return head + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return head + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return head + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return head + struct.pack("<I", 8) + _string(value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        return head + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    return head + struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def _nbytes(spec: TensorSpec, quant: str) -> tuple[int, int]:
    kind = tensor_type(spec, quant)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(kind), math.prod(spec.dims) // block * size


def make_sparse(path: Path, *, parts: int, n_tokens: int = 248_000, quant: str = "q4_k", **dims: int) -> int:
    """Writes ``path`` as a set of `parts`; returns its size in bytes, nearly none of which are on the disk."""
    shape = describe("qwen3moe", Dims(**dims))
    files = split_paths(path, parts)
    bounds = [round(i * len(shape.tensors) / parts) for i in range(parts + 1)]
    total = 0
    for number, file in enumerate(files):
        specs = shape.tensors[bounds[number] : bounds[number + 1]]
        kvs = [_kv("split.no", number), _kv("split.count", parts), _kv("split.tensors.count", len(shape.tensors))]
        if number == 0:
            tokens = [f"token-{i:06d}-x" for i in range(n_tokens)]
            values: dict[str, object] = {
                "general.architecture": "qwen3moe",
                "general.name": "Huge-A22B",
                "general.file_type": 15,
                **{f"qwen3moe.{key}": value for key, value in shape.kv.items()},
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [1] * n_tokens,
                "tokenizer.ggml.merges": [f"{t} y" for t in tokens],
                "tokenizer.chat_template": "{{ messages }}" * 400,
            }
            kvs += [_kv(key, value) for key, value in values.items()]
        offset, infos = 0, b""
        for spec in specs:
            kind, nbytes = _nbytes(spec, quant)
            infos += _string(spec.name) + struct.pack(
                f"<I{len(spec.dims)}QIQ", len(spec.dims), *spec.dims, kind, offset
            )
            offset += nbytes + -nbytes % 32
        header = b"GGUF" + struct.pack("<IQQ", 3, len(specs), len(kvs)) + b"".join(kvs) + infos
        with file.open("wb") as out:
            out.write(header)
            size = len(header) + -len(header) % 32 + offset
            out.truncate(size)
        total += size
    return total
