#!/usr/bin/env python3
"""Writes a synthetic Mixture-of-Experts GGUF (architecture qwen3moe) that is worth measuring on.

Random weights of ordinary size drown the token embedding in the residual stream: every token then routes to the same
few experts and any cache looks perfect. Here embeddings have a standard deviation of 1 and block weights one of about
0.002, so routing follows the token: nearly uniform over a stream of random ids, or as skewed as ``--skew`` asks.

    python benchmarks/synthetic.py /tmp/synth.gguf                        # 8.4 GB: 24 layers x 128 experts, 8 used
    python benchmarks/synthetic.py /tmp/tiny.gguf --layers 4 --experts 16 --used 2 --embd 256 --ff 256
    python benchmarks/synthetic.py /tmp/s.gguf --split 3 --skew 1.0

With ``--topics T`` the ids fall into T ranges of equal length whose embeddings have a direction in common: the router
logits of two tokens of one topic then correlate by ``--topic-share`` (0: not at all, 1: the same experts always).
"""

from __future__ import annotations

import argparse
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

ALIGN = 32
F32, Q8_0, Q4_K = 0, 8, 12
BLOCK = {F32: (1, 4), Q8_0: (32, 34), Q4_K: (256, 144)}  # type -> (elements, bytes) of a block
U32, F32V, STRING, ARRAY, U16, I32 = 4, 6, 8, 9, 2, 5


@dataclass(frozen=True)
class Spec:
    """The shape of a synthetic model; sizes in elements."""

    layers: int = 24
    experts: int = 128
    used: int = 8
    embd: int = 2048
    ff: int = 768
    heads: int = 32
    kv_heads: int = 4
    head_dim: int = 128
    vocab: int = 32000
    skew: float = 0.0
    seed: int = 0
    std: float = 0.002
    ctx: int = 32768
    topics: int = 0
    topic_share: float = 0.3


@dataclass(frozen=True)
class Info:
    """One tensor: its name, dims (fastest first) and type."""

    name: str
    dims: tuple[int, ...]
    type: int

    @property
    def bytes(self) -> int:
        """Bytes of the tensor's data, unpadded."""
        elements, size = BLOCK[self.type]
        return int(np.prod(self.dims)) // elements * size


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _kv(key: str, kind: int, value: object) -> bytes:
    head = _string(key) + struct.pack("<I", kind)
    if kind == STRING:
        return head + _string(str(value))
    return head + struct.pack({U32: "<I", F32V: "<f", U16: "<H", I32: "<i"}[kind], value)


def _array(key: str, kind: int, body: bytes, count: int) -> bytes:
    return _string(key) + struct.pack("<IIQ", ARRAY, kind, count) + body


def _byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in set(keep) else chr(next(extra)) for b in range(256)]


def metadata(spec: Spec) -> list[bytes]:
    """The model's key-value pairs, encoded."""
    tokens = _byte_tokens() + [f"t{i}" for i in range(256, spec.vocab - 2)] + ["<|im_start|>", "<|im_end|>"]
    kinds = np.ones(spec.vocab, "<i4")
    kinds[-2:] = 3
    a = "qwen3moe"
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return [
        _kv("general.architecture", STRING, a),
        _kv("general.name", STRING, f"synthetic {spec.layers}x{spec.experts}"),
        _kv("general.file_type", U32, 15),
        _kv(f"{a}.block_count", U32, spec.layers),
        _kv(f"{a}.context_length", U32, spec.ctx),
        _kv(f"{a}.embedding_length", U32, spec.embd),
        _kv(f"{a}.feed_forward_length", U32, spec.ff),
        _kv(f"{a}.expert_feed_forward_length", U32, spec.ff),
        _kv(f"{a}.attention.head_count", U32, spec.heads),
        _kv(f"{a}.attention.head_count_kv", U32, spec.kv_heads),
        _kv(f"{a}.attention.key_length", U32, spec.head_dim),
        _kv(f"{a}.attention.value_length", U32, spec.head_dim),
        _kv(f"{a}.attention.layer_norm_rms_epsilon", F32V, 1e-6),
        _kv(f"{a}.rope.freq_base", F32V, 1e6),
        _kv(f"{a}.expert_count", U32, spec.experts),
        _kv(f"{a}.expert_used_count", U32, spec.used),
        _kv("tokenizer.ggml.model", STRING, "gpt2"),
        _kv("tokenizer.ggml.pre", STRING, "qwen2"),
        _array("tokenizer.ggml.tokens", STRING, b"".join(map(_string, tokens)), len(tokens)),
        _array("tokenizer.ggml.token_type", I32, kinds.tobytes(), spec.vocab),
        _array("tokenizer.ggml.merges", STRING, _string("a b"), 1),
        _kv("tokenizer.ggml.eos_token_id", U32, spec.vocab - 1),
        _kv("tokenizer.chat_template", STRING, template),
    ]


def tensors(spec: Spec) -> list[Info]:
    """Every tensor in file order: each layer's gate, up and down experts lie one behind the other, as converters do."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    out = [Info("token_embd.weight", (spec.embd, spec.vocab), Q8_0), Info("output_norm.weight", (spec.embd,), F32)]
    out.append(Info("output.weight", (spec.embd, spec.vocab), Q4_K))
    for i in range(spec.layers):
        b = f"blk.{i}."
        out += [
            Info(b + "attn_norm.weight", (spec.embd,), F32),
            Info(b + "attn_q.weight", (spec.embd, q), Q4_K),
            Info(b + "attn_k.weight", (spec.embd, kv), Q4_K),
            Info(b + "attn_v.weight", (spec.embd, kv), Q4_K),
            Info(b + "attn_output.weight", (q, spec.embd), Q4_K),
            Info(b + "attn_q_norm.weight", (spec.head_dim,), F32),
            Info(b + "attn_k_norm.weight", (spec.head_dim,), F32),
            Info(b + "ffn_norm.weight", (spec.embd,), F32),
            Info(b + "ffn_gate_inp.weight", (spec.embd, spec.experts), F32),
            Info(b + "ffn_gate_exps.weight", (spec.embd, spec.ff, spec.experts), Q4_K),
            Info(b + "ffn_up_exps.weight", (spec.embd, spec.ff, spec.experts), Q4_K),
            Info(b + "ffn_down_exps.weight", (spec.ff, spec.embd, spec.experts), Q4_K),
        ]
    return out


def _router_bias(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """Additive logits (in noise standard deviations) that make expert use follow a Zipf law of exponent `skew`."""
    if not spec.skew:
        return np.zeros(spec.experts)
    target = 1.0 / np.arange(1, spec.experts + 1) ** spec.skew
    target = np.minimum(target / target.sum() * spec.used, 0.95)
    noise = rng.standard_normal((4096, spec.experts))
    bias = np.zeros(spec.experts)
    for _ in range(60):
        top = np.argpartition(-(noise + bias), spec.used - 1, axis=1)[:, : spec.used]
        seen = (np.bincount(top.ravel(), minlength=spec.experts) + 0.5) / len(noise)
        bias += 0.4 * (np.log(target) - np.log(seen))
    return bias - bias.mean()


def _chunks(info: Info, spec: Spec, rng: np.random.Generator, bias: np.ndarray) -> Iterator[bytes]:
    """The tensor's data in pieces of at most 32 MiB."""
    count = int(np.prod(info.dims))
    if info.name.endswith("norm.weight"):
        yield np.ones(count, "<f4").tobytes()
    elif info.type == F32:  # the router: one direction that every embedding shares carries the skew
        w = rng.standard_normal((spec.experts, spec.embd)) / np.sqrt(spec.embd)
        w[:, 0] = rng.permutation(bias)
        yield w.astype("<f4").tobytes()
    elif info.type == Q8_0:
        blocks_row = spec.embd // 32
        for row in range(0, info.dims[1], 2048):
            n = min(2048, info.dims[1] - row)
            out = np.empty((n * blocks_row, 34), np.uint8)
            out[:, :2] = np.full(n * blocks_row, 1 / 36.0, "<f2")[:, None].view(np.uint8)
            values = rng.standard_normal((n * blocks_row, 32), dtype=np.float32)
            if spec.topics:
                topic = np.arange(row, row + n) * spec.topics // spec.vocab
                shared = np.random.default_rng(spec.seed).standard_normal((spec.topics, spec.embd), dtype=np.float32)
                own = values.reshape(n, spec.embd)
                own *= np.sqrt(np.float32(1 - spec.topic_share))
                own += shared[topic] * np.sqrt(np.float32(spec.topic_share))
            values = np.clip(np.rint(values * 36), -127, 127)
            values.reshape(n, spec.embd)[:, 0] = 36
            out[:, 2:] = values.astype(np.int8).view(np.uint8)
            yield out.tobytes()
    else:
        blocks, step = count // 256, (32 << 20) // 144
        std = spec.std if info.name.startswith("blk.") else 0.02
        d = np.array([std / 200, std / 200 * 7.5], "<f2").view(np.uint8)
        for at in range(0, blocks, step):
            n = min(step, blocks - at)
            raw = rng.integers(0, 2**64, n * 18, dtype=np.uint64).view(np.uint8).reshape(n, 144)
            raw[:, :4] = d
            yield raw.tobytes()


def _write_part(f: BinaryIO, kvs: list[bytes], infos: list[Info], spec: Spec, bias: np.ndarray) -> None:
    f.write(b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(kvs)) + b"".join(kvs))
    at = 0
    for t in infos:
        f.write(_string(t.name) + struct.pack(f"<I{len(t.dims)}QIQ", len(t.dims), *t.dims, t.type, at))
        at += -(-t.bytes // ALIGN) * ALIGN
    for t in infos:
        f.write(b"\0" * (-f.tell() % ALIGN))
        # the seed is the tensor's own, so that a split file holds the very same weights
        rng = np.random.Generator(np.random.SFC64([spec.seed, *t.name.encode()]))
        start = f.tell()
        for piece in _chunks(t, spec, rng, bias):
            f.write(piece)
        if f.tell() - start != t.bytes:
            raise ValueError(f"{t.name}: {f.tell() - start} bytes were made, {t.bytes} were promised")
    f.write(b"\0" * (-f.tell() % ALIGN))


def write_model(path: str | Path, spec: Spec | None = None, split: int = 1) -> Path:
    """Writes the model, or `split` files named ``-00001-of-0000N``; returns the (first) file's path."""
    spec, path = spec or Spec(), Path(path)
    infos, kvs = tensors(spec), metadata(spec)
    bias = _router_bias(spec, np.random.default_rng(spec.seed))
    if split == 1:
        with open(path, "wb", buffering=1 << 20) as f:
            _write_part(f, kvs, infos, spec, bias)
        return path
    first, names = None, np.array_split(np.arange(len(infos)), split)
    for no, members in enumerate(names):
        part = path.with_name(f"{path.stem}-{no + 1:05d}-of-{split:05d}.gguf")
        first = first or part
        extra = [
            _kv("split.no", U16, no),
            _kv("split.count", U16, split),
            _kv("split.tensors.count", I32, len(infos)),
        ]
        with open(part, "wb", buffering=1 << 20) as f:
            _write_part(f, (kvs if no == 0 else []) + extra, [infos[i] for i in members], spec, bias)
    assert first is not None
    return first


def main() -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("path")
    for name, value in Spec().__dict__.items():
        a.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    a.add_argument("--split", type=int, default=1, help="number of files to split into")
    o = vars(a.parse_args())
    path, split, t0 = o.pop("path"), o.pop("split"), time.perf_counter()
    first = write_model(path, Spec(**o), split)
    infos = tensors(Spec(**o))
    experts = sum(t.bytes for t in infos if "_exps." in t.name)
    print(f"{first}: {sum(t.bytes for t in infos) / 1e9:.2f} GB, {experts / 1e9:.2f} GB of it experts, ", end="")
    print(f"written in {time.perf_counter() - t0:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
