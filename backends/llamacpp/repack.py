"""Weights repacked for this processor: what of a model is in a load, measured where that isn't known yet.

A repacked matrix (llama.cpp's extra buffer types) holds the same numbers in the order in which the processor's widest
instructions want them; products round a little differently. It can't lie in the mapped file, so it takes anonymous
memory. One token at a time it is faster, while prompts may lose, mostly in experts. What this processor gains and loses
with a type of weights is measured once and remembered.
"""

from __future__ import annotations

from pathlib import Path

from backends.gguf.file import GgufFile
from backends.interface import LoadRequest, ModelInfo, Repacked
from backends.llamacpp import abi
from backends.llamacpp.loading import choose_gpu_layers
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
    room = memory_for_experts(gguf, context)
    if not room:
        return "off", "there is no memory for copies"
    all_fit = 0 < gguf.bytes.experts <= room and request.ram_bytes is None and request.store == "auto"
    return choose(request.repack, gguf, all_fit, lambda kind: _gain(request, kind))


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
