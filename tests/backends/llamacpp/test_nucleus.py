"""top_p over the whole vocabulary is done without sorting it, and draws what llama.cpp's own sampler draws."""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np
import pytest

from backends.interface import Sampling
from backends.llamacpp import native
from backends.llamacpp.sampling import Sampler, nucleus


class Words:
    """A vocabulary as a sampler sees it."""

    size, ends = 5000, frozenset({1})

    def is_end(self, token: int) -> bool:
        return token in self.ends


class Context:
    """A context whose logits are given."""

    n_vocab, pointer = Words.size, 0

    def __init__(self, logits: Any) -> None:
        self._logits = logits

    def logits(self, _: int) -> Any:
        return self._logits.ctypes.data_as(C.POINTER(C.c_float))


def theirs(logits: Any, sampling: Sampling) -> list[int]:
    """What llama.cpp's chain with its own top_p draws, five times."""
    L = native.lib()
    chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_min_p(sampling.min_p, 1))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_temp(sampling.temperature))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_dist(sampling.seed))
    out = []
    for _ in range(5):
        array = (L.llama_token_data * len(logits))()
        for i, logit in enumerate(logits.tolist()):
            array[i].id, array[i].logit = i, logit
        view = L.llama_token_data_array()
        view.data, view.size, view.selected, view.sorted = (
            C.cast(array, C.POINTER(L.llama_token_data)),
            len(array),
            -1,
            False,
        )
        L.llama_sampler_apply(chain, C.byref(view))
        out.append(int(view.data[view.selected].id))
    L.llama_sampler_free(chain)
    return out


@pytest.mark.parametrize("spread", [0.2, 3.0, 12.0])
@pytest.mark.parametrize("top_p", [0.05, 0.9, 0.999])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_the_same_tokens_are_drawn(spread: float, top_p: float, min_p: float) -> None:
    numbers = np.random.default_rng(3)
    for seed in range(4):
        logits = (numbers.standard_normal(Words.size) * spread).astype(np.float32)
        sampling = Sampling(temperature=0.9, top_k=0, top_p=top_p, min_p=min_p, seed=seed)
        sampler: Any = Sampler(Words(), sampling, [1, 2])  # type: ignore[arg-type]
        assert [sampler.draw(Context(logits), 0) for _ in range(5)] == theirs(logits, sampling)
        sampler.free()


def test_the_likeliest_are_left_in_order() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))
    assert nucleus(logits, 0.6).tolist() == [1, 3]
    assert nucleus(logits, 0.7).tolist() == [1, 3, 4]
    assert nucleus(logits, 0.0).tolist() == [1]
    assert sorted(nucleus(logits, 0.9999).tolist()) == [0, 1, 2, 3, 4]
    assert nucleus(np.full(100, 2.0, np.float32), 0.1).tolist() == list(range(10))


def test_where_sorting_is_as_quick_llama_cpp_does_it() -> None:
    assert nucleus(np.full(5000, 2.0, np.float32), 0.1) is None
    assert nucleus(np.full(10, np.nan, np.float32), 0.1) is None
