"""One ``llama_context``: decoding batches, with a stop button and an optional hook into the compute graph.

`LlamaContext.decode` hides three traps of llama.cpp: a decode that the abort callback stopped leaves some of its batch
in the KV cache; a decode whose eval callback returned false reports success; and a recurrent state can't be rolled
back. After every call the caller knows which positions each sequence really has.
"""

from __future__ import annotations

import contextlib
import ctypes as C
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from backends.interface import EngineError
from backends.llamacpp import native
from backends.llamacpp.lazy_zeros import lazy_zeros
from backends.llamacpp.loading import Weights
from backends.llamacpp.raw_batch import RawBatch
from backends.planner.kv import allocated_cells

_TYPES = {"f16": 1, "q8_0": 8}
"""ggml's numbers of the types that keys and values may have."""
_PARTIAL = 1
"""llama.cpp's LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY."""


class AbortFlag:
    """A flag that llama.cpp's compute threads read before each graph node, without Python and without the GIL.

    ggml wants ``bool callback(void *data)``. libc's ``strlen`` is one: it is 0 for an empty string and 1 for a string
    of one byte, so the flag is that byte. Any thread may set it.
    """

    def __init__(self) -> None:
        self._bytes = C.create_string_buffer(2)
        self._function = C.cast(C.CDLL(None).strlen, C.c_void_p)

    def set(self) -> None:
        self._bytes[0] = b"\x01"

    def clear(self) -> None:
        self._bytes[0] = b"\x00"

    def is_set(self) -> bool:
        return self._bytes[0] != b"\x00"

    @property
    def callback(self) -> int:
        """Address for ``llama_context_params.abort_callback``."""
        return int(self._function.value or 0)

    @property
    def data(self) -> int:
        """Address for ``abort_callback_data``."""
        return C.addressof(self._bytes)


@dataclass
class Batch:
    """Tokens to decode together: parallel lists, one entry a token. At most `LlamaContext.n_batch` of them.

    The positions of each sequence must go on where the sequence stands in the KV cache.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    seq_ids: list[int] = field(default_factory=list)
    outputs: list[bool] = field(default_factory=list)
    """Whether logits are wanted for the token."""
    more: bool = False
    """Another piece of the same prompt follows, if nothing happens meanwhile."""

    def add(self, token: int, position: int, seq_id: int, output: bool) -> int:
        """Appends a token; returns its index, which is the `index` of `LlamaContext.logits`."""
        self.tokens.append(token)
        self.positions.append(position)
        self.seq_ids.append(seq_id)
        self.outputs.append(output)
        return len(self.tokens) - 1

    def __len__(self) -> int:
        return len(self.tokens)

    def first_positions(self) -> dict[int, int]:
        """Of each sequence in the batch the first position that it adds."""
        first: dict[int, int] = {}
        for seq_id, position in zip(self.seq_ids, self.positions, strict=True):
            first[seq_id] = min(position, first.get(seq_id, position))
        return first


class EvalHook(Protocol):
    """What a backend that watches the compute graph gives to `LlamaContext` (llama.cpp's ``cb_eval``).

    Once `callback` returned False within a decode it must go on returning False until `end`: llama.cpp goes on with the
    next ubatch and reports success. It should return False soon after the `AbortFlag` that it was given is set.
    """

    callback: Any
    """A ``ggml_backend_sched_eval_callback`` (ctypes function), fixed for the life of the context."""

    def begin(self, batch: Batch) -> None:
        """Called before each ``llama_decode``; also before each retry."""
        ...

    def end(self) -> Literal["ok", "retry", "cancelled"]:
        """Called after each ``llama_decode``. ``retry``: the graph was aborted because of something that is mended now,
        decode the batch again. ``cancelled``: it was aborted because the flag was set. Raises `EngineError` where the
        batch can't be computed at all (the file changed, no memory); the batch is then taken out of the KV cache."""
        ...


@dataclass(frozen=True)
class DecodeResult:
    """How a decode ended. Unless ``ok`` the batch left nothing behind."""

    status: Literal["ok", "cancelled", "no_room", "again"]
    """``again``: the hook mended something, but sequences were lost on the way: prefill these, then decode again."""
    lost: frozenset[int] = frozenset()
    """Sequences that are empty now, because their recurrent state could not be rolled back: prefill them again."""
    seconds: float = 0.0


_SLICED_RECURRENT = frozenset(
    {
        "qwen3next", "qwen35", "qwen35moe", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "jamba",
        "falcon-h1", "kimi-linear", "plamo2",
    }
)  # fmt: skip
"""Hybrids whose state is that of a KV cache and then the recurrent one (llama.cpp's ``llama_memory_hybrid``)."""


def can_slice(model: int, *, recurrent: bool) -> bool:
    """Whether a part of a sequence's state can be read and put back by itself (`backends.llamacpp.slices`)."""
    if not recurrent:
        return True
    value = C.create_string_buffer(64)
    if native.lib().llama_model_meta_val_str(model, b"general.architecture", value, len(value)) < 0:
        return False
    return value.value.decode("utf-8", "replace") in _SLICED_RECURRENT


class LlamaContext:
    """Owns a ``llama_context`` over `weights`. Not thread-safe, but for `abort`."""

    MAX_RETRIES = 64

    def __init__(
        self,
        weights: Weights,
        *,
        n_ctx: int,
        n_batch: int,
        n_seqs: int,
        n_threads: int,
        hook: EvalHook | None = None,
        abort: AbortFlag | None = None,
        swa_full: bool = True,
        embeddings: bool = False,
        own_caches: bool = False,
        op_offload: bool = True,
        kv_type: str = "f16",
        check: Callable[[], None] = lambda: None,
        slices: bool = False,
    ) -> None:
        """Allocates KV cache and compute buffers: `n_ctx` tokens shared by at most `n_seqs` sequences, batches of up to
        `n_batch` tokens (one ubatch each). Raises `EngineError` ``no_memory`` where llama.cpp can't.

        `slices` adds a sequence of the context's own, through which parts of others' states are read and written.

        `own_caches` gives each sequence a cache of its own, an equal part of `n_ctx`: attention then goes over the
        sequence's cells and not over everybody's. llama.cpp computes a batch in one ubatch then only where each of its
        sequences has as many tokens as the others and their numbers follow each other.

        `op_offload`: a GPU may take products with weights in host memory for batches of 32 tokens and more. `check` is
        called before each batch and raises `EngineError` where nothing must be computed any more.
        """
        L = self._lib = native.lib()
        self.weights = weights
        self.hook = hook
        self.abort = abort or AbortFlag()
        self._check = check
        params = L.llama_context_default_params()
        slices = slices and not own_caches and can_slice(weights.model, recurrent=self._is_recurrent(weights))
        n_numbers = n_seqs + slices
        # llama.cpp clamps the batch before it pads the context, and a batch below the number of sequences aborts it
        params.n_ctx = allocated_cells(n_ctx, n_seqs, own_caches=own_caches)
        params.n_ubatch = n_batch
        # it sizes its outputs by n_batch and wants one for each sequence
        params.n_batch = max(n_batch, n_numbers)
        params.n_seq_max, params.kv_unified = n_numbers, not own_caches
        params.n_threads = params.n_threads_batch = n_threads
        params.swa_full, params.no_perf, params.embeddings = swa_full, True, embeddings
        params.op_offload = op_offload
        params.type_k = params.type_v = _TYPES[kv_type]
        params.abort_callback = C.cast(self.abort.callback, L.ggml_abort_callback)
        params.abort_callback_data = self.abort.data
        if hook is not None:
            params.cb_eval = hook.callback
        # caches of their own have 256 cells at least for each sequence; most may never be used
        with native.log_tail() as tail, lazy_zeros() if own_caches else contextlib.nullcontext():
            self._ctx = L.llama_init_from_model(weights.model, params)
        if not self._ctx:
            reason = native.last_error(tail) or "llama.cpp gave no reason"
            raise EngineError(
                "no_memory",
                f"There is not enough memory for a context of {n_ctx} tokens ({reason})",
                "ask for a smaller one.",
            )
        self._memory = L.llama_get_memory(self._ctx)
        self.own_caches = own_caches
        self.n_ctx = int(L.llama_n_ctx(self._ctx))
        self.seq_ctx = int(L.llama_n_ctx_seq(self._ctx))
        """Cells that one sequence can have at most."""
        self.n_batch = int(L.llama_n_ubatch(self._ctx))
        self.n_seqs = n_seqs
        self.n_threads = n_threads
        self.n_vocab = int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(weights.model)))
        self.kv_bytes = native.logged_mib(tail, "(?:KV|RS)")
        self.compute_bytes = native.logged_mib(tail, "compute")
        self.recurrent = self._is_recurrent(weights)
        """Part of the state is recurrent: a sequence can only grow or be dropped."""
        self.n_swa = int(L.llama_model_n_swa(weights.model))
        """Width of the sliding window, 0 without one. Also a cache of full size gives cells that a sequence's window
        has left behind to other tokens, so how far a sequence can be cut back depends on `first_position`."""
        self.partial = not own_caches and (self.recurrent or self.n_swa > 0)
        """Part of a sequence's state can't be cut back, only put back as it was: see `get_partial_state`."""
        self.spare = n_seqs if slices else None
        """A sequence number that `backends.llamacpp.slices` uses, None where slices are off or impossible."""
        self._batch = RawBatch(self.n_batch)

    def _is_recurrent(self, weights: Weights) -> bool:
        return bool(self._lib.llama_model_is_recurrent(weights.model) or self._lib.llama_model_is_hybrid(weights.model))

    @property
    def pointer(self) -> int:
        """``llama_context *``."""
        return int(self._ctx)

    def decode(self, batch: Batch) -> DecodeResult:
        """Computes a batch. Raises `EngineError` where it can't be computed; the KV cache is as before the call then,
        but that recurrent sequences of the batch are dropped (`DecodeResult.lost` can't tell: ask `length`)."""
        if not 0 < len(batch) <= self.n_batch:
            raise EngineError("internal", f"A batch of {len(batch)} tokens was built where at most {self.n_batch} fit.")
        self._check()
        self._batch.fill(batch)
        first = batch.first_positions()
        started = time.perf_counter()
        for _ in range(self.MAX_RETRIES):
            if self.hook is not None:
                self.hook.begin(batch)
            code = self._lib.llama_decode(self._ctx, self._batch.raw)
            verdict: str = "ok"
            if self.hook is not None:
                try:
                    verdict = self.hook.end()
                except EngineError:
                    self._take_out(first)
                    raise
            if code == 2 or (verdict == "cancelled"):
                lost = self._take_out(first)
                return DecodeResult("cancelled", lost, time.perf_counter() - started)
            if code == 1:
                return DecodeResult("no_room", frozenset(), time.perf_counter() - started)
            if verdict == "retry":
                lost = self._take_out(first)
                if lost:
                    return DecodeResult("again", lost, time.perf_counter() - started)
                continue
            if code != 0:
                self._take_out(first)
                raise EngineError("internal", f"llama.cpp could not compute the batch (code {code})", "see the log.")
            return DecodeResult("ok", frozenset(), time.perf_counter() - started)
        raise EngineError("internal", f"The batch was aborted {self.MAX_RETRIES} times in a row", "see the log.")

    def _take_out(self, first: dict[int, int]) -> frozenset[int]:
        """Removes what an aborted batch added; returns the sequences that had to be dropped whole."""
        lost = set()
        for seq_id, position in first.items():
            if self.recurrent or not self.remove(seq_id, position):
                self.remove(seq_id, 0)
                lost.add(seq_id)
        return frozenset(lost)

    def logits(self, index: int) -> Any:
        """``float *`` to the `n_vocab` logits of the batch's token `index`; valid until the next decode."""
        return self._lib.llama_get_logits_ith(self._ctx, index)

    def remove(self, seq_id: int, start: int) -> bool:
        """Removes a sequence's positions from `start` on; False where only the whole can be removed (nothing is
        then)."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, seq_id, start, -1))

    def copy(self, source: int, target: int, end: int, state: bytes | None = None) -> bool:
        """Lets `target` (empty) have the positions [0, end) of `source`; no data moves in a cache that they share.
        `state`: of `get_partial_state` after `end` positions, where the source has gone beyond them. False: it couldn't
        be copied, and `target` is empty."""
        if not self.own_caches:
            if not self.recurrent:
                self._lib.llama_memory_seq_cp(self._memory, source, target, 0, end)
                if state is None or self.set_partial_state(target, state):
                    return True
            else:  # some recurrent caches copy whole sequences alone
                self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
                if state is None or (self.set_partial_state(target, state) and self.remove(target, end)):
                    return True
            self.remove(target, 0)
            return False
        # seq_cp would copy all cells that the cache has, and touch them; a state has those in use alone
        state = self._get_state(source, 0)
        if state is not None and self._set_state(target, state, 0) and self.remove(target, end):
            return True
        self.remove(target, 0)
        return False

    def length(self, seq_id: int) -> int:
        """Positions that a sequence has in the KV cache, from 0 on."""
        return int(self._lib.llama_memory_seq_pos_max(self._memory, seq_id)) + 1

    def first_position(self, seq_id: int) -> int:
        """The smallest position that is held: above 0 where a sliding window dropped older ones; -1 when empty."""
        return int(self._lib.llama_memory_seq_pos_min(self._memory, seq_id))

    def clear(self) -> None:
        """Empties the KV cache; the memory of caches of their own is not touched for it."""
        self._lib.llama_memory_clear(self._memory, not self.own_caches)

    def copy_range(self, source: int, target: int, start: int, end: int) -> None:
        """Lets `target` have the positions [start, end) of `source`, too, and its recurrent state as it is now. Only in
        a cache that all share."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, start, end)

    def get_partial_state(self, seq_id: int) -> bytes | None:
        """The recurrent (or sliding-window) part of a sequence's state, which can't be rolled back otherwise."""
        state = self._get_state(seq_id, _PARTIAL)
        return None if state is None else bytes(state)

    def set_partial_state(self, seq_id: int, state: bytes) -> bool:
        """Puts a state of `get_partial_state` back."""
        return self._set_state(seq_id, (C.c_uint8 * len(state)).from_buffer_copy(state), _PARTIAL)

    def get_whole_state(self, seq_id: int) -> memoryview | None:
        """Everything that is held of a sequence, in llama.cpp's own form."""
        state = self._get_state(seq_id, 0)
        return None if state is None else memoryview(state).cast("B")

    def set_whole_state(self, seq_id: int, state: bytearray) -> bool:
        """Puts a state of `get_whole_state` in the place of what the sequence has."""
        return self._set_state(seq_id, (C.c_uint8 * len(state)).from_buffer(state), 0)

    def _get_state(self, seq_id: int, flags: int) -> Any:
        size = int(self._lib.llama_state_seq_get_size_ext(self._ctx, seq_id, flags))
        buffer = (C.c_uint8 * size)()
        done = int(self._lib.llama_state_seq_get_data_ext(self._ctx, buffer, size, seq_id, flags))
        return buffer if done == size and size else None

    def _set_state(self, seq_id: int, state: Any, flags: int) -> bool:
        return int(self._lib.llama_state_seq_set_data_ext(self._ctx, state, len(state), seq_id, flags)) == len(state)

    def close(self) -> None:
        """Frees the context, not the weights; a second call does nothing."""
        if self._ctx:
            self._lib.llama_free(self._ctx)
            self._ctx = None
