"""A fuzzer that knows what a GGUF is: it takes a whole model apart, damages some of it, and puts it together again, so
that most of what it makes gets past a parser and reaches whoever believes it.

``python -m tests.gguf_fuzz headers|loads N FIRST FOLDER`` tries the seeds from FIRST on and prints one JSON object.
``headers``: each is parsed and planned, in this process. ``loads``: each is loaded, answers and is freed, in a process
of its own under limits, as the engine is one; a seed always makes the same file.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from backends.gguf.cursor import BytesSource
from backends.gguf.file import from_headers
from backends.gguf.header import read_header
from backends.interface import EngineError, Failed, GenerateRequest, LoadRequest, Sampling
from backends.planner.machine import Machine
from backends.planner.plan import PlanRequest, plan
from tests.gguf_factory import make_gguf

ARCHITECTURES = ("qwen3moe", "gpt-oss", "deepseek2", "qwen35moe", "gemma4", "granitehybrid", "llama4", "qwen4exp")
MACHINE = Machine(ram_total=16 << 30, ram_available=12 << 30, cores=4, disk_free=1 << 40, disk_bytes_s=1e9)
CPU_S, ADDRESS_BYTES = 20, 3 << 30
MOST_DATA = 4 << 20
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
EXTREMES = (0, 1, 2, 3, 7, 31, 33, 127, 255, 256, 511, 4096, 65535, 65536, (1 << 24) + 1, (1 << 31) - 1, 1 << 31)
EXTREMES += ((1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ENDLESS = b"{% for a in range(9**9) %}b{% endfor %}"
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-38, 1e38, float("inf"), float("-inf"), float("nan"))

Rng = np.random.Generator


@dataclass
class Key:
    """One metadata entry; `value` is a number, bytes, or a list of these (`kind` of the elements is `of`)."""

    name: bytes
    kind: int
    value: Any
    of: int = 0


@dataclass
class Info:
    """One tensor's entry in the header."""

    name: bytes
    dims: list[int]
    kind: int
    offset: int


@dataclass
class Gguf:
    """A GGUF taken apart."""

    keys: list[Key]
    tensors: list[Info]
    data: bytearray
    alignment: int = 32
    version: int = 3
    extra: dict[str, int] = field(default_factory=dict)
    """What is written in place of the true number of keys or tensors."""

    def pack(self) -> bytes:
        head = struct.pack(
            "<4sIQQ", b"GGUF", self.version,
            self.extra.get("tensors", len(self.tensors)), self.extra.get("keys", len(self.keys)),
        )  # fmt: skip
        for key in self.keys:
            head += _string(key.name) + struct.pack("<I", key.kind) + _value(key.kind, key.value, key.of)
        for t in self.tensors:
            dims = [d & (1 << 64) - 1 for d in t.dims]
            head += _string(t.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            head += struct.pack("<IQ", t.kind & 0xFFFFFFFF, t.offset & (1 << 64) - 1)
        return head + bytes(-len(head) % self.alignment) + bytes(self.data)

    def settle(self) -> None:
        """Lays the data out as the tensors' present shapes and types want it, names and keys once each: what is wrong
        is wrong in itself then, and not in where it lies. Leaves it where that can't be."""
        kept, at, places = bytearray(), 0, []
        tensors = list({t.name: t for t in self.tensors}.values())
        for t in tensors:
            block, size = gguf.GGML_QUANT_SIZES.get(t.kind, (0, 0))
            n = math.prod(t.dims) // block * size if block and t.dims and min(t.dims) > 0 else -1
            if not 0 <= n <= MOST_DATA - at:
                return
            places.append(at)
            piece = self.data[t.offset : t.offset + n]
            kept += piece + bytes(-(-n // 32) * 32 - len(piece))
            at = len(kept)
        self.tensors = [Info(t.name, t.dims, t.kind, place) for t, place in zip(tensors, places, strict=True)]
        self.data = kept
        self.keys = list({key.name: key for key in self.keys}.values())


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _value(kind: int, value: Any, of: int) -> bytes:
    if kind == ARRAY:
        return struct.pack("<IQ", of, len(value)) + b"".join(_value(of, v, 0) for v in value)
    if kind == STRING:
        return _string(value if isinstance(value, bytes) else b"?")
    form = SCALARS.get(kind)
    if form is None:
        return b"\1\2\3\4"
    if form in "fd":
        return struct.pack("<" + form, float(value) if isinstance(value, int | float) else 0.0)
    size = struct.calcsize(form)
    number = int(value) if isinstance(value, int) else 0
    return (number & (1 << 8 * size) - 1).to_bytes(size, "little")


def unpack(raw: bytes) -> Gguf:
    """Takes a sound GGUF apart."""
    at = 24
    version, n_tensors, n_keys = struct.unpack_from("<IQQ", raw, 4)

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> bytes:
        nonlocal at
        n = take("Q")
        at += n
        return raw[at - n : at]

    def value(kind: int) -> Any:
        return text() if kind == STRING else take(SCALARS[kind])

    keys, tensors = [], []
    for _ in range(n_keys):
        name, kind = text(), take("I")
        if kind == ARRAY:
            of, n = take("I"), take("Q")
            keys.append(Key(name, kind, [value(of) for _ in range(n)], of))
        else:
            keys.append(Key(name, kind, value(kind)))
    for _ in range(n_tensors):
        name, n = text(), take("I")
        tensors.append(Info(name, [take("Q") for _ in range(n)], take("I"), take("Q")))
    start = -(-at // 32) * 32
    return Gguf(keys, tensors, bytearray(raw[start:]), version=version)


# ---- damage ----------------------------------------------------------------------------------------------------------


def _pick(rng: Rng, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def _number(rng: Rng, old: Any) -> Any:
    if isinstance(old, float):
        return _pick(rng, FLOATS)
    near = (old - 1, old + 1, old * 2, old // 2, -old) if isinstance(old, int) else (0,)
    return int(_pick(rng, near if rng.random() < 0.5 else EXTREMES))


def _scalar(rng: Rng, g: Gguf) -> None:
    keys = [k for k in g.keys if k.kind not in (STRING, ARRAY)]
    key = _pick(rng, keys)
    key.value = _number(rng, key.value)


def _text(rng: Rng, g: Gguf) -> None:
    key = _pick(rng, [k for k in g.keys if k.kind == STRING])
    old = key.value
    key.value = _pick(rng, (b"", b"\xff\xfe", old * 3, old[:-1], b"a" * 70000, b"{{ x", ENDLESS))


def _array(rng: Rng, g: Gguf) -> None:
    arrays = [k for k in g.keys if k.kind == ARRAY]
    key = _pick(rng, arrays)
    way = rng.integers(5)
    if way == 0:
        key.value = key.value[: int(rng.integers(len(key.value) + 1))]
    elif way == 1:
        key.value = key.value + key.value[: int(rng.integers(1, 9))]
    elif way == 2 and key.value and key.of != STRING:
        for _ in range(int(rng.integers(1, 4))):
            i = int(rng.integers(len(key.value)))
            key.value[i] = _number(rng, key.value[i])
    elif way == 3 and key.value:
        i, j = int(rng.integers(len(key.value))), int(rng.integers(len(key.value)))
        key.value[i] = key.value[j]
    else:
        key.of = int(_pick(rng, (0, 4, 5, 6, 7, 8, 10, 77)))


def _key(rng: Rng, g: Gguf) -> None:
    i = int(rng.integers(len(g.keys)))
    way = rng.integers(4)
    if way == 0:
        del g.keys[i]
    elif way == 1:
        g.keys.append(g.keys[i])
    elif way == 2:
        g.keys[i].kind = int(_pick(rng, (*SCALARS, STRING, 77)))
        if g.keys[i].kind == STRING:
            g.keys[i].value = b"?"
    else:
        g.keys[i].name = _pick(rng, g.keys).name


def _dims(rng: Rng, g: Gguf) -> None:
    t = _pick(rng, g.tensors)
    way = rng.integers(5)
    if way == 0 and t.dims:
        i = int(rng.integers(len(t.dims)))
        t.dims[i] = _number(rng, t.dims[i])
    elif way == 1:
        t.dims = t.dims[::-1]
    elif way == 2:
        t.dims = [*t.dims, 1]
    elif way == 3:
        t.dims = t.dims[:-1]
    else:
        t.dims = list(_pick(rng, g.tensors).dims)


def _tensor(rng: Rng, g: Gguf) -> None:
    i = int(rng.integers(len(g.tensors)))
    way = rng.integers(5)
    if way == 0:
        del g.tensors[i]
    elif way == 1:
        g.tensors.append(g.tensors[i])
    elif way == 2:
        g.tensors[i].name = _pick(rng, g.tensors).name
    elif way == 3:
        g.tensors[i].kind = int(_pick(rng, (*range(42), 255, 1 << 30)))
    else:
        a, b = g.tensors[i], _pick(rng, g.tensors)
        a.dims, a.kind, a.offset = list(b.dims), b.kind, b.offset


def _offset(rng: Rng, g: Gguf) -> None:
    t = _pick(rng, g.tensors)
    t.offset = int(_pick(rng, (0, 1, 31, t.offset + 1, t.offset + 32, len(g.data), len(g.data) - 32, *EXTREMES[-8:])))


def _data(rng: Rng, g: Gguf) -> None:
    way = rng.integers(3)
    if way == 0:
        del g.data[int(rng.integers(len(g.data))) :]
        return
    at, n = int(rng.integers(len(g.data))), int(rng.integers(1, 4096))
    filler = rng.bytes(n) if way == 1 else b"\xff" * n
    g.data[at : at + n] = filler[: len(g.data) - at]


def _frame(rng: Rng, g: Gguf) -> None:
    way = rng.integers(3)
    if way == 0:
        g.extra[_pick(rng, ("keys", "tensors"))] = int(_pick(rng, EXTREMES))
    elif way == 1:
        g.keys.append(Key(b"general.alignment", 4, int(_pick(rng, (0, 1, 8, 16, 64, 4096, 33, 1 << 31)))))
    else:
        g.version = int(_pick(rng, (0, 1, 2, 4)))


WAYS: tuple[tuple[Callable[[Rng, Gguf], None], int], ...] = (
    (_scalar, 8), (_dims, 6), (_tensor, 5), (_array, 5), (_key, 4), (_data, 3), (_offset, 3), (_text, 2), (_frame, 1),
)  # fmt: skip
_CHOICES = [way for way, weight in WAYS for _ in range(weight)]


class Fuzzer:
    """Makes the file of each seed."""

    def __init__(self, folder: Path) -> None:
        self.models = [
            make_gguf(folder / f"{arch}.gguf", arch=arch, n_vocab=400).read_bytes() for arch in ARCHITECTURES
        ]

    def make(self, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        g = unpack(_pick(rng, self.models))
        for _ in range(int(_pick(rng, (1, 1, 1, 2, 3)))):
            _pick(rng, _CHOICES)(rng, g)
        if rng.random() < 0.75:
            g.settle()
        return g.pack()


# ---- trials ----------------------------------------------------------------------------------------------------------


def header(raw: bytes) -> str:
    """Parses and plans; ``ok`` or the error's code."""
    try:
        head = read_header(BytesSource("fuzzed.gguf", raw))
        plan(from_headers(["fuzzed.gguf"], [head], len(raw)), MACHINE, PlanRequest(n_ctx=1 << 20))
    except EngineError as error:
        if not error.message.isprintable() or len(error.message) > 500:
            raise AssertionError(f"not for people: {error.message!a}") from error
        return error.code
    return "ok"


def load(path: Path, backend: str) -> str:
    """Loads a file, answers once and frees it; ``ok`` or the error's code."""
    from backends import registry

    request = LoadRequest(path=str(path), backend=backend, n_ctx=256, n_threads=1, n_gpu_layers=0)
    try:
        model = registry.load(request, lambda _: True)
    except EngineError as error:
        return error.code
    try:
        model.submit(GenerateRequest(id="q", prompt="Hello", sampling=Sampling(temperature=0, max_tokens=2)))
        while model.busy():
            for event in model.step():
                if isinstance(event, Failed):
                    return event.code
    except EngineError as error:
        return error.code
    finally:
        model.close()
    return "ok"


def apart(work: Callable[[], str]) -> str:
    """Does `work` in a process of its own under limits; a death is told as the signal's name."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            told = work()
        except MemoryError:
            told = "no_memory"
        except BaseException:
            told = "unforeseen: " + traceback.format_exc()[-1500:]
        os.write(write, told.encode("ascii", "backslashreplace"))
        os._exit(0)
    os.close(write)
    said = b""
    while chunk := os.read(read, 1 << 16):
        said += chunk
    os.close(read)
    _, status = os.waitpid(child, 0)
    return said.decode() or signal.Signals(os.WTERMSIG(status)).name


def run(kind: str, n: int, first: int, folder: Path) -> dict[str, object]:
    fuzzer = Fuzzer(folder)
    outcomes: Counter[str] = Counter()
    deaths: dict[str, list[int]] = {}
    failures: list[str] = []
    slowest = 0.0
    path = folder / "fuzzed.gguf"
    if kind == "loads":
        from backends.llamacpp import native

        native.lib()
    for seed in range(first, first + n):
        raw = fuzzer.make(seed)
        started = time.process_time()
        try:
            if kind == "headers":
                told = header(raw)
            else:
                path.write_bytes(raw)
                backend = "stream" if seed % 2 else "mmap"
                told = apart(lambda: load(path, backend))  # noqa: B023 - it is called here
        except Exception:
            told = "unforeseen: " + traceback.format_exc()[-1500:]
        slowest = max(slowest, time.process_time() - started)
        if told.startswith("unforeseen"):
            failures.append(f"{seed}: {told}")
            told = "unforeseen"
        if told.startswith("SIG"):
            deaths.setdefault(told, []).append(seed)
        outcomes[told] += 1
    return {"outcomes": outcomes, "deaths": deaths, "failures": failures[:5], "slowest_cpu_s": slowest}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
