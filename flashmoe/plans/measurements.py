"""What was measured on this machine and is worth remembering: disk and memory speed, and how models ran.

One small JSON file in the data folder, written atomically under a lock, so that several programs can record at once. A
file that can't be read or written is no failure: plans rest on formulas then.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from backends.gguf.file import GgufFile, read_gguf
from backends.interface import BenchResult, EngineError, ModelInfo, Usage
from backends.planner.machine import Machine, probe_memory
from backends.planner.plan import PROCESS_BYTES, RESERVE_BYTES
from backends.planner.repack import GainFile
from backends.planner.speed import OVERHEAD_S, MeasuredRun, compute_seconds
from backends.system import private
from backends.system.disk_probe import probe_disk
from flashmoe import paths

MAX_AGE_S = 30 * 86400.0
"""A disk or memory probe is taken again after this."""
MAX_RUNS = 20
"""Runs that are kept of a model."""
MAX_MODELS = 300
MIN_PROMPT = 256
"""Shorter prompts say too little about long ones."""
MIN_TOKENS = 8
"""Shorter answers say too little about speed."""


class Probe(Struct, frozen=True):
    """A measured speed and when it was measured (seconds since 1970)."""

    bytes_s: float
    when: float


class _File(Struct):
    version: int = 1
    disks: dict[str, Probe] = field(default_factory=dict)
    """By device (``st_dev``) and its size: another disk at the same place is measured anew."""
    memory: Probe | None = None
    compute: list[float] = field(default_factory=list)
    """Measured compute speed over the formula's, of the last runs."""
    models: dict[str, list[MeasuredRun]] = field(default_factory=dict)


def file_path() -> Path:
    """Where the measurements are kept."""
    return paths.data_dir() / "measurements.json"


def _read() -> _File:
    try:
        return msgspec.json.decode(file_path().read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError):
        return _File()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with open(file_path().with_suffix(".lock"), "a", opener=private.opener) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _change(change: Callable[[_File], None]) -> None:
    """Reads, changes and writes the file; gives up silently where that can't be done."""
    path = file_path()
    with contextlib.suppress(OSError):
        private.make_folders(path.parent)
        with _locked():
            data = _read()
            change(data)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
            private.write_bytes(temporary, msgspec.json.format(msgspec.json.encode(data), indent=1))
            temporary.replace(path)


def model_key(gguf: GgufFile) -> str:
    """Tells a model by its contents' layout: the same wherever the file lies and whatever it is called."""
    digest = hashlib.sha256(f"{gguf.architecture} {gguf.n_layers} {gguf.bytes.total}".encode())
    for tensor in gguf.tensors:
        digest.update(f"{tensor.name} {tensor.type} {tensor.dims} {tensor.offset}\n".encode())
    return digest.hexdigest()[:24]


def runs_of(gguf: GgufFile) -> tuple[MeasuredRun, ...]:
    """Remembered runs of a model on this machine, the oldest first."""
    return tuple(_read().models.get(model_key(gguf), ()))


# ---- the machine ---------------------------------------------------------------------------------------------------


def _device(folder: Path) -> str | None:
    for candidate in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(OSError):
            disk = os.statvfs(candidate)
            return f"{candidate.stat().st_dev}:{disk.f_blocks * disk.f_frsize}"
    return None


def machine(folder: Path | None = None, *, measure: bool = True, files: Iterable[Path | str] = ()) -> Machine:
    """This machine with what is remembered of its speed; `folder` (the models folder) names the disk.

    Args:
        measure: Measure what isn't remembered (a second); False leaves it unknown.
        files: Large files on that disk that a probe may read instead of writing one.
    """
    folder = folder or paths.models_dir()
    base, known, now = Machine.detect(folder), _read(), time.time()
    device = _device(folder)
    disk = known.disks.get(device) if device else None
    memory = known.memory
    if measure and device and (disk is None or now - disk.when > MAX_AGE_S):
        with contextlib.suppress(OSError):
            place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
            speed = probe_disk(place, files)
            if speed:
                disk = Probe(speed, now)
    if measure and (memory is None or now - memory.when > MAX_AGE_S):
        memory = Probe(probe_memory(), now)
    if (disk and device and known.disks.get(device) != disk) or memory != known.memory:
        _change(lambda data: _set_probes(data, device, disk, memory))
    return msgspec.structs.replace(
        base,
        disk_bytes_s=disk.bytes_s if disk else None,
        disk_source=f"measured {_ago(now - disk.when)}" if disk else "not measured",
        memory_bytes_s=memory.bytes_s if memory else None,
        compute_scale=statistics.median(known.compute) if known.compute else None,
        repack_gains=GainFile(paths.repack_file()).of_processor(base.cores),
    )


def _set_probes(data: _File, device: str | None, disk: Probe | None, memory: Probe | None) -> None:
    if device and disk:
        data.disks[device] = disk
    data.memory = memory


def _ago(seconds: float) -> str:
    if seconds < 90:
        return "just now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 172800 else f"{seconds / 86400:.0f} days ago"


def record_disk(folder: Path, bytes_s: float) -> None:
    """Remembers a disk's speed that a benchmark measured."""
    device = _device(folder)
    if device and bytes_s > 0:
        _change(lambda data: data.disks.__setitem__(device, Probe(bytes_s, time.time())))


# ---- runs ----------------------------------------------------------------------------------------------------------


def record_bench(result: BenchResult, info: ModelInfo) -> None:
    """Remembers a benchmark of a loaded model: its own speed, the disk's, and this machine's compute."""
    if result.disk_bytes_s:
        record_disk(Path(info.path).parent, result.disk_bytes_s)
    if result.parallel == 1 and not result.lossy:
        prompt_s = result.prompt_tokens / result.prefill_tok_s if result.prefill_tok_s else 0.0
        _record(
            info, result.decode_tok_s, result.tokens, result.hit_rate, result.compute_s_per_token,
            result.read_bytes_per_token, (result.prompt_tokens, prompt_s, result.prefill_stall_s),
        )  # fmt: skip


def record_answer(info: ModelInfo, usage: Usage) -> None:
    """Remembers how fast an answer came that ran alone (no other sequence was being decoded)."""
    n = usage.completion_tokens
    if n is None or n < MIN_TOKENS or usage.decode_s <= 0 or info.lossy or info.backend not in ("mmap", "stream"):
        return
    compute = (usage.decode_s - usage.stall_s) / n if usage.stall_s is not None else None
    prompt = (usage.prompt_tokens or 0) - (usage.reused_tokens or 0)
    # its reads include the prompt's
    _record(info, n / usage.decode_s, n, usage.hit_rate, compute, None, (prompt, usage.prefill_s, None))


def _record(
    info: ModelInfo,
    tok_s: float,
    n: int,
    hit_rate: float | None,
    compute_s: float | None,
    read: float | None,
    prompt: tuple[int, float, float | None],
) -> None:
    """`prompt`: (tokens that were computed, seconds, of these seconds waiting for reads)."""
    if n < MIN_TOKENS or tok_s <= 0:
        return
    try:
        gguf = read_gguf(info.path)
    except EngineError:
        return
    tokens, seconds, stalled = prompt
    told: dict[str, Any] = {}
    if tokens >= MIN_PROMPT and seconds > 0:
        told = {"prompt_tokens": tokens, "prompt_s": seconds}
        if stalled is not None:
            told["prompt_token_s"] = max(0.0, seconds - stalled) / tokens
    here = Machine.detect(gpus=False)
    known = _read()
    memory = known.memory.bytes_s if known.memory else None
    formula = compute_seconds(gguf, msgspec.structs.replace(here, memory_bytes_s=memory)) - OVERHEAD_S
    run = MeasuredRun(
        backend=info.backend, decode_tok_s=tok_s, n_tokens=n, expert_ram_bytes=_expert_ram(info, here),
        hit_rate=hit_rate, compute_s_per_token=compute_s, read_bytes_per_token=read, n_gpu_layers=info.n_gpu_layers,
        vram_expert_bytes=info.vram_expert_bytes, n_ubatch=info.n_ubatch, when=time.time(), **told,
    )  # fmt: skip

    def change(data: _File) -> None:
        key = model_key(gguf)
        runs = data.models.pop(key, [])
        data.models[key] = [*runs, run][-MAX_RUNS:]
        for old in list(data.models)[: max(0, len(data.models) - MAX_MODELS)]:
            del data.models[old]
        # A tiny model's token is all overhead: it tells nothing about arithmetic.
        if compute_s is not None and not info.n_gpu_layers and formula > 0.005 and compute_s > OVERHEAD_S:
            data.compute = [*data.compute, formula / (compute_s - OVERHEAD_S)][-MAX_RUNS:]

    _change(change)


def _expert_ram(info: ModelInfo, here: Machine) -> int | None:
    """Memory that experts can hold in this load; None where that is all of them."""
    fixed = (info.dense_bytes or 0) + (info.kv_bytes or 0) + (info.compute_bytes or 0) + PROCESS_BYTES + RESERVE_BYTES
    room = max(0, here.ram_total - fixed)
    limit = room if info.budget_bytes is None else min(room, info.budget_bytes)
    return None if limit >= info.expert_bytes else limit
