"""What of a model is repacked for this processor: the decision, and what is remembered for it.

See `backends.llamacpp.repack` for what repacking is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from backends.gguf.file import GgufFile
from backends.interface import RepackChoice, Repacked

WORTH = 1.03
"""The gain from which on weights are repacked: less is what one run differs from the next by."""
WORTH_EXPERTS = 1.1
"""The gain in answers from which on experts are repacked, too: the whole file is read at each load then, and nothing
streams, so nobody sees which experts are used."""
LEAST_PROMPT = 0.97
"""And what prompts must keep of their speed."""
_MOST = 64
"""Measurements that are remembered."""


class Gain(msgspec.Struct, frozen=True):
    """Speed with repacked weights over speed without, of one type of weights on one processor. 1.0: nothing is."""

    decode: float
    """Dense weights, one token at a time."""
    prompt: float
    """Dense weights, a prompt."""
    expert_decode: float
    expert_prompt: float


def both(decode: float, prompt: float) -> float:
    """The gain of a conversation that spends half of its time on prompts and half on answers."""
    return 2 / (1 / decode + 1 / prompt) if decode > 0 and prompt > 0 else 0.0


def main_types(gguf: GgufFile) -> tuple[int | None, int | None]:
    """(type of most of the dense matrices, type of most of the experts), by bytes; None where there are none."""
    dense: dict[int, int] = {}
    experts: dict[int, int] = {}
    for t in gguf.tensors:
        if len(t.dims) == 3 and "_exps." in t.name:
            experts[t.type] = experts.get(t.type, 0) + t.nbytes
        elif len(t.dims) == 2 and t.name != "token_embd.weight" and not gguf.only_looked_up(t.name):
            dense[t.type] = dense.get(t.type, 0) + t.nbytes
    most = [max(sums, key=lambda kind, sums=sums: sums[kind], default=None) for sums in (dense, experts)]  # type: ignore[misc]
    return most[0], most[1]


def choose(
    choice: RepackChoice, gguf: GgufFile, all_fit: bool, gain: Callable[[int], Gain | None]
) -> tuple[Repacked, str]:
    """(what is repacked, why). `all_fit`: all experts have room in anonymous memory and may be there; `gain`: what the
    processor was measured to gain with a type of weights, None where that isn't known."""
    if choice == "off":
        return "off", ""
    if choice == "on":
        return ("all" if all_fit else "dense"), ""
    dense, experts = main_types(gguf)
    known = None if dense is None else gain(dense)
    if known is None:
        return "off", "what repacking gains here isn't known"
    told = f"answers {known.decode:.2f}x, prompts {known.prompt:.2f}x as fast with dense weights repacked"
    if both(known.decode, known.prompt) < WORTH:
        return "off", told
    of_experts = None if experts is None or not all_fit else gain(experts)
    if of_experts is not None and (
        of_experts.expert_decode >= WORTH_EXPERTS and of_experts.expert_prompt >= LEAST_PROMPT
    ):
        return "all", told
    return "dense", told


@functools.cache
def processor(n_threads: int) -> str:
    """What a measurement belongs to: the processor's name and its instructions, and the number of threads."""
    lines: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            lines.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    told = [lines.get(name, "") for name in ("model name", "flags", "CPU implementer", "CPU part", "Features")]
    return hashlib.sha256("\n".join([*told, str(n_threads)]).encode()).hexdigest()[:16]


@functools.cache
def _build() -> str:
    """The version of llama.cpp, to which measurements belong as well."""
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return "?"


class GainFile:
    """Gains by processor and type of weights, in a file of the cache folder; whatever is wrong with it, it is empty."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def _all(self) -> dict[str, Gain]:
        if self._path is None:
            return {}
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Gain])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}

    def _key(self, kind: int, n_threads: int) -> str:
        return f"{_build()} {processor(n_threads)} {kind}"

    def get(self, kind: int, n_threads: int) -> Gain | None:
        """What is remembered."""
        return self._all().get(self._key(kind, n_threads))

    def of_processor(self, n_threads: int) -> dict[int, Gain]:
        """All that is remembered of this processor with so many threads, by type."""
        start = f"{_build()} {processor(n_threads)} "
        known = {key.removeprefix(start): gain for key, gain in self._all().items() if key.startswith(start)}
        return {int(kind): gain for kind, gain in known.items() if kind.isdecimal()}

    def put(self, kind: int, n_threads: int, gain: Gain) -> None:
        """Remembers a measurement, where the file can be written."""
        if self._path is None:
            return
        kept = self._all()
        kept.pop(self._key(kind, n_threads), None)
        kept[self._key(kind, n_threads)] = gain
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(dir=self._path.parent, suffix=".part")
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(dict(list(kept.items())[-_MOST:])))
            Path(name).replace(self._path)
        except OSError:
            pass  # it is measured again the next time
