"""`LlamaModel`: the adapter interface's `Model` over llama.cpp, shared by the backends `mmap` and `stream`.

A backend loads weights its own way (`loading.Weights`), says in `Parts` what it adds, and gets the rest from here: chat
templates, tokenising, continuous batching, KV reuse, sampling, thinking, states on disk, and the benchmark.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from backends.interface import (
    BenchRequest,
    BenchResult,
    EngineError,
    Event,
    ExpertMap,
    GenerateRequest,
    LoadRequest,
    ModelInfo,
    Telemetry,
)
from backends.llamacpp import native
from backends.llamacpp.answer import Answer
from backends.llamacpp.bench import run_bench
from backends.llamacpp.context import LlamaContext
from backends.llamacpp.loading import Weights, gpu_free_bytes
from backends.llamacpp.parts import Parts
from backends.llamacpp.scheduler import Scheduler
from backends.llamacpp.state import model_identity, restore_session, save_session
from backends.llamacpp.templates import ChatTemplate, Renderer, fallback_template
from backends.llamacpp.thinking import PlainParser, ThinkingParser, can_think, parser_for
from backends.llamacpp.vocab import Vocab
from backends.planner.kv import padded
from backends.system import procfs

IDLE_SEQUENCES = 4
"""Sequences kept for idle chats beside those that may be active."""
MAX_CHARACTERS_PER_TOKEN = 64
MAX_SEQUENCES = 256
"""llama.cpp's LLAMA_MAX_SEQ."""


class LlamaModel:
    """A loaded model. One thread drives it; `cancel`, `telemetry` and `expert_map` may be called from others."""

    def __init__(self, weights: Weights, request: LoadRequest, parts: Parts, base: ModelInfo) -> None:
        """Makes the context and owns `weights` from here on, also when this fails.

        `base` has what is known of the file (name, architecture, layers, experts, bytes) and the decisions `n_ctx`,
        `n_ubatch` and `n_seq_max`; the rest is filled in here. Raises `EngineError` ``no_memory``.
        """
        self._weights = weights
        self._parts = parts
        self._request = request
        self._renderer = Renderer()
        try:
            L = native.lib()
            self._vocab = Vocab(weights.model)
            recurrent = L.llama_model_is_recurrent(weights.model) or L.llama_model_is_hybrid(weights.model)
            own_caches = request.own_caches and not recurrent
            # a recurrent state takes tens of MiB, whatever it holds
            idle = 0 if own_caches else 1 if recurrent else IDLE_SEQUENCES
            n_seqs = min(MAX_SEQUENCES, base.n_seq_max + idle)
            started, vram_before = time.perf_counter(), gpu_free_bytes()
            self.context = LlamaContext(
                weights,
                n_ctx=base.n_ctx,
                n_batch=min(base.n_ubatch, padded(base.n_ctx)),
                n_seqs=n_seqs,
                n_threads=request.n_threads or procfs.usable_cpus(),
                hook=parts.hook,
                abort=parts.abort,
                embeddings=request.embeddings,
                own_caches=own_caches,
                op_offload=parts.op_offload,
                kv_type=request.kv_type,
                check=parts.check_files,
            )
        except BaseException:
            weights.close()
            raise
        load_s = weights.load_s + time.perf_counter() - started
        vram_after, vram = gpu_free_bytes(), weights.vram_bytes
        if vram is not None and vram_before is not None and vram_after is not None:
            vram += max(0, vram_before - vram_after)  # KV cache and compute buffers
        raw_template = L.llama_model_chat_template(weights.model, None)
        source = raw_template.decode("utf-8", "replace") if raw_template else ""
        knows_chatml = len(self._vocab.tokenize("<|im_start|>")) == 1
        self._template = ChatTemplate(
            source or fallback_template(knows_chatml),
            bos=self._vocab.bos_text,
            eos=self._vocab.eos_text,
            renderer=self._renderer,
        )
        self._renderer.warm_up()
        self._scheduler = Scheduler(self.context, self._counted, base.n_seq_max)
        self.info = parts.info(
            msgspec.structs.replace(
                base,
                backend=parts.backend,
                backend_reason=parts.reason,
                n_vocab=self._vocab.size,
                n_ctx=self.context.n_ctx,
                n_batch=self.context.n_batch,
                n_ubatch=self.context.n_batch,
                n_layers=base.n_layers or int(L.llama_model_n_layer(weights.model)),
                kv_bytes=self.context.kv_bytes,
                compute_bytes=self.context.compute_bytes,
                vram_bytes=vram,
                n_gpu_layers=min(weights.n_gpu_layers, int(L.llama_model_n_layer(weights.model)) + 1),
                has_chat_template=bool(source),
                can_think=can_think(source),
                load_s=load_s,
                load_read_bytes=weights.load_read_bytes,
                n_threads=self.context.n_threads,
                lossy=weights.lossy,
            )
        )
        self._identity = model_identity(self.info, parts.fingerprint)
        self._closed = False
        self._close_lock = threading.Lock()

    @property
    def n_threads(self) -> int:
        return self.context.n_threads

    # -- prompts -------------------------------------------------------------------------------------------------------

    def _prompt(self, request: GenerateRequest) -> tuple[list[int], ThinkingParser, int]:
        """The prompt's tokens, a parser for what follows, and how many tokens later prompts of the chat will share."""
        given = [x for x in (request.messages, request.prompt, request.tokens) if x is not None]
        if len(given) != 1:
            raise EngineError("bad_request", "A request needs messages, a prompt or tokens: exactly one of them.")
        if request.tokens is not None:
            wrong = next((t for t in request.tokens if not 0 <= t < self._vocab.size), None)
            if wrong is not None:
                raise EngineError(
                    "bad_request", f"Token {wrong} is not in the vocabulary of {self._vocab.size} tokens."
                )
            return list(request.tokens), PlainParser(), self._stable(request, "", list(request.tokens))
        self._check_size(request)
        if request.prompt is not None:
            tokens = self._vocab.prompt_tokens(request.prompt)
            return tokens, PlainParser(), self._stable(request, "", tokens)
        text = self._template.prompt(request)
        tokens = self._vocab.prompt_tokens(text)
        return tokens, parser_for(self._template.source, text), self._stable(request, text, tokens)

    def _check_size(self, request: GenerateRequest) -> None:
        """Refuses text that can't fit whatever it holds, before tokenising it takes seconds (or llama.cpp's stack)."""
        size = len(request.prompt or "") + sum(len(m.content) + len(m.thinking) for m in request.messages or ())
        if size > MAX_CHARACTERS_PER_TOKEN * self.context.seq_ctx:
            raise EngineError(
                "prompt_too_long",
                f"The prompt has {size} characters, far more than {self.context.seq_ctx} tokens of context can hold",
                "shorten it or load the model with a larger context.",
            )

    def _stable(self, request: GenerateRequest, text: str, tokens: list[int]) -> int:
        """Recurrent models can't go back to any point, so the state is saved where the next prompt will part from this
        one: after the messages, before what opens the answer (which may hold a thinking tag that history drops); at the
        last token but one where there is no such place."""
        if not self.context.recurrent or request.session is None:
            return 0
        head = self._template.stable_text(request)
        if not head or not text.startswith(head) or head == text:
            return len(tokens) - 1
        stable = self._vocab.prompt_tokens(head)
        n = next((i for i, (a, b) in enumerate(zip(stable, tokens, strict=False)) if a != b), len(stable))
        return n if 0 < n < len(tokens) else 0

    def count_tokens(self, request: GenerateRequest) -> int:
        """Tokens of the request's prompt after the chat template; raises `EngineError`."""
        return len(self._prompt(request)[0])

    # -- answers -------------------------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> None:
        """Queues a request. Raises `EngineError` ``bad_request``, ``bad_template``, ``prompt_too_long``, and
        ``io_error`` where the model's files were changed."""
        self._parts.check_files()
        tokens, parser, stable = self._prompt(request)
        limit = self.context.seq_ctx
        if self.info.n_ctx_train:
            limit = min(limit, self.info.n_ctx_train)
        if not tokens:
            raise EngineError("bad_request", "The prompt is empty.")
        if len(tokens) >= limit:
            raise EngineError(
                "prompt_too_long",
                f"The prompt has {len(tokens)} tokens, but the context holds {limit}",
                "shorten it, start a new chat, or load the model with a larger context.",
            )
        self._scheduler.submit(
            Answer(
                request, tokens, vocab=self._vocab, parser=parser, n_ctx=limit, stable=stable, counters=self._counted()
            )
        )

    def cancel(self, request_id: str) -> None:
        """Stops a request within one layer; thread-safe."""
        self._scheduler.cancel(request_id)

    def step(self) -> list[Event]:
        """Advances every active request by one batch."""
        return self._scheduler.step()

    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self._scheduler.busy

    # -- figures -------------------------------------------------------------------------------------------------------

    def _counted(self) -> dict[str, float]:
        c = self._parts.counters()
        named = {
            "hits": c.expert_hits, "misses": c.expert_misses, "read_bytes": c.read_bytes, "stall_s": c.stall_s,
        }  # fmt: skip
        return {k: float(v) for k, v in named.items() if v is not None}

    def telemetry(self) -> Telemetry:
        """Counters now; thread-safe."""
        c, s = self._parts.counters(), self._scheduler
        return Telemetry(
            t=time.monotonic(),
            prefill_tokens=s.prefill_tokens,
            decode_tokens=s.decode_tokens,
            prefill_s=s.prefill_s,
            decode_s=s.decode_s,
            stall_s=c.stall_s,
            hook_s=c.hook_s,
            expert_hits=c.expert_hits,
            expert_misses=c.expert_misses,
            read_bytes=c.read_bytes,
            evictions=c.evictions,
            resident_bytes=c.resident_bytes,
            budget_bytes=c.budget_bytes,
            ctx_used=s.book.used,
            n_active=len(s.active),
            n_waiting=len(s.waiting),
            reuse_bytes_hist=c.reuse_bytes_hist,
            next_token_reuse=c.next_token_reuse,
            layer_pace=c.layer_pace,
        )

    def expert_map(self) -> ExpertMap | None:
        """Per-expert state; None where there are no experts."""
        return self._parts.expert_map()

    def bench(self, request: BenchRequest, progress: Callable[[int, int], bool]) -> BenchResult:
        """Runs the benchmark (see `bench.run_bench`); every session's KV cache is dropped for it."""
        if self._scheduler.busy:
            raise EngineError("bad_request", "A benchmark can't run while answers are being made.")
        self._scheduler.close()
        try:
            return run_bench(self.context, self.info, self._parts, request, progress)
        finally:
            self._scheduler.close()

    def forget(self) -> None:
        """Drops every session's KV cache, and every request."""
        self._scheduler.close()

    # -- states on disk ------------------------------------------------------------------------------------------------

    def save_state(self, session: str, path: str) -> int:
        """Writes a session's tokens and KV cache to a file; returns its bytes, 0 where the session holds nothing."""
        sequence = self._scheduler.book.of_session(session)
        return save_session(self.context, self._identity, sequence, Path(path))

    def restore_state(self, session: str, path: str) -> int:
        """Restores a session; returns its tokens, 0 where the file doesn't fit this model or there is no room."""
        return restore_session(self.context, self._identity, self._scheduler.book, session, Path(path))

    def close(self) -> None:
        """Frees everything; a second call does nothing."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._renderer.close()
        self._scheduler.close()
        self.context.close()
        self._weights.close()
