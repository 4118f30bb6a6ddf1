"""A ``llama_batch`` over arrays of our own: filling it costs a token microseconds less than one field after the other,
which shows where a model answers in less than two milliseconds a token, and milliseconds for a prompt of thousands."""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from backends.llamacpp import native


class Tokens(Protocol):
    """What is to be decoded: parallel lists, one entry a token (`backends.llamacpp.context.Batch`)."""

    tokens: list[int]
    positions: list[int]
    seq_ids: list[int]
    outputs: list[bool]


class RawBatch:
    """At most `most` tokens, each of one sequence. `raw` is the struct, to be passed by value."""

    def __init__(self, most: int) -> None:
        self._tokens, self._positions = np.zeros(most, np.int32), np.zeros(most, np.int32)
        self._seq_ids, self._outputs = np.zeros(most, np.int32), np.zeros(most, np.int8)
        self._counts = np.ones(most, np.int32)
        """Sequences of each token."""
        self._places = self._seq_ids.ctypes.data + self._seq_ids.itemsize * np.arange(most, dtype=np.uintp)
        """For each token the address of its sequence's number."""
        self.raw: Any = native.lib().llama_batch()
        for name, array in (
            ("token", self._tokens), ("pos", self._positions), ("n_seq_id", self._counts), ("seq_id", self._places),
            ("logits", self._outputs),
        ):  # fmt: skip
            kind = dict(self.raw._fields_)[name]
            setattr(self.raw, name, C.cast(array.ctypes.data, kind))

    def fill(self, batch: Tokens) -> None:
        """Takes the tokens over."""
        n = len(batch.tokens)
        self.raw.n_tokens = n
        if n == 1:
            self._tokens[0], self._positions[0] = batch.tokens[0], batch.positions[0]
            self._seq_ids[0], self._outputs[0] = batch.seq_ids[0], batch.outputs[0]
            return
        given: Sequence[tuple[Any, Sequence[int]]] = (
            (self._tokens, batch.tokens), (self._positions, batch.positions), (self._seq_ids, batch.seq_ids),
            (self._outputs, batch.outputs),
        )  # fmt: skip
        for array, values in given:
            array[:n] = values
