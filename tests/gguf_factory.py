#!/usr/bin/env python3
"""Tiny GGUF models with random weights that really load in llama.cpp, for tests and demonstrations.

    path = make_gguf(tmp_path / "tiny.gguf")                        # qwen3moe, 2 layers of 8 experts
    path = make_gguf(tmp_path / "tiny.gguf", arch="gpt-oss", quant="mxfp4", split=3)

or ``python tests/gguf_factory.py out.gguf --arch deepseek2``. The same arguments always give the same bytes. Embeddings
have standard deviation 1 and blocks add little to them, so that routing follows the token, as in real models.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests.gguf_shapes_hashed  # noqa: F401 - adds an architecture
from tests.gguf_shapes import ARCHITECTURES, MIN_LAYERS, Dims, Shape, TensorSpec, describe

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")

QUANTS = {
    "f32": T.F32,
    "f16": T.F16,
    "bf16": T.BF16,
    "q8_0": T.Q8_0,
    "q4_0": T.Q4_0,
    "q5_1": T.Q5_1,
    "mxfp4": T.MXFP4,
    "q4_k": T.Q4_K,
}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q5_1": 9, "mxfp4": 38, "q4_k": 15}
_INTO_RESIDUAL = {"out", "expert_out"}


# ---- tokenizer ---------------------------------------------------------------------------------------------------


def byte_characters() -> list[str]:
    """The printable character that GPT-2's byte-level BPE writes for each byte value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in printable}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    return [table[b] for b in range(256)]


def tokenizer(n_vocab: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, token types and merges of a byte-level BPE of exactly `n_vocab` tokens (at least 262).

    Every byte is a token, so any text tokenises; then come pairs and triples of letters; the specials end the list.
    """
    chars, tail = byte_characters(), [*SPECIALS, *THINK]
    if n_vocab <= len(chars) + len(tail):
        raise ValueError(f"n_vocab={n_vocab} is too small: 256 bytes, {len(tail)} specials and a merge are needed")
    tokens, merges = list(chars), []
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    pairs = [(a, b) for a in chars[32] + letters for b in letters]
    triples = [(a + b, c) for a, b in pairs for c in letters]
    for left, right in pairs + triples:
        if len(tokens) == n_vocab - len(tail):
            break
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    padding = n_vocab - len(tail) - len(tokens)
    types = [1] * len(tokens) + [5] * padding + [3] * len(SPECIALS) + [4] * len(THINK)
    tokens += [f"[unused{i}]" for i in range(padding)] + tail
    return tokens, types, merges


# ---- weights -----------------------------------------------------------------------------------------------------


def weights(spec: TensorSpec, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random float32 values of one tensor, shaped as numpy has it (the row length last)."""
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    shape = tuple(reversed(spec.dims))
    if spec.role == "norm":
        return rng.uniform(0.9, 1.1, shape).astype(np.float32)
    if spec.role == "scale":
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    if spec.role == "ssm_a":  # a decay: must be negative
        return -rng.uniform(0.5, 2.0, shape).astype(np.float32)
    gain = {"embd": 0.0, "bias": 0.0, "router": 2.0, "output": 2.0, "conv": 1.0}.get(spec.role)
    if spec.role == "embd":
        std = 1.0
    elif spec.role == "bias":
        std = 0.05
    else:
        gain = gain or (0.3 if spec.role in _INTO_RESIDUAL else 0.8)
        std = gain / math.sqrt(spec.dims[0])
    return (rng.standard_normal(shape, dtype=np.float32) * np.float32(std)).astype(np.float32)


def _q4_k_blocks(spec: TensorSpec, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random Q4_K blocks of about the right spread: numpy has no quantizer for this type."""
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    std = 1.0 if spec.role == "embd" else 0.5 / math.sqrt(spec.dims[0])
    n_blocks = math.prod(spec.dims) // 256
    blocks = rng.integers(0, 256, (n_blocks, 144), dtype=np.uint8)
    scales = np.array([std / 200, std / 200 * 7.5], dtype=np.float16).view(np.uint8)
    blocks[:, :4] = scales
    return blocks.reshape(*reversed(spec.dims[1:]), -1)


def tensor_type(spec: TensorSpec, quant: str) -> T:
    """The type a tensor gets, as llama.cpp's quantizer chooses: vectors, routers and convolutions stay float32."""
    if len(spec.dims) == 1 or spec.role in {"norm", "router", "bias", "scale", "ssm_a", "conv"}:
        return T.F32
    wanted = QUANTS[quant]
    if wanted == T.MXFP4 and not spec.is_expert:
        wanted = T.Q8_0
    for candidate in (wanted, T.Q8_0, T.F16):
        if spec.dims[0] % gguf.GGML_QUANT_SIZES[candidate][0] == 0:
            return candidate
    return T.F16


def _data(spec: TensorSpec, kind: T, seed: int, *, endless: bool = False) -> np.ndarray[Any, Any]:
    if kind == T.Q4_K:
        return _q4_k_blocks(spec, seed)
    values = weights(spec, seed)
    if endless and spec.role == "output":  # a logit of 0 is far below the largest, which greedy sampling takes
        values[-len((*SPECIALS, *THINK)) :] = 0.0
    if kind == T.F32:
        return values
    return values.astype(np.float16) if kind == T.F16 else gguf.quants.quantize(values, kind)


# ---- the file ----------------------------------------------------------------------------------------------------


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, np.ndarray):
        kind = gguf.GGUFValueType[value.dtype.name.upper()]
        writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, sub_type=kind)
    else:
        writer.add_array(key, value)


def _add_metadata(
    writer: gguf.GGUFWriter, shape: Shape, d: Dims, quant: str, name: str, template: str | None, kv: dict[str, Any]
) -> None:
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quant])
    for key, value in shape.kv.items():
        _add(writer, f"{shape.arch}.{key}", value)
    tokens, types, merges = tokenizer(d.n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in kv.items():
        for data in writer.kv_data:
            data.pop(key, None)
        _add(writer, key, value)


def split_paths(path: Path, n: int) -> list[Path]:
    """The files of a set of `n` parts, named as llama.cpp wants them; just `path` where n is 1."""
    if n == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i + 1:05d}-of-{n:05d}.gguf") for i in range(n)]


def make_gguf(
    path: Path | str,
    arch: str = "qwen3moe",
    *,
    quant: str = "f16",
    seed: int = 0,
    split: int = 1,
    dense: bool = False,
    chat_template: str | None = CHATML,
    name: str | None = None,
    endless: bool = False,
    extra_kv: dict[str, Any] | None = None,
    **dims: int,
) -> Path:
    """Writes a model and returns its path (the first part's where `split` is above 1).

    Args:
        path: The file; with ``split=3`` its stem begins the three names.
        arch: One of `gguf_shapes.ARCHITECTURES`.
        quant: One of `QUANTS`; tensors whose rows don't fit the type's block fall back to q8_0, then f16.
        seed: Of the weights.
        dense: A model without experts of the same family (llama, else qwen3).
        chat_template: Jinja text, None for none.
        endless: A greedy answer goes on until something else ends it: no special token is ever the likeliest.
        extra_kv: Metadata to add or replace, by full key.
        **dims: Fields of `Dims`, e.g. ``n_layer=4, n_expert=16``.
    """
    path = Path(path)
    if dense:
        arch, dims = (arch if arch == "llama" else "qwen3"), {**dims, "n_expert": 0}
    if arch == "qwen3":
        dims["n_expert"] = 0
    dims.setdefault("n_layer", MIN_LAYERS.get(arch, 2))
    if "n_embd" in dims and "head_dim" not in dims and arch in {"olmoe", "lfm2moe"}:
        dims["head_dim"] = dims["n_embd"] // dims.get("n_head", 4)
    d = Dims(**dims)
    shape = describe(arch, d)
    files = split_paths(path, split)
    if split > len(shape.tensors):
        raise ValueError(f"split={split}: the model has only {len(shape.tensors)} tensors")
    bounds = [round(i * len(shape.tensors) / split) for i in range(split + 1)]
    for i, file in enumerate(files):
        writer = gguf.GGUFWriter(file, arch)
        if i == 0:
            _add_metadata(writer, shape, d, quant, name or f"tiny {arch}", chat_template, extra_kv or {})
        if split > 1:
            writer.add_uint16("split.no", i)
            writer.add_uint16("split.count", split)
            writer.add_int32("split.tensors.count", len(shape.tensors))
        for spec in shape.tensors[bounds[i] : bounds[i + 1]]:
            kind = tensor_type(spec, quant)
            writer.add_tensor(spec.name, _data(spec, kind, seed, endless=endless), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files[0]


# ---- damage ------------------------------------------------------------------------------------------------------


def truncated(path: Path, out: Path, keep: int) -> Path:
    """A copy of `path` with only its first `keep` bytes (from the end where negative)."""
    data = path.read_bytes()
    out.write_bytes(data[:keep])
    return out


def corrupted(path: Path, out: Path, at: int, data: bytes) -> Path:
    """A copy of `path` whose bytes from `at` on are replaced by `data`."""
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    out.write_bytes(content)
    return out


def header_bytes(path: Path) -> int:
    """Offset of the first tensor's data: everything before is metadata."""
    return int(gguf.GGUFReader(path).data_offset)


def main() -> int:
    """Writes one model as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", default="qwen3moe", choices=sorted(ARCHITECTURES))
    parser.add_argument("--quant", default="f16", choices=sorted(QUANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", type=int, default=1)
    parser.add_argument("--dense", action="store_true", help="a model without experts")
    for option, default in Dims.__dataclass_fields__.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, help=f"default {default.default}")
    args = vars(parser.parse_args())
    dims = {k: args.pop(k) for k in Dims.__dataclass_fields__}
    path = make_gguf(args.pop("out"), **args, **{k: v for k, v in dims.items() if v is not None})
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
