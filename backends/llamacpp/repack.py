"""Weights repacked for this processor: what of a model is in a load, measured where that isn't known yet.

A repacked matrix (llama.cpp's extra buffer types) holds the same numbers in the order in which the processor's widest
instructions want them; products round a little differently. It can't lie in the mapped file, so it takes anonymous
memory. One token at a time it is faster, while prompts may lose, mostly in experts. What this processor gains and loses
with a type of weights is measured once and remembered.
"""

from __future__ import annotations

import functools
from pathlib import Path

from backends.gguf.file import GgufFile
from backends.interface import LoadRequest, ModelInfo, Repacked
from backends.llamacpp import abi
from backends.llamacpp.loading import choose_gpu_layers
from backends.llamacpp.mapped import MappedBufferType
from backends.llamacpp.repack_gain import measure
from backends.llamacpp.sizing import memory_for_experts
from backends.planner.repack import Gain, GainFile, choose
from backends.system import procfs


def settle(request: LoadRequest, gguf: GgufFile, context: ModelInfo) -> tuple[Repacked, str]:
    """(what of a model is repacked in this load, why). `context`: the sizes of the load. With a GPU nothing is."""
    if request.repack == "off":
        return "off", ""
    if choose_gpu_layers(request) > 0 and abi.gpu_devices():
        return "off", "with a GPU nothing is"
    if not _possible():
        return "off", "this build of llama.cpp isn't laid out as expected"
    room = memory_for_experts(gguf, context)
    largest = max((t.nbytes for t in gguf.tensors if len(t.dims) == 2 and t.name not in gguf.tables), default=0)
    if room <= largest:  # llama.cpp reads a whole matrix before it repacks it
        return "off", "there is no memory for it"
    all_fit = 0 < gguf.bytes.experts <= room and request.ram_bytes is None and request.store == "auto"
    return choose(request.repack, gguf, all_fit, lambda kind: _gain(request, kind))


def sentence(request: LoadRequest, info: ModelInfo) -> str:
    """What to say of it where a model's backend is explained; empty where there is nothing to say."""
    if info.repacked == "off":
        return f" Nothing is repacked: {info.repack_reason}." if request.repack == "on" and info.repack_reason else ""
    what = "All weights are" if info.repacked == "all" else "Dense weights are"
    return f" {what} repacked for this processor{f' ({info.repack_reason})' if info.repack_reason else ''}."


@functools.cache
def _possible() -> bool:
    """Whether experts can stay mapped, or be ours, while the rest is repacked."""
    try:
        MappedBufferType()
    except (AttributeError, OSError):
        return False
    return True


def _gain(request: LoadRequest, kind: int) -> Gain | None:
    """What is remembered of a type of weights, or measured now."""
    threads = request.n_threads or procfs.usable_cpus()
    file = GainFile(Path(request.repack_file) if request.repack_file else None)
    known = file.get(kind, threads)
    if known is None:
        known = measure(kind, threads)
        if known is not None:
            file.put(kind, threads, known)
    return known
