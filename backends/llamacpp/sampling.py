"""One answer's sampler: a chain of llama.cpp's, and a constraint that binds the answer but not the thinking."""

from __future__ import annotations

import ctypes as C
import math
import secrets
from typing import Any

import numpy as np

from backends.chat_format.constraint import Matcher
from backends.interface import EngineError, Sampling
from backends.llamacpp import native
from backends.llamacpp.context import LlamaContext
from backends.llamacpp.logprobs import MAX_TOP
from backends.llamacpp.vocab import Vocab

PENALTY_WINDOW = 64
"""Tokens that the penalties look back on."""

_FEW = 1024
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def check(sampling: Sampling) -> None:
    """Raises `EngineError` ``bad_request`` for settings that no sampler can take."""
    for name, low, high in (
        ("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0), ("repeat_penalty", 0.0, 100.0),
        ("presence_penalty", -100.0, 100.0), ("frequency_penalty", -100.0, 100.0),
    ):  # fmt: skip
        value = getattr(sampling, name)
        if not math.isfinite(value) or not low <= value <= high:
            raise EngineError("bad_request", f"{name} must be from {low:g} to {high:g}, not {value:g}.")
    if sampling.repeat_penalty == 0.0:
        raise EngineError("bad_request", "repeat_penalty must be above 0", "1 turns it off.")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise EngineError("bad_request", f"max_tokens must be at least 1, not {sampling.max_tokens}.")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_TOP:
        raise EngineError(
            "bad_request", f"Log probabilities of at most {MAX_TOP} other tokens can be given beside each one."
        )
    if len(sampling.stop) > 64 or any(len(s) > 1000 for s in sampling.stop):
        raise EngineError("bad_request", "At most 64 stop strings of 1000 characters each are possible.")


class Sampler:
    """Draws the tokens of one answer. `free` must be called."""

    def __init__(self, vocab: Vocab, sampling: Sampling, prompt: list[int], matcher: Matcher | None = None) -> None:
        """`matcher` holds the answer to a constraint. Raises `EngineError` ``bad_request`` where the settings are no
        good."""
        check(sampling)
        wrong = next((token for token, _ in sampling.logit_bias if not 0 <= token < vocab.size), None)
        if wrong is not None:
            raise EngineError(
                "bad_request", f"logit_bias names token {wrong}, which is not in the vocabulary of {vocab.size} tokens."
            )
        L = self._lib = native.lib()
        self._vocab = vocab
        self.seed = secrets.randbits(31) if sampling.seed is None else sampling.seed % 0xFFFFFFFF
        self.matcher = matcher
        self.begun = False
        """Whether the matcher has taken a token."""
        self._top_p: tuple[float, Any] | None = None
        """What comes before the chain where top_p is the first, and llama.cpp's sampler for it, which sorts the whole
        vocabulary (14 ms of 152,000 tokens): `nucleus` mostly does instead."""
        self._chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
        if sampling.logit_bias:
            biases = (L.llama_logit_bias * len(sampling.logit_bias))()
            for i, (token, bias) in enumerate(sampling.logit_bias):
                biases[i].token, biases[i].bias = token, bias
            self._add(L.llama_sampler_init_logit_bias(vocab.size, len(biases), biases))
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if penalties != (1.0, 0.0, 0.0):
            self._add(L.llama_sampler_init_penalties(vocab.size, PENALTY_WINDOW, *penalties))
        if sampling.temperature == 0.0:
            self._add(L.llama_sampler_init_greedy())
        else:
            if sampling.top_k > 0:
                self._add(L.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1.0:
                top_p = L.llama_sampler_init_top_p(sampling.top_p, 1)
                if sampling.top_k > 0 or sampling.logit_bias or penalties != (1.0, 0.0, 0.0):
                    self._add(top_p)
                else:
                    self._top_p = sampling.top_p, top_p
            if sampling.min_p > 0.0:
                self._add(L.llama_sampler_init_min_p(sampling.min_p, 1))
            self._add(L.llama_sampler_init_temp(sampling.temperature))
            self._add(L.llama_sampler_init_dist(self.seed))
        if penalties != (1.0, 0.0, 0.0):
            for token in prompt[-PENALTY_WINDOW:]:
                L.llama_sampler_accept(self._chain, token)

    def _add(self, sampler: Any) -> None:
        self._lib.llama_sampler_chain_add(self._chain, sampler)

    def draw(self, context: LlamaContext, index: int) -> int:
        """Samples from the logits of the batch's token `index`, without the constraint."""
        if self._top_p is None:
            return int(self._lib.llama_sampler_sample(self._chain, context.pointer, index))
        logits = np.ctypeslib.as_array(context.logits(index), (context.n_vocab,))
        ids = nucleus(logits, self._top_p[0])
        if ids is None:
            token = self._choose(_token_data(np.arange(len(logits), dtype=np.int32), logits))
        else:
            array = _token_data(ids, logits[ids])  # must outlive its view
            view = self._view(array)
            view.sorted = True
            token = self._chain_on(view)
        self._lib.llama_sampler_accept(self._chain, token)
        return token

    def draw_on(self, context: LlamaContext, index: int) -> int:
        """Samples a token that doesn't end the answer: what is constrained hasn't begun yet."""
        logits = np.ctypeslib.as_array(context.logits(index), (context.n_vocab,)).copy()
        logits[list(self._vocab.ends)] = -np.inf
        array = _token_data(np.arange(len(logits), dtype=np.int32), logits)
        token = self._choose(array[np.isfinite(array["logit"])].copy())
        self._lib.llama_sampler_accept(self._chain, token)
        return token

    def draw_bound(self, context: LlamaContext, index: int, free_tokens: frozenset[int]) -> int:
        """Samples a token that the constraint allows, or one of `free_tokens` (which open a thinking block).

        Raises `EngineError` ``bad_request`` where the vocabulary has no token that fits.
        """
        assert self.matcher is not None
        logits = np.ctypeslib.as_array(context.logits(index), (context.n_vocab,))
        allowed = self.matcher.allowed()
        if allowed[-1] >= len(logits):
            allowed = allowed[allowed < len(logits)]
        ids = np.union1d(allowed, np.fromiter(free_tokens, np.int32)) if free_tokens else allowed
        token = self._choose(_token_data(ids, logits[ids]))
        self._lib.llama_sampler_accept(self._chain, token)
        if not (free_tokens and token in free_tokens and not np.any(allowed == token)) and not self._vocab.is_end(
            token
        ):
            self.begun = True
            self.matcher.accept(token)
        return token

    def _view(self, array: Any) -> Any:
        L = self._lib
        view = L.llama_token_data_array()
        view.data = array.ctypes.data_as(C.POINTER(L.llama_token_data))
        view.size, view.selected, view.sorted = len(array), -1, False
        return view

    def _choose(self, array: Any) -> int:
        view = self._view(array)
        if self._top_p is not None:
            self._lib.llama_sampler_apply(self._top_p[1], C.byref(view))
        return self._chain_on(view)

    def _chain_on(self, view: Any) -> int:
        self._lib.llama_sampler_apply(self._chain, C.byref(view))
        return int(view.data[view.selected].id)

    def free(self) -> None:
        """Frees the samplers; a second call does nothing."""
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None
        if self._top_p is not None:
            self._lib.llama_sampler_free(self._top_p[1])
            self._top_p = None


def _token_data(ids: Any, logits: Any) -> Any:
    array = np.empty(len(ids), _TOKEN_DATA)
    array["id"], array["logit"], array["p"] = ids, logits, 0.0
    return array


def nucleus(logits: Any, top_p: float) -> Any:
    """The fewest of the likeliest tokens that have a probability of `top_p` together, the likeliest first: indices into
    `logits` (float32), as int32. None where more than a few could be among them: then sorting is as quick."""
    best = logits.max()
    if not np.isfinite(best):
        return None
    weights = np.exp(logits - best)
    enough = top_p * float(weights.sum(dtype=np.float64))
    for within in (4.0, 8.0, 16.0):
        found = np.flatnonzero(logits >= best - np.float32(within))
        if len(found) > _FEW:
            return None
        if float(weights[found].sum(dtype=np.float64)) >= enough:
            found = found[np.argsort(-logits[found], kind="stable")]
            together = np.cumsum(weights[found], dtype=np.float64)
            return found[: int(np.searchsorted(together, enough)) + 1].astype(np.int32)
    return None
